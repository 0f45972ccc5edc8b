"""The model that is fine-tuned: built from its folder with a head of the task or with adapters, checked, stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from fusionbench_lite.base.randomness import seed_of
from fusionbench_lite.checkpoints.language.api import PRETRAINED
from fusionbench_lite.data.text import TextTask, Tokens
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.finetuning.language.batches import by_length
from fusionbench_lite.finetuning.language.recipes import LanguageRecipe, Lora

PART = 4096
"""Texts that are looked through at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """`model` is of transformers' class, or peft's around it where `lora` is set; `classes` are those of its head, if any."""

    model: nn.Module
    lora: Lora | None
    classes: tuple[str, ...] | None


def check_task(task: TextTask) -> None:
    """Raise InputError for training texts, labels and answers that do not fit each other."""
    if task.name == PRETRAINED:
        raise InputError(f"the folder {PRETRAINED}/ is the base model's: call the task otherwise")
    texts, labels = len(task.train_images), np.asarray(task.train_labels)
    if not texts:
        raise InputError(f"task {task.name!r} has no training texts: fine-tuning needs its training split")
    if len(labels) != texts:
        raise InputError(f"task {task.name!r} has {texts} training texts and {len(labels)} labels: load the task again")
    if labels.dtype.kind != "f" and (labels.min() < 0 or labels.max() >= task.num_classes):
        raise InputError(
            f"task {task.name!r}: labels from {labels.min()} to {labels.max()} do not fit {task.num_classes} classes, "
            f"0 to {task.num_classes - 1}"
        )


def prepared(folder: Path, task: TextTask, recipe: LanguageRecipe, seed: int) -> Backbone:
    """Return the pretrained model in a folder, made ready for a task.

    A head that the folder lacks and adapters are drawn from streams of (seed, task). Raises InputError where texts or answers
    are not for this model.
    """
    from fusionbench_lite.models.language import full_model
    from fusionbench_lite.models.language.building import generates as language_generates

    generates = task.train_targets is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, task.name, "head") % 2**63)
        model = full_model(folder, None if generates else task.num_classes)
        if language_generates(model.config.model_type) != generates:
            what = "generates its answers" if not generates else "has a head of classes"
            raise InputError(
                f"task {task.name!r} has {'answers' if generates else 'class numbers alone'}, and the model in {folder} {what}: "
                "read the task by the protocol of this model"
            )
        _check_texts(model, task)
        if recipe.dropout is not None:
            _set_dropout(model, recipe.dropout)
        if recipe.lora is not None:
            torch.manual_seed(seed_of(seed, task.name, "adapters") % 2**63)
            model = _with_adapters(model, recipe.lora)
        else:
            model.requires_grad_(True)
    return Backbone(model=model, lora=recipe.lora, classes=None if generates else task.classes)


def save(backbone: Backbone, folder: Path, name: str) -> Path:
    """Write a model as its library loads it, or its adapters alone, and return the file of the weights.

    `name` is what adapters say of their base.
    """
    if backbone.lora is not None:
        return _save_adapters(backbone.model, folder, name)
    from fusionbench_lite.models.language.building import own_state

    model: Any = backbone.model
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_state(model).items()}
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    if backbone.classes is not None:
        model.config.id2label = dict(enumerate(backbone.classes))
        model.config.label2id = {name: number for number, name in enumerate(backbone.classes)}
    model.config.save_pretrained(folder)
    return path


def _check_texts(model: Any, task: TextTask) -> None:
    """Run the longest text, and see that all ids are of the vocabulary."""
    from fusionbench_lite.models.language import encoder_of

    texts: Tokens = task.train_images  # type: ignore[assignment]
    longest = by_length(texts.lengths, np.arange(len(texts)))[-1:]
    high = max(int(texts[start : start + PART]["input_ids"].max()) for start in range(0, len(texts), PART))
    if high >= model.config.vocab_size:
        raise InputError(
            f"task {task.name!r} has token {high}, the model's vocabulary ends at {model.config.vocab_size - 1}: read the task "
            "with the tokenizer of this model"
        )
    if texts.pad != model.config.pad_token_id:  # what pools or counts positions looks for the model's
        raise InputError(
            f"task {task.name!r} is padded with token {texts.pad}, the model's is {model.config.pad_token_id}: read the task "
            "with the tokenizer of this model"
        )
    try:
        with torch.no_grad():
            encoder_of(model)(**{name: torch.from_numpy(array) for name, array in texts[longest].items()})
    except MergeError as error:
        raise InputError(f"task {task.name!r}, its longest training text: {error}") from error


def _set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout of a model, those that attention reads from a number too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in ("dropout", "dropout_prob", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)


def _with_adapters(model: Any, lora: Lora) -> nn.Module:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise InputError("adapters need peft: pip install 'fusionbench_lite[language]'") from error
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "SEQ_CLS"
    config = peft.LoraConfig(
        task_type=kind, r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,  # type: ignore[arg-type]
        target_modules=list(lora.targets),
    )
    wrapped: nn.Module = peft.get_peft_model(model, config)
    return wrapped


def _save_adapters(model: Any, folder: Path, name: str) -> Path:
    import peft

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in peft.get_peft_model_state_dict(model).items()}
    path = folder / "adapter_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.inference_mode, config.base_model_name_or_path = True, name
    config.save_pretrained(folder)
    return path
