"""The encoder of T5 and Flan-T5: the first decoder position for losses, whole answers for judgements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.language.answers import Answering
from fusionbench_lite.models.language.heads import LinearHead, needed


class T5Encoder(Answering):
    """T5 and Flan-T5: the decoder's hidden state of its first token, the id `start` alone.

    FusionBench gives the decoder 1, `</s>`; the default is 0, its own start. The head is the lm_head over the whole
    vocabulary, with T5's factor d^-1/2 where the config ties it to the embeddings. With `vocabulary` it runs inside:
    features are the logits and its weights are merged with the rest, which a tied one needs where embeddings differ.
    """

    BODY = ("encoder.block.", "encoder.final_layer_norm.", "decoder.block.", "decoder.final_layer_norm.")

    def __init__(self, model: Any, *, start: int = 0, vocabulary: bool = False) -> None:
        config = model.config
        super().__init__(model)
        if not 0 <= start < config.vocab_size:
            raise MergeError(f"T5Encoder: start must be an id of the vocabulary, 0 to {config.vocab_size - 1}, got {start}")
        self.start = start
        # From version 5 on a T5 config says that it is tied whatever it was given, and keeps the factor apart.
        self.scale: float = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings) else 1.0
        self.shared, self.encoder, self.decoder = model.shared, model.encoder, model.decoder
        self.lm_head = model.lm_head if vocabulary else None

    def first(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d] of the decoder's first token, or the logits [B, vocabulary]."""
        states = self.encoder(input_ids=input_ids, attention_mask=mask)[0]
        first = input_ids.new_full((len(input_ids), 1), self.start)
        hidden: Tensor = self.decoder(
            input_ids=first, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
        )[0][:, 0]
        return hidden if self.lm_head is None else self.lm_head(hidden * self.scale)

    def answers(self, input_ids: Tensor, mask: Tensor, longest: int) -> Tensor:
        """Return greedy answers, int64 ids [B, <= longest] that begin with the decoder's start."""
        model, settings = self._whole[0], self._whole[0].config
        made: Tensor = model.generate(
            input_ids=input_ids, attention_mask=mask, max_length=longest, do_sample=False, num_beams=1,
            decoder_start_token_id=getattr(settings, "decoder_start_token_id", None) or 0, pad_token_id=settings.pad_token_id or 0,
        )
        return made

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the lm_head, from `shared.weight` where a checkpoint that ties both lists that alone."""
        if self.lm_head is not None:
            return nn.Identity()
        name = "lm_head.weight" if "lm_head.weight" in weights else "shared.weight"
        return LinearHead(needed(weights, name), self.scale)
