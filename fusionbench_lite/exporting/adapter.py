"""peft's layout: a merge of LoRA experts as one LoRA adapter of the pretrained model, where it is one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting.layouts import Layout
from fusionbench_lite.exporting.proving import Loaded
from fusionbench_lite.models import language

if TYPE_CHECKING:
    from fusionbench_lite.checkpoints.language import Found
    from fusionbench_lite.exporting.forms import Form
    from fusionbench_lite.exporting.remaking import Remade

Pair = tuple[Tensor, Tensor]
ROUNDING = 4.0
"""Singular values of an update up to so many times what rounding the weights alone leaves are taken for rounding."""
TYPES = {"t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM"}


def layout(found: Found, options: Mapping[str, Any], auto: str) -> Layout:
    """Return peft's layout for models that generate; `options` are those of their encoder,
    `auto` transformers' class that loads them."""
    return Layout(
        name="peft", write=functools.partial(_write, found), load=functools.partial(_load, found, options),
        usage=functools.partial(_usage, _base_name(found), auto),
        says=(
            "The adapter is the product of each update's singular vectors: it gives the merged weights up to the rounding of "
            "their dtype, which the proof below judges.",
        ),
    )


def pairs(made: Remade, weights: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Return L [m, r] and R [r, n] with W - θ0 = L R of every matrix that changed.

    Raises InputError where the experts are no adapters, something else changed, or an update has a higher rank than the experts'
    together: it is no adapter then, and is not made one by leaving out singular values.
    """
    experts, found = made.suite.experts, {}
    if not all(callable(getattr(expert, "factors", None)) for expert in experts.values()):
        raise InputError(f"layout=peft writes merges of LoRA adapters, and these experts of {made.plan.model} are whole models")
    for name, base in made.suite.pretrained.items():
        before, after = base.detach().cpu(), weights[name].detach().cpu()
        if torch.equal(before, after):
            continue
        factors = [expert.factors(name) for expert in experts.values()]  # type: ignore[attr-defined]
        ranks = sum(pair[1].shape[0] for pair in factors if pair is not None)
        if before.dim() != 2 or not ranks:
            raise InputError(f"layout=peft: {made.plan.method} changed {name!r}, which no expert's adapter did: leave layout out")
        found[name] = _factored(made.plan.method, name, before.double(), after.double(), ranks, torch.finfo(base.dtype).eps)
    if not found:
        raise InputError(f"layout=peft: {made.plan.method} changed no weight, so there is no adapter: leave layout out")
    return found


def _factored(method: str, name: str, before: Tensor, after: Tensor, most: int, eps: float) -> Pair:
    left, values, right = torch.linalg.svd(after - before, full_matrices=False)
    m, n = before.shape
    size = eps * float(torch.maximum(before.abs(), after.abs()).square().mean().sqrt())
    noise = ROUNDING * size * (m**0.5 + n**0.5)
    rank = int((values > noise).sum())
    if rank > most:
        raise InputError(
            f"layout=peft: what {method} adds to {name!r} has rank {rank}, more than the {most} of its experts together: it is no "
            "adapter, leave layout out"
        )
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _write(found: Found, made: Remade, form: Form, tasks: tuple[str, ...], folder: Path) -> None:
    peft = _peft()
    updates = pairs(made, form.weights)
    model = copy.deepcopy(found.model).cpu()
    rank = max(1, *(right.shape[0] for _, right in updates.values()))
    modules = {name.removesuffix(".weight"): pair for name, pair in updates.items()}
    for name in modules:
        if not isinstance(model.get_submodule(name), nn.Linear):
            raise InputError(f"layout=peft: {name!r} is no linear layer: leave layout out")
    settings = peft.LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=sorted(modules), task_type=TYPES[model.config.model_type],
    )
    model.name_or_path = _base_name(found)
    adapted = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for name, (left, right) in modules.items():
            layer = adapted.base_model.model.get_submodule(name)
            for part, values in ((layer.lora_B["default"].weight, left), (layer.lora_A["default"].weight, right)):
                part.zero_()
                part[: values.shape[0], : values.shape[1]] = values.to(part.dtype)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card: ours is written at the end


def _load(found: Found, options: Mapping[str, Any], made: Remade, tasks: tuple[str, ...], folder: Path) -> dict[str, Loaded]:
    model = _peft().PeftModel.from_pretrained(copy.deepcopy(found.model), folder).merge_and_unload()
    encoder = language.encoder_of(model, **options).to(made.suite.device).eval()

    def encode(inputs: Any) -> Tensor:
        features: Tensor = encoder(**inputs)
        return features

    return {task: Loaded(encode=encode, head=nn.Identity(), model=encoder) for task in tasks}


def _base_name(found: Found) -> str:
    """Return the repository of the pretrained model, its folder where it has none: its files come first among the sources."""
    first = next(iter(found.sources.values()), "")
    return first.partition("@")[0] if "@" in first else str(found.folder)


def _usage(base: str, auto: str, folder: str, task: str) -> str:
    return (
        f"from peft import PeftModel\nfrom transformers import {auto}\n\n"
        f"base = {auto}.from_pretrained({base!r})\n"
        f"model = PeftModel.from_pretrained(base, {folder!r})"
    )


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise InputError("layout=peft needs peft: pip install 'fusionbench_lite[language]'") from error
    return peft
