"""Repositories of language models as they are published, tiny: written by transformers and peft under the hub's names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)
from tests.support import text_files

# isort: split

from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

CLASSES = {"cola": 2, "sst2": 2, "mrpc": 2, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2}
GLUE7, GLUE8 = tuple(CLASSES), ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
COLUMNS = {
    "cola": ("sentence",), "sst2": ("sentence",), "mrpc": ("sentence1", "sentence2"), "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"), "qnli": ("question", "sentence"), "rte": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
}
GPT2 = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
ROBERTA = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 66,
    "pad_token_id": 1,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}


def drawn(model: nn.Module, seed: int, spread: float = 0.4) -> nn.Module:
    """The model with weights large enough and biases small enough for predictions to differ."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm, bias = parameter.ndim == 1 and name.endswith("weight"), name.endswith("bias")
            change = torch.randn(parameter.shape, generator=g) * (0.05 if norm or bias else spread)
            parameter.copy_(change + (1 if norm else 0))
    return model.eval()


def moved(model: nn.Module, base: Mapping[str, torch.Tensor], seed: int, size: float = 0.1) -> nn.Module:
    """The model with the base's tensors where it has them, all changed a little; heads are wide enough to disagree."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            change = torch.randn(parameter.shape, generator=g)
            parameter.copy_(base[name] + size * change if name in base else change * (0.1 if name.endswith("bias") else 1))
    return model.eval()


def gpt2(root: Path, tasks: Iterable[str] = GLUE7) -> None:
    """openai-community/gpt2, the bare model with the masks that old files hold, and tanganke/gpt2_TASK."""
    from safetensors.torch import load_file, save_file

    place = text_files.byte_level(root / "openai-community/gpt2", "gpt2", eos_token_id=0)
    settings = {"vocab_size": text_files.VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, **GPT2}
    base = drawn(GPT2Model(GPT2Config(**settings)), 0)
    base.save_pretrained(place)
    state = load_file(place / "model.safetensors")
    masks = {f"h.{layer}.attn.bias": torch.ones(64, 64).tril()[None, None] for layer in range(2)}
    save_file({**state, **masks}, place / "model.safetensors", metadata={"format": "pt"})
    body = {f"transformer.{name}": tensor for name, tensor in base.state_dict().items()}
    for number, task in enumerate(tasks):
        padded = {"pad_token_id": 0} if number % 2 else {}  # the others do not say it
        model = GPT2ForSequenceClassification(GPT2Config(num_labels=CLASSES[task], **settings, **padded))
        moved(model, body, 1 + number).save_pretrained(root / f"tanganke/gpt2_{task}")
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(place / name, root / f"tanganke/gpt2_{task}")


def roberta(root: Path, tasks: Iterable[str] = GLUE7) -> None:
    """FacebookAI/roberta-base with the head of its pretraining, and pickles in folders of one repository."""
    place = text_files.byte_level(root / "FacebookAI/roberta-base", "roberta")
    settings = {"vocab_size": text_files.VOCABULARY, **ROBERTA}
    base = drawn(RobertaForMaskedLM(RobertaConfig(**settings)), 0)
    base.save_pretrained(place)
    for number, task in enumerate(tasks):
        rate = "5e-05" if task == "mrpc" else "1e-05"
        folder = root / f"vanillaOVO/roberta_base_glue_ckpts/{task}/roberta-base_lr{rate}"
        folder.mkdir(parents=True)
        config = RobertaConfig(num_labels=CLASSES[task], **settings)
        model = moved(RobertaForSequenceClassification(config), base.state_dict(), 1 + number)
        state = {**model.state_dict(), "roberta.embeddings.position_ids": torch.arange(66)[None]}
        torch.save(state, folder / "pytorch_model.bin")
        model.config.save_pretrained(folder)
        (folder / "trainer_state.json").write_text("{}")


def flan_t5(root: Path, tasks: Iterable[str] = GLUE8, model: str = "base") -> None:
    """google/flan-t5-base, whose lm_head is its own, and adapters that peft wrote."""
    from peft import LoraConfig, get_peft_model

    place = text_files.t5(root / f"google/flan-t5-{model}")
    vocabulary = json.loads((place / "config.json").read_text())["vocab_size"]
    base = T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **T5))
    base.config.scale_decoder_outputs = False
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
    drawn(base, 0)
    base.save_pretrained(place)
    config = json.loads((place / "config.json").read_text()) | {"tie_word_embeddings": False}  # as it was published
    config.pop("scale_decoder_outputs", None)
    (place / "config.json").write_text(json.dumps(config))
    base.name_or_path = base.config._name_or_path = f"google/flan-t5-{model}"
    for number, task in enumerate(tasks):
        settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"], lora_dropout=0.1, task_type="SEQ_2_SEQ_LM")
        adapted = get_peft_model(base, settings)
        g = torch.Generator().manual_seed(1 + number)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=g))
        adapted.save_pretrained(root / f"tanganke/flan-t5-{model}_glue-{task}_lora-16", save_embedding_layers=False)
        base = adapted.unload()


def prompts() -> dict[str, str]:
    """The templates of Flan-T5's prompts."""
    import yaml

    from fusionbench_lite.data import text

    content = yaml.safe_load((Path(text.__file__).parent / "glue.yaml").read_text())
    return {task: entry["template"] for task, entry in content.items()}


def rows(task: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Labelled texts with a task's columns."""
    sentences = text_files.SENTENCES
    columns = COLUMNS[task]
    made = []
    for at in range(start, start + count):
        texts = {name: f"{sentences[(at + place) % len(sentences)]} {at}" for place, name in enumerate(columns)}
        made.append({**texts, "label": 0.4 * (at % 13) if task == "stsb" else at % CLASSES[task]})
    return made
