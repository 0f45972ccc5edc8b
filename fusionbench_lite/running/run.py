"""One run, from top to bottom: load, merge, adapt, evaluate, record."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from fusionbench_lite import registry
from fusionbench_lite.base import preemption
from fusionbench_lite.base.processes import agreed, connect, gathered, is_connected, is_first, own_tasks
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.errors import InputError, MergeWarning
from fusionbench_lite.evaluation.evaluator import Evaluation
from fusionbench_lite.evaluation.suite import Suite
from fusionbench_lite.methods.api import merge
from fusionbench_lite.paths import locked
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.running import adapting, method_inputs, recording
from fusionbench_lite.running.clock import Clock
from fusionbench_lite.running.loading import load
from fusionbench_lite.running.recording import Outcome, Selection
from fusionbench_lite.running.tracking import Place, Tracker, tracked
from fusionbench_lite.tables import records
from fusionbench_lite.tables.records import Record
from fusionbench_lite.weights.decompositions import cached_in
from fusionbench_lite.weights.stopwatch import timing

log = logging.getLogger(__name__)


def main(plan: Plan) -> None:
    """Run the plan, or find its record, and print its table."""
    with Progress() as progress:
        record, fresh = execute(plan, progress)
    if record is None or not is_first():
        return
    from rich.console import Console

    from fusionbench_lite.tables import frame, terminal, titles

    console = Console(markup=False, emoji=False)  # a path in brackets is no style
    terminal.print_table(frame.from_records([record], plan.select, title=titles.title(record)), console)
    where = "recorded in" if fresh else "found in"
    console.print(f"{where} {record.path}", style="dim", highlight=False, soft_wrap=True)


def execute(plan: Plan, progress: Progress, place: Place | None = None) -> tuple[Record | None, bool]:
    """Return the record of the plan and whether it was made now; `place` names the tracked run of one that is made.

    A record that exists is reused unless `overwrite` is set. Two processes with the same plan take turns, so the
    second finds the first one's record. Where a launcher started several processes, the first one decides and writes; the
    others return the record too, None where they do not see the first one's results.
    """
    clock, place = Clock(), place or Place()
    with clock.stage("load"):
        suite = with_chosen_experts(load(plan, progress), plan.experts)
    base = Base(plan, suite, progress, place)
    key = agreed(records.key(recording.identity(plan, suite, base.key)))
    with locked(_partial(plan, key).with_suffix(".lock")) if is_first() else contextlib.nullcontext():
        recorded = records.find(plan.results_dir, key) if _may_reuse(plan) else None
        if recorded is None and not plan.overwrite:
            records.check_replaceable(plan.results_dir, key)
        if missing := agreed(recorded is None):
            with tracked(plan, key, place) as tracker:
                outcome = _compute(plan, suite, base, key, clock, progress, tracker)
                if is_first():
                    result = recording.result(plan, suite, key, outcome, clock)
                    tracker.result(result)
                    with preemption.held():
                        recording.write(plan, result, outcome)
                    shutil.rmtree(_partial(plan, key), ignore_errors=True)
    agreed(True)  # the others wait until the record is there
    record = records.find(plan.results_dir, key) if missing else recorded or records.find(plan.results_dir, key)
    if record is None and is_first():
        raise InputError(f"the record {key} vanished from {plan.results_dir}: run the command again")
    return record, missing


def _may_reuse(plan: Plan) -> bool:
    """Say whether a record that is there is taken for this run.

    Lightning starts processes in the middle of the first adaptation. Until they come to it they are not connected, and take
    what the first process has behind it: all records that are there, even where `overwrite` had the first one make them anew.
    """
    return not plan.overwrite or not (is_first() or is_connected() or registry.get(plan.method).adaptive)


class Base:
    """The merged model that the adapters of a method sit on, where its hyperparameter `base` names one.

    A base that adapts is a run of its own, with a record of its own; `key` is that record's, None otherwise.
    """

    def __init__(self, plan: Plan, suite: Suite, progress: Progress, place: Place) -> None:
        self.plan, self.suite = planning.base_of(plan), suite
        self.record: Record | None = None
        if self.plan is not None and registry.get(self.plan.method).adaptive:
            self.record, _ = execute(self.plan, progress, place.of_base(self.plan.method))
            if self.record is None:
                raise InputError(
                    f"this process does not see the record of the base {self.plan.method!r} in {self.plan.results_dir}: "
                    "give all processes of a run one results_dir"
                )
        self.rule = plan.setting("base_select") if self.plan is not None else "last"

    @property
    def key(self) -> str | None:
        """What of the base enters the key of the run, beyond its name."""
        if self.plan is None:
            return None
        return self.record.key if self.record else records.key({"values": self.plan.values})

    def weights(self) -> dict[str, Tensor] | None:
        """Return the merged weights, None where the method has no base."""
        if self.plan is None:
            return None
        if self.record is not None:
            step = self.record.selection(self.rule)[1]["step"]
            return adapting.restore(self.plan, self.suite, self.record.path, self.rule, step)
        inputs = method_inputs.inputs(self.plan, self.suite)
        return merge(self.plan.method, self.suite.pretrained, self.suite.experts, **self.plan.values, **inputs).state_dict()


def with_chosen_experts(suite: Suite, chosen: Sequence[str] | None) -> Suite:
    """Return the suite with some of its experts, all for None."""
    return suite if chosen is None else dataclasses.replace(suite, experts={task: suite.experts[task] for task in chosen})


def _partial(plan: Plan, key: str) -> Path:
    """Return where an unfinished adaptation keeps its checkpoint."""
    return plan.results_dir / "partial" / key


def _compute(
    plan: Plan, suite: Suite, base: Base, key: str, clock: Clock, progress: Progress, tracker: Tracker
) -> Outcome:
    with cached_in(plan.wanted.cache / "decompositions"), timing() as svd, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MergeWarning)
        if registry.get(plan.method).adaptive:
            checkpoint = _partial(plan, key) / "last.ckpt"
            outcome = adapting.adapt(plan, suite, checkpoint, clock, progress, base.weights(), tracker)
        else:
            outcome = _merge(plan, suite, clock)
    if svd.seconds:
        clock.parts["svd"] = svd.seconds
    return dataclasses.replace(outcome, warnings=tuple(_said(caught)))


def _said(caught: list[warnings.WarningMessage]) -> Iterator[str]:
    """Yield what a method warned of, after printing it; other warnings go where they would have gone."""
    said: set[str] = set()
    for warning in caught:
        if issubclass(warning.category, MergeWarning):
            if str(warning.message) not in said:  # a base that was merged before the method warned of the same experts
                log.warning("%s", warning.message)
                yield str(warning.message)
            said.add(str(warning.message))
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def _merge(plan: Plan, suite: Suite, clock: Clock) -> Outcome:
    with clock.measured("merge", suite.device):
        merged = merge(plan.method, suite.pretrained, suite.experts, **plan.values, **method_inputs.inputs(plan, suite))
    connect()
    with clock.stage("evaluate"):
        evaluation: Evaluation
        if merged.per_task:
            evaluation = gathered({
                task: suite.judge(task, suite.encoder(merged.state_dict(task))) for task in own_tasks(plan.tasks)
            })
        else:
            evaluation = suite.evaluate(suite.encoder(merged.state_dict()))
    return Outcome({"last": Selection(0, False, evaluation)}, {}, merged.storage)
