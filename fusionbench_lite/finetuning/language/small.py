"""The small language models: their configurations, their frozen heads, and how they are trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionbench_lite.adaptation.learners.training import Course
from fusionbench_lite.base.randomness import seed_of
from fusionbench_lite.data.text.mini import tokenizer
from fusionbench_lite.fields import checked, integer, real
from fusionbench_lite.finetuning.language.recipes import LanguageRecipe, Lora
from fusionbench_lite.models.heads import random_embeddings

WIDTH, LAYERS, HEADS = 64, 2, 4
KINDS = {"text_mini_encoder": "roberta", "text_mini_decoder": "gpt2", "text_mini_seq2seq": "t5", "text_mini_llama": "llama"}
"""The models, and what transformers calls their kind."""


@dataclasses.dataclass(frozen=True)
class SmallRecipe:
    """How a small model and its experts are trained.

    Pretraining sees `pretrain_batch` texts of each task in a step. The heads stay frozen throughout; after pretraining every
    row of them is turned by `tilt` degrees in a random direction, at the same length. That makes a pretrained model as the
    papers' are: what is asked for is in its features, but no head reads it well. Experts then start from it with the turned
    heads. `head_scale` is the length of the rows. A model that generates has its words as the head; T5 learns adapters of rank
    `rank`, alpha twice that, of all linear layers of its blocks.
    """

    pretrain_steps: int = integer(2000, low=0)
    pretrain_batch: int = integer(8, low=1)
    pretrain_lr: float = real(2e-3, low=0)
    tilt: float = real(60.0, low=0, high=90)
    finetune_steps: int = integer(200, low=0)
    finetune_batch: int = integer(32, low=1)
    finetune_lr: float = real(1e-3, low=0)
    weight_decay: float = real(0.01, low=0)
    warmup: int = integer(20, low=0)
    head_scale: float = real(2.0, low=0)
    rank: int = integer(8, low=1)

    def course(self, lr: float) -> Course:
        """Return what the loop is to do at this learning rate."""
        return Course(lr=lr, weight_decay=self.weight_decay, warmup=self.warmup, clip=1.0)

    def adapters(self) -> LanguageRecipe:
        """Return the recipe of adapters."""
        lora = Lora(r=self.rank, alpha=2 * self.rank, dropout=0.0, targets=("q", "k", "v", "o", "wi", "wo"))
        return LanguageRecipe(
            name="small", source="a recipe of this project", optimizer="adamw", lr=self.finetune_lr, weight_decay=self.weight_decay,
            batch=self.finetune_batch, steps=self.finetune_steps, warmup=0.0, schedule="cosine", clip=1.0, lora=lora, held_out=0.0,
            select="last",
        )


RECIPES = {
    "text_mini_encoder": SmallRecipe(tilt=65.0), "text_mini_decoder": SmallRecipe(),
    "text_mini_seq2seq": SmallRecipe(pretrain_steps=1800, tilt=45.0, finetune_lr=1.5e-3), "text_mini_llama": SmallRecipe(),
}


def recipe_of(model: str, changes: Mapping[str, Any] | None) -> SmallRecipe:
    """Return a model's recipe with some numbers replaced; raises InputError for an unknown name or a number out of range."""
    checked(SmallRecipe, changes or {}, "checkpoints.recipe.")
    return dataclasses.replace(RECIPES[model], **(changes or {}))


def config(model: str) -> dict[str, Any]:
    """Return the config.json of a small model."""
    kind = KINDS[model]
    ids = tokenizer.vocabulary(kind)
    special = {f"{name.removesuffix('_token')}_token_id": ids[token] for name, token in tokenizer.SPECIAL[kind].items()}
    del special["unk_token_id"]
    common = {"model_type": kind, "vocab_size": len(ids), **special}
    if kind == "roberta":
        return common | {
            "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": tokenizer.LONGEST + ids["<pad>"] + 1, "type_vocab_size": 1, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    if kind == "gpt2":
        return common | {
            "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": 2 * WIDTH, "n_positions": tokenizer.LONGEST,
            "bos_token_id": ids["<|endoftext|>"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }
    if kind == "llama":
        return common | {
            "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2,
            "intermediate_size": 2 * WIDTH, "max_position_embeddings": tokenizer.LONGEST, "bos_token_id": ids["</s>"],
            "tie_word_embeddings": False,
        }
    return common | {
        "d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 2 * WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "dropout_rate": 0.0,
        "tie_word_embeddings": False, "decoder_start_token_id": ids["<pad>"], "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": tokenizer.LONGEST,
    }


def rows(count: int, recipe: SmallRecipe, seed: int, *, turned: bool, what: str) -> Tensor:
    """Return the rows [count, d] of a head, as they are in pretraining or turned away from that."""
    first, second = (random_embeddings(count, WIDTH, seed_of(seed, what, part)) for part in ("head", "turn"))
    if turned:
        across = torch.nn.functional.normalize(second - (second * first).sum(-1, keepdim=True) * first, dim=-1)
        first = math.cos(math.radians(recipe.tilt)) * first + math.sin(math.radians(recipe.tilt)) * across
    return recipe.head_scale * first


def head(kind: str, classes: int, recipe: SmallRecipe, seed: int, *, turned: bool, task: str) -> dict[str, Tensor]:
    """Return the tensors of a task's frozen head under the names of the model's class."""
    weight = rows(classes, recipe, seed, turned=turned, what=task)
    if kind == "gpt2":
        return {"score.weight": weight}
    square = torch.linalg.qr(random_embeddings(WIDTH, WIDTH, seed_of(seed, task, "dense")))[0]
    return {
        "classifier.dense.weight": square.contiguous(), "classifier.dense.bias": torch.zeros(WIDTH),
        "classifier.out_proj.weight": weight, "classifier.out_proj.bias": torch.zeros(classes),
    }
