"""From what the harness returns to a value with its interval: per set, from the scores of single examples where it has them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import numbers
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.intervals import Interval, percentiles, resample, wilson
from fusionbench_lite.harness.sets import Set

_ABOUT = ("name", "alias", "sample_len", "sample_count")
_SAME = 1e-9
"""Two means of the same scores differ by no more than the order of their sums."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The result of a set. `scores` [N] are those of single examples, where the value is their mean; `data` and `prompts` are
    hashes of the examples and of what the model read; `stderr` and `others` (further metrics) are the harness' own."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    interval: Interval | None
    interval_by: str
    examples: int
    shots: int
    version: str
    data: str
    prompts: str
    scores: tuple[float, ...] | None
    others: Mapping[str, Mapping[str, float | None]]


def score(of: Set, results: Mapping[str, Any]) -> Score:
    """Return the result of a set from the harness' results with samples. Raises InputError where its metric is not there."""
    measured = results["results"][of.task]
    name = _metric(of, measured)
    metric, _, used = name.partition(",")
    leaves = _leaves(of.task, results.get("group_subtasks", {}))
    samples = [_ordered(results["samples"][leaf], used) for leaf in leaves]
    value, stderr = float(measured[name]), _number(measured.get(f"{metric}_stderr,{used}"))
    scores = _scores([one for part in samples for one in part], metric, value)
    interval, by = _interval(value, stderr, scores)
    others = [key for key in measured if key not in (name, *_ABOUT) and not key.partition(",")[0].endswith("_stderr")]
    return Score(
        task=of.task, metric=metric, filter=used, value=value, stderr=stderr, interval=interval, interval_by=by,
        examples=sum(map(len, samples)), shots=results["n-shot"][leaves[0]], version=str(results["versions"][leaves[0]]),
        data=_hash("doc_hash", samples), prompts=_hash("prompt_hash", samples),
        scores=None if scores is None else tuple(scores.tolist()),
        others={key: _other(measured, key) for key in others},
    )


def mean(columns: Sequence[NDArray[Any]], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the first column in resamples: a statistic of `intervals.resample`."""
    return np.asarray(drawn @ columns[0] / drawn.sum(1))


def _metric(of: Set, measured: Mapping[str, Any]) -> str:
    """Return the "metric,filter" that counts: the set's, else the first of the task."""
    there = [key for key in measured if key not in _ABOUT and not key.partition(",")[0].endswith("_stderr")]
    wanted = there[0] if of.metric is None and there else f"{of.metric},{of.filter}"
    if wanted not in there:
        found = " and ".join(there) or "nothing"
        raise InputError(f"{of.name}: the harness measured {found}, not {wanted}: install the version that constraints.txt names")
    return wanted


def _leaves(task: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [leaf for name in groups[task] for leaf in _leaves(name, groups)] if task in groups else [task]


def _ordered(samples: Sequence[Mapping[str, Any]], used: str) -> list[Mapping[str, Any]]:
    """Return the examples of one filter in the order of the data."""
    return sorted((one for one in samples if one["filter"] == used), key=lambda one: one["doc_id"])


def _hash(of: str, samples: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    return hashlib.sha256("".join(str(one[of]) for part in samples for one in part).encode()).hexdigest()


def _scores(samples: Sequence[Mapping[str, Any]], metric: str, value: float) -> NDArray[np.float64] | None:
    """Return the scores [N] of single examples, or None where the value is not their mean."""
    found = [one.get(metric) for one in samples]
    if not found or not all(isinstance(one, (numbers.Real, np.bool_)) for one in found):
        return None
    scores = np.asarray(found, dtype=np.float64)
    return scores if abs(float(scores.mean()) - value) <= _SAME * max(1.0, abs(value)) else None


def _interval(value: float, stderr: float | None, scores: NDArray[np.float64] | None) -> tuple[Interval | None, str]:
    """Return the 95 % interval and how it was made: Wilson's of counts, the bootstrap of scores, else the standard error's."""
    if scores is not None and set(np.unique(scores)) <= {0.0, 1.0}:
        return wilson(int(scores.sum()), len(scores)), "Wilson"
    if scores is not None:
        return percentiles(resample(mean, [scores], "harness")), "bootstrap"
    if stderr is None:
        return None, ""
    half = NormalDist().inv_cdf(0.975) * stderr
    return (value - half, value + half), "normal"


def _other(measured: Mapping[str, Any], key: str) -> dict[str, float | None]:
    metric, _, used = key.partition(",")
    return {"value": _number(measured[key]), "stderr": _number(measured.get(f"{metric}_stderr,{used}"))}


def _number(value: Any) -> float | None:
    """Return a finite number, or None for what the harness writes in place of one."""
    return float(value) if isinstance(value, numbers.Real) and math.isfinite(value) else None
