"""`fusionbench_lite.load_exported`: models of the layout in `own`, run as the record's were."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import InputError, MergeError, did_you_mean
from fusionbench_lite.exporting import encoders, heads, own
from fusionbench_lite.exporting.forms import ADAPTERS, MASKS, WEIGHTS
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.models.language.answers import ANSWER, Answering
from fusionbench_lite.models.modes import with_weights
from fusionbench_lite.paths import expanded

Features = Callable[[Inputs, str], Tensor]


class Exported:
    """A model from files: `features(inputs, task)` [B, d] and `logits(inputs, task)` [B, C], in evaluation mode.

    `tasks` are those it was made for; `classes[task]` the names of the classes in order of the logits. Inputs of images are what
    `prepare` makes of pixels, inputs of texts the mapping {input_ids, attention_mask} that the tokenizer in the folder gives.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        self._said = own.described(folder)
        self.folder, self.device = folder, torch.device(device)
        self.method: str = self._said["method"]
        self.tasks = tuple(self._said["tasks"])
        self.classes = {task: tuple(self._said["heads"][task]["classes"]) for task in self.tasks}
        self.encoder = self._encoder()
        stored = own.read(folder / heads.FILE)
        self._heads = {
            task: heads.placed(heads.rebuilt(task, self._said["heads"][task], stored), self.device) for task in self.tasks
        }
        self._features = self._runner()

    def prepare(self, images: Tensor) -> Tensor:
        """Return pixels uint8 [B, H, W, 3], as large as the encoder wants them, as its inputs [B, 3, H, W]."""
        from fusionbench_lite.data import normalise
        from fusionbench_lite.models import clip

        return (clip.normalise if self._said["encoder"]["quick_gelu"] else normalise)(images.to(self.device))

    def head(self, task: str) -> nn.Module:
        """Return the frozen head of a task, features to logits."""
        return self._heads[self._known(task)]

    @torch.no_grad()
    def features(self, inputs: Inputs, task: str | None = None) -> Tensor:
        """Return the features [B, d] of inputs of a task; which one needs to be said where the model has parts for each.

        Raises MergeError for a task that is not known.
        """
        if task is None and self._said["form"] in (MASKS, ADAPTERS):
            raise MergeError(f"{self.method} has parts for every task: name one of {', '.join(self.tasks)}")
        return self._features(inputs, self._known(self.tasks[0] if task is None else task))

    @torch.no_grad()
    def logits(self, inputs: Inputs, task: str) -> Tensor:
        """Return the logits [B, C] of inputs of a task, as `features` and `head` give them.

        Raises MergeError for a model that generates, whose classes are words.
        """
        if self._said["heads"][self._known(task)]["kind"] == "none":
            raise MergeError(f"this is a model that generates, and has no head of {task!r}: call answers(inputs, {task!r})")
        return self._heads[self._known(task)](self.features(inputs, task).float())  # type: ignore[no-any-return]

    @torch.no_grad()
    def answers(self, inputs: Inputs, task: str, longest: int = ANSWER) -> Tensor:
        """Return the greedy answers of a model that generates, ids [B, <= longest], which the tokenizer in the folder decodes.

        Raises MergeError for a model with heads.
        """
        if not isinstance(self.encoder, Answering):
            raise MergeError(f"{self.method} of this folder has heads and generates no answers: call logits(inputs, {task!r})")
        with self.encoder.generating(longest):
            return self.features(inputs, task)

    def _known(self, task: str) -> str:
        if task not in self.tasks:
            raise MergeError(f"unknown task {task!r}: {did_you_mean(str(task), self.tasks)}")
        return task

    def _encoder(self) -> nn.Module:
        encoder = encoders.built(self._said["encoder"])
        try:
            encoder.load_state_dict(own.read(self.folder / own.MODEL))
        except RuntimeError as error:
            raise InputError(
                f"{self.folder / own.MODEL} is of another encoder than {own.DESCRIPTION} says: {_last(error)}"
            ) from None
        return encoder.to(self.device).eval().requires_grad_(False)

    def _runner(self) -> Features:
        form = self._said["form"]
        if form == WEIGHTS:
            return lambda inputs, task: self.encoder(**inputs) if isinstance(inputs, Mapping) else self.encoder(inputs)
        parts = {name: tensor.to(self.device) for name, tensor in own.read(self.folder / own.PARTS).items()}
        weights = self._merged()
        from fusionbench_lite.exporting import running

        try:
            if form == MASKS:
                return _OneAtATime(self.encoder, running.unfolded(self._said, weights, parts))
            return running.Running(self._said, self.encoder, weights, parts)
        except KeyError as error:
            raise InputError(f"{self.folder / own.PARTS} lacks {error}: export the record again") from None

    def _merged(self) -> dict[str, Tensor]:
        """Return the weights that are merged, under the names that the encoder has for them."""
        constants = set(self._said["encoder"].get("constants", ()))
        return {name: tensor for name, tensor in self.encoder.state_dict().items() if name not in constants}


class _OneAtATime:
    """The model of the task that was asked for last."""

    def __init__(self, encoder: nn.Module, weights: Callable[[str], Mapping[str, Tensor]]) -> None:
        self.encoder, self.weights = encoder, weights
        self.task: str | None = None
        self.encode: Callable[[Inputs], Tensor] | None = None

    def __call__(self, inputs: Inputs, task: str) -> Tensor:
        if self.encode is None or task != self.task:
            self.task, self.encode = task, with_weights(self.encoder, self.weights(task))
        return self.encode(inputs)


def load_exported(folder: str | os.PathLike[str], device: Any = "cpu") -> Exported:
    """Return the model in a folder that `python -m fusionbench_lite.export` wrote in this package's own layout.

    Nothing but JSON and safetensors is read, and no code is run from the folder. Raises InputError for a folder of another layout,
    with the line that loads it, and for what is missing, damaged or of another version.
    """
    place = expanded(folder)
    if not place.is_dir():
        raise InputError(f"there is no folder {place}: give one that export wrote")
    return Exported(place, device)


def _last(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


