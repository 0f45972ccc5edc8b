"""The words in which a method says what it learns and what it costs, which sizes and memory plans read.

A method of the package declares `learned` and `cost` in its own file, as functions of an architecture, the number of tasks
and its checked hyperparameters. Bytes follow the code of the methods.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fusionbench_lite.errors import did_you_mean
from fusionbench_lite.weights.architecture import Architecture, Shape

WORK = 4
"""Bytes of an element in which weights are merged and learned: float32."""

SHARE = 0.25
"""The part of a memory, all of it, that sums may take that only save time."""

BUDGET = {"cpu": 1 << 26, "cuda": 1 << 30}
"""Bytes that weights which are summed for single examples may take at a time, over the examples of one pass."""

EIGEN_FLOPS = 9
"""Operations of a symmetric eigendecomposition with vectors, times the side cubed."""

KINDS = ("descent", "features", "adapters", "routers", "training", "stages")


@dataclasses.dataclass(frozen=True)
class Learned:
    """`counts` {what: number of parameters} that a method learns, in all phases together.

    `before` are those that are learned while its constants are made, before the first step. `extra`: parameters kept at
    inference beyond one encoder and the heads. `task_id`: the task of an input has to be known. `note` is in words, and
    `parts` are further numbers by name. `counts` is None where the method does not apply to the architecture, with the
    reason as `note`.
    """

    counts: Mapping[str, int] | None
    extra: int = 0
    note: str = ""
    task_id: bool = False
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    before: frozenset[str] = frozenset()

    @property
    def total(self) -> int | None:
        """The number of parameters that are learned."""
        return None if self.counts is None else sum(self.counts.values())

    @property
    def in_steps(self) -> int:
        """The number of parameters that the optimizers of the steps move."""
        return sum(number for what, number in (self.counts or {}).items() if what not in self.before)


def masks(of: Architecture) -> int:
    """Return the float32 numbers that take as much room as a bit for every weight."""
    return math.ceil(of.parameters / 32)


LearnedOf = Callable[[Architecture, int, Any], Learned]
"""What is learned on an architecture from a number of tasks with these hyperparameters."""


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a tensor of the model costs a method.

    `vectors`, `sums` and `components` (bytes) are constants that may be placed elsewhere, `own` are bytes that stay
    with the model: masks, origins. `room` is what is needed on the way beyond all of these; `setup` are the operations of
    making them, and `step` those of a step beyond the products with `vectors` and `sums`.
    """

    vectors: int = 0
    sums: int = 0
    components: int = 0
    own: int = 0
    room: int = 0
    setup: int = 0
    step: int = 0

    @property
    def placed(self) -> int:
        """The bytes that may be placed elsewhere."""
        return self.vectors + self.sums + self.components


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Weights that are summed for single examples: bytes of all such tensors of a model, and of the largest one.

    `states`: bytes that low-rank parts keep for every entry of a block's states. `steps`: they are run in steps too.
    """

    every: int
    largest: int
    states: float
    steps: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The first or last steps of a run whose tasks run one after another, `steps` of them.

    `batch` is the number of examples of a task, None for the run's. `merges`: weights are learned through the merge, after
    `inner` batches of the run's size on adapters that are forgotten again; `second` with the second-order part of the
    gradient, `adapted` with adapters at all. Otherwise adapters are trained on weights that stay. `runs` is False
    where other stages take all of the run's steps.
    """

    merges: bool
    steps: int
    batch: int | None = None
    inner: int = 0
    second: bool = False
    adapted: bool = True
    runs: bool = True


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run of a method takes beside passes of the model, tensor by tensor, and how its steps run.

    `kind` is what a step computes: "descent" through the merged weights, "features" of frozen networks alone, "adapters"
    behind the blocks of frozen weights, "routers" in front of mixed perceptrons, "training" of the weights themselves, or
    what its "stages" say. `merges`: weights are merged into leaves that take gradients; `given`: not in this run, whose
    weights were merged before. `placeable`: constants may be placed elsewhere. `new_origin`: merges start from other weights
    than the pretrained ones. `forward`: steps run the model, and do not look at weights alone. `gradients`: learnables have
    some of their own, and not in the memory of the weights'. `mixture`: of weights for single examples. `everywhere`: what is known
    of an example is as many states as it has places.
    """

    tensors: tuple[Tensors, ...] = ()
    kind: str = "descent"
    merges: bool = True
    given: bool = False
    placeable: bool = True
    new_origin: bool = False
    forward: bool = True
    gradients: bool = True
    mixture: Mixture | None = None
    stages: tuple[Stage, ...] = ()
    everywhere: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of steps {self.kind!r}: {did_you_mean(self.kind, KINDS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The run that a method's cost is asked of: `tasks` experts of an `architecture`, checked hyperparameters `h`, `steps`.

    `threads` decompose matrices. `keep`: sums that only save time are kept.
    """

    architecture: Architecture
    tasks: int
    h: Any
    threads: int = 1
    keep: bool = True
    steps: int = 0

    @property
    def at_once(self) -> int:
        """The number of matrices that are decomposed at once, one of every task."""
        return min(self.threads, self.tasks)


CostOf = Callable[[Setting], Cost]


def coefficients(of: Architecture, tasks: int, h: Any) -> Learned:
    """One coefficient per task and tensor."""
    return Learned({"coefficients": tasks * of.count})


def task_coefficients(of: Architecture, tasks: int, h: Any) -> Learned:
    """One coefficient per task."""
    return Learned({"coefficients": tasks})


def masked_vector(of: Architecture, tasks: int, factors: int = 0) -> Learned:
    """One vector for all tasks, a bit per entry and task, and so many `factors` of a task, in parameters of 32 bits."""
    bits = sum(-(-math.prod(shape) // 8) for shape in of.tensors.values())
    extra = of.parameters + -(-tasks * (bits + factors * WORK) // WORK)
    return Learned({}, extra, "a vector of all, a bit per entry and task", task_id=True)


def descent_on_vectors(s: Setting) -> Cost:
    """All task vectors are kept, and steps follow a gradient through the merged weights."""
    return Cost(tuple(vectors(s)))


def vectors(s: Setting) -> Iterator[Tensors]:
    """The task vectors of every tensor."""
    for shape in s.architecture.tensors.values():
        yield task_vectors(s, shape)


def task_vectors(s: Setting, shape: Shape, count: int | None = None) -> Tensors:
    """The task vectors of a tensor; `count` where there are more or fewer of them than tasks."""
    size = math.prod(shape)
    kept = s.tasks if count is None else count
    return Tensors(vectors=kept * size * WORK, room=size * s.architecture.itemsize, setup=s.tasks * size)


def decomposition_room(shape: Shape, threads: int) -> int:
    """Return the bytes in use while as many matrices as threads are decomposed through their Gram matrices in float64."""
    wide, narrow = max(shape), min(shape)
    return threads * 8 * max(wide * narrow + 4 * narrow**2, 2 * wide * narrow + 3 * narrow**2)


def decomposition_flops(shape: Shape) -> int:
    """Return the operations of that: the Gram matrix's lower half, its eigenvectors, the other side's vectors."""
    wide, narrow = max(shape), min(shape)
    return wide * narrow**2 + EIGEN_FLOPS * narrow**3 + 2 * wide * narrow**2
