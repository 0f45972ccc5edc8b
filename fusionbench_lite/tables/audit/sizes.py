"""Sizes of data sets beside those of the data, and counts of parameters beside those of the encoders.

Images and GLUE: the splits that the package reads, for GLUE's hidden test sets their published sizes. Encoders: CLIP's image tower
without and with its projection, as open_clip's checkpoints carry it (with six tensors of the text side), and the whole of CLIP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fusionbench_lite.tables.audit.findings import COUNTED, Finding
from fusionbench_lite.tables.audit.fractions import described
from fusionbench_lite.tables.published import Number

CHECK = "sizes"
HIDDEN = {
    "cola": 1063, "sst2": 1821, "mrpc": 1725, "qqp": 390965, "mnli": 9796, "mnli mismatched": 9847, "qnli": 5463, "rte": 3000,
}  # fmt: skip
"""Sizes of GLUE's test sets, whose labels are not published."""
WNLI = {"num_train": 635, "num_validation": 71, "num_test": 146}
_LEFT = {"vit_b32": 25_599_489, "vit_l14": 38_595_841}
"""What of the text side open_clip's checkpoints of the image tower keep: embeddings, projection, last norm and scale."""
_SHAPES = {"vit_b32": (768, 12, 32, 50, 512), "vit_l14": (1024, 24, 14, 257, 768)}
"""Width, blocks, patch, positions, projection."""

def parameters(model: str) -> dict[str, int]:
    """Return how many numbers an encoder has, by what is counted."""
    width, blocks, patch, positions, projection = _SHAPES[model]
    block = 12 * width**2 + 13 * width
    tower = 3 * patch**2 * width + width + positions * width + 4 * width + blocks * block
    image = tower + width * projection
    return {"the image tower": tower, "the tower with its projection": image, "open_clip's checkpoint": image + _LEFT[model]}


def tensors(model: str) -> dict[str, int]:
    """Return how many tensors an encoder has, by what is counted."""
    blocks = _SHAPES[model][1]
    packed, text = 12 * blocks + 8, 12 * 12 + 6
    return {
        "the tower with its projection": packed, "open_clip's checkpoint": packed + 6, "the tower of transformers": 16 * blocks + 7,
        "the whole of CLIP": packed + text,
    }  # fmt: skip


def check(those: Iterable[Number]) -> Iterator[Finding]:
    """Yield the sizes that are not those of the data or of the encoders."""
    for number in those:
        if number.metric in COUNTED:
            yield from _data(number)
        elif number.unit == "count" and number.model in _SHAPES:
            yield from _encoder(number)


def expected(number: Number) -> int | None:
    """Return the size of a task's split, None where neither the package nor GLUE says it."""
    task, split = number.column, number.metric.removeprefix("num_")
    if task == "wnli":
        return WNLI[number.metric]
    name = f"{task} {number.variant}".strip()
    if split == "test" and task in HIDDEN:
        return HIDDEN.get(name, HIDDEN[task])
    rows: Mapping[str, int] = described(task).get("rows", described(task))
    found = rows.get(f"{split}_{number.variant}") if number.variant else rows.get(split)
    return found if isinstance(found, int) else None


def _data(number: Number) -> Iterator[Finding]:
    right = expected(number)
    if right is not None and right != number.value:
        split = number.metric.removeprefix("num_")
        whose = "GLUE's own" if number.setting.endswith("text") else "the one that Task Arithmetic's code and this package read"
        reason = f"Of {number.column}'s {split} split, {whose} has {right:,}, not {number.value_as_printed}."
        yield Finding(
            check=CHECK, kind="size_mismatch", severity="low" if abs(right - number.value) < 0.05 * right else "medium",
            number=number, other=str(right), likely=str(right), reason=reason,
        )  # fmt: skip


def _encoder(number: Number) -> Iterator[Finding]:
    """Yield a count of numbers or coefficients that is that of no encoder."""
    models = 1 if number.method == "base_model" else number.num_tasks or 1
    if number.column == "parameters":
        known, each = parameters(number.model), number.value / models
        what = "numbers"
    elif number.method == "adamerging_layerwise":
        known, each = tensors(number.model), number.value / models
        what = "coefficients"
    elif number.method == "adarank_ta":
        width, blocks = _SHAPES[number.model][:2]
        known, each = {"the singular components of four matrices a block": 4 * blocks * width}, number.value / models
        what = "mask entries"
    else:
        return
    off = 0.5 * 10 ** (len(number.written) - len(number.written.rstrip("0")))
    if any(abs(each - size) * models <= off for size in known.values()):
        return
    there = ", ".join(f"{size:,} in {name}" for name, size in known.items())
    yield Finding(
        check=CHECK, kind="size_mismatch", severity="low", number=number, other=str(round(each)),
        reason=f"{each:,.0f} {what} a model are no encoder's: there are {there}.",
    )  # fmt: skip
