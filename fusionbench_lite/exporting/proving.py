"""The proof of an export: what the written model predicts, compared example by example with the record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.tables.records import SAMPLES, Record

if TYPE_CHECKING:
    from fusionbench_lite.evaluation.evaluator import Evaluator
    from fusionbench_lite.evaluation.suite import Suite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A written model as the library that it is for has loaded it: `encode` gives the features or logits of inputs, `head` makes
    logits of them. `model`: of one that generates its answers, the encoder that does."""

    encode: Callable[[Inputs], Tensor]
    head: Callable[[Tensor], Tensor]
    model: Any = None


@dataclasses.dataclass(frozen=True)
class Compared:
    """How many of the predictions on a task are equal; `first`: the first example whose is not."""

    task: str
    equal: int
    examples: int
    first: int | None

    @property
    def same(self) -> bool:
        """Whether all are."""
        return self.equal == self.examples

    def __str__(self) -> str:
        where = "" if self.first is None else f", the first other one is example {self.first}"
        return f"{self.task}: {self.equal:,} of {self.examples:,} predictions equal{where}"


def compared(record: Record, rule: str, suite: Suite, loaded: Mapping[str, Loaded], limit: int | None) -> Iterator[Compared]:
    """Yield the comparison on every task of `loaded`, on the first `limit` test examples, None for all."""
    with np.load(record.path / SAMPLES) as samples:
        recorded = {task: samples[f"{rule}/{task}/predictions"] for task in loaded}
    for task, model in loaded.items():
        made = predictions(suite.evaluator, task, model, limit)
        known = recorded[task][: len(made)]
        other = np.flatnonzero(made != known)
        yield Compared(task, len(made) - len(other), len(made), int(other[0]) if len(other) else None)


def predictions(evaluator: Evaluator, task: str, loaded: Loaded, limit: int | None) -> NDArray[Any]:
    """Return the predictions [N] of a loaded model on the test examples of a task, judged as the run judged its own."""
    changes: dict[str, Any] = {"heads": {task: loaded.head}}
    if loaded.model is not None:
        changes["model"] = loaded.model
    data = {task: evaluator.data[task]}
    if limit is not None:
        data[task] = _first(data[task], limit)
    judge = dataclasses.replace(evaluator, data=data, **changes)
    with torch.no_grad():
        return judge.task(task, loaded.encode).predictions


def _first(entry: Any, limit: int) -> Any:
    """Return a task with its first test examples alone."""
    targets = getattr(entry, "test_targets", None)
    more = {} if targets is None else {"test_targets": targets[:limit]}
    return dataclasses.replace(entry, test_images=entry.test_images[:limit], test_labels=entry.test_labels[:limit], **more)
