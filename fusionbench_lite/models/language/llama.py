"""The encoder of Llama: the token after a prompt for losses, whole answers for judgements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.models.language.answers import Answering
from fusionbench_lite.models.language.encoders import first_of
from fusionbench_lite.models.language.heads import LinearHead, needed


class LlamaEncoder(Answering):
    """Llama: the last hidden state of the last token of the prompt, which the answer's first token is read from.

    Positions count from the first token that is not padding, so that padding on either side changes nothing. With `vocabulary`
    the lm_head runs inside: features are the logits, and its weights are merged with the rest.
    """

    BODY = ("model.layers.", "model.norm.")

    def __init__(self, model: Any, *, vocabulary: bool = False) -> None:
        super().__init__(model, model.config.max_position_embeddings, model.config.pad_token_id)
        self.model = model.model
        self.lm_head = model.lm_head if vocabulary else None

    def first(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state [B, d] of the prompt's last token, or the logits [B, vocabulary] after it."""
        last = (torch.arange(mask.shape[1], device=mask.device) * mask.bool()).argmax(1)
        hidden = self.states(input_ids, mask)[torch.arange(len(last), device=last.device), last]
        return hidden if self.lm_head is None else self.lm_head(hidden)

    def states(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden states [B, L, d]."""
        places = torch.arange(mask.shape[1], device=mask.device)
        positions = (places - first_of(mask)[:, None]).clamp(min=0)
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]
        return hidden

    def answers(self, input_ids: Tensor, mask: Tensor, longest: int) -> Tensor:
        """Return what follows the prompts, int64 ids [B, <= longest]; prompts stand at the right end while they are continued."""
        ids, there = to_the_right(input_ids, mask)
        made: Tensor = self._whole[0].generate(
            input_ids=ids, attention_mask=there, max_new_tokens=longest, do_sample=False, num_beams=1, pad_token_id=self.padding
        )
        return made[:, ids.shape[1] :]

    def head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the lm_head, the embeddings where a checkpoint ties both; nothing where it is inside."""
        if self.lm_head is not None:
            return nn.Identity()
        name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
        return LinearHead(needed(weights, name))


def to_the_right(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids and mask [B, L] with the padding of every row in front of its tokens, whose order stays."""
    order = torch.argsort(mask, dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)
