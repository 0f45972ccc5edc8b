"""A model written to a folder, loaded from it, and compared with the record's predictions, example by example."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusionbench_lite.base.version import __version__
from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting import card, layout
from fusionbench_lite.exporting.forms import Form, form_of
from fusionbench_lite.exporting.loading import load_exported
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.paths import atomic_directory
from fusionbench_lite.tables.records import SAMPLES
from fusionbench_lite.weights.readers import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.exporting.remaking import Remade


class Differing(Exception):
    """What was written predicts something else than the record."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How many of a task's predictions are those of the record."""

    task: str
    equal: int
    examples: int

    def __str__(self) -> str:
        return f"{self.task}: {self.equal:,} of {self.examples:,} predictions equal"


def check_out(out: Path) -> None:
    """Raise InputError where a folder cannot be written: it is there and holds something, or is a file."""
    try:
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise InputError(f"out={out} is there already, and is no empty folder: name a new one")
    except OSError as error:
        raise InputError(f"out={out}: {error.strerror or error}: name another folder") from error


def export(made: Remade, out: Path, *, verify: bool) -> tuple[Form, list[Agreement] | None]:
    """Write the folder and return its form and what was compared, None where nothing was.

    Raises InputError for what has no form, and where a prediction differs, when nothing is left at `out`.
    """
    agreements = None
    with atomic_directory(out) as temporary:
        form = _write(made, temporary)
        if verify:
            agreements = compared(made, temporary)
            if any(one.equal < one.examples for one in agreements):
                raise Differing("\n".join(map(str, agreements)))
        (temporary / layout.CARD).write_text(card.text(made, form, agreements), encoding="utf-8")
    return form, agreements


def _write(made: Remade, folder: Path) -> Form:
    form, plan = form_of(made), made.plan
    folders = layout.folders_of(plan.tasks) if form.kind == layout.EACH else {}
    with _disk(folder):
        for task in form.models:
            place = folder / folders[task] if task else folder
            place.mkdir(exist_ok=True)
            write_tensors(place / layout.MODEL, _here(form.models[task]), {"format": "pt", "method": plan.method})
        for name, tensors in ((layout.LEARNED, form.learned), (layout.EXPERTS, form.experts)):
            if tensors:
                write_tensors(folder / name, _here(tensors), {"format": "pt"})
        _write_heads(made, folder)
        layout.Description(
            kind=form.kind, model=plan.model, method=plan.method, tasks=plan.tasks, merged=plan.seen, folders=folders,
            values=dict(plan.values),
        ).write(folder)
    return form


@contextlib.contextmanager
def _disk(folder: Path):  # type: ignore[no-untyped-def]
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}: free space or name another out") from error


def _here(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _write_heads(made: Remade, folder: Path) -> None:
    """Write the class embeddings [C, d] of every task, with class names and the factor of the cosines beside them."""
    rows: dict[str, Tensor] = {}
    scales = {}
    for task, head in made.suite.heads.items():
        if not isinstance(head, ZeroShotHead):
            raise InputError(f"the head of task {task!r} is a {type(head).__name__}, which export has no form for")
        rows[task], scales[task] = head.weight, head.scale
    classes = {task: list(entry.classes) for task, entry in made.suite.tasks.items()}
    metadata = {"format": "pt", "classes": json.dumps(classes), "scales": json.dumps(scales), "version": __version__}
    write_tensors(folder / layout.HEADS, _here(rows), metadata)


def compared(made: Remade, folder: Path) -> list[Agreement]:
    """Load a folder as its users do and compare its predictions with the record's on all test examples."""
    loaded = load_exported(folder, str(made.suite.device))
    evaluator = dataclasses.replace(made.suite.evaluator, heads=loaded.heads)
    agreements = []
    with np.load(made.record.path / SAMPLES) as samples:
        for task in made.plan.tasks:
            then = samples[f"{made.rule}/{task}/predictions"]
            now = evaluator.task(task, lambda inputs, task=task: loaded.features(inputs, task)).predictions  # type: ignore[misc]
            agreements.append(Agreement(task, int((then == now).sum()) if then.shape == now.shape else 0, len(then)))
    return agreements
