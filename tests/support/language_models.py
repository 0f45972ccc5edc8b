"""Tiny random GPT-2, RoBERTa and T5, their tasks, and the entropy of transformers' own models as an oracle."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)

# isort: split

from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from fusionbench_lite.models import language
from tests.oracles import adaptive
from tests.support.helpers import Setting, expert_of, rng, snapshot

PAD = {"gpt2": 49, "roberta": 1, "t5": 0}
VOCABULARY = 50
CONFIGS = {
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2, "pad_token_id": 49},
    "roberta": {
        "vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 14, "pad_token_id": 1,
    },
    "t5": {
        "vocab_size": VOCABULARY, "d_model": 8, "d_kv": 3, "d_ff": 12, "num_layers": 2, "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
    },
}  # fmt: skip
"""Dropout is 0.1 in all of them, as in transformers' defaults."""


def full_model(kind: str, classes: int = 2, *, tied: bool = True, seed: int = 0, **given) -> nn.Module:
    """A transformers model whose weights are large enough for entropies to differ."""
    config = {**CONFIGS[kind], **given}
    if kind == "t5":
        model = T5ForConditionalGeneration(T5Config(**config, tie_word_embeddings=tied))
        if not tied:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    elif kind == "gpt2":
        model = GPT2ForSequenceClassification(GPT2Config(**config, num_labels=classes))
    else:
        model = RobertaForSequenceClassification(RobertaConfig(**config, num_labels=classes))
    g = rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.4 + (1 if norm else 0))
    return model


def encoder_of(kind: str, model: nn.Module, **options) -> language.Encoder:
    makers = {"gpt2": language.Gpt2Encoder, "roberta": language.RobertaEncoder, "t5": language.T5Encoder}
    return makers[kind](model, **options)


def texts(kind: str, count: int, length: int, seed: int, side: str = "right") -> dict[str, Tensor]:
    """Tokens of random lengths, the longest `length`, padded on a side ("both": rows take turns)."""
    g = rng(seed)
    ids = torch.randint(2, VOCABULARY - 1, (count, length), generator=g)
    mask = torch.zeros((count, length), dtype=torch.long)
    for row in range(count):
        size = length if row == 0 else int(torch.randint(1, length + 1, (1,), generator=g))
        left = side == "left" or (side == "both" and row % 2 == 1)
        mask[row, length - size :] = 1 if left else 0
        if not left:
            mask[row, :size] = 1
    return {"input_ids": torch.where(mask == 1, ids, torch.tensor(PAD[kind])), "attention_mask": mask}


def direct_logits(kind: str, model: nn.Module, batch: Mapping[str, Tensor], start: int = 0) -> Tensor:
    """Logits [B, C] of transformers' own forward pass."""
    if kind == "t5":
        first = torch.full((len(batch["input_ids"]), 1), start)
        return model(**batch, decoder_input_ids=first).logits[:, 0]
    if kind == "gpt2":  # without positions of its own, a left-padded text would be another text
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return model(**batch, position_ids=positions).logits
    return model(**batch).logits


@dataclass
class Language:
    """A setting for `fbl.adapt`, and transformers' model of every task, whose head is the task's."""

    kind: str
    setting: Setting
    full: dict[str, nn.Module]
    start: int = 0


LAYERS = {"gpt2": {"n_layer": 1}, "roberta": {"num_hidden_layers": 1}, "t5": {"num_layers": 1}}


def language_setting(
    kind: str, steps: int = 10, dtype: torch.dtype = torch.float64, *, tied: bool = False, start: int = 0,
    vocabulary: bool = False, seed: int = 0, size: float = 0.2,
) -> Language:
    """Three tasks whose heads differ, experts around the pretrained weights, batches whose lengths differ."""
    tasks = [f"task{t}" for t in range(3)]
    made = [seed + (0 if kind == "t5" else i) for i in range(3)]
    full = {t: full_model(kind, 2 + i, tied=tied, seed=made[i], **LAYERS[kind]).to(dtype) for i, t in enumerate(tasks)}
    options = {"start": start, "vocabulary": vocabulary} if kind == "t5" else {}
    encoder = encoder_of(kind, copy.deepcopy(full["task0"]), **options)
    pretrained = snapshot(encoder.merged(full["task0"].state_dict()))
    if kind == "t5" and not vocabulary:
        pretrained.pop("lm_head.weight")
    experts = {t: retied(encoder, expert_of(pretrained, 100 + i, size)) for i, t in enumerate(tasks)}
    heads = {t: encoder.head(model.state_dict()) for t, model in full.items()}
    side = "right" if kind == "roberta" else "both"
    batches = {
        t: [texts(kind, 2 + (i + j) % 3, 6 if i == 2 else 4, 1000 * i + j, side) for j in range(steps)]
        for i, t in enumerate(tasks)
    }
    return Language(kind, Setting(encoder, pretrained, experts, heads, batches), full, start)


def retied(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with equal copies under all names of one tensor of the model."""
    first: dict[int, str] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name in weights:
            weights[name] = weights[first.setdefault(id(tensor), name)].clone()
    return weights


def names_of(model: nn.Module) -> dict[str, str]:
    """{name: the first name of its tensor} of the model's parameters."""
    first: dict[int, str] = {}
    return {n: first.setdefault(id(p), n) for n, p in model.named_parameters(remove_duplicate=False)}


def one_of_each(language: Language) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Pretrained weights and experts under one name for each tensor of the model."""
    names = [name for name, first in names_of(language.setting.model).items() if name == first]
    s = language.setting
    return {n: s.pretrained[n] for n in names}, {t: {n: e[n] for n in names} for t, e in s.experts.items()}


def loss_of(language: Language, model: nn.Module, state: Mapping[str, Tensor], batch, mean: bool) -> Tensor:
    start = {"start": language.start} if language.kind == "t5" else {}

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return direct_logits(language.kind, self.model, batch, **start)

    logits = torch.func.functional_call(Logits(), {f"model.{n}": v for n, v in state.items()}, ())
    return adaptive.entropy(logits.mean(0, keepdim=True) if mean else logits)


def reference(language: Language, problem: adaptive.Problem, steps: int, lr: float = 1e-3, *, mean: bool = False):
    """Coefficients, mask logits, losses and weights by plain autograd in float64 through transformers' models."""
    models = {t: copy.deepcopy(m).double().eval().requires_grad_(False) for t, m in language.full.items()}
    coefficients, logits = adaptive.initial(problem)
    learned = [tensor.requires_grad_() for tensor in (*coefficients.values(), *logits.values())]
    optimizer = torch.optim.Adam(learned, lr=lr)
    losses = []
    for step in range(steps):
        state = adaptive.merged(problem, coefficients, logits)
        total = torch.zeros((), dtype=torch.float64)
        for task, model in models.items():
            total = total + loss_of(language, model, state, language.setting.batches[task][step], mean)
        losses.append(total.detach())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():
        state = adaptive.merged(problem, coefficients, logits)
    masks = {name: adaptive.hard_mask(problem, name, tensor.detach()) for name, tensor in logits.items()}
    return {n: c.detach() for n, c in coefficients.items()}, masks, torch.stack(losses), state
