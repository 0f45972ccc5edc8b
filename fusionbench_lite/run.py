"""One run, from top to bottom: load, merge, adapt, evaluate, record."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionbench_lite import collect, recording, registry
from fusionbench_lite.adaptation.streams import Stream
from fusionbench_lite.data import normalise
from fusionbench_lite.errors import InputError, MergeWarning
from fusionbench_lite.evaluation.evaluator import Evaluation, TaskResult
from fusionbench_lite.methods.api import merge
from fusionbench_lite.paths import cache_dir, locked
from fusionbench_lite.plan import Plan
from fusionbench_lite.progress import Progress
from fusionbench_lite.recording import Outcome, Selection
from fusionbench_lite.suite import Suite, load
from fusionbench_lite.tables import records
from fusionbench_lite.tables.records import Record
from fusionbench_lite.weights.decompositions import cached_in

log = logging.getLogger(__name__)


class Clock:
    """Seconds spent in each stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to the stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def total(self) -> dict[str, float]:
        """Return the seconds of every stage and their sum."""
        return {**self.seconds, "total": sum(self.seconds.values())}


def main(plan: Plan) -> None:
    """Run the plan, or find its record, and print its table."""
    with Progress() as progress:
        record, fresh = execute(plan, progress)
    if record is None:
        return
    from rich.console import Console

    from fusionbench_lite.tables import frame, terminal

    console = Console()
    terminal.print_table(frame.from_records([record], plan.select, title=f"{plan.model}, tasks={plan.tasks.label}"), console)
    where = "recorded in" if fresh else "found in"
    console.print(f"{where} {record.path}", style="dim", highlight=False, soft_wrap=True)


def execute(plan: Plan, progress: Progress) -> tuple[Record | None, bool]:
    """Return the record of the plan and whether it was made now.

    A record that exists is reused unless `overwrite` is set. Two processes with the same plan take turns, so the
    second finds the first one's record. Under a launcher with several processes only the first one returns a record.
    """
    clock = Clock()
    with clock.stage("load"):
        suite = _with_chosen_experts(load(plan, progress), plan.checkpoints["experts"])
    key = records.key(recording.identity(plan, suite))
    if not _is_first_process():
        _compute(plan, suite, key, clock, progress)
        return None, False
    with locked(_partial(plan, key).with_suffix(".lock")):
        found = None if plan.overwrite else records.find(plan.results_dir, key)
        if found is None:
            outcome = _compute(plan, suite, key, clock, progress)
            content = recording.result(plan, suite, key, outcome, clock.total())
            recording.write(plan, content, outcome)
            shutil.rmtree(_partial(plan, key), ignore_errors=True)
    record = found or records.find(plan.results_dir, key)
    if record is None:
        raise InputError(f"the record {key} vanished from {plan.results_dir}: run the command again")
    return record, found is None


def _with_chosen_experts(suite: Suite, chosen: list[str] | None) -> Suite:
    return suite if chosen is None else dataclasses.replace(suite, experts={task: suite.experts[task] for task in chosen})


def _partial(plan: Plan, key: str) -> Path:
    """Return where an unfinished adaptation keeps its checkpoint."""
    return plan.results_dir / "partial" / key


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _compute(plan: Plan, suite: Suite, key: str, clock: Clock, progress: Progress) -> Outcome:
    with cached_in(cache_dir(plan.cache_dir) / "decompositions"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MergeWarning)
        if registry.get(plan.method).adaptive:
            outcome = _adapt(plan, suite, _partial(plan, key) / "last.ckpt", clock, progress)
        else:
            outcome = _merge(plan, suite, clock)
    return dataclasses.replace(outcome, warnings=tuple(_said(caught)))


def _said(caught: list[warnings.WarningMessage]) -> Iterator[str]:
    """Yield what a method warned of, after printing it; other warnings go where they would have gone."""
    for warning in caught:
        if issubclass(warning.category, MergeWarning):
            log.warning("%s", warning.message)
            yield str(warning.message)
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def _merge(plan: Plan, suite: Suite, clock: Clock) -> Outcome:
    with clock.stage("merge"):
        merged = merge(plan.method, suite.pretrained, suite.experts, **plan.values, **collect.inputs(plan, suite))
    with clock.stage("evaluate"):
        evaluation: Evaluation
        if merged.per_task:
            evaluation = {
                task: suite.evaluator.task(task, suite.encoder(merged.state_dict(task))) for task in plan.tasks.names
            }
        else:
            evaluation = suite.evaluator.evaluate(suite.encoder(merged.state_dict()))
    return Outcome({"last": Selection(0, False, evaluation)}, {}, merged.storage)


def _adapt(plan: Plan, suite: Suite, checkpoint: Path, clock: Clock, progress: Progress) -> Outcome:
    from fusionbench_lite.adaptation.engine.evaluations import Evaluations
    from fusionbench_lite.adaptation.engine.fit import Settings, fit
    from fusionbench_lite.adaptation.engine.module import own_tasks
    from fusionbench_lite.weights.experts import Experts

    method, steps = registry.get(plan.method), plan.setting("steps")
    with clock.stage("merge"):
        experts = Experts(suite.pretrained, suite.experts)
        experts.check_unread()
        parametrisation = method.function(experts, method.configure(**plan.values))
    streams = {task: _stream(plan, task, len(suite.data[task].test_labels)) for task in plan.tasks.names}

    def batch_of(step: int) -> dict[str, Tensor]:
        progress(f"adapting {plan.method}", step + 1, steps)
        return {task: _images(suite, task, streams[task], step) for task in own_tasks(streams)}

    def predict(encode: Any, tasks: Any) -> dict[str, tuple[Any, Any]]:
        evaluation = suite.evaluator.evaluate(encode, tasks)
        return {task: (outcome.predictions, outcome.correct) for task, outcome in evaluation.items()}

    evaluations = Evaluations(predict, plan.setting("eval_every"), steps)
    settings = Settings(
        checkpoint=checkpoint, checkpoint_every=plan.trainer["checkpoint_every"], devices=plan.trainer["devices"],
        accelerator=suite.device.type, precision=plan.config_precision, chunk=plan.trainer["chunk"],
        loggers=_loggers(plan),
    )
    module = fit(parametrisation, suite.model, suite.evaluator.heads, batch_of, steps, settings, [evaluations])
    clock.seconds |= {"adapt": module.history.seconds, "evaluate": evaluations.seconds}
    selections = {
        name: Selection(kept["step"], name == "best_test", _results(kept)) for name, kept in evaluations.kept.items()
    }
    return Outcome(selections, recording.adaptation_files(module, evaluations))


def _stream(plan: Plan, task: str, size: int) -> Stream:
    return Stream(
        plan.setting("stream"), size, plan.setting("batch_size"), plan.setting("batches"), plan.seed, task
    )


def _images(suite: Suite, task: str, stream: Stream, step: int) -> Tensor:
    """Return the unlabelled test images of one step, normalised, on the device."""
    return normalise(torch.from_numpy(suite.data[task].test_images[stream.indices(step)]).to(suite.device))


def _results(kept: Mapping[str, Any]) -> Evaluation:
    return {
        task: TaskResult(kept["predictions"][task].numpy(), kept["correct"][task].numpy())
        for task in kept["predictions"]
    }


def _loggers(plan: Plan) -> list[Any]:
    if "_target_" not in plan.logger:
        return []
    from hydra.utils import instantiate

    return [instantiate(plan.logger)]
