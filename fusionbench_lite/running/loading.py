"""The suite of a plan, loaded once per process."""

from __future__ import annotations

import dataclasses

from fusionbench_lite.base.devices import device_of
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.evaluation.suite import Suite
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources import planned
from fusionbench_lite.suites import Wanted

_latest: dict[Wanted, Suite] = {}


def load(plan: Plan, progress: Progress) -> Suite:
    """Return the suite of a plan, building what is missing on first use; the latest suite is kept.

    Where experts stay and how many examples run at once is decided here, once, and said before anything is loaded.
    """
    place, chunk = planned.decided(plan, device_of(plan.wanted.device))
    if plan.wanted not in _latest:
        _latest.clear()
        _latest[plan.wanted] = plan.kind.load(plan.wanted, progress)
    return dataclasses.replace(_latest[plan.wanted], place=place, chunk=chunk)
