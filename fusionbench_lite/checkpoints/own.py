"""checkpoints=own: a folder of safetensors files in one of the two layouts.

    pretrained.safetensors, individual-<task>.safetensors, heads.safetensors (a tensor [C, d] per task), traditional_mtl.safetensors

The last two may be missing; a task that heads.safetensors lacks gets a head from the prompts of its classes. Files in the
wanted layout are used where they lie, others are converted into the cache. A manifest.json may say the family that the
experts stand in for, whose text tower, prompts and rules of merging they have then.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.base.file_hashes import remembered
from fusionbench_lite.checkpoints import converting, reading, store
from fusionbench_lite.checkpoints.api import Found
from fusionbench_lite.checkpoints.families import EXPERT, HEADS, MULTITASK, PRETRAINED, family_of
from fusionbench_lite.checkpoints.finding import Finder
from fusionbench_lite.checkpoints.locating import SourceFile
from fusionbench_lite.checkpoints.stated import stated_family
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models import clip
from fusionbench_lite.weights import clip_keys
from fusionbench_lite.weights.stored import contents, folders

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Endings of files that `convert` may make a safetensors file of."""


def collected(finder: Finder) -> Found:
    """Return the files of the user's folder; raises InputError for missing, foreign and unequal ones."""
    request = finder.request
    if request.dir is None:
        raise InputError("checkpoints=own reads files of your own: add checkpoints.dir=FOLDER")
    pretrained = _tower(finder, PRETRAINED, "pretrained", None)
    names = set(store.shapes_of(pretrained))
    experts = {task: _tower(finder, EXPERT.format(task=task), f"individual-{task}", names) for task in request.tasks}
    multitask = None
    if _is_there(request.dir / MULTITASK):
        multitask = _tower(finder, MULTITASK, "traditional_mtl", names)
    stated = stated_family(request.dir)
    frozen = stated == "fusionbench"
    heads = _heads(finder, request.dir / HEADS, "fusionbench" if frozen else "tall")
    text = None
    if None in heads.values():
        text = finder.base_part(family_of("fusionbench" if frozen else "ta", request.manifest), "text")[0]
    constants = None
    if clip_keys.PROJECTION[request.layout] not in names:
        constants = finder.base_part(family_of("fusionbench", request.manifest), "constants")[0]
    hashes = {task: finder.files[EXPERT.format(task=task)] for task in request.tasks}
    zeros = 0 if frozen or stated is None else converting.virtual_zeros(request.size)
    return Found(
        family="own", layout=request.layout, pretrained=pretrained, experts=experts, heads=heads, text=text, constants=constants,
        files=finder.files, sources=finder.sources, virtual_zeros=zeros, caveats=(), expert_hashes=hashes, multitask=multitask,
    )


def _tower(finder: Finder, file: str, name: str, names: set[str] | None) -> Path:
    """Return a tower's file in the wanted layout with the pretrained model's names."""
    request = finder.request
    assert request.dir is not None
    path = request.dir / file
    if not _is_there(path):
        below = next(iter(sorted(request.dir.glob(f"*/{file}"))), None)
        near = did_you_mean(file, [entry.name for entry in request.dir.glob("*.safetensors")])
        hint = f"or give checkpoints.dir={below.parent}" if below else f"({near})"
        pickled = next((entry for entry in request.dir.glob(f"{path.stem}.*") if entry.suffix in PICKLED), None)
        if pickled is not None:
            hint = f"with `python -m fusionbench_lite.convert {pickled} {path}`"
        raise InputError(f"{path} is missing: put the file there {hint}")
    tower = path
    if _is_plain(path, finder):
        finder.conversions.used(str(path), remembered(path, request.cache), str(path))
    else:
        tower = finder.conversions.converted("own", name, path, lambda source: _convert(source, finder))[0]
    present = set(store.shapes_of(tower))
    if names is not None and present != names:
        odd = min(present ^ names)
        whose = f"lacks {odd!r}, which {PRETRAINED} has" if odd in names else f"has {odd!r}, which {PRETRAINED} lacks"
        raise InputError(f"{path} {whose}: all files of the folder must hold the same tensors")
    return tower


def _is_there(path: Path) -> bool:
    """Whether a file of the folder is there. Raises InputError for one that holds something else than the tensors of a model."""
    if fault := contents.dangling(path):
        raise InputError(f"cannot read {path}: {fault}")
    if not path.is_file():
        return False
    if fault := contents.fault_of(path, "pickle"):
        raise InputError(f"cannot read {path}: {fault}")
    if contents.kind_of(path)[0] == "safetensors":
        folders.describe(path, adapters=False).checked()
    return True


def _is_plain(path: Path, finder: Finder) -> bool:
    """Whether a file has the wanted layout's names, shapes and dtype, so that no conversion is needed."""
    request = finder.request
    expected, shapes = clip.shapes(request.size, request.layout), store.shapes_of(path)
    missing = set(expected) - set(shapes) - {clip_keys.PROJECTION[request.layout]}
    return bool(shapes) and not missing and store.dtypes_of(path) == {"F32"} and all(
        expected.get(name) == shape for name, shape in shapes.items()
    )


def _convert(source: SourceFile, finder: Finder) -> tuple[dict[str, Tensor], dict[str, str]]:
    request = finder.request
    raw = reading.read(source.path)
    tower = reading.tower(raw, request.model, request.size, None, request.layout, source.where)
    if tower.rest:
        alone = source.path.with_name(f"{source.path.stem}-tower.safetensors")
        raise InputError(
            f"{source.where} has {next(iter(tower.rest))!r} beside its image tower: keep the tower alone, put what `python -m "
            f"fusionbench_lite.convert {source.path} {alone}` writes in its place"
        )
    return converting.ordered(tower.visual, request.size, request.layout), tower.said


def _heads(finder: Finder, path: Path, variant: str) -> dict[str, Path | None]:
    request = finder.request
    there = _is_there(path)
    shapes = store.shapes_of(path) if there else {}
    if there and not shapes:
        raise InputError(f"{path} is no readable safetensors file: copy it again, or remove it to build heads from prompts")
    heads: dict[str, Path | None] = {}
    for task in request.tasks:
        if task in shapes:
            heads[task] = finder.conversions.converted("own", f"head-{task}", path, functools.partial(_head, finder, task))[0]
        elif converting.classes_of(task, variant) is None:
            raise InputError(f"{path} has no class embeddings of task {task!r}, and no prompts: add [C, d] under its name")
        else:
            heads[task] = None
    return heads


def _head(finder: Finder, task: str, source: SourceFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    raw = reading.read(source.path)
    alone = reading.Raw({"weight": raw.tensors[task]}, {}, raw.form)
    return {"weight": reading.head(alone, finder.request.size, None, f"{source.where}, head of {task!r}")}, {}
