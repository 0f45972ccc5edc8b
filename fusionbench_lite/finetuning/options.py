"""What a training of experts is asked for, and what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError

if TYPE_CHECKING:
    from fusionbench_lite.evaluation.results import Evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """`given` are the options of `python -m fusionbench_lite.finetune` that were given, by name; `chunk` bounds the examples in
    one forward pass; `overwrite` trains again what is there."""

    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chunk: int | None = None
    overwrite: bool = False

    def check(self, known: Collection[str], model: str) -> None:
        """Raise InputError for a given option that is not among the model's."""
        for name in self.given:
            if name not in known:
                raise InputError(f"finetune.{name} is not about {model}, whose options are {', '.join(known)}: leave it out")


@dataclasses.dataclass(frozen=True)
class Trained:
    """`rows` maps names of models to their results on the test examples, `folder` holds their files, `what` says what it is."""

    what: str
    rows: Mapping[str, Evaluation]
    folder: Path | None
