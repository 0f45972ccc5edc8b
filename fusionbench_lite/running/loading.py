"""The suite of a plan, loaded once per process."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from fusionbench_lite.base import at_work
from fusionbench_lite.base.devices import device_of
from fusionbench_lite.base.processes import is_first
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.evaluation.suite import Suite
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources import planned, work
from fusionbench_lite.suites import Wanted

log = logging.getLogger(__name__)

_latest: dict[Wanted, Suite] = {}


def load(plan: Plan, progress: Progress) -> Suite:
    """Return the suite of a plan, building what is missing on first use; the latest suite is kept.

    Where experts stay and how many examples run at once is decided here, once, and said before anything is loaded; so is that a run
    takes longer than a day.
    """
    at_work.register(plan.wanted.cache)
    say_if_long([plan], f"{plan.method} on {plan.model} with tasks={plan.task_set}")
    place, chunk = planned.decided(plan, device_of(plan.wanted.device))
    if plan.wanted not in _latest:
        _latest.clear()
        _latest[plan.wanted] = plan.kind.load(plan.wanted, progress)
    return dataclasses.replace(_latest[plan.wanted], place=place, chunk=chunk)


def say_if_long(plans: Sequence[Plan], name: str) -> None:
    """Say in one line that runs take longer than a day on their device, where they do."""
    if plans and is_first() and (line := work.warning(plans, plans[0].wanted.cache, name)) is not None:
        log.warning("%s", line)
