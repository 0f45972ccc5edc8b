"""Names of the files that transformers writes beside the weights of a language model."""

from __future__ import annotations

CONFIG = "config.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)
"""Those of a tokenizer, whatever its kind."""
