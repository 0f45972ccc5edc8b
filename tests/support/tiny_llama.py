"""A Llama of 24,000 random parameters with a tokenizer of single characters, as files, and tasks of the harness from local data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)

CHARACTERS = "\n !\"#$%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
Rows = Sequence[Mapping[str, Any]]


def tokenizer() -> Any:
    """A tokenizer with an entry per character."""
    import tokenizers
    import transformers

    words = {word: number for number, word in enumerate([*SPECIAL, *CHARACTERS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def write_model(folder: Path, seed: int = 0, *, shard: str = "5GB") -> Path:
    """Write config, weights and tokenizer of a model with the random weights of a seed."""
    import torch
    import transformers

    words = len(SPECIAL) + len(CHARACTERS)
    config = transformers.LlamaConfig(
        vocab_size=words, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return folder


def write_task(folder: Path, name: str, splits: Mapping[str, Rows], **keys: Any) -> None:
    """Write NAME.yaml of the harness and its data as local files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, rows in splits.items():
        path = folder / f"{name}.{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    local = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(local | keys, sort_keys=False))
