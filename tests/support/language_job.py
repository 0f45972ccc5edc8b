"""A small fine-tuning of a language model: functions for tests, and a file for those that kill it.

    python -m tests.support.language_job FOLDER KIND STOP_AT

kills itself with SIGKILL after the weights of that step were updated and before anything is stored.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np

from fusionbench_lite.data.text import TextTask, Tokens
from fusionbench_lite.finetuning.language import LanguageRecipe, Lora, train_expert
from tests.support.text_files import SENTENCES

VOCABULARY, TEXTS, STEPS, EVERY = 50, 60, 16, 3
CONFIGS = {
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 49},
    "roberta": {
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 14, "pad_token_id": 1,
    },
    "bert": {
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 12, "pad_token_id": 0,
    },
    "t5": {
        "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0, "decoder_start_token_id": 0,
    },
}  # fmt: skip
PAD = {"gpt2": 49, "roberta": 1, "bert": 0, "t5": 0}
RECIPE = LanguageRecipe(
    name="small", source="tests", optimizer="adamw", lr=0.01, weight_decay=0.01, batch=10, epochs=3, warmup=0.1,
    schedule="linear", clip=1.0, held_out=0.2, select="last",
)
RECIPES = {
    "gpt2": RECIPE,
    "roberta": dataclasses.replace(RECIPE, select="best_epoch", grouped=True),
    "bert": dataclasses.replace(RECIPE, dropout=0.0, grouped=True),
    "t5": dataclasses.replace(RECIPE, optimizer="adam", weight_decay=0.0, schedule="constant", clip=None, epochs=None, steps=STEPS),
    "lora": dataclasses.replace(
        RECIPE, lora=Lora(r=2, alpha=4.0, dropout=0.1, targets=("q", "v")), held_out=0.0, epochs=None, steps=STEPS
    ),
}
"""The last is T5 with adapters."""


def pretrained(folder: Path, kind: str, **changed) -> Path:
    """Write a random model without a head, as the bare model is published, and something in place of its tokenizer."""
    import torch
    from safetensors.torch import save_file

    from fusionbench_lite.models.language.building import ENCODERS, new_model, own_state

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = new_model({"model_type": kind, **CONFIGS[kind], **changed})
        if kind == "t5":
            model.lm_head.weight.data.normal_()  # one that is tied no longer
    heads = ENCODERS[kind].HEAD
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.contiguous() for name, tensor in own_state(model).items() if not heads or not name.startswith(heads)}
    save_file(kept, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def packaged(folder: Path) -> Path:
    """Write a small BERT with a tokenizer of word pieces, as MiniLM's package holds it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    words = sorted({word for sentence in SENTENCES for word in sentence.lower().split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pretrained(folder, "bert", vocab_size=len(special) + len(words), max_position_embeddings=64)
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64).save_pretrained(folder)
    return folder


def kind_of(name: str) -> str:
    """The model of a recipe."""
    return "t5" if name == "lora" else name


def task(kind: str, *, name: str = "toy", seed: int = 0, texts: int = TEXTS, scores: bool = False) -> TextTask:
    """Texts of 3 to 9 tokens, of class 1 where token 5 is among them; T5 answers 7 1 for it, 8 9 1 for the others."""
    stream = np.random.default_rng(seed)
    rows, labels = [], stream.integers(2, size=texts)
    for label in labels:
        row = stream.integers(10, 48, size=stream.integers(3, 10)).astype(np.int32)
        if label:
            row[stream.integers(len(row))] = 5
        rows.append(row)
    answers = [np.array([7, 1] if label else [8, 9, 1], dtype=np.int32) for label in labels]
    tokens, generates = Tokens(rows, PAD[kind]), kind == "t5"
    return TextTask(
        name=name, classes=("score",) if scores else ("without", "with"), train_images=tokens,
        train_labels=labels * 1.5 if scores else labels, test_images=Tokens(rows[:4], PAD[kind]),
        test_labels=labels[:4] * 1.5 if scores else labels[:4], metric="spearman" if scores else "accuracy",
        train_targets=Tokens(answers, 0) if generates else None, words=("no", "yes") if generates else None,
    )


def train(folder: Path, name: str = "gpt2", **given) -> Path:
    """Train an expert in a folder by the recipe of a name."""
    base = folder.parent / f"base-{kind_of(name)}"
    if not base.is_dir():
        pretrained(base, kind_of(name))
    usual = {"recipe": RECIPES[name], "task": task(kind_of(name)), "out": folder, "seed": 4, "checkpoint_every": EVERY}
    chosen = {**usual, **given}
    return train_expert(base, chosen.pop("task"), chosen.pop("recipe"), **chosen)


def main() -> None:
    """Train, and die at a step."""
    folder, name, stop = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def report(what: str, done: int, total: int) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder, name, report=report)


if __name__ == "__main__":
    main()
