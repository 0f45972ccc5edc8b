"""What is asked of the checkpoints and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionbench_lite.models.clip import ClipSize

Report = Callable[[str, int, int], None]
"""Called with what is being done and how much of it is done of how much: bytes of a download, files of a conversion."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The weights that a run needs.

    `model` is a name of the families (vit_b32, vit_b16, vit_l14) and `size` its numbers; `layout` "packed" or "separate";
    `family` one of `FAMILIES`; `tasks` in order; `cache` the cache directory. `dir` is a folder of local files, in the family's
    own arrangement or, for "own", of pretrained.safetensors, individual-<task>.safetensors and heads.safetensors. `manifest`
    replaces a packaged family file: a file of that form, or a folder of files <family>.yaml.
    """

    model: str
    size: ClipSize
    layout: str
    family: str
    tasks: tuple[str, ...]
    cache: Path
    dir: Path | None = None
    manifest: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Checked safetensors files of a request.

    `pretrained` and `experts` have the same names, shapes and dtype (float32). A head's file holds "weight" [C, d] as shipped,
    row norm and all; None where it has to be built. `text` is the text side under open_clip's names, None where no file of it
    was needed. `constants` holds the projection where the experts do not have one. `files` maps names of source files to
    their SHA-256, `sources` to "repo@commit:path" or the local path. `virtual_zeros` is the number of text-side elements that
    the family's papers count among the merged ones. `caveats` are sentences that tables of these experts need.
    `expert_hashes` maps tasks to the SHA-256 of their experts' source files; `multitask` is a model trained on all tasks,
    which only a folder of one's own can have.
    """

    family: str
    layout: str
    pretrained: Path
    experts: dict[str, Path]
    heads: dict[str, Path | None]
    text: Path | None
    constants: Path | None
    files: dict[str, str]
    sources: dict[str, str]
    virtual_zeros: int
    caveats: tuple[str, ...]
    expert_hashes: dict[str, str] = dataclasses.field(default_factory=dict)
    multitask: Path | None = None
