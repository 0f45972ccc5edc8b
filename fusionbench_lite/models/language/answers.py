"""Encoders of models that generate their answers: features for losses, greedy answers for judgements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fusionbench_lite.models.language.encoders import Encoder

ANSWER = 10
"""Tokens of an answer with the decoder's start, as FusionBench generates (max_length)."""


class Answering(Encoder):
    """An encoder whose features are hidden states or logits of the answer's first token, and which can give whole answers."""

    def __init__(self, model: Any, longest: int | None = None, padding: int | None = None) -> None:
        super().__init__(model.config.vocab_size, longest, padding)
        self._whole = (model,)  # in a tuple, so that its modules, which are these, are not counted twice
        self._longest_answer: int | None = None

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d], or the logits [B, vocabulary]; where it generates, answers int64 [B, <= longest]."""
        if self._longest_answer is not None:
            return self.answers(input_ids, mask, self._longest_answer)
        return self.first(input_ids, mask)

    def first(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d] that the first token of the answer is read from, or its logits [B, vocabulary]."""
        raise NotImplementedError

    def answers(self, input_ids: Tensor, mask: Tensor, longest: int) -> Tensor:
        """Return greedy answers, int64 ids [B, <= longest]."""
        raise NotImplementedError

    @property
    def answering(self) -> bool:
        """Whether `forward` returns answers now."""
        return self._longest_answer is not None

    @contextlib.contextmanager
    def generating(self, longest: int | None = ANSWER) -> Iterator[None]:
        """Have `forward` return greedy answers, or features where `longest` is None.

        They come from transformers' own `generate` with the mask of the inputs and whatever weights the encoder has then:
        those of `functional_call` too, where the vocabulary is inside or they do not change the lm_head.
        """
        before, self._longest_answer = self._longest_answer, longest
        try:
            yield
        finally:
            self._longest_answer = before

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the lm_head, nothing where it is inside."""
        raise NotImplementedError
