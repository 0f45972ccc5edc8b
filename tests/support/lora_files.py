"""PEFT adapter folders written by hand, as `PeftModel.save_pretrained` writes them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import LoraExpert, read_adapter
from tests.support.helpers import State, rng

CONFIG = {
    "peft_type": "LORA", "task_type": None, "r": 2, "lora_alpha": 6, "lora_dropout": 0.1,
    "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "bias": "none",
    "init_lora_weights": True, "modules_to_save": None, "inference_mode": True,
}  # fmt: skip
PREFIX = "base_model.model."


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def base_state(dtype: torch.dtype = torch.float32) -> State:
    """Two blocks with a Linear that is not square and one that is, an embedding, a convolution and a buffer."""
    state = {
        "embed.weight": draw(1, 9, 5, dtype=dtype),
        "conv.weight": draw(2, 5, 3, 2, 2, dtype=dtype),
        "position_ids": torch.arange(4),
    }
    for block in range(2):
        state[f"encoder.{block}.q.weight"] = draw(10 + block, 7, 5, dtype=dtype)
        state[f"encoder.{block}.q.bias"] = draw(20 + block, 7, dtype=dtype)
        state[f"encoder.{block}.v.weight"] = draw(30 + block, 5, 5, dtype=dtype)
        state[f"encoder.{block}.norm.weight"] = draw(40 + block, 5, dtype=dtype)
    return state


def factors(module: str, out: int, size: int, rank: int = 2, seed: int = 7, dtype: torch.dtype = torch.float32) -> State:
    """A [rank, size] and B [out, rank] of one module under the keys of an adapter file."""
    return {
        f"{PREFIX}{module}.lora_A.weight": draw(seed, rank, size, dtype=dtype),
        f"{PREFIX}{module}.lora_B.weight": draw(seed + 1, out, rank, dtype=dtype),
    }


def linear_tensors() -> State:
    """The tensors of an adapter for q and v of both blocks of `base_state`."""
    tensors = {}
    for block in range(2):
        tensors |= factors(f"encoder.{block}.q", 7, 5, seed=100 + 10 * block)
        tensors |= factors(f"encoder.{block}.v", 5, 5, seed=105 + 10 * block)
    return tensors


def write_adapter(folder: Path, tensors: State | None = None, **changes) -> Path:
    """Write an adapter that targets the modules of its tensors; `changes` overrides its configuration, `...` leaves out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = linear_tensors() if tensors is None else tensors
    targets = {key.removeprefix(PREFIX).split(".lora_")[0] for key in tensors if ".lora_" in key}
    given = {**CONFIG, "target_modules": sorted(targets), **changes}
    config = {key: value for key, value in given.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def read_saying(folder: Path, base: State) -> tuple[LoraExpert, State, list[str]]:
    """Return the expert, its tensors, and what reading them warned of, one line each that names the folder."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expert = read_adapter(folder, base)
        values = dict(expert)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, fbl.MergeWarning)]
    assert all(str(folder) in line and "\n" not in line for line in said)
    return expert, values, said
