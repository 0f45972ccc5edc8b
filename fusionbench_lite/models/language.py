"""Encoders of language models, transformers' own modules: GPT-2, RoBERTa, Flan-T5.

Each keeps the tensor names of the transformers model it is made of, so that state dicts of checkpoints merge as they
are, and takes the mapping {input_ids [B, L], attention_mask [B, L]} that a tokenizer gives. Features do not depend on
padding, on either side. Which features: docs/decisions.md, D3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import InputError, MergeError, did_you_mean


class Encoder(nn.Module):
    """What the encoders share: checked inputs, and the tensors of a checkpoint that are theirs.

    `BODY` are the beginnings of the names of the transformer blocks (and what follows them), `HEAD` those of the task's
    own head.
    """

    BODY: tuple[str, ...] = ()
    HEAD: tuple[str, ...] = ()

    def __init__(self, vocabulary: int, longest: int | None) -> None:
        super().__init__()
        self._vocabulary, self._longest = vocabulary, longest

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
        return self.features(input_ids, mask)

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
        super().__init__(model.config.vocab_size, model.config.n_positions)
        self.transformer = model.transformer

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d] that the head `score` reads."""
        places = torch.arange(mask.shape[1], device=mask.device)
        positions = (places - _first(mask)[:, None]).clamp(min=0)
        hidden = self.transformer(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]
        last = (places * mask.bool()).argmax(1)
        return hidden[torch.arange(len(last), device=last.device), last]  # type: ignore[no-any-return]

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the linear head `score`."""
        return LinearHead(_needed(weights, "score.weight"))


class RobertaEncoder(Encoder):
    """RoBERTa: the last hidden state of <s>, the first token, as RobertaForSequenceClassification pools."""

    BODY = ("roberta.encoder.",)
    HEAD = ("classifier.",)

    def __init__(self, model: Any) -> None:
        padding = int(model.config.pad_token_id)
        super().__init__(model.config.vocab_size, model.config.max_position_embeddings - padding - 1)
        self._padding = padding  # positions count from the number after it
        self.roberta = model.roberta

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d] that the head `classifier` reads."""
        positions = mask.cumsum(1) * mask + self._padding
        hidden = self.roberta(input_ids=input_ids, attention_mask=mask, position_ids=positions)[0]
        first = _first(mask)
        return hidden[torch.arange(len(first), device=first.device), first]  # type: ignore[no-any-return]

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the head `classifier`: a layer of the encoder's width, tanh, and a linear map."""
        names = (f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias"))
        return RobertaHead(*(_needed(weights, name) for name in names))


class T5Encoder(Encoder):
    """T5 and Flan-T5: the decoder's hidden state of its first token, the id `start` alone.

    FusionBench gives the decoder 1, `</s>`; the default is 0, its own start. The head is the lm_head over the whole
    vocabulary, with T5's factor d^-1/2 where the config ties it to the embeddings. With `vocabulary` it runs inside:
    features are the logits and its weights are merged with the rest, which a tied one needs where embeddings differ.
    """

    BODY = ("encoder.block.", "encoder.final_layer_norm.", "decoder.block.", "decoder.final_layer_norm.")

    def __init__(self, model: Any, *, start: int = 0, vocabulary: bool = False) -> None:
        config = model.config
        super().__init__(config.vocab_size, None)
        if not 0 <= start < config.vocab_size:
            raise MergeError(f"T5Encoder: start must be an id of the vocabulary, 0 to {config.vocab_size - 1}, got {start}")
        self.start = start
        # From version 5 on a T5 config says that it is tied whatever it was given, and keeps the factor apart.
        self.scale: float = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings) else 1.0
        self.shared, self.encoder, self.decoder = model.shared, model.encoder, model.decoder
        self.lm_head = model.lm_head if vocabulary else None

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d], or the logits [B, vocabulary]."""
        states = self.encoder(input_ids=input_ids, attention_mask=mask)[0]
        first = input_ids.new_full((len(input_ids), 1), self.start)
        hidden: Tensor = self.decoder(
            input_ids=first, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
        )[0][:, 0]
        return hidden if self.lm_head is None else self.lm_head(hidden * self.scale)

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the lm_head, from `shared.weight` where a checkpoint that ties both lists that alone."""
        if self.lm_head is not None:
            return nn.Identity()
        name = "lm_head.weight" if "lm_head.weight" in weights else "shared.weight"
        return LinearHead(_needed(weights, name), self.scale)


class LinearHead(nn.Module):
    """Logits W (s f) of features f [B, d]; W [C, d] is constant."""

    weight: Tensor

    def __init__(self, weight: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return nn.functional.linear(features * self.scale, self.weight)


class RobertaHead(nn.Module):
    """Logits V tanh(W f + w) + v of features f [B, d], without dropout; all is constant."""

    def __init__(self, dense: Tensor, dense_bias: Tensor, out: Tensor, out_bias: Tensor) -> None:
        super().__init__()
        for name, tensor in (("dense", dense), ("dense_bias", dense_bias), ("out", out), ("out_bias", out_bias)):
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C]."""
        inner = torch.tanh(nn.functional.linear(features, self.get_buffer("dense"), self.get_buffer("dense_bias")))
        return nn.functional.linear(inner, self.get_buffer("out"), self.get_buffer("out_bias"))


def build(config: Mapping[str, Any], **options: Any) -> Encoder:
    """Return the encoder of a checkpoint's config.json, with weights drawn from torch's generator.

    `options` are those of the encoder. Raises InputError for another `model_type`, or where transformers is missing.
    """
    kind = config.get("model_type")
    makers = {"gpt2": _gpt2, "roberta": _roberta, "t5": _t5}
    if kind not in makers:
        raise InputError(f"unknown language model {kind!r}: {did_you_mean(str(kind), makers)}")
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)

    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError("language models need transformers: pip install 'fusionbench_lite[language]'") from error
    given = {key: value for key, value in config.items() if key != "model_type"}
    return makers[kind](transformers, given, **options)


def _gpt2(transformers: Any, config: dict[str, Any]) -> Encoder:
    return Gpt2Encoder(transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**config)))


def _roberta(transformers: Any, config: dict[str, Any]) -> Encoder:
    return RobertaEncoder(transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**config)))


def _t5(transformers: Any, config: dict[str, Any], **options: Any) -> Encoder:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
    # The stacks always share their embeddings; the setting is about the lm_head and its factor. From version 5 on, a new
    # model ties the lm_head all the same, and 5.0 forgets the factor.
    tied = config.get("tie_word_embeddings", True) is not False
    model.config.scale_decoder_outputs = tied
    for stack in (model.encoder, model.decoder):
        stack.embed_tokens.weight = model.shared.weight
    if not tied:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return T5Encoder(model, **options)


def _first(mask: Tensor) -> Tensor:
    """Return the place [B] of the first token of each row."""
    return mask.bool().int().argmax(1)


def _what(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _needed(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise MergeError(f"the checkpoint has no {name!r}, which the head is made of: {did_you_mean(name, weights)}")
    return weights[name]
