"""The texts of every step of a training, and what the model is told about them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data.text import TextTask, Tokens
from fusionbench_lite.models.language.llama import to_the_right

Rows = NDArray[np.int64]
GROUP = 20
"""Batches whose texts are put in order of length together, where texts of like length share a step."""
IGNORED = -100
"""What stands in for padding among the ids of answers."""


class TextBatches:
    """The rows of every step: each epoch sees every training text once, in an order of its own."""

    def __init__(self, lengths: Rows, rows: Rows, batch: int, *, grouped: bool, seed: int, task: str) -> None:
        self.lengths, self.batch, self.grouped, self.seed, self.task = lengths, batch, grouped, seed, task
        self.train = rows
        self._order = functools.lru_cache(maxsize=1)(self._drawn)

    def rows(self, step: int) -> Rows:
        """Return the rows of a step, from 0."""
        order = self._order(step // self.an_epoch)
        return order[step % self.an_epoch]

    @property
    def an_epoch(self) -> int:
        """The number of steps that see every text once."""
        return -(-len(self.train) // self.batch)

    def _drawn(self, epoch: int) -> list[Rows]:
        stream = generator(self.seed, self.task, "order", epoch)
        order = stream.permutation(self.train)
        if not self.grouped:
            return _cut(order, self.batch)
        groups = _cut(order, GROUP * self.batch)
        batches = [part for group in groups for part in _cut(by_length(self.lengths, group), self.batch)]
        return [batches[number] for number in stream.permutation(len(batches))]


def by_length(lengths: Rows, rows: Rows) -> Rows:
    """Return rows in order of their length, as they come where it is the same."""
    return rows[np.argsort(lengths[rows], kind="stable")]


def held_out_rows(task: str, size: int, part: float) -> tuple[Rows, Rows]:
    """Return the rows of `size` training texts that are trained on, and the part that is held out: the same for every seed."""
    order = generator(task, "held out").permutation(size)
    count = int(size * part)
    return np.sort(order[count:]), np.sort(order[:count])


class Questions:
    """Training texts with their answers on a device: inputs, losses and predictions of a model on some of them."""

    def __init__(self, task: TextTask, device: torch.device, *, bf16: bool = False) -> None:
        self.texts: Tokens = task.train_images  # type: ignore[assignment]
        self.answers = task.train_targets
        self.labels = np.asarray(task.train_labels)
        self.device, self._bf16 = device, bf16

    def losses(self, model: nn.Module, rows: Rows) -> Tensor:
        """Return the losses of single texts [B], or of single tokens of their answers [N]: cross entropy, or for scores squares."""
        logits, right = self._logits(model, rows)
        if right.is_floating_point():
            return (logits.squeeze(-1) - right).square()
        return nn.functional.cross_entropy(logits, right, reduction="none")

    def count(self, rows: Rows) -> int:
        """Return how many losses these rows have."""
        return len(rows) if self.answers is None else int(self.answers.lengths[rows].sum())

    def predictions(self, model: nn.Module, rows: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return predictions and labels [B]. Of answers: whether greedy generation would end with the right one, and True.

        Generation takes the likeliest token after those before it, so that it gives an answer exactly where every token of it
        is the likeliest after the right ones.
        """
        logits, right = self._logits(model, rows)
        if right.is_floating_point():
            return logits.squeeze(-1).double().cpu().numpy(), self.labels[rows]
        found = logits.argmax(-1)
        if self.answers is None:
            return found.cpu().numpy(), self.labels[rows]
        ends = np.cumsum(self.answers.lengths[rows])[:-1]
        correct = [part.all() for part in np.split((found == right).cpu().numpy(), ends)]
        return np.array(correct, dtype=np.int64), np.ones(len(rows), dtype=np.int64)

    def _logits(self, model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return logits and right answers: [B, C] and [B], or of all tokens of the answers [N, vocabulary] and [N]."""
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in self.texts[rows].items()}
        if self.answers is None:
            right = torch.from_numpy(self.labels[rows]).to(self.device)
            return self._run(model, inputs), right.float() if right.is_floating_point() else right
        answers = {name: torch.from_numpy(array).to(self.device) for name, array in self.answers[rows].items()}
        ids, there = answers["input_ids"], answers["attention_mask"].bool()
        if not model.config.is_encoder_decoder:  # type: ignore[union-attr]
            return self._continued(model, inputs, answers)[there], ids[there]
        start = int(model.config.decoder_start_token_id or 0)  # type: ignore[union-attr, arg-type]
        before = torch.cat([ids.new_full((len(ids), 1), start), ids[:, :-1]], dim=1)
        return self._run(model, {**inputs, "decoder_input_ids": before})[there], ids[there]

    def _continued(self, model: nn.Module, prompts: dict[str, Tensor], answers: dict[str, Tensor]) -> Tensor:
        """Return the logits [B, A, vocabulary] of the tokens of answers behind their prompts."""
        front, mask = to_the_right(prompts["input_ids"], prompts["attention_mask"])
        both = torch.cat([mask, answers["attention_mask"]], dim=1)
        logits = self._run(model, {
            "input_ids": torch.cat([front, answers["input_ids"]], dim=1), "attention_mask": both,
            "position_ids": (both.cumsum(1) - 1).clamp(min=0),
        })  # fmt: skip
        return logits[:, front.shape[1] - 1 : -1]

    def _run(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = model(**inputs).logits
        return logits.float()


def in_chunks(rows: Rows, size: int | None) -> Iterator[Rows]:
    """Return rows in parts of at most `size`, None for all at once."""
    return iter(_cut(rows, size or max(1, len(rows))))


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
