"""Predictions of a model on the test examples of its tasks."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite.base.processes import gathered, own_tasks
from fusionbench_lite.data import Stored, TaskData, fingerprint, lengths_of, normalise
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import metrics
from fusionbench_lite.evaluation.passes import Passes
from fusionbench_lite.evaluation.results import Evaluation as Evaluation
from fusionbench_lite.evaluation.results import TaskResult as TaskResult
from fusionbench_lite.evaluation.results import average as average
from fusionbench_lite.models.inputs import Inputs

Encode = Callable[[Inputs], Tensor]
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates encoders on the test examples of some tasks.

    `heads[task](features)` returns logits, in float32; `prepare` turns stored examples, a tensor or named tensors, into a
    model's inputs. `batch_size` bounds memory and does not change results beyond rounding; None takes as many examples as
    fit. `bf16` runs encoders in mixed precision.
    """

    data: Mapping[str, TaskData]
    heads: Mapping[str, Callable[[Tensor], Tensor]]
    device: torch.device
    batch_size: int | None = None
    prepare: Callable[[Any], Inputs] = normalise
    bf16: bool = False
    generates: ClassVar[bool] = False
    """Whether models answer in texts, which are judged; an adapted model is tried before it is trained then."""

    def inputs(self, stored: Stored) -> Inputs:
        """Return the model's inputs for stored examples, on the device."""
        if isinstance(stored, Mapping):
            return self.prepare({name: torch.from_numpy(array).to(self.device) for name, array in stored.items()})
        return self.prepare(torch.from_numpy(stored).to(self.device))

    @functools.cached_property
    def passes(self) -> Passes:
        """How many examples run at once."""
        pixels = max(int(np.prod(entry.inputs("test").shape[1:3])) for entry in self.data.values())
        return Passes(self.batch_size, pixels, self.device)

    def task(self, task: str, encode: Encode) -> TaskResult:
        """Return the predictions of one task; the first of equal logits wins."""
        stored = self.data[task].inputs("test")
        return self.rows(task, lambda rows: encode(self.inputs(stored[rows])))

    def rows(self, task: str, features: Callable[[NDArray[np.int64]], Tensor]) -> TaskResult:
        """Return the predictions of one task from the features of rows of its test examples."""
        return self._predictions([task], features)[task]

    def evaluate(self, encode: Encode, tasks: Iterable[str] | None = None) -> Evaluation:
        """Return the predictions of one encoder on the given tasks, all by default.

        Tasks with the same test inputs share one pass. Processes of one run share the tasks.
        """
        groups: dict[object, list[str]] = {}
        for task in self.data if tasks is None else tasks:
            stored = self.data[task].inputs("test")
            groups.setdefault(fingerprint(stored) or id(stored), []).append(task)
        mine = own_tasks([members[0] for members in groups.values()])
        results: dict[str, TaskResult] = {}
        for members in groups.values():
            if members[0] in mine:
                stored = self.data[members[0]].inputs("test")
                results |= self._predictions(members, lambda rows, stored=stored: encode(self.inputs(stored[rows])))  # type: ignore[misc]
        everyone = gathered(results)
        return {task: everyone[task] for task in (self.data if tasks is None else tasks)}

    def trial(self, encode: Callable[[], Tensor]) -> None:
        """Refuse what an adapted model makes of an example where this evaluator cannot judge it; here it can."""

    def featuring(self) -> AbstractContextManager[None]:
        """Return a context in which models give features, whatever they give while they are judged."""
        return nullcontext()

    def _predictions(
        self, tasks: list[str], features: Callable[[NDArray[np.int64]], Tensor]
    ) -> dict[str, TaskResult]:
        decide = {task: self._decision(task) for task in tasks}

        def predict(rows: NDArray[np.int64]) -> list[tuple[Tensor, Tensor | None]]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                encoded = features(rows)
            return [decide[task](self.heads[task](encoded.float())) for task in tasks]

        predicted = self.in_order(tasks[0], predict)
        results = {}
        for number, task in enumerate(tasks):
            entry = self.data[task]
            parts, surest = zip(*(part[number] for part in predicted[1]), strict=True)
            results[task] = TaskResult(
                restored(torch.cat(parts).numpy(), predicted[0]), np.asarray(entry.labels("test")), entry.metric,
                confidence=None if surest[0] is None else _mean(torch.cat(surest)),
            )
        return results

    def in_order(self, task: str, predict: Callable[[NDArray[np.int64]], Result]) -> tuple[NDArray[np.int64], list[Result]]:
        """Return the rows of the test examples in the order in which they ran, and what `predict` made of each pass."""
        entry, rows, results = self.data[task], [], []
        with torch.inference_mode():
            for some, result in self.passes.run(predict, len(entry.labels("test")), lengths_of(entry.inputs("test"))):
                rows.append(some)
                results.append(result)
        return np.concatenate(rows), results

    def _decision(self, task: str) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Return what makes predictions of logits [B, C]: the first of the greatest with its probability, or a head's only output
        as a score."""
        metric = metrics.get(self.data[task].metric)
        if metric.kind == metrics.CLASSES:
            return lambda logits: (logits.argmax(-1).cpu(), logits.softmax(-1).amax(-1).cpu())
        if metric.kind == metrics.SCORES and self.data[task].num_classes == 1:
            return lambda logits: (logits[:, 0].double().cpu(), None)
        raise InputError(
            f"task {task!r} is judged by {metric.measure.label}, which needs {metric.kind}, and its head gives classes: "
            "choose a metric of classes, or a suite with a judge of its own"
        )


def _mean(probabilities: Tensor) -> float | None:
    """Return the mean to six digits, which the order of its sum does not change; None where it is not finite."""
    mean = float(probabilities.double().mean())
    return round(mean, 6) if math.isfinite(mean) else None


def restored(values: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return the values [N] of `rows` in the order of the examples."""
    ordered = np.empty_like(values)
    ordered[rows] = values
    return ordered
