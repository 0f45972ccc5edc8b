"""Pretraining of a small language model on all its tasks at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionbench_lite.base.randomness import generator, seed_of
from fusionbench_lite.data.text import TextTask, Tokens
from fusionbench_lite.finetuning.language import small
from fusionbench_lite.finetuning.language.batches import Questions, Rows
from fusionbench_lite.finetuning.language.loop import optimise
from fusionbench_lite.finetuning.language.small import SmallRecipe
from fusionbench_lite.models import language
from fusionbench_lite.models.language import building
from fusionbench_lite.models.language.building import ENCODERS

Loss = Callable[[int], list[Tensor]]


def pretrained(
    data: Mapping[str, TextTask], words: Path, recipe: SmallRecipe, seed: int, report: Callable[[str, int, int], None]
) -> Any:
    """Return a pretrained model; `words` is the folder of its tokenizer and configuration.

    Where it generates, the rows of its answers' words in the lm_head are turned, as those of other models' heads are for experts.
    """
    config = language.read_config(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, config["model_type"], "initialisation") % 2**63)
        model = language.new_model(config, 2)
    generates = building.generates(config["model_type"])
    if generates:
        model.lm_head.weight.requires_grad_(False)
        _set_words(model, data, recipe, seed, turned=False)
    joint = _together(data)
    loss = (_of_answers if generates else _of_classes)(model, data, joint, recipe, seed)
    optimise(
        model, loss, body(model), recipe.course(recipe.pretrain_lr), steps=recipe.pretrain_steps, key=(seed, "pretrained"),
        report=lambda done, _: report("pretraining", done, recipe.pretrain_steps),
    )
    if generates:
        _set_words(model, data, recipe, seed, turned=True)
    return model


def body(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained: all but the head's and what is frozen."""
    trained = ((name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad)
    return {name: tensor for name, tensor in trained if not is_head(model, name)}


def is_head(model: Any, name: str) -> bool:
    """Say whether a tensor of a model is of its head."""
    heads: tuple[str, ...] = ENCODERS[model.config.model_type].HEAD
    return bool(heads) and name.startswith(heads)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Joint:
    """The training texts of all tasks behind one another; `starts` are the rows that each task begins at."""

    texts: Tokens
    labels: NDArray[np.int64]
    answers: Tokens | None
    starts: Mapping[str, int]

    def rows(self, size: int, seed: int, step: int) -> Rows:
        """Return the rows of a step, `size` of each task."""
        ends = [*list(self.starts.values())[1:], len(self.labels)]
        streams = {task: generator(seed, "pretrained", task, step) for task in self.starts}
        of_tasks = zip(self.starts.items(), ends, strict=True)
        return np.concatenate([streams[task].integers(start, end, size=size) for (task, start), end in of_tasks])


def _together(data: Mapping[str, TextTask]) -> _Joint:
    entries = list(data.values())
    texts: list[Any] = [entry.train_images for entry in entries]
    answers = [entry.train_targets for entry in entries if entry.train_targets is not None]
    ends = np.cumsum([0, *(len(tokens) for tokens in texts)]).tolist()
    return _Joint(
        texts=_joined(texts), labels=np.concatenate([np.asarray(entry.train_labels) for entry in entries]),
        answers=_joined(answers) if answers else None, starts=dict(zip(data, ends, strict=False)),
    )


def _joined(parts: list[Tokens]) -> Tokens:
    return Tokens([row for tokens in parts for row in tokens.rows()], parts[0].pad)


def _of_classes(model: Any, data: Mapping[str, TextTask], joint: _Joint, recipe: SmallRecipe, seed: int) -> Loss:
    """Return the loss of a step: the mean over tasks of the cross entropy under the task's head."""
    encoder, size = language.encoder_of(model), recipe.pretrain_batch
    heads = [
        encoder.head(small.head(model.config.model_type, entry.num_classes, recipe, seed, turned=False, task=task))
        for task, entry in data.items()
    ]

    def loss(step: int) -> list[Tensor]:
        rows = joint.rows(size, seed, step)
        features = encoder(**{name: torch.from_numpy(array) for name, array in joint.texts[rows].items()})
        labels = torch.from_numpy(joint.labels[rows]).view(len(heads), size)
        parts = zip(heads, features.view(len(heads), size, -1), labels, strict=True)
        return [torch.stack([nn.functional.cross_entropy(head(part), right) for head, part, right in parts]).mean()]

    return loss


def _of_answers(model: Any, data: Mapping[str, TextTask], joint: _Joint, recipe: SmallRecipe, seed: int) -> Loss:
    """Return the loss of a step: the mean over the tokens of the answers."""
    first: Any = next(iter(data.values()))
    every = dataclasses.replace(first, train_images=joint.texts, train_labels=joint.labels, train_targets=joint.answers)
    questions = Questions(every, torch.device("cpu"))
    return lambda step: [questions.losses(model, joint.rows(recipe.pretrain_batch, seed, step)).mean()]


def _set_words(model: Any, data: Mapping[str, TextTask], recipe: SmallRecipe, seed: int, *, turned: bool) -> None:
    """Set the rows of the lm_head: random ones of one length; where asked for, those of the answers' words turned."""
    count = model.config.vocab_size
    every = small.rows(count, recipe, seed, turned=False, what="words")
    if turned:
        answers = [entry.train_targets for entry in data.values() if entry.train_targets is not None]
        ids = sorted({int(row[0]) for tokens in answers for row in tokens.rows()})
        every[ids] = small.rows(count, recipe, seed, turned=True, what="words")[ids]
    with torch.no_grad():
        model.lm_head.weight.copy_(every)
