"""The configuration of a PEFT LoRA adapter, checked: ranks, scales, and what it says of the model it was trained on.

Source of the rules: huggingface/peft, `tuners/lora/config.py`, `tuners/tuners_utils.py` and `utils/other.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionbench_lite.weights.lora.files import CONFIG, FOLD, AdapterFile
from fusionbench_lite.weights.lora.targets import Targets, read_targets

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they are; PiSSA, OLoRA, CorDA, LoftQ change them."""
_VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "layer_replication", "target_parameters", "trainable_token_indices",
)  # fmt: skip
"""Options under which the fine-tuned weight is not W_0 + s·B·A."""
_LACKING = object()


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says about plain LoRA.

    `rank`, `alpha` and the tables of patterns give ranks and scales; `transposed` is the orientation of the weights;
    `targets` names the modules with factors, `saved` those trained whole; `task`, `model_class` and `library` say what
    the model was.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    transposed: bool = False
    targets: Targets | None = None
    saved: tuple[str, ...] = ()
    task: str = ""
    model_class: str = ""
    library: str = ""

    def rank_of(self, module: str, stored: int) -> int:
        """Return r of the module: of the first pattern that matches the end of its name, else the common one.

        Where several patterns match, the rank `stored` in the tensors says which one counted in training.
        """
        ranks = [rank for _, rank in matching(self.ranks, module)] or [self.rank]
        return stored if stored in ranks else ranks[0]

    def scale_of(self, module: str, rank: int) -> float:
        """Return s = α/r of the module, or α/√r for rank-stabilised LoRA."""
        alpha = next((alpha for _, alpha in matching(self.alphas, module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def matching(table: Mapping[str, Any], module: str) -> list[tuple[str, Any]]:
    """Return the entries of a table of patterns that match the end of a module's name from a dot on, in their order."""
    return [(pattern, value) for pattern, value in table.items() if re.match(rf"(.*\.)?({pattern})$", module)]


def warn_of_patterns(file: AdapterFile, config: AdapterConfig, modules: Mapping[str, int]) -> None:
    """Warn of patterns that match no module, as peft does, and of modules for which several patterns disagree.

    `modules` gives the stored rank by name. peft takes the first pattern that matches, but sorts them when it saves.
    """
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = (("rank_pattern", config.ranks), ("alpha_pattern", config.alphas))
    for name, table in tables:
        matches = {module: matching(table, module) for module in modules}
        used = {pattern for entries in matches.values() for pattern, _ in entries}
        idle = [pattern for pattern in table if pattern not in used]
        if idle:
            file.warn(
                f"{name} in {CONFIG} has {_listed(idle)}, which match{'es' if len(idle) == 1 else ''} none of its "
                f"{len(modules)} modules and are ignored, as in peft: mend or drop (one module is {next(iter(modules))!r})"
            )
        torn = [(module, entries) for module, entries in matches.items() if len({value for _, value in entries}) > 1]
        if torn:
            module, entries = torn[0]
            taken = config.rank_of(module, modules[module]) if table is config.ranks else entries[0][1]
            said = " and ".join(f"{pattern!r} ({value})" for pattern, value in entries)
            file.warn(
                f"{name} in {CONFIG} has {said} for {module!r} ({len(torn)} such modules): {taken} is taken, but peft sorts the "
                "entries when it saves, so training may have had another: keep the one that was meant"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_config(file: AdapterFile) -> AdapterConfig:
    """Return the configuration beside the tensors. Raises MergeError for corrupt JSON and anything but plain LoRA."""
    try:
        raw = json.loads((file.folder / CONFIG).read_bytes())  # bytes, so that a byte order mark tells the encoding
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
    model = raw.get("auto_mapping")
    model = model if isinstance(model, dict) else {}
    return AdapterConfig(
        rank=_rank(file, "r", raw.get("r", _LACKING)),
        alpha=_alpha(file, "lora_alpha", raw.get("lora_alpha", _LACKING)),
        ranks={key: _rank(file, f"rank_pattern[{key!r}]", value) for key, value in _patterns(file, raw, "rank_pattern")},
        alphas={key: _alpha(file, f"alpha_pattern[{key!r}]", value) for key, value in _patterns(file, raw, "alpha_pattern")},
        rank_stabilised=_flag(file, raw, "use_rslora"),
        transposed=_flag(file, raw, "fan_in_fan_out"),
        targets=read_targets(raw),
        saved=_names(file, raw, "modules_to_save"),
        task=str(raw.get("task_type") or ""),
        model_class=str(model.get("base_model_class") or ""),
        library=str(model.get("parent_library") or ""),
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _rank(file: AdapterFile, name: str, value: object) -> int:
    if value is _LACKING:
        ranks = sorted({shape[0] for key, shape in file.shapes.items() if ".lora_A." in key and shape})
        seen = f"its tensors have rank {', '.join(map(str, ranks))}" if ranks else "peft's default is 8"
        raise file.error(f"{name} is not in {CONFIG}: add it, {seen}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise file.error(f"{name} in {CONFIG} is {_short(value)}: it must be a whole number, 1 or more")
    return value


def _alpha(file: AdapterFile, name: str, value: object) -> float:
    if value is _LACKING:
        raise file.error(f"{name} is not in {CONFIG}: add the value of training; where it was the default of peft, 8")
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


def _names(file: AdapterFile, raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = raw.get(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise file.error(f"{name} in {CONFIG} is {_short(value)}: it must be a list of module names")
    return tuple(value)
