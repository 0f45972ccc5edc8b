"""What a check of the audit finds: a number, what it should be, and why; and which flags say so already."""

from __future__ import annotations

import dataclasses

from fusionbench_lite.tables.published import Flag, Number, flags_of

EXPLAINS = frozenset({"mislabelled", "shifted_columns", "duplicate_row"})
"""Kinds of flags that explain whatever is wrong with a number: it belongs elsewhere."""
COVERS: dict[str, frozenset[str]] = {
    "average_mismatch": EXPLAINS | {"cross_paper_disagreement"},
    "size_mismatch": frozenset({"implausible", "cross_paper_disagreement"}),
    "impossible_fraction": frozenset(),
}
"""Kinds of flags that say the same of a number as a finding of another kind; of the other kinds those that explain it."""
WHOLE_ROW = "*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One number that does not add up. `other` is what it was compared with, as text, `source` where that stands; `likely` is the
    number that should stand there, as the paper would print it, None where nothing says so. `check` names the module that found
    it. `row`: it concerns all of the number's row."""

    check: str
    kind: str
    severity: str
    number: Number
    other: str
    reason: str
    likely: str | None = None
    source: str = ""
    row: bool = False

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The flags that say so already."""
        kinds = {self.kind} | COVERS.get(self.kind, EXPLAINS)
        return tuple(flag for flag in flags_of(self.number) if flag.kind in kinds)

    @property
    def origin(self) -> str:
        """Whether it was known: "given", "found" by these checks and entered since, or "new"."""
        origins = {flag.origin for flag in self.flags}
        return "given" if "given" in origins else "found" if origins else "new"

    def entry(self) -> dict[str, str]:
        """Return the line of flags.csv that says so."""
        place = dict(zip(("paper", "table", "setting", "model", "num_tasks", "method", "variant", "column", "metric"),
                         self.number.key, strict=True))  # fmt: skip
        if self.row:
            place["column"] = WHOLE_ROW
        if self.number.metric not in COUNTED:
            place["metric"] = WHOLE_ROW
        return {
            **place, "kind": self.kind, "severity": self.severity, "printed": "" if self.row else self.number.written,
            "recomputed_or_other": self.other, "likely": self.likely or "", "other_source": self.source, "origin": "found",
            "how": self.check, "note": self.reason,
        }  # fmt: skip


COUNTED = frozenset({"num_train", "num_validation", "num_test", "num_classes"})
"""Metrics that one column of one row can have side by side."""


def severity_of(difference: float) -> str:
    """Return how grave a difference in points is: from 1 high, from 0.3 medium."""
    return "high" if difference >= 0.9995 else "medium" if difference >= 0.2995 else "low"
