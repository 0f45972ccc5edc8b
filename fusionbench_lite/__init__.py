"""fusionbench_lite: a benchmark suite for multi-task model merging.

    import fusionbench_lite as fbl
    fbl.methods()
    fbl.merge("ties_merging", pretrained, experts, keep=0.2).state_dict()
    fbl.merge_files("tsv_m", "base.safetensors", {"sun397": "sun397/", "cars": "cars_lora/"}, out="merged")
    fbl.adapt("adarank_cart", model, pretrained, experts, heads, batches, steps=300).coefficients
    fbl.load_exported("merged").logits(images, "sun397")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fusionbench_lite.base.version import __version__

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.api import Adapted, adapt
    from fusionbench_lite.errors import InputError, MergeError
    from fusionbench_lite.exporting.loading import Exported, load_exported
    from fusionbench_lite.methods.api import Merged, merge
    from fusionbench_lite.methods.files import merge_files
    from fusionbench_lite.registry import names as methods

__all__ = [
    "Adapted", "Exported", "InputError", "MergeError", "Merged", "__version__", "adapt", "load_exported", "merge", "merge_files",
    "methods",
]

_HOME = {
    "InputError": ("errors", "InputError"),
    "MergeError": ("errors", "MergeError"),
    "Merged": ("methods.api", "Merged"),
    "MergeWarning": ("errors", "MergeWarning"),
    "merge": ("methods.api", "merge"),
    "merge_files": ("methods.files", "merge_files"),
    "absolute_gradients": ("statistics", "absolute_gradients"),
    "diagonal_fisher": ("statistics", "diagonal_fisher"),
    "gram_matrices": ("statistics", "gram_matrices"),
    "Adapted": ("adaptation.api", "Adapted"),
    "adapt": ("adaptation.api", "adapt"),
    "Exported": ("exporting.loading", "Exported"),
    "load_exported": ("exporting.loading", "load_exported"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import fusionbench_lite` and the command line stay light."""
    if name == "methods":
        return importlib.import_module("fusionbench_lite.methods")
    if name not in _HOME:
        raise AttributeError(f"module 'fusionbench_lite' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(f"fusionbench_lite.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
