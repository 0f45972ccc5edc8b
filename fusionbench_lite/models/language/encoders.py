"""Encoders of language models, transformers' own modules: GPT-2, RoBERTa, BERT.

Each keeps the tensor names of the transformers model it is made of, so that state dicts of checkpoints merge as they
are, and takes the mapping {input_ids [B, L], attention_mask [B, L]} that a tokenizer gives. Features do not depend on
padding, on either side. Which features: docs/decisions.md, D3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.language.heads import LinearHead, RobertaHead, needed


class Encoder(nn.Module):
    """What the encoders share: checked inputs, and the tensors of a checkpoint that are theirs.

    `BODY` are the beginnings of the names of the transformer blocks (and what follows them), `HEAD` those of the task's
    own head.
    """

    BODY: tuple[str, ...] = ()
    HEAD: tuple[str, ...] = ()

    def __init__(self, vocabulary: int, longest: int | None, padding: int | None = None) -> None:
        super().__init__()
        self._vocabulary, self._longest = vocabulary, longest
        self.padding = padding or 0
        self._everywhere: int | None = None

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **others: Tensor
    ) -> Tensor:
        """Return features [B, d]. Raises MergeError for inputs that do not fit the model or each other."""
        name = type(self).__name__
        if others:
            raise MergeError(f"{name} takes input_ids and attention_mask, got {', '.join(others)} too: leave it out")
        if input_ids is None or attention_mask is None:
            missing = "input_ids" if input_ids is None else "attention_mask"
            raise MergeError(f"{name} needs {missing}: pass input_ids and attention_mask, as the tokenizer returns them")
        if input_ids.dim() != 2 or input_ids.shape != attention_mask.shape:
            raise MergeError(
                f"{name}: input_ids must be [B, L] and attention_mask of that shape, got {tuple(input_ids.shape)} and "
                f"{tuple(attention_mask.shape)}"
            )
        if input_ids.is_floating_point() or input_ids.numel() == 0:
            raise MergeError(f"{name}: input_ids must be integers and not empty, got {_what(input_ids)}")
        if self._longest is not None and input_ids.shape[1] > self._longest:
            raise MergeError(f"{name}: input_ids have {input_ids.shape[1]} positions, the model {self._longest}: truncate them")
        low, high = (int(bound) for bound in torch.aminmax(input_ids))
        if low < 0 or high >= self._vocabulary:
            raise MergeError(f"{name}: input_ids go from {low} to {high}, the vocabulary from 0 to {self._vocabulary - 1}")
        mask = attention_mask.long()
        if not bool(mask.any(1).all()):
            raise MergeError(f"{name}: attention_mask has a row without a token: drop empty texts")
        if self._everywhere is None:
            return self.features(input_ids, mask)
        length = self._everywhere or input_ids.shape[1]
        if input_ids.shape[1] > length:
            raise MergeError(f"{name}: input_ids have {input_ids.shape[1]} positions, more than the length {length}: truncate them")
        more = (0, length - input_ids.shape[1])
        states = self.states(nn.functional.pad(input_ids, more, value=self.padding), nn.functional.pad(mask, more))
        return states if self._everywhere else states * mask[..., None].to(states.dtype)

    @contextlib.contextmanager
    def at_positions(self, length: int | None = None) -> Iterator[None]:
        """Have `forward` return hidden states at all positions, [B, L, d], of inputs padded to L = `length`; without one L is
        theirs, and states at padding are 0."""
        if length is not None and self._longest is not None and length > self._longest:
            raise MergeError(f"{type(self).__name__}: length is {length}, the model has {self._longest} positions: lower it")
        before, self._everywhere = self._everywhere, length or 0
        try:
            yield
        finally:
            self._everywhere = before

    def states(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden states at all positions [B, L, d] of checked inputs. Raises MergeError where they mean nothing."""
        raise MergeError(f"{type(self).__name__} has no states at all positions: set features to final")

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return features [B, d] of checked inputs; the mask holds integers."""
        raise NotImplementedError

    def merged(self, weights: Mapping[str, Tensor], *, embeddings: bool = True) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint that are to be merged: all but the task's head.

        Without `embeddings` the transformer blocks (and a norm after them) alone, as AdaRank's released code has it; the
        model's own embeddings, which have to be the pretrained ones, are used then.
        """
        if embeddings:
            return {name: tensor for name, tensor in weights.items() if not name.startswith(self.HEAD)}
        return {name: tensor for name, tensor in weights.items() if name.startswith(self.BODY)}

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the frozen head, features to logits, from the tensors of a task's checkpoint."""
        raise NotImplementedError


class Gpt2Encoder(Encoder):
    """GPT-2: the last hidden state of the last token that is not padding, as GPT2ForSequenceClassification pools.

    Positions count from the first token that is not padding: left padding, which transformers' classifier does not
    allow for, changes nothing.
    """

    BODY = ("transformer.h.", "transformer.ln_f.")
    HEAD = ("score.",)

    def __init__(self, model: Any) -> None:
        super().__init__(model.config.vocab_size, model.config.n_positions, model.config.pad_token_id)
        self.transformer = model.transformer

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d] that the head `score` reads."""
        last = (torch.arange(mask.shape[1], device=mask.device) * mask.bool()).argmax(1)
        return self.states(input_ids, mask)[torch.arange(len(last), device=last.device), last]

    def states(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden states [B, L, d]."""
        places = torch.arange(mask.shape[1], device=mask.device)
        positions = (places - first_of(mask)[:, None]).clamp(min=0)
        hidden: Tensor = self.transformer(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]
        return hidden

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the linear head `score`."""
        return LinearHead(needed(weights, "score.weight"))


class RobertaEncoder(Encoder):
    """RoBERTa: the last hidden state of <s>, the first token, as RobertaForSequenceClassification pools."""

    BODY = ("roberta.encoder.",)
    HEAD = ("classifier.",)

    def __init__(self, model: Any) -> None:
        padding = int(model.config.pad_token_id)  # positions count from the number after it
        super().__init__(model.config.vocab_size, model.config.max_position_embeddings - padding - 1, padding)
        self.roberta = model.roberta

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d] that the head `classifier` reads."""
        first = first_of(mask)
        return self.states(input_ids, mask)[torch.arange(len(first), device=first.device), first]

    def states(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden states [B, L, d]."""
        positions = mask.cumsum(1) * mask + self.padding
        hidden: Tensor = self.roberta(input_ids=input_ids, attention_mask=mask, position_ids=positions)[0]
        return hidden

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the head `classifier`: a layer of the encoder's width, tanh, and a linear map."""
        names = (f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias"))
        return RobertaHead(*(needed(weights, name) for name in names))


class BertEncoder(Encoder):
    """BERT: the pooler's output for [CLS], the first token, as BertForSequenceClassification has it.

    All tokens are of the first segment: a pair is told apart by the separator alone.
    """

    BODY = ("bert.encoder.",)
    HEAD = ("classifier.",)

    def __init__(self, model: Any) -> None:
        super().__init__(model.config.vocab_size, model.config.max_position_embeddings, model.config.pad_token_id)
        self.bert = model.bert

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled hidden state [B, d] that the head `classifier` reads."""
        first = first_of(mask)
        chosen = self.states(input_ids, mask)[torch.arange(len(first), device=first.device), first]
        return self.bert.pooler(chosen[:, None])  # type: ignore[no-any-return]

    def states(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden states [B, L, d], before the pooler."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        hidden: Tensor = self.bert(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, token_type_ids=torch.zeros_like(input_ids)
        )[0]
        return hidden

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the linear head `classifier`."""
        return LinearHead(needed(weights, "classifier.weight"), bias=needed(weights, "classifier.bias"))


def first_of(mask: Tensor) -> Tensor:
    """Return the place [B] of the first token of each row."""
    return mask.bool().int().argmax(1)


def _what(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
