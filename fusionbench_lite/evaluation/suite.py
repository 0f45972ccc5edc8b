"""What a run works on, loaded: tasks, weights, the model, and the one door to inputs, labels and judgements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionbench_lite.data import TaskData, decode_ahead, fingerprint
from fusionbench_lite.evaluation.evaluator import Encode, Evaluation, Evaluator, TaskResult
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.models.modes import with_weights

StateDict = Mapping[str, Tensor]
Rows = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks, weights and model of a run.

    `files` maps the checkpoint files to their SHA-256, `expert_hashes` and `head_hashes` tasks to those of their own;
    `sources` says where files come from, `caveats` what a reader of the results should know about them. `folder` holds
    the files of the run, None where they lie in several; `place` is where what methods make of the experts stays,
    `chunk` the number of examples in one forward pass of an adaptation, None for all. `constants` are tensors of the model
    that experts do not have, as FusionBench's projection. `details` are facts of the model that a record is known by beside
    its name, such as the layout. `by_content`: checkpoints count by what they hold, wherever they lie, and the hashes of the
    tasks cover test examples alone. `beside` stands for what decides an expert's model beside its own files: the pretrained
    weights that an adapter changes, and those of tensors that are not merged.
    """

    family: str
    tasks: Mapping[str, TaskData]
    data_hashes: Mapping[str, str]
    files: Mapping[str, str]
    expert_hashes: Mapping[str, str]
    head_hashes: Mapping[str, str]
    pretrained: StateDict
    experts: Mapping[str, StateDict]
    multitask: StateDict | None
    model: nn.Module
    evaluator: Evaluator
    device: torch.device
    folder: Path | None = None
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    place: str = "device"
    chunk: int | None = None
    constants: frozenset[str] = frozenset()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by_content: bool = False
    beside: str | None = None

    @property
    def heads(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The frozen heads: features [B, d] to logits [B, C]."""
        return self.evaluator.heads

    def size(self, task: str, split: str) -> int:
        """Return the number of examples of a split, "train" or "test"."""
        return len(self.tasks[task].labels(split))

    def inputs(self, task: str, split: str, rows: Rows) -> Inputs:
        """Return the model's inputs of some examples, on the device of the run: a tensor [B, ...], or named tensors."""
        return self.evaluator.inputs(self.tasks[task].inputs(split)[rows])

    def labels(self, task: str, split: str, rows: Rows) -> Tensor:
        """Return the labels [B] of some examples, on the device of the run."""
        return torch.from_numpy(self.tasks[task].labels(split)[rows]).to(self.device)

    def decode_ahead(self, task: str, split: str, rows: Rows) -> None:
        """Have examples at hand that are decoded when they are read."""
        decode_ahead(self.tasks[task].inputs(split), rows)

    def training_hash(self, task: str) -> str | None:
        """Return what stands for the training examples where `data_hashes` do not cover them."""
        return fingerprint(self.tasks[task].inputs("train"))

    def encoder(self, weights: StateDict) -> Encode:
        """Return the encoder with these weights, in evaluation mode."""
        return with_weights(self.model, weights)

    def judge(self, task: str, encode: Encode) -> TaskResult:
        """Return the result of an encoder on the test examples of one task."""
        return self.evaluator.task(task, encode)

    def evaluate(self, encode: Encode) -> Evaluation:
        """Return the results of one encoder on all tasks; the processes of a run share them."""
        return self.evaluator.evaluate(encode)
