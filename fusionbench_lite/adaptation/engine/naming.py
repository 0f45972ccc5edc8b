"""State dicts whose keys are names for people instead of the places where modules keep their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def rename_state(module: nn.Module, names: Mapping[str, str]) -> None:
    """Let `module.state_dict()` call tensors by other names, {own key: name}, and `load_state_dict` accept those."""

    def saved(_: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key, name in names.items():
            state[prefix + name] = state.pop(prefix + key)

    def loaded(_: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        for key, name in names.items():
            if prefix + name in state:
                state[prefix + key] = state.pop(prefix + name)

    module.register_state_dict_post_hook(saved)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(loaded)  # type: ignore[no-untyped-call]
