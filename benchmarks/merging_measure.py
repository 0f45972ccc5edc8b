"""Seconds, peak memory and results of a merging method and of its reference, measured in a process of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from benchmarks import merging_reference as reference
from benchmarks.measure import CLOCKS, Memory
from benchmarks.merging_problem import CASES, Case, draw, largest_error, noise, weights
from benchmarks.merging_reference import State
from benchmarks.problem import Size
from fusionbench_lite.methods.doge import DogeTa, modification

MOST_ROUNDS = 20
STEPS = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergingJob:
    """What a process measures: the case with this number, on experts of this size, for about `seconds`."""

    case: int
    size: Size
    threads: int
    seconds: float
    clock: str = "wall"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """`times` of every version by round, in turn; `peaks` in bytes beyond the inputs and the output.

    `error` of the fast version's result against the reference; where the case has a tensor to check, against the reference
    in float64, and `own_error` of the reference in float32 against that. doGe: `times` are extrapolated to 400 steps, made
    of `setup` and `step`; its peak is that of the steps alone, beyond the task vectors, `whole` that of the whole merge, and
    `unit` is one matrix's state.
    """

    times: dict[str, tuple[float, ...]]
    peaks: dict[str, int]
    inputs: int
    output: int
    error: float
    own_error: float | None = None
    setup: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    step: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    whole: dict[str, int] = dataclasses.field(default_factory=dict)
    unit: int = 0


def measure_merging(job: MergingJob) -> Measured:
    """Measure in this process; call it in a fresh one, because the peak is the process's."""
    torch.set_num_threads(job.threads)
    case = CASES[job.case]
    base, experts = draw(job.size, case)
    versions = {"fast": case.fast, "reference": case.reference, **case.information}
    runs = {name: _Run(lambda version=version: version(base, experts)) for name, version in versions.items()}
    _warm_up()
    _in_turn(job, case, runs)
    fast, straight = (weights(runs[name].result) for name in ("fast", "reference"))
    output = _bytes(straight)
    times = {name: tuple(run.times) for name, run in runs.items()}
    peaks = {name: max(run.peak - (output if name in ("fast", "reference") else 0), 0) for name, run in runs.items()}
    measured = Measured(
        times=times, peaks=peaks, inputs=_bytes(base) + sum(map(_bytes, experts.values())), output=output,
        error=largest_error(fast, straight, base),
    )
    if case.check:
        names = [name for name in base if name.endswith(case.check)]
        chosen = {name: base[name] for name in names}
        precise = case.reference(_double(chosen), {
            task: _double({name: expert[name] for name in names}) for task, expert in experts.items()
        })
        measured = dataclasses.replace(
            measured, error=largest_error(fast, precise, chosen), own_error=largest_error(straight, precise, chosen)
        )
    return _steps(job, case, base, experts, measured) if case.steps else measured


class _Run:
    """One version: how often it ran, how long, and the bytes it needed at its peak the first time."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.times: list[float] = []
        self.peak = 0
        self.result: object = None

    def __call__(self, clock: str) -> None:
        memory = Memory(torch.device("cpu"))
        held = 0 if self.times else memory.start()
        start = CLOCKS[clock]()
        result = self.call()
        seconds = CLOCKS[clock]() - start
        if not self.times:
            self.peak = memory.peak() - held
            self.result = result
        self.times.append(seconds)


def _in_turn(job: MergingJob, case: Case, runs: dict[str, _Run]) -> None:
    """Run the versions one after another, round by round."""
    end = time.perf_counter() + job.seconds
    for done in range(MOST_ROUNDS):
        if done >= case.rounds and time.perf_counter() > end:
            break
        for run in runs.values():
            run(job.clock)
    for run in runs.values():
        run.times = run.times[len(run.times) > 2 :]


def _steps(job: MergingJob, case: Case, base: State, experts: dict[str, State], measured: Measured) -> Measured:
    """Time doGe's steps alone, with one shared space for both versions, and add up 400 of them and the set-up."""
    name = next(iter(base))
    found = torch.stack(reference.vectors(base, experts, name))
    scales = torch.stack([0.07 / torch.linalg.vector_norm(vector) for vector in found])
    basis = torch.linalg.qr(noise((found.shape[1], min(found.shape[1:]) // 6), 1.0, 1))[0]
    projector = basis @ basis.T
    rows = found.transpose(0, 1).contiguous()
    setting = DogeTa(steps=case.steps)
    modification(rows, scales, basis, dataclasses.replace(setting, steps=1))  # kernels take their memory now
    runs = {
        "fast": _Run(lambda: modification(rows, scales, basis, setting)),
        "reference": _Run(lambda: reference.doge_modification(found, scales, projector, case.steps, setting.lr)),
    }
    _in_turn(job, case, runs)
    rounds = min(len(measured.times["fast"]), *(len(run.times) for run in runs.values()))
    step = {name: tuple(seconds / case.steps for seconds in run.times[:rounds]) for name, run in runs.items()}
    setup = {name: measured.times[name][:rounds] for name in runs}
    total = {
        name: tuple(first + (STEPS - 1) * one for first, one in zip(setup[name], step[name], strict=True)) for name in runs
    }
    got, want = ({"change": runs[name].result} for name in ("fast", "reference"))
    error = largest_error(got, want, {"change": torch.zeros(())})
    peaks = {name: run.peak for name, run in runs.items()}
    return dataclasses.replace(
        measured, times=total, setup=setup, step=step, peaks=peaks, whole=measured.peaks, unit=4 * _bytes(base),
        error=max(error, measured.error),
    )


def _warm_up() -> None:
    """Let the linear algebra library prepare itself."""
    matrix = torch.randn(64, 64)
    torch.linalg.svd(matrix)
    torch.linalg.eigh(matrix.double() @ matrix.double().T)


def _double(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def _bytes(state: object) -> int:
    return sum(tensor.nbytes for tensor in dict(state).values())  # type: ignore[call-overload]
