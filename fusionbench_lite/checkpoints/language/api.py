"""What is asked of the checkpoints of language models, and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.checkpoints.api import Report as Report

if TYPE_CHECKING:
    from torch import Tensor

OWN = "own"
PRETRAINED, MANIFEST = "pretrained", "manifest.json"
"""In the own arrangement: FOLDER/pretrained and FOLDER/TASK hold a model each, FOLDER/manifest.json says what made them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The weights that a run needs: `family` is "own" or one of releases.yaml, `dir` a folder of local files.

    `dir` is for "own" a folder in the own arrangement, else one of the published repositories, OWNER/NAME/... below it.
    """

    model: str
    kind: str
    family: str
    tasks: tuple[str, ...]
    cache: Path
    dir: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """A model or adapter at hand: its folder, files {name for records: SHA-256} and {name: where it is from}.

    `weights` is the file or index that holds the tensors, None for an adapter; `sha256` stands for all that decides them.
    """

    path: Path
    weights: Path | None
    files: Mapping[str, str]
    sources: Mapping[str, str]
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Checked weights of a request.

    `folder` is that of the pretrained model, with config.json and tokenizer, `model` that model of transformers' class with its
    weights, its head drawn; `pretrained` and `experts` map the names of the model's class to tensors in float32, read when they
    are asked for, without heads. `heads` hold those of each task, empty where a model generates. `folders` are those of the
    experts. `base_hash` stands for the pretrained model's weights, `expert_hashes` for the experts' own files. `files`, `sources`
    and `caveats` are for records.
    """

    folder: Path
    model: Any
    pretrained: Mapping[str, Tensor]
    experts: Mapping[str, Mapping[str, Tensor]]
    heads: Mapping[str, Mapping[str, Tensor]]
    files: Mapping[str, str]
    sources: Mapping[str, str]
    expert_hashes: Mapping[str, str]
    base_hash: str
    folders: Mapping[str, Path]
    caveats: tuple[str, ...]
