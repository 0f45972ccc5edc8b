"""What `benchmarks.against_mergekit` prints and writes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from benchmarks.against_mergekit_cases import CASES

if TYPE_CHECKING:
    from benchmarks.against_mergekit import Measured
    from benchmarks.large_models import Llama

PAGE = """# Against mergekit

Written by `python -m benchmarks.against_mergekit`, which runs both on the same files; no figure is typed. The models have the
shapes of a Llama of {size:.2f} billion parameters in bfloat16, in shards. Every merge is a process of its own; both take turns,
{rounds} round{s} each at least. mergekit is 0.1.5 from the package index, in an environment of its own. Measured on: {where}.

## Time and memory

Ratios of mergekit to this package, by the median of the rounds: 2.0 says that mergekit takes twice as much. Time is {clock} time
from the configuration to the written model, imports not counted; here it includes a checksum of every tensor and reading the result
back, which mergekit does not do. Memory is the peak resident memory of the process beyond what it held before the merge; pages of
mapped input files, which the system may take back, count on both sides. mergekit computes in the dtype that its configuration says:
float32 (`dtype: float32`, `out_dtype: bfloat16`), as this package does, or bfloat16, where linear and slerp are float32 too.

| mergekit | here | threads | time, float32 | time, bfloat16 | memory, float32 | memory, bfloat16 | peak here (MB) |
| --- | --- | --: | --: | --: | --: | --: | --: |
{speed}

## Values

The part of the merged values whose bits in bfloat16 are the same, that of values which are the same or next to each other in
bfloat16, and the largest difference as a part of the largest value of its tensor. Computed in bfloat16, mergekit rounds after every
operation.

| mergekit | settings here | same bits, float32 | or neighbours | largest | same bits, bfloat16 | or neighbours | largest |
| --- | --- | --: | --: | --: | --: | --: | --: |
{values}

## Where the definitions differ

{differs}
- **all methods**: mergekit's default is `normalize: true` for `ties`, which divides by the weights of the experts that agree; here
  that is `reduce=mean`. Its `weight` of an expert is `scaling` here, one for all experts.
- **linear**: `weight_averaging` is the mean of the experts; other weights are mergekit's alone.
- **slerp**: the pretrained model takes no part; mergekit calls the first expert the base.
- **nuslerp**: `t` is w₂ / (w₁ + w₂) of mergekit's weights.
- **model_stock**: `average=cosines` is mergekit's; the default here, the mean of the angles, is FusionBench's. The two are one for
  two experts.
"""


def ratios(found: Measured, clock: str, who: str) -> tuple[float, float]:
    """Return mergekit's time and memory as multiples of ours."""
    ours, other = found.rounds["ours"], found.rounds[who]
    time = statistics.median(one[clock] for one in other) / statistics.median(one[clock] for one in ours)
    memory = statistics.median(one["peak"] - one["resident"] for one in other) / statistics.median(
        one["peak"] - one["resident"] for one in ours
    )
    return time, memory


def row(found: Measured, clock: str) -> str:
    """Return a line for a terminal."""
    seconds = statistics.median(one[clock] for one in found.rounds["ours"])
    peak = max(one["peak"] for one in found.rounds["ours"]) / 1e6
    parts = [f"{found.case.name:16} {found.threads} threads  {seconds:7.2f} s {peak:6.0f} MB"]
    for who, difference in found.differences.items():
        time, memory = ratios(found, clock, who)
        parts.append(f"{who}: time {time:5.2f} memory {memory:5.2f} same {difference.equal:.5f} {difference.neighbours:.5f} "
                     f"{difference.largest:.1e}")
    return "   ".join(parts)


def page(found: Sequence[Measured], llama: Llama, clock: str, where: str) -> str:
    """Return the page of the documentation."""
    once = [one for one in found if one.threads == found[0].threads]
    differs = "\n".join(f"- **{one.case.name}**: {one.case.differs}." for one in once if one.case.differs)
    size = sum(torch.Size(shape).numel() for shape in llama.shapes().values())
    rounds = min(len(one.rounds["ours"]) for one in found)
    missing = [f"`{case.name}`" for case in CASES if case.name not in {one.case.name for one in found}]
    speed = [_speed(one, clock) for one in found] + [f"\nNot measured yet: {', '.join(missing)}."] * bool(missing)
    return PAGE.format(
        size=size / 1e9, rounds=rounds, s="s" * (rounds != 1), where=where, clock={"cpu": "processor", "wall": "wall"}[clock],
        speed="\n".join(speed), values="\n".join(map(_values, once)), differs=differs,
    )


def _speed(found: Measured, clock: str) -> str:
    both = [ratios(found, clock, who) for who in found.differences]
    times, memories = ([f"{pair[which]:.1f}" for pair in both] for which in (0, 1))
    peak = max(one["peak"] for one in found.rounds["ours"]) / 1e6
    cells = [f"`{found.case.name}`", f"`{found.case.method}`", str(found.threads), *times, *memories, f"{peak:.0f}"]
    return f"| {' | '.join(cells)} |"


def _values(found: Measured) -> str:
    case = found.case.aligned()
    settings = ", ".join(f"`{name}={value}`" for name, value in case.settings.items()) or "-"
    cells = [f"`{case.name}`", settings]
    for one in found.differences.values():
        cells += [f"{one.equal:.3%}", f"{one.neighbours:.3%}", f"{one.largest:.0e}"]
    return f"| {' | '.join(cells)} |"
