"""Which modules the configuration of a LoRA adapter names, and whether the tensors are those of these modules.

peft builds the modules that the configuration names and loads what fits: it ignores other factors without a word, and
warns of modules without factors. Source: huggingface/peft, `tuners/tuners_utils.py`, `check_target_module_exists`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionbench_lite.weights.lora.files import CONFIG, AdapterFile
from fusionbench_lite.weights.lora.keys import unwrapped

Named = str | tuple[str, ...]


@dataclass(frozen=True)
class Targets:
    """A regular expression for whole names, or a list of names or their ends; with the layers that count, where given."""

    named: Named
    excluded: Named = ()
    layers: tuple[int, ...] = ()
    patterns: tuple[str, ...] = ()

    def has(self, module: str) -> bool:
        """Say whether peft would put factors on the module."""
        if _names(self.excluded, module) or not _names(self.named, module):
            return False
        if isinstance(self.named, str) or module in self.named or not self.layers:
            return True
        paths = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in self.patterns] or [r".*?\.[^.]*\.(\d+)\."]
        match = next((match for path in paths if (match := re.match(path, module))), None)
        return match is not None and int(match[1]) in self.layers


def read_targets(raw: Mapping[str, Any]) -> Targets | None:
    """Return the targets of a configuration, None where it names none by itself or peft would not read them."""
    named, excluded = _named(raw.get("target_modules")), _named(raw.get("exclude_modules"))
    layers, patterns = raw.get("layers_to_transform"), _named(raw.get("layers_pattern"))
    layers = [layers] if isinstance(layers, int) else layers or []
    if not named or named == "all-linear" or raw.get("ensure_weight_tying"):
        return None
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        return None
    try:
        for pattern in (named, excluded, *((patterns,) if isinstance(patterns, str) else patterns)):
            re.compile(pattern if isinstance(pattern, str) else "")
    except re.error:
        return None
    return Targets(named, excluded, tuple(layers), (patterns,) if isinstance(patterns, str) else patterns)


def warn_of_targets(file: AdapterFile, targets: Targets | None, modules: Sequence[str], present: Iterable[str]) -> None:
    """Warn of factors on modules that are not named, and of named modules without factors.

    `modules` have factors; `present` are the modules of the pretrained model that could have some, under the adapter's names.
    """
    if targets is None:
        return
    strangers = [module for module in modules if not targets.has(module)]
    if strangers:
        file.warn(
            f"target_modules in {CONFIG} does not name {strangers[0]!r} ({len(strangers)} of {len(modules)} modules): its factors "
            "are merged, peft ignores them; name it there, or save the adapter without it"
        )
    known = set(modules)
    bare = [module for module in present if module not in known and targets.has(module)]
    if bare:
        file.warn(
            f"target_modules in {CONFIG} names {bare[0]!r} ({len(bare)} such modules), but the file holds no factors of it, so it "
            "stays as pretrained: save or fetch the adapter again where they were trained"
        )


def _names(named: Named, module: str) -> bool:
    if isinstance(named, str):
        return bool(named) and re.fullmatch(named, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in named)


def _named(value: object) -> Named:
    if isinstance(value, str):
        return value
    return tuple(unwrapped(str(name)) for name in value) if isinstance(value, list) else ()
