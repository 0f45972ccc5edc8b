"""Tables of the measurements at full size, and of plans where nothing was measured."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.full_size_images import Rates
from benchmarks.full_size_measure import Figures, Job
from benchmarks.full_size_passes import Pass
from benchmarks.full_size_problem import classes, encoder
from benchmarks.report import markdown_table
from fusionbench_lite.errors import InputError
from fusionbench_lite.resources import Estimate, Inputs, suggest
from fusionbench_lite.resources.planned import USABLE

GIB, MIB = 1 << 30, 1 << 20
MEMORY_HEAD = (
    "model", "tasks", "images of a task", "method", "constants on", "peak [GiB]", "planned [GiB]", "planned / peak",
)
METHODS_HEAD = (
    "method", "constants on", "images at once", "set-up [s]", "step [s]", "adapted [images/s]", "frozen features [images/s]",
    "evaluated [images/s]", "peak [GiB]", "planned [GiB]", "planned / peak", "TFLOP a step", "TFLOP/s",
)
PASSES_HEAD = ("precision", "images at once", "evaluated [images/s]", "encoder alone [images/s]", "TFLOP/s", "peak [MiB]")
IMAGES_HEAD = ("JPEG files", "decoded and written [images/s]", "read first [images/s]", "read again [images/s]")
EXPLANATION = (
    "set-up: from the experts to the first step, decompositions included. step: the median after two more, with the time in "
    "which its images are brought to the device. TFLOP a step: the plan's; TFLOP/s: over the time of a step. frozen features: "
    "of networks that do not change, computed once per image before the steps; such a method's evaluation reads them, too. "
    "evaluated: the adapted model. peak: the most beyond the start, of all phases; planned: the same by the plan made before. "
    "Weights and images are drawn, experts tensor by tensor on the device: reading files is in no figure."
)
PASSES_EXPLANATION = (
    "evaluated: from bytes in memory to predictions. encoder alone: on inputs that are on the device; TFLOP/s: of that. peak: "
    "beyond the weights."
)
PLANNED = (
    "Planned, not measured: by `resources.suggest`, from shapes alone. A GPU of n GB is taken as n GiB, of which {usable:.0%} "
    "are planned with, beside {host} GiB of memory; {batch} images a task, {precision}, packed layout. Entries: where constants "
    "are kept, images at once, peak on the GPU / in the machine's memory in GiB."
)
PLANS = (("vit_b32", 8), ("vit_l14", 20))
GPUS = (24, 40, 80, 141)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A method's plan and its figures, or in one line why there are none."""

    job: Job
    planned: Estimate | None
    figures: Figures | None
    failed: str = ""


@dataclasses.dataclass
class Results:
    """What has been measured so far."""

    machine: str
    setting: str
    flops: int
    methods: list[Measured] = dataclasses.field(default_factory=list)
    passes: list[Pass] = dataclasses.field(default_factory=list)
    images: list[Rates] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)


def markdown(results: Results) -> str:
    """Return the tables."""
    parts = [f"{results.machine}\n\n{results.setting}"]
    if results.methods:
        parts += [EXPLANATION, _table(METHODS_HEAD, [_method(entry) for entry in results.methods])]
    if results.passes:
        parts += [PASSES_EXPLANATION, _table(PASSES_HEAD, [_pass(entry, results.flops) for entry in results.passes])]
    if results.images:
        parts += [_table(IMAGES_HEAD, [_images(entry) for entry in results.images])]
    return "\n\n".join([*parts, *results.failed]) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """Return every figure for a program, the planned peaks of all phases beside the measured ones."""
    methods = []
    for entry in results.methods:
        found = {"job": {**dataclasses.asdict(entry.job), "scratch": str(entry.job.scratch)}, "failed": entry.failed}
        if entry.planned is not None:
            planned, where = entry.planned, entry.planned.inputs.device
            phases = ("load", "build", "merge", "step", "evaluate")
            found["planned"] = {phase: planned.peak("cpu" if where == "cpu" else "device", phase) for phase in phases}
            found["planned_flops"] = dataclasses.asdict(planned.flops)
        if entry.figures is not None:
            found["figures"] = dataclasses.asdict(entry.figures)
        methods.append(found)
    return {
        "machine": results.machine, "setting": results.setting, "methods": methods, "failed": results.failed,
        "passes": [dataclasses.asdict(entry) for entry in results.passes],
        "images": [dataclasses.asdict(entry) for entry in results.images],
    }


def memory(found: Sequence[dict[str, Any]]) -> str:
    """Return the measured and planned peaks of results that `as_json` gave: unlike times, they hold on a busy machine."""
    rows = []
    for entry in (entry for results in found for entry in results["methods"] if "figures" in entry):
        job, peaks = entry["job"], entry["figures"]["peaks"]
        peak, planned = max(peaks.values()), max(entry["planned"].values())
        rows.append((
            job["model"], str(job["tasks"]), str(job["batch_size"]), job["method"], job["place"], f"{peak / GIB:.2f}",
            f"{planned / GIB:.2f}", f"{planned / peak:.2f}",
        ))
    return "\n\n".join([*dict.fromkeys(results["machine"] for results in found), _table(MEMORY_HEAD, rows)])


def planned_peak(planned: Estimate) -> int:
    """Return the planned bytes of the memory that is measured."""
    return planned.peak("cpu" if planned.inputs.device == "cpu" else "device")


def _method(entry: Measured) -> tuple[str, ...]:
    job, planned, figures = entry.job, entry.planned, entry.figures
    if planned is None or figures is None:
        return (job.method, *("",) * (len(METHODS_HEAD) - 2), entry.failed)
    step = statistics.median(map(sum, zip(figures.steps, figures.reading, strict=True)))
    peak, expected = max(figures.peaks.values()), planned_peak(planned)
    return (
        job.method, job.place, _at_once(job.chunk), f"{figures.setup:.3g}", f"{step:.3g}", _rate(figures.images / step),
        _rate(job.known / figures.known) if figures.known else "", _rate(job.images / figures.evaluation),
        f"{peak / GIB:.2f}", f"{expected / GIB:.2f}", f"{expected / peak:.2f}",
        f"{planned.flops.step / 1e12:.3g}", f"{planned.flops.step / step / 1e12:.3g}",
    )


def _pass(entry: Pass, flops: int) -> tuple[str, ...]:
    return (
        entry.precision, str(entry.size), _rate(entry.evaluated), _rate(entry.encoded),
        f"{entry.encoded * flops / 1e12:.3g}", f"{entry.peak / MIB:.0f}",
    )


def _images(entry: Rates) -> tuple[str, ...]:
    each = entry.nbytes / entry.count / 1000
    return (f"{entry.count} of {each:.0f} kB", _rate(entry.written), _rate(entry.first), _rate(entry.again))


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _at_once(chunk: int | None) -> str:
    return "all" if chunk is None else str(chunk)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(markdown_table(head, rows))


def plans(methods: Sequence[str], host: int, batch: int, precision: str) -> str:
    """Return where runs fit on GPUs of four sizes, as Markdown; nothing is measured, and torch needs no GPU."""
    lines = [PLANNED.format(usable=USABLE, host=host, batch=batch, precision=precision)]
    for model, tasks in PLANS:
        own = encoder(model, "packed")
        rows = [
            (method, *_row(Inputs(
                encoder=own, method=method, tasks=tasks, batch_size=batch, precision=precision, classes=classes(tasks), threads=1
            ), host)) for method in methods
        ]  # fmt: skip
        head = ("method", "TFLOP a step", *(f"{size} GB" for size in GPUS))
        lines += [f"**{model}, {tasks} tasks, planned**", _table(head, rows)]
    return "\n\n".join(lines) + "\n"


def _row(inputs: Inputs, host: int) -> list[str]:
    from fusionbench_lite import registry

    values = dict(registry.get(inputs.method, learning=True).defaults)
    inputs = dataclasses.replace(inputs, values=values)
    cells, flops = [], ""
    for size in GPUS:
        try:
            found = suggest(inputs, int(USABLE * size * GIB), int(USABLE * host * GIB))
        except InputError:
            cells.append("does not fit")
            continue
        flops = f"{found.estimate.flops.step / 1e12:.3g}"
        peaks = " / ".join(f"{found.estimate.peak(where) / GIB:.1f}" for where in ("device", "cpu"))
        cells.append(f"{found.place}, {_at_once(found.chunk)}, {peaks}")
    return [flops, *cells]
