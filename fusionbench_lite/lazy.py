"""`torch`, imported on first use.

The method files declare hyperparameters next to the tensor code that reads them. The command line needs the
declarations to refuse a bad configuration, and has to do so without the second or more that `import torch` costs.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _LazyModule(types.ModuleType):
        """A stand-in that imports the module of its name at the first attribute access."""

        def __getattr__(self, attribute: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), attribute)
            setattr(self, attribute, value)
            return value

    torch = _LazyModule("torch")
