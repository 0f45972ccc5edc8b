"""The audit of the published numbers: every average and every cross-check computed again from the numbers alone."""

from __future__ import annotations

from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.audit.running import by_table, findings

__all__ = ["Finding", "by_table", "findings"]
