"""Data-free merging methods, one file per family; each file registers its methods by name.

The public API has a function `fusionbench_lite.methods()` and this package has the same name, so the package can be
called: the import system binds a subpackage to its parent, whatever the parent defined before.
"""

from __future__ import annotations

import sys
import types

from fusionbench_lite import registry


class _MethodsPackage(types.ModuleType):
    def __call__(self) -> list[str]:
        """Return the ids of all merging and adaptation methods, sorted."""
        return registry.names()


sys.modules[__name__].__class__ = _MethodsPackage
