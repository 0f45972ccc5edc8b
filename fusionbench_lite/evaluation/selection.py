"""Which evaluation of an adaptation counts, decided from what was measured; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping

RULES = ("last", "best_test", "best_unsupervised")
USES_TEST_LABELS = frozenset({"best_test"})


def choose(
    rule: str, averages: Mapping[int, float | None], held_out: Mapping[int, float], *, higher: bool = True
) -> int | None:
    """Return the step whose evaluation a rule picks; None where the rule has nothing to go by.

    `averages` maps evaluated steps to the average over tasks on the test labels, None where it means nothing (units or
    directions differ); `higher` says whether higher is better. `held_out` maps steps to the adaptation loss on held-out
    unlabelled data. `last` takes the last step; `best_test` the best average, as AdaRank's code does, which looks at the test
    labels; `best_unsupervised` the lowest held-out loss. Of equals the first counts.
    """
    if not averages:
        return None
    if rule == "last":
        return max(averages)
    if rule == "best_test":
        scores = {step: value if higher else -value for step, value in averages.items() if value is not None}
        return max(sorted(scores), key=lambda step: scores[step]) if scores else None
    measured = {step: loss for step, loss in held_out.items() if step in averages}
    return min(sorted(measured), key=lambda step: measured[step]) if measured else None
