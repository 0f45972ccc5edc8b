"""Which tensors of a language model have a row per token, by their names: heads and embeddings, which a model may tie."""

from __future__ import annotations

import re

_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|proj_out|output_projection|lm_head\.decoder|predictions\.decoder)\.weight")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|shared|word_embeddings?|tokens_embed|tok_embeddings|embed_in)\.weight")


def is_head(name: str) -> bool:
    """Say whether the tensor gives logits of tokens."""
    return _HEAD.search(name) is not None


def is_embedding(name: str) -> bool:
    """Say whether the tensor embeds tokens."""
    return _EMBEDDING.search(name) is not None


def is_vocabulary(name: str) -> bool:
    """Say whether the tensor has a row per token."""
    return is_head(name) or is_embedding(name)
