"""The audit of the published numbers: every average and cross-check recomputed from the numbers themselves.

    findings.py      what a check found, and whether a flag of results/published says so already
    averages.py      averages of rows, AdaRank's Table 1 beside its Tables 11 to 16, gains
    elsewhere.py     the same quantity printed elsewhere with another value
    rows.py          copied cells, permuted rows, merged models above their experts
    examples.py      accuracies that no number of correct examples gives; sizes of data sets
"""

from fusionbench_lite.tables.audit.findings import Finding, audit, covered

__all__ = ["Finding", "audit", "covered"]
