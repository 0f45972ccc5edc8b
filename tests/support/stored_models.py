"""Small models as they lie in folders: one file, shards with and without an index, adapters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fusionbench_lite as fbl
from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.weights.stored.folders import WeightsFolder, describe
from fusionbench_lite.weights.stored.indexes import INDEX
from tests.support.helpers import State, rng, same_bits

NAMES = tuple(f"layers.{i}.fc.weight" for i in range(6))


def model(seed: int = 0, rename: str = "layers") -> State:
    generator = rng(seed)
    return {name.replace("layers", rename): torch.randn(4, 4, generator=generator) for name in NAMES}


def one(path: Path, state: State | None = None) -> Path:
    """Write one file, of which `path` is the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model() if state is None else state, path)
    return path


def shards(
    folder: Path, state: State | None = None, *, keep: Iterable[int] = (1, 2, 3), index: str | None = None,
    name: str = "model-{:05d}-of-00003.safetensors",
) -> Path:
    """Write three shards of two tensors, of which `keep` are there, and the index called `index`; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model() if state is None else state
    names, places = list(state), {}
    for number in (1, 2, 3):
        part = {key: state[key] for key in names[2 * number - 2 : 2 * number]}
        places |= dict.fromkeys(part, name.format(number))
        if number in keep:
            save_file(part, folder / name.format(number))
    if index is not None:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def indexed(folder: Path, state: State | None = None) -> Path:
    """Write three shards with the hub's index; return the folder."""
    return shards(folder, state, index=INDEX)


def expert_read(path: Path | str, base: State | None = None) -> State:
    """The one expert of a path, as `merge` reads it."""
    return fbl.merge("individual", model(9) if base is None else base, {"a": path}).state_dict("a")


def fault(path: Path | str) -> str:
    """Why a path is refused, which is one line and the same by `describe` and `merge`."""
    found = describe(path)
    assert (found.kind, found.files) == ("none", ())
    assert found.fault == found.sentence
    with pytest.raises(fbl.MergeError) as caught:
        fbl.merge("weight_averaging", model(), {"a": path})
    assert str(caught.value) == f"expert 'a': {found.fault}"
    assert "\n" not in str(caught.value)
    return found.sentence


def reads(path: Path | str, seed: int = 0) -> WeightsFolder:
    """The whole model of `seed` is read."""
    found = describe(path)
    assert found.fault is None, found.fault
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)
        assert same_bits(expert_read(path, model(9)), model(seed))
    return found


def unnumbered(folder: Path) -> dict[str, str]:
    """Write a model as two files whose names say nothing of each other; return the place of every tensor."""
    state = model()
    places = {name: "one.safetensors" if number < 3 else "two.safetensors" for number, name in enumerate(NAMES)}
    for file in set(places.values()):
        one(folder / file, {name: state[name] for name in NAMES if places[name] == file})
    return places
