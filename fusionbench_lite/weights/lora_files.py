"""The two files of a PEFT LoRA adapter: its configuration, checked, and its tensors, read one at a time.

Pickles are never read. Source of the rules: huggingface/peft, `tuners/lora/config.py` and `utils/other.py`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from fusionbench_lite.errors import MergeError
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.folders import describe

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FOLD = "fold it with peft's merge_and_unload and give the whole state dict"

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they are; PiSSA, OLoRA, CorDA, LoftQ change them."""
_VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "layer_replication", "target_parameters", "trainable_token_indices",
)  # fmt: skip
"""Options under which the fine-tuned weight is not W_0 + s·B·A."""


def is_adapter(folder: Path) -> bool:
    """Say whether the folder holds a PEFT adapter."""
    return folder.is_dir() and describe(folder).kind == "adapter"


class AdapterFile:
    """The tensors of an adapter. The file is opened for one tensor at a time, so that no mapping of it stays.

    Attributes: `folder`; `shapes` and `dtypes` (the names of the safetensors format) of every key.

    Raises MergeError: no adapter, a pickle only, a file that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / WEIGHTS
        if not (folder / CONFIG).is_file():
            raise self.error(f"there is no {CONFIG}: give the folder that peft's save_pretrained wrote")
        if not self.path.is_file():
            if (folder / "adapter_model.bin").exists():
                raise self.error(
                    "adapter_model.bin is a pickle, which can run code and is not read: convert it to safetensors with "
                    f"peft's save_pretrained(..., safe_serialization=True), which writes {WEIGHTS}"
                )
            raise self.error(f"there is no {WEIGHTS}: copy it beside {CONFIG}")
        with self._open() as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            self.shapes: dict[str, tuple[int, ...]] = {key: tuple(part.get_shape()) for key, part in slices.items()}
            self.dtypes: dict[str, str] = {key: part.get_dtype() for key, part in slices.items()}

    def error(self, text: str) -> MergeError:
        """Return the error that names this adapter."""
        return MergeError(f"adapter {self.folder}: {text}")

    def read(self, key: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a tensor in memory of its own. Raises MergeError where it is not finite."""
        with self._open() as file:
            tensor: Tensor = file.get_tensor(key).to(device=device, dtype=dtype, copy=True)
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise self.error(f"{key!r} has {bad} non-finite of {tensor.numel()} values; repair or drop the adapter")
        return tensor

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise self.error(f"{WEIGHTS} cannot be read ({reason}): download or save the adapter again") from error


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says about plain LoRA: ranks, scales, and the orientation of the weights."""

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    transposed: bool = False

    def rank_of(self, module: str) -> int:
        """Return r of the module: of the first pattern that matches the end of its name, else the common one."""
        return next((rank for pattern, rank in self.ranks.items() if _matches(pattern, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """Return s = α/r of the module, or α/√r for rank-stabilised LoRA."""
        rank = self.rank_of(module)
        alpha = next((alpha for pattern, alpha in self.alphas.items() if _matches(pattern, module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_config(file: AdapterFile) -> AdapterConfig:
    """Return the configuration beside the tensors. Raises MergeError for corrupt JSON and anything but plain LoRA."""
    try:
        raw = json.loads((file.folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise file.error(f"{CONFIG} cannot be read ({error}): download or save the adapter again") from error
    if not isinstance(raw, dict):
        raise file.error(f"{CONFIG} holds a {type(raw).__name__}, not an object: download or save the adapter again")
    if raw.get("peft_type") != "LORA":
        raise file.error(f"peft_type is {raw.get('peft_type')!r}, only 'LORA' can be read: {FOLD}")
    for option in _VARIANTS:
        if raw.get(option):
            raise file.error(f"{option} is {_short(raw[option])}, only plain LoRA can be read: {FOLD}")
    start = raw.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise file.error(
            f"init_lora_weights is {_short(start)}, which changes the base weights: save it as plain LoRA with "
            "path_initial_model_for_weight_conversion, or " + FOLD
        )
    return AdapterConfig(
        rank=_rank(file, "r", raw.get("r")),
        alpha=_alpha(file, "lora_alpha", raw.get("lora_alpha")),
        ranks={key: _rank(file, f"rank_pattern[{key!r}]", value) for key, value in _patterns(file, raw, "rank_pattern")},
        alphas={key: _alpha(file, f"alpha_pattern[{key!r}]", value) for key, value in _patterns(file, raw, "alpha_pattern")},
        rank_stabilised=_flag(file, raw, "use_rslora"),
        transposed=_flag(file, raw, "fan_in_fan_out"),
    )


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _rank(file: AdapterFile, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise file.error(f"{name} in {CONFIG} is {_short(value)}: it must be a whole number, 1 or more")
    return value


def _alpha(file: AdapterFile, name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise file.error(f"{name} in {CONFIG} is {_short(value)}: it must be a finite number")
    return value


def _flag(file: AdapterFile, raw: Mapping[str, object], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise file.error(f"{name} in {CONFIG} is {_short(value)}: it must be true or false")
    return bool(value)


def _patterns(file: AdapterFile, raw: Mapping[str, Any], name: str) -> list[tuple[str, object]]:
    """Return the entries of a pattern table in order; the patterns are regular expressions for the end of a name."""
    table = raw.get(name) or {}
    if not isinstance(table, dict):
        raise file.error(f"{name} in {CONFIG} is {_short(table)}: it must map module names to numbers")
    for pattern in table:
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise file.error(f"{name} in {CONFIG} has {pattern!r}, no regular expression ({error}): mend it") from error
    return list(table.items())
