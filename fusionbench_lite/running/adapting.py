"""The adaptive half of a run: which examples each step reads, the course of the adaptation, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Draw, Examples, Procedure
from fusionbench_lite.adaptation.streams import Stream, subset
from fusionbench_lite.base.processes import own_tasks
from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data import lengths_of
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.results import TaskResult
from fusionbench_lite.evaluation.selection import USES_TEST_LABELS
from fusionbench_lite.running import course
from fusionbench_lite.running.known import Known, known
from fusionbench_lite.running.recording import Outcome, Selection
from fusionbench_lite.weights import buffers
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.planning.plan import Plan
    from fusionbench_lite.running.clock import Clock
    from fusionbench_lite.running.tracking import Tracker

TRAJECTORY_POINTS = 100
"""Merging coefficients are kept at about so many steps of a run."""
Rows = NDArray[np.int64]


class Feed:
    """Examples of a suite as a procedure wants them; what frozen networks say about an example is computed once."""

    def __init__(self, plan: Plan, suite: Suite, procedure: Procedure) -> None:
        self.plan, self.suite, self.procedure = plan, suite, procedure
        self._known: dict[tuple[str, str], Known] = {}
        self._parts: dict[tuple[str, tuple[float, float]], Rows] = {}
        self._streams: dict[tuple[str, str], Stream] = {}
        self.held_out_rows = {task: self._held_out_rows(task) for task in plan.seen}
        self.pools = {task: self._pool(task) for task in plan.seen}

    def batches_of(self, step: int, tasks: Iterable[str]) -> list[Batch]:
        """Return the examples of the tasks for every draw of a step; a batch that no task has examples for is left out.

        Raises InputError where some tasks have examples for a batch and others have none: Adam would move what they learn by its
        momentum alone.
        """
        tasks = list(tasks)
        batches: list[Batch] = []
        for draw in self.procedure.draws(step):
            rows = {task: self._part(task, draw.part)[self._stream(task, draw).indices(draw.number)] for task in tasks}
            batches += [
                {task: self._examples(task, self.procedure.split, rows[task][cut]) for task in tasks} for cut in self._cuts(draw)
            ]
        return batches

    def _cuts(self, draw: Draw) -> list[slice]:
        """Return which of a draw's examples each batch of the step takes, the same in every process."""
        updates, size = self._updates(), draw.size or self.plan.setting("batch_size")
        if updates == 1:
            return [slice(None)]
        counts = {task: self._stream(task, draw).count(draw.number) for task in self.pools}
        filled = -(-max(counts.values()) // size)
        least = min(counts, key=counts.__getitem__)
        if counts[least] <= (filled - 1) * size:
            raise InputError(
                f"task {least!r} has {counts[least]} examples, and a step takes {filled} batches of {size}, the last of which "
                "is empty for it and not for others: set method.adaptation.batches=1"
            )
        return [slice(part * size, (part + 1) * size) for part in range(filled)]

    def predict(self, procedure: Procedure, tasks: Iterable[str]) -> dict[str, TaskResult]:
        """Return the results on all test examples of the tasks."""
        return {
            task: self.suite.evaluator.rows(
                task, lambda rows, task=task: procedure.encode(task, self._examples(task, "test", rows))  # type: ignore[misc]
            )
            for task in tasks
        }

    def held_out(self, tasks: Iterable[str]) -> Batch:
        """Return the held-out examples of the tasks: from the training split, and read by no step."""
        return {task: self._examples(task, "train", self.held_out_rows[task]) for task in tasks}

    def _updates(self) -> int:
        return self.plan.setting("batches") if self.procedure.updates_per_batch else 1

    def _stream(self, task: str, draw: Draw) -> Stream:
        kind, size = draw.kind or self.plan.setting("stream"), draw.size or self.plan.setting("batch_size")
        if (task, draw.role) not in self._streams:
            name, there = f"{task}/{draw.role}" if draw.role else task, len(self._part(task, draw.part))
            self._streams[task, draw.role] = Stream(
                kind=kind, size=there, batch_size=size, batches=self.plan.setting("batches"), seed=self.plan.seed, task=name,
            )
        return self._streams[task, draw.role]

    def _part(self, task: str, part: tuple[float, float]) -> Rows:
        """Return the rows that a role reads: from where to where in the pool, shuffled by a key of its own; at least one."""
        pool = self.pools[task]
        if part == (0.0, 1.0):
            return pool
        if (task, part) not in self._parts:
            first, last = (round(border * len(pool)) for border in part)
            first = min(first, len(pool) - 1)
            order = generator(self.plan.seed, task, "parts").permutation(len(pool))
            self._parts[task, part] = pool[np.sort(order[first : max(last, first + 1)])]
        return self._parts[task, part]

    def _held_out_rows(self, task: str) -> Rows:
        if not self.plan.setting("held_out"):
            return np.empty(0, dtype=np.int64)
        size = self.suite.size(task, "train")
        rows = subset(size, min(self.plan.setting("held_out"), size), self.plan.seed, task, "held_out")
        self.suite.decode_ahead(task, "train", rows)
        return rows

    def _pool(self, task: str) -> Rows:
        """Return the rows that steps read: a seeded part of the split, without what is held out."""
        size, rows = self.suite.size(task, self.procedure.split), None
        if self.procedure.split == "train":
            rows = np.setdiff1d(np.arange(size), self.held_out_rows[task])
            size = len(rows)
        wanted = max(1, int(self.plan.setting("fraction") * min(size, self.procedure.most or size)))
        chosen = np.arange(size) if wanted >= size else subset(size, wanted, self.plan.seed, task, "fraction")
        if rows is None:
            return chosen
        self.suite.decode_ahead(task, "train", rows[chosen])
        return rows[chosen]

    def _examples(self, task: str, split: str, rows: Rows) -> Examples:
        precomputed = self._look_up(task, split, rows)
        inputs = self.suite.inputs(task, split, rows) if self.procedure.reads_inputs or precomputed is None else None
        labels = self.suite.labels(task, split, rows) if self.procedure.reads_labels else None
        return Examples(inputs, precomputed, labels)

    def _look_up(self, task: str, split: str, rows: Rows) -> Tensor | None:
        """Return what the procedure knows of these examples; the first time, of all examples that a run may read."""
        if (task, split) not in self._known:
            probe = self._compute(task, split, rows[:1])
            if probe is None:
                return None
            wanted = np.arange(self.suite.size(task, split))
            if split == "train":
                read = [self.held_out_rows[task], *([self.pools[task]] if self.procedure.split == "train" else [])]
                wanted = np.unique(np.concatenate(read)) if len(read) > 1 else read[0]
            lengths = lengths_of(self.suite.tasks[task].inputs(split))
            if self.procedure.ragged and lengths is None:  # inputs of one length
                lengths = np.full(self.suite.size(task, split), probe.shape[1])
            computing = self.suite.evaluator.passes.run(
                lambda rows: self._compute(task, split, wanted[rows]), len(wanted), None if lengths is None else lengths[wanted]
            )
            places = lengths[wanted] if self.procedure.ragged and lengths is not None else None
            self._known[task, split] = known(wanted, probe, computing, places)
        return self._known[task, split](rows).to(self.suite.device)

    def _compute(self, task: str, split: str, rows: Rows) -> Tensor | None:
        # One precision, whether an evaluation or a step asks first: a resumed run has to find the same.
        device, bf16 = self.suite.device.type, self.suite.evaluator.bf16
        with torch.no_grad(), self.suite.evaluator.featuring(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            return self.procedure.precomputed(task, self.suite.inputs(task, split, rows))


def procedure_of(plan: Plan, suite: Suite, merged: Mapping[str, Tensor] | None = None) -> Procedure:
    """Return the procedure of a plan; `merged` are the weights that methods with adapters on a merged model start from."""
    from fusionbench_lite.adaptation.engine.placement import placing

    method = registry.get(plan.method)
    experts = Experts(suite.pretrained, suite.experts)
    if experts.changed and method.family != registry.REFERENCE:
        buffers.warn_kept(experts.changed)
    experts.check_unread()
    extra = {} if merged is None else {"merged": merged}
    example = suite.inputs(plan.seen[0], "test", np.arange(1))
    dropout = plan.seed if plan.setting("dropout") else None
    context = Context(suite.model, suite.heads, plan.setting("steps"), suite.chunk, example=example, dropout=dropout)
    with placing(suite.place, plan.wanted.cache / "scratch"):
        procedure: Procedure = method.function(experts, method.configure(**plan.values), **extra)(context)
    if dropout is not None and not procedure.drops:
        raise InputError(f"the steps of method {plan.method!r} know no dropout: leave method.adaptation.dropout out")
    return procedure


def adapt(
    plan: Plan, suite: Suite, checkpoint: Path, clock: Clock, progress: Progress, merged: Mapping[str, Tensor] | None,
    tracker: Tracker,
) -> Outcome:
    """Adapt as the plan says, tell the tracker of every step, and return what was found."""
    from fusionbench_lite.adaptation.engine.evaluations import Evaluations, Trajectory
    from fusionbench_lite.adaptation.engine.fit import FitSettings, fit
    from fusionbench_lite.running.tracked_steps import TrackedSteps

    steps = plan.setting("steps")
    with clock.stage("merge"):
        procedure = procedure_of(plan, suite, merged)
    if suite.evaluator.generates:
        _try(plan, suite, procedure)
    feed = Feed(plan, suite, procedure)

    def batches_of(step: int) -> Sequence[Batch]:
        progress(f"adapting {plan.method}", step + 1, steps)
        return feed.batches_of(step, own_tasks(plan.seen))

    evaluations = Evaluations(
        feed.predict, plan.setting("eval_every"), steps, feed.held_out if plan.setting("held_out") else None, plan.tasks
    )
    trajectory = Trajectory(max(1, steps // TRAJECTORY_POINTS))
    callbacks = [evaluations, trajectory, *([TrackedSteps(tracker, evaluations, trajectory)] if tracker.active else [])]
    settings = FitSettings(
        checkpoint=checkpoint, checkpoint_every=plan.trainer["checkpoint_every"], devices=plan.trainer["devices"],
        accelerator=suite.device.type, precision=plan.config_precision,
    )
    module = fit(procedure, batches_of, steps, settings, callbacks)
    clock.seconds |= {"adapt": module.history.seconds, "evaluate": evaluations.seconds}
    supervised = (procedure.reads_labels and procedure.split == "test") or _base_rule(plan) in USES_TEST_LABELS
    selections = {
        rule: Selection(step, supervised or rule in USES_TEST_LABELS, evaluations.results(step))
        for rule, step in evaluations.chosen.items()
    }
    return Outcome(
        selections, course.writers(module, evaluations, trajectory),
        evaluations=course.evaluations(evaluations),
    )


def _try(plan: Plan, suite: Suite, procedure: Procedure) -> None:
    """Have the evaluator refuse a method whose models it cannot judge, before steps are taken."""
    task = plan.seen[0]
    inputs = suite.inputs(task, "test", np.arange(1))
    procedure.refresh(0)
    with torch.no_grad():
        examples = Examples(inputs, procedure.precomputed(task, inputs))
    suite.evaluator.trial(lambda: procedure.encode(task, examples))


def restore(plan: Plan, suite: Suite, record: Path, rule: str, step: int) -> dict[str, Tensor]:
    """Return the merged weights of a recorded adaptation at the step that a selection rule picked."""
    procedure = procedure_of(plan, suite)
    take_back(procedure, record, rule, step)
    return procedure.merged()


def take_back(procedure: Procedure, record: Path, rule: str, step: int) -> None:
    """Put what a recorded adaptation had learned at a step that a selection rule picked into a procedure of the same plan.

    Raises InputError where the file holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stored = course.learned_file(record, rule)
    try:
        tensors = load_file(stored)
        learned = {name.removeprefix("state/"): tensor for name, tensor in tensors.items() if name.startswith("state/")}
        procedure.restore(learned, {name: tensor for name, tensor in tensors.items() if not name.startswith("state/")})
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise InputError(f"{stored} is not what this method learns ({str(error).splitlines()[0]}): run it again") from None
    procedure.refresh(step)


def _base_rule(plan: Plan) -> str | None:
    return plan.setting("base_select") if "base_select" in plan.settings else None
