"""The settings that make a run fit, and a plan in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fusionbench_lite.errors import InputError
from fusionbench_lite.resources.estimates import PLACES, estimate
from fusionbench_lite.resources.plan import PHASES, Estimate, Inputs

GIB = 1 << 30

ENOUGH = 8
"""Images in a pass that keep a device busy."""


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The first place at which a run fits, and the largest chunk there; None is no limit."""

    place: str
    chunk: int | None
    estimate: Estimate


def suggest(
    inputs: Inputs, device_bytes: int, cpu_bytes: int, disk_bytes: int | None = None, *, places: tuple[str, ...] = PLACES
) -> Suggestion:
    """Return where constants go and how many images run at once so that a run fits into these memories.

    Places are tried in order, and at each the largest chunk: as given, else powers of two. A chunk below `ENOUGH` is taken
    where no place has room for more. Raises InputError in one line where nothing fits.
    """
    with_totals = dataclasses.replace(inputs, device_total=device_bytes, cpu_total=cpu_bytes)
    chunks = list(_chunks(inputs))
    large = [chunk for chunk in chunks if (chunk or _together(inputs)) >= ENOUGH]
    for some in (large, [chunk for chunk in chunks if chunk not in large]):
        for place in places:
            for chunk in some:
                fitting = estimate(dataclasses.replace(with_totals, place=place, chunk=chunk))
                if _fits(fitting, device_bytes, cpu_bytes, disk_bytes):
                    return Suggestion(place, chunk, fitting)
    raise InputError(_nothing_fits(with_totals, places, device_bytes, cpu_bytes, disk_bytes))


def _together(inputs: Inputs) -> int:
    """Return the images of one pass without chunks: in stages tasks run one after another."""
    if not inputs.entry.adaptive or not inputs.cost.stages:
        return inputs.images
    return max((inputs.together(stage) for stage in inputs.cost.stages if stage.runs), default=1)


def _chunks(inputs: Inputs) -> Iterator[int | None]:
    yield inputs.chunk
    together = _together(inputs)
    most = min(inputs.chunk or together, together)
    size = 1 << max(0, (most - 1).bit_length() - 1)
    while size >= 1 and most > 1:
        yield size
        size //= 2


def _fits(estimated: Estimate, device: int, cpu: int, disk: int | None) -> bool:
    if estimated.inputs.device == "cpu":
        device = cpu
    on_disk = disk is None or estimated.peak("disk") <= disk
    return estimated.peak("device") <= device and estimated.peak("cpu") <= cpu and on_disk


def _nothing_fits(inputs: Inputs, places: tuple[str, ...], device: int, cpu: int, disk: int | None) -> str:
    """Say what the most modest settings need, and with how many tasks they would fit."""

    def least(tasks: int) -> list[Estimate]:
        return [estimate(dataclasses.replace(inputs, place=place, chunk=1, tasks=tasks)) for place in places]

    best = min(least(inputs.tasks), key=lambda one: (one.peak("device") > device, one.peak("cpu"), one.peak("device")))
    have = {"cpu": cpu} if inputs.device == "cpu" else {"device": device, "cpu": cpu}
    have |= {} if disk is None else {"disk": disk}
    names = {"device": "GPU memory", "cpu": "memory", "disk": "disk"}
    needs = " and ".join(
        f"{_size(best.peak(where))} of {names[where]} against {_size(room)}"
        for where, room in have.items() if best.peak(where) > room
    )
    fewer = next(
        (tasks for tasks in range(inputs.tasks - 1, 0, -1) if any(_fits(one, device, cpu, disk) for one in least(tasks))), 0
    )
    would = f"{fewer} task{'s' if fewer > 1 else ''} would fit" if fewer else "a smaller model or more memory would be needed"
    return (
        f"{inputs.method} on {inputs.encoder.name} with {inputs.tasks} tasks needs {needs}, even image by image with constants on "
        f"{best.inputs.place}: {would}"
    )


def lines(estimated: Estimate) -> list[str]:
    """Return a plan as lines of plain text: what takes memory where, the peak of every phase, operations."""
    inputs = estimated.inputs
    chunk = "all images of a step at once" if inputs.chunk is None else f"{inputs.chunk} images at once"
    rows = [
        f"{inputs.method} on {inputs.encoder.name} with {inputs.tasks} tasks, {inputs.precision}, {chunk}, "
        f"constants on {inputs.place}"
    ]
    width = max((len(entry.what) for entry in estimated.entries), default=0)
    for entry in sorted(estimated.entries, key=lambda entry: (entry.where != "device", entry.where, -entry.nbytes)):
        when = "always" if entry.phases == PHASES else ", ".join(entry.phases)
        rows.append(f"  {entry.what:<{width}}  {_size(entry.nbytes):>9}  {entry.where:<6}  {when}")
    names = ("cpu", "disk") if inputs.device == "cpu" else ("device", "cpu", "disk")
    for where in names:
        phases = ", ".join(f"{phase} {_size(estimated.peak(where, phase))}" for phase in PHASES)
        rows.append(f"  peak on {where}: {_size(estimated.peak(where))} ({phases})")
    flops = estimated.flops
    rows.append(
        f"  operations: {flops.image / 1e9:.1f} GFLOP an image, {flops.step / 1e12:.2f} TFLOP a step, "
        f"{flops.setup / 1e12:.2f} TFLOP before, {flops.evaluation / 1e12:.1f} TFLOP of evaluations, "
        f"{flops.total / 1e15:.3f} PFLOP in all"
    )
    return rows


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB // 10 else f"{nbytes / (1 << 20):.1f} MiB"
