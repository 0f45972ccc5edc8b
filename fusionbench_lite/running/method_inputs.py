"""What a data-free method reads besides the weights: the multi-task model, and statistics of training examples.

The statistics belong to one task each. Fisher and Gram are computed with the expert's own weights and, for Fisher, its head, on
unlabelled examples of the task's training split; gradients with the pretrained weights, the head and labels. Test examples are
never read here.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionbench_lite import registry
from fusionbench_lite.base.randomness import generator
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.fields import kinds
from fusionbench_lite.planning.settings import Statistics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.planning.plan import Plan

VERSION = 1
"""Changes when the same settings no longer give the same statistics."""


def inputs(plan: Plan, suite: Suite) -> dict[str, Any]:
    """Return the arguments of `merge` that the method declares as its inputs.

    Statistics are kept under `statistics` in the cache, keyed by all that decides them. Raises InputError when the
    multi-task model is missing or a task has fewer training examples than `examples`.
    """
    given: dict[str, Any] = {}
    for name in registry.get(plan.method).inputs:
        if name == "multitask":
            if suite.multitask is None:
                raise InputError(f"method {plan.method!r} needs traditional_mtl.safetensors in checkpoints.dir: put it there")
            given[name] = suite.multitask
        elif name in registry.STATISTIC_INPUTS:
            given[name] = _statistics(name, plan, suite)
    return given


def chosen(task: str, size: int, order: str, examples: int, seed: int) -> np.ndarray:
    """Return the indices of the training examples that are used of `size`, int64 [examples].

    `stored`: the first ones in stored order, as in FusionBench's Fisher merging of CLIP models. `shuffled`: the first
    ones of a permutation drawn from (seed, task), as in its RegMean.
    """
    if size == 0:
        raise InputError(f"task {task!r} has no training examples, which the method's statistics are made of: add them")
    if examples > size:
        raise InputError(f"examples={examples}, but task {task!r} has {size} training examples: set method.statistics.examples")
    if order == "stored":
        return np.arange(examples)
    return generator(seed, task, "statistics").permutation(size)[:examples]


def _statistics(name: str, plan: Plan, suite: Suite) -> dict[str, dict[str, Tensor]]:
    """Return the statistic of every task, {task: {tensor name: values}}, on the device of the run."""
    from fusionbench_lite.weights.experts import Experts
    from fusionbench_lite.weights.tensor_cache import cached

    Experts(suite.pretrained, suite.experts).check_unread()
    folder = plan.wanted.cache / "statistics"
    indices = {
        task: chosen(task, suite.size(task, "train"), plan.setting("order"), plan.setting("examples"), plan.seed)
        for task in suite.experts
    }
    statistics = {}
    for task in suite.experts:
        key = _key(name, plan, suite, task)
        if name == "gradients":
            key |= _of_gradients(suite, task, indices[task])
        tensors = cached(folder, key, _computation(name, plan, suite, task, indices[task]))
        statistics[task] = {tensor: values.to(suite.device) for tensor, values in tensors.items()}
    return statistics


def _key(name: str, plan: Plan, suite: Suite, task: str) -> dict[str, Any]:
    """Return everything that decides the statistic of one task."""
    import torch

    from fusionbench_lite.base.version import __version__

    key: dict[str, Any] = {
        "statistic": name, "statistics_version": VERSION, "version": __version__,
        "method": plan.method, "model": plan.model, "task": task,
        "expert": suite.expert_hashes[task], "data": suite.data_hashes[task],
        "settings": {setting: plan.setting(setting) for setting in kinds(Statistics)},
        "device": suite.device.type, "torch": torch.__version__,
    }
    if name != "gram":
        key["heads"] = suite.head_hashes[task]
        key["head_scale"] = getattr(suite.heads[task], "scale", None)
    key |= suite.details
    if suite.by_content:
        key["training"] = suite.training_hash(task)
    if suite.beside is not None:
        key["beside"] = suite.beside
    if plan.setting("order") == "shuffled":
        key["seed"] = plan.seed
    return key


def _of_gradients(suite: Suite, task: str, indices: np.ndarray) -> dict[str, Any]:
    """Return what decides gradients at the pretrained weights, in place of the expert, and the labels that they read."""
    labels = np.ascontiguousarray(suite.tasks[task].labels("train")[indices])
    return {
        "expert": None, "checkpoints": sorted(suite.files.values()), "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
    }


def _computation(
    name: str, plan: Plan, suite: Suite, task: str, indices: np.ndarray
) -> Callable[[], Mapping[str, Tensor]]:
    def compute() -> Mapping[str, Tensor]:
        from fusionbench_lite.statistics import absolute_gradients, diagonal_fisher, gram_matrices

        size = plan.setting("batch_size")
        model = _model(suite, f"the expert of task {task!r}", suite.experts[task]) if name != "gradients" else _model(
            suite, "the pretrained checkpoint", suite.pretrained
        )
        suite.decode_ahead(task, "train", indices)
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        batches = (suite.inputs(task, "train", rows) for rows in parts)
        try:
            if name == "gradients":
                pairs = zip(batches, (suite.labels(task, "train", rows) for rows in parts), strict=True)
                return absolute_gradients(model, suite.heads[task], pairs, named=True)
            if name == "fisher":
                return diagonal_fisher(model, suite.heads[task], batches, examples=len(indices), named=True)
            grams = gram_matrices(model, batches, examples=len(indices), named=True)
            return {tensor: values for tensor, values in grams.items() if tensor in suite.pretrained}  # what is merged
        except MergeError as error:
            raise MergeError(f"task {task!r}: {error}") from error

    return compute


def _model(suite: Suite, what: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a model of its own with these weights, which messages call `what`."""
    model = copy.deepcopy(suite.model)
    try:
        state = model.state_dict()
        model.load_state_dict({**{name: state[name] for name in suite.constants}, **weights})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{what} does not fit the model: {reason}") from error
    return model
