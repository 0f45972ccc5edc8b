"""Folders with tokenizers made by code in the layouts of published models, files of text tasks, and GLUE's parquet on a mirror."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.mirror import Mirror

SENTENCES = (
    "a very funny film with a plot that moves", "the acting is flat and the jokes are old", "she gave the book to him yesterday",
    "him yesterday book the gave to she", "is this sentence positive or negative?", "acceptable unacceptable yes no 0.0 1.2 5.0",
    "entailment neutral contradiction premise: hypothesis: 'quoted'", "The house voted 425 to 2 to clear the bill.",
)
VOCABULARY = 420


def byte_level(folder: Path, kind: str, **config: Any) -> Path:
    """Write vocab.json, merges.txt and config.json as GPT-2 and RoBERTa are published, without a tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["<|endoftext|>"] if kind == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False,
        ),
    )
    folder.mkdir(parents=True)
    tokenizer.model.save(str(folder))
    sizes = {"n_positions": 64} if kind == "gpt2" else {"max_position_embeddings": 66, "pad_token_id": 1}
    about = {"model_type": kind, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, **sizes, **config}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def t5(folder: Path) -> Path:
    """Write tokenizer.json, tokenizer_config.json and config.json of a small T5: pieces of words, the end marked by </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    letters = sorted(set("".join(SENTENCES)) - {" "})
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in words)]
    tokenizer = Tokenizer(models.Unigram([(piece, 0.0 if at < 3 else -1.0) for at, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0, "model_max_length": 512}
    T5TokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": len(pieces) + 3, "n_positions": 8}))
    return folder


def jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as objects, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def labelled(count: int, label: Any = None, start: int = 0) -> list[dict[str, Any]]:
    """Return `count` different sentences with the labels 0, 1, 0, ..., or one label."""
    return [
        {"sentence": f"{SENTENCES[at % len(SENTENCES)]} {at}", "label": at % 2 if label is None else label}
        for at in range(start, start + count)
    ]


def task(folder: Path, name: str = "mine", **description: Any) -> Path:
    """Write a task of 6 training and 4 test sentences; returns the folder."""
    about = {"text": ["sentence"], "classes": ["bad", "good"], **description}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(about))
    jsonl(folder / f"{name}.train.jsonl", labelled(6))
    jsonl(folder / f"{name}.test.jsonl", labelled(4, start=6))
    return folder


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a parquet file of rows, with a column `idx` that nothing reads."""
    import pyarrow
    from pyarrow import parquet as files

    buffer = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist([{**row, "idx": at} for at, row in enumerate(rows)]), buffer)
    return buffer.getvalue()


def glue(mirror: Mirror, task_name: str, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put a split of a task of GLUE on a mirror, as the hub has it."""
    mirror.put("dataset", "nyu-mll/glue", f"{task_name}/{split}-00000-of-00001.parquet", parquet(rows))
