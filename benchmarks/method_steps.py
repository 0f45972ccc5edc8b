"""Seconds and peak memory of a step of every adaptive method, built by the package itself from random experts.

Where a method has stages, each is measured. Features that frozen networks give are known before, as in a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import command
from benchmarks.measure import CLOCKS, LEAST_ROUNDS, MOST_ROUNDS, Memory, timed
from benchmarks.problem import CLASSES, NORM, SIZES, Size, encoder, head
from benchmarks.report import MIB, markdown_table
from benchmarks.variants import plain_step
from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure
from fusionbench_lite.weights.experts import Experts

STEPS = 90
STAGES: dict[str, dict[str, int]] = {
    "concrete_am": {"masks": 0, "coefficients": STEPS - 1}, "metamerging": {"coefficients": 0, "adapters": STEPS - 1},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "doge_am": {"delta_steps": 0, "matrices": "attn_mlp"}, "awd_am": {"awd_steps": 1}, "traditional_mtl": {"warmup": 0},
}
"""What shortens the preparation of a method without changing what its steps cost."""
DECOMPOSED = (
    "adarank_ta", "adarank_cart", "adarank_tsvm", "adarank_iso_cts", "adamerging_tsvm", "adamerging_cart", "adamerging_iso_cts",
)
"""Methods whose preparation decomposes every matrix of every expert, minutes for ViT-B/32: left out there. The adaptation_step
part measures AdaRank's steps there with components of its own; those of AdaMerging on other merges are AdaMerging's."""
COLUMNS = ("method", "step [s]", "plain [s]", "x plain", "peak [MiB]", "learned")
EXPLANATION = (
    "plain: forward and backward of one batch of every task, timed in turn with the step. peak: the most beyond what the method "
    "holds between steps. learned: numbers that the optimizers move. Surgery and ProbSurgery step on cached features."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A method, one of its stages, and where and how long it is measured."""

    model: str
    method: str
    stage: str
    step: int
    device: str
    threads: int
    seconds: float
    clock: str


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of the method's and of plain steps, peak bytes, and the number of learned numbers."""

    steps: tuple[float, ...]
    plain: tuple[float, ...]
    peak: int
    learned: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this part has."""
    parser.add_argument("--method", help="measure the steps of this adaptive method alone")


def run(given: argparse.Namespace, say: Callable[[str], None]) -> command.Outcome | None:
    """Measure the adaptive methods; none where a single merging method was asked for."""
    if getattr(given, "only", None):
        return None
    jobs = list(plan(given))
    results = {}
    for number, job in enumerate(jobs, 1):
        say(f"{number}/{len(jobs)} {job.model} {job.method} {job.stage}")
        results[job] = command.isolated(measure, job)
    machine = command.machine(given.device, given.threads, given.clock)
    measurements = [dataclasses.asdict(job) | dataclasses.asdict(timing) for job, timing in results.items()]
    return command.Outcome(
        lambda console: show(results, machine, console), markdown(results, machine),
        {"machine": machine, "measurements": measurements, "goals": []},
    )


def plan(given: argparse.Namespace) -> list[Job]:
    """Return what is measured."""
    methods = [id for id in registry.names() if registry.get(id, learning=True).adaptive]
    if given.method is not None:
        methods = [registry.get(given.method, learning=True).id]
    models = list(SIZES) if given.model == "all" else [given.model]
    return [
        Job(
            model=model, method=id, stage=stage, step=step, device=given.device, threads=given.threads, seconds=given.seconds / 2,
            clock=given.clock,
        )
        for model in models
        for id in methods
        if model == "vit_mini" or id not in DECOMPOSED
        for stage, step in STAGES.get(id, {"": 0}).items()
    ]


def measure(job: Job) -> Timing:
    """Measure in this process; call it in a fresh one, because the peak is the process's."""
    torch.set_num_threads(job.threads)
    size, device = SIZES[job.model], torch.device(job.device)
    procedure, batches, other = prepare(size, job.method, job.step, device)
    memory = Memory(device)

    def step() -> None:
        procedure.step(job.step, batches, lambda _, optimizer: optimizer.step())

    step()
    memory.start()
    held = memory.start()
    step()
    peak = memory.peak()
    steps: list[float] = []
    others: list[float] = []
    other()
    clock, end = CLOCKS[job.clock], time.perf_counter() + job.seconds
    while len(steps) < LEAST_ROUNDS or (time.perf_counter() < end and len(steps) < MOST_ROUNDS):
        others.append(timed(other, device, clock))
        steps.append(timed(step, device, clock))
    learned = sum(parameter.numel() for parameter in procedure.learnables.parameters() if parameter.requires_grad)
    return Timing(tuple(steps), tuple(others), peak - held, learned)


def prepare(
    size: Size, method: str, step: int, device: torch.device
) -> tuple[Procedure, list[Batch], Callable[[], object]]:
    """Return the procedure of a method on random experts, what the step reads, and a plain step on one of its batches."""
    torch.manual_seed(0)
    model = encoder(size).to(device).eval()
    pretrained = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    tasks = [f"task {number}" for number in range(size.tasks)]
    experts: Mapping[str, Mapping[str, Tensor]] = {
        task: {name: tensor + NORM * torch.randn_like(tensor) for name, tensor in pretrained.items()} for task in tasks
    }
    heads = {task: head(torch.randn(CLASSES, size.output, device=device)) for task in tasks}
    inputs = {task: torch.randn((size.images, 3, size.image, size.image), device=device) for task in tasks}
    entry = registry.get(method, learning=True)
    learner = entry.function(Experts(pretrained, experts), entry.configure(**SETTINGS.get(method, {})))
    procedure: Procedure = learner(Context(model, heads, STEPS, example=inputs[tasks[0]]))
    procedure.optimizers()

    def batch() -> Batch:
        with torch.no_grad():
            known = {task: procedure.precomputed(task, tensor) for task, tensor in inputs.items()}
        labels = torch.zeros(size.images, dtype=torch.long, device=device) if procedure.reads_labels else None
        return {task: Examples(tensor, known[task], labels) for task, tensor in inputs.items()}

    return procedure, [batch() for _ in procedure.draws(step)], plain_step(model, heads, inputs)


def rows(results: Mapping[Job, Timing], model: str) -> list[tuple[str, ...]]:
    """Return one row of text per method and stage."""
    table = []
    for job, timing in results.items():
        if job.model == model:
            ratio = statistics.median(step / plain for step, plain in zip(timing.steps, timing.plain, strict=True))
            table.append((
                job.method + (f", {job.stage}" if job.stage else ""), f"{statistics.median(timing.steps):.3g}",
                f"{statistics.median(timing.plain):.3g}", f"{ratio:.2f}", f"{timing.peak / MIB:.0f}", f"{timing.learned:,}",
            ))
    return table


def show(results: Mapping[Job, Timing], machine: str, console: Console) -> None:
    """Print a table per model."""
    console.print(machine)
    for model in dict.fromkeys(job.model for job in results):
        table = Table(*COLUMNS, title=f"{model}, one step of every adaptive method")
        for row in rows(results, model):
            table.add_row(*row)
        console.print(table)
    console.print(EXPLANATION)


def markdown(results: Mapping[Job, Timing], machine: str) -> str:
    """Return the tables as Markdown."""
    lines = [machine, "", EXPLANATION, ""]
    for model in dict.fromkeys(job.model for job in results):
        size = SIZES[model]
        lines += [f"**{model}**, {size.tasks} tasks, {size.images} images each", ""]
        lines += [*markdown_table(COLUMNS, rows(results, model)), ""]
    return "\n".join(lines)
