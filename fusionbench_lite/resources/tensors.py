"""What the constants of a method cost, tensor by tensor: task vectors, dense sums, singular components.

Bytes follow the code of `fusionbench_lite.adaptation`; the names of the methods' hyperparameters are theirs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fusionbench_lite.resources.encoder import WORK, Encoder, Shape

EIGEN_FLOPS = 9
"""Operations of a symmetric eigendecomposition with vectors, times the side cubed."""

DOGE_ROWS = 4
"""Products of a task vector's size in a step of doGe's modification: two of T and two of k directions."""


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a tensor of the model costs a method.

    `vectors`, `sums` and `components` (bytes) are constants that may be placed elsewhere, `own` are bytes that stay
    with the model: masks, origins. `learned` is the number of elements that the optimizer steps on. `room` is what is
    needed on the way beyond all of these; `setup` are the operations of making them.
    """

    vectors: int = 0
    sums: int = 0
    components: int = 0
    own: int = 0
    learned: int = 0
    room: int = 0
    setup: int = 0

    @property
    def placed(self) -> int:
        """The bytes that may be placed elsewhere."""
        return self.vectors + self.sums + self.components


def vectors(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    for shape in encoder.tensors.values():
        size = math.prod(shape)
        yield Tensors(vectors=tasks * size * WORK, learned=tasks, room=size * encoder.itemsize, setup=tasks * size)


def trimmed(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    """AdaMerging++: three passes before; counters of 65,536 bins and keys of a block are small beside a tensor."""
    for own in vectors(encoder, tasks, values, threads):
        yield dataclasses.replace(own, setup=10 * own.setup)


def decomposition_room(shape: Shape, threads: int) -> int:
    """Return the bytes in use while as many matrices as threads are decomposed through their Gram matrices in float64."""
    wide, narrow = max(shape), min(shape)
    return threads * 8 * max(wide * narrow + 4 * narrow**2, 2 * wide * narrow + 3 * narrow**2)


def decomposition_flops(shape: Shape) -> int:
    """Return the operations of that: the Gram matrix's lower half, its eigenvectors, the other side's vectors."""
    wide, narrow = max(shape), min(shape)
    return wide * narrow**2 + EIGEN_FLOPS * narrow**3 + 2 * wide * narrow**2


def _ratio(values: Mapping[str, Any], tasks: int, default: float = 1.0) -> float:
    given = values.get("rank_ratio", default)
    return 1 / tasks if given is None else float(given)


def low_rank(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int, *, common: int = 0) -> Iterator[Tensors]:
    """AdaMerging on TSV-M, CART and Iso-CTS: constant dense updates, of which the last has one more."""
    chosen = encoder.matrices(values.get("matrices", "attn_mlp"))
    at_once = min(threads, tasks)
    for name, shape in encoder.tensors.items():
        size = math.prod(shape)
        updates = tasks + (common if name in chosen else 0)
        room, setup = size * encoder.itemsize, tasks * size
        if name in chosen:
            rank = max(1, int(_ratio(values, tasks) * min(shape)))
            # Whitened or shared directions: all tasks' factors side by side in float64, and their Gram matrices.
            factors = 8 * tasks * rank * sum(shape) + 40 * min(tasks * rank, min(shape)) ** 2
            room = max(decomposition_room(shape, at_once), factors) if values.get("rank_ratio", 0) != 1 else room
            setup = tasks * (decomposition_flops(shape) + 2 * rank * size)
        yield Tensors(vectors=updates * size * WORK, learned=updates, room=room, setup=setup)


def iso(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    return low_rank(encoder, tasks, values, threads, common=1)


def adarank(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int, *, exact: bool = True) -> Iterator[Tensors]:
    """Masks: the components of all tasks, the sums of those active at the start where memory allows (`keep`), and logits."""
    chosen, learn = encoder.matrices(values.get("matrices", "attn_mlp")), values.get("learn", "both")
    at_once, whole = min(threads, tasks), not (values.get("top_only") or values.get("extra") == "none")
    for name, shape in encoder.tensors.items():
        size = math.prod(shape)
        if name not in chosen:
            yield Tensors(vectors=tasks * size * WORK, learned=tasks, room=size * encoder.itemsize, setup=tasks * size)
            continue
        rank = min(shape)
        held = rank if whole else max(1, int(_ratio(values, tasks) * rank))
        every, kept = tasks * rank * (sum(shape) + 1) * WORK, tasks * held * (sum(shape) + 1) * WORK
        dense, keep = tasks * size * WORK, bool(values.get("keep", True))
        room = decomposition_room(shape, at_once)
        setup = tasks * (decomposition_flops(shape) + 2 * held * size)
        if learn == "coefficients":
            yield Tensors(vectors=dense, learned=tasks, room=room + every + (0 if exact and whole else dense), setup=setup)
            continue
        beside = dense if not (keep and exact and whole) else 0  # the task vectors, where the sums are others
        yield Tensors(
            sums=dense if keep else 0, components=kept, learned=tasks * (1 + held), setup=setup,
            room=max(room + beside, beside + (every if not whole else 0)),
        )


def adarank_tsvm(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    for shape, own in zip(encoder.tensors.values(), adarank(encoder, tasks, values, threads, exact=False), strict=True):
        if own.components:
            active = tasks * max(1, int(_ratio(values, tasks) * min(shape)))
            white = 8 * (2 * active * max(shape) + 4 * active**2)
            own = dataclasses.replace(own, room=max(own.room, tasks * math.prod(shape) * WORK + white))
        yield own


def adarank_iso(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    """As many directions as a matrix has, shared out among a common block and the tasks."""
    chosen = encoder.matrices(values.get("matrices", "attn_mlp"))
    for name, shape in encoder.tensors.items():
        size, rank = math.prod(shape), min(shape)
        if name not in chosen:
            yield Tensors(vectors=tasks * size * WORK, learned=1 + tasks, room=size * encoder.itemsize, setup=tasks * size)
            continue
        dense = (1 + tasks) * size * WORK if values.get("keep", True) else 0
        yield Tensors(
            sums=dense, components=rank * (sum(shape) + 1) * WORK, learned=1 + tasks + rank,
            room=8 * (4 * size + 4 * rank**2) + decomposition_room(shape, min(threads, tasks)),
            setup=(3 + tasks) * decomposition_flops(shape),
        )


def doge(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    """Only selected matrices are merged; while one is modified, Adam's state and another order of its vectors are there."""
    chosen, steps = encoder.matrices(values.get("matrices", "encoder_linear")), int(values.get("delta_steps", 400))
    divisor = values.get("subspace_divisor") or tasks
    for name, shape in encoder.tensors.items():
        if name not in chosen:
            continue
        size, rank = math.prod(shape), min(shape)
        vectors = tasks * size * WORK
        space, joint = 8 * shape[0] * (rank // divisor), 8 * (2 * shape[0] * rank + 4 * rank**2)
        deltas = vectors if values.get("deltas", "shared") == "per_task" else 0
        descent = vectors + deltas + 5 * size * WORK + space  # beside the vectors as they are worked on
        # The vectors come out in another order, in memory of their own: both are there for a moment.
        room = max(joint + decomposition_room(shape, min(threads, tasks)), descent - vectors + vectors, vectors)
        descent_flops = steps * DOGE_ROWS * (tasks + rank // divisor) * size
        yield Tensors(vectors=vectors, learned=tasks, room=room, setup=tasks * decomposition_flops(shape) + descent_flops)


def awd(encoder: Encoder, tasks: int, values: Mapping[str, Any], threads: int) -> Iterator[Tensors]:
    steps = int(values.get("awd_steps", 300)) if values.get("optimizer") == "adam" else 1
    for own, shape in zip(vectors(encoder, tasks, values, threads), encoder.tensors.values(), strict=True):
        size = math.prod(shape)
        adam = 8 * 4 * size if values.get("optimizer") == "adam" else 0
        yield dataclasses.replace(own, room=own.room + adam + size * WORK, setup=steps * 2 * tasks**2 * size)
