"""Folders of models and adapters: from the hub, file by file into one folder, or where the user has them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fusionbench_lite import hub
from fusionbench_lite.base.file_hashes import remembered
from fusionbench_lite.checkpoints.language.api import Folder, Report
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, locked
from fusionbench_lite.weights.stored.beside import CONFIG, TOKENIZER
from fusionbench_lite.weights.stored.elsewhere import ADAPTER, ADAPTER_CONFIG
from fusionbench_lite.weights.stored.folders import describe

INDEX, SAFE, PICKLED = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
BESIDE = ("generation_config.json",)


def on_hub(repo: str, under: str, form: str, cache: Path, report: Report | None, *, tokenizer: bool = False) -> Folder:
    """Return the folder `under` of a repository, of which what the form needs is downloaded; raises InputError.

    The files are those that the repository lists. `under` may name a folder that is called otherwise behind its last
    underscore, as folders with a learning rate are, where it is the only one.
    """
    listed = {entry.path: entry for entry in hub.tree(repo, cache=cache)}
    under = _spelled(repo, under, listed)
    place = f"{under}/" if under else ""
    present = {path.removeprefix(place) for path in listed if path.startswith(place)}
    wanted = [*_weights(f"{repo}:{under}" if under else repo, present, form), *(name for name in BESIDE if name in present)]
    if tokenizer:
        wanted += [name for name in TOKENIZER if name in present]
    fetched = {}
    for name in wanted:
        entry = listed[place + name]
        fetched[name] = hub.fetch(repo, place + name, cache=cache, sha256=entry.sha256, size=entry.size, report=report)
    if INDEX in fetched:
        for shard in _shards(fetched[INDEX].path):
            if place + shard not in listed:
                raise InputError(
                    f"{repo}:{place}{INDEX} names {shard!r}, which the repository does not have: it is incomplete, ask its owner"
                )
            entry = listed[place + shard]
            fetched[shard] = hub.fetch(repo, place + shard, cache=cache, sha256=entry.sha256, size=entry.size, report=report)
    files = {f"{repo}:{place}{name}": one.sha256 for name, one in fetched.items()}
    sources = {f"{repo}:{place}{name}": f"{repo}@{one.commit or 'unknown'}:{place}{name}" for name, one in fetched.items()}
    path = _together({name: one.path for name, one in fetched.items()}, files, cache)
    return _folder(path, fetched, files, sources)


def copy_of(repo: str, top: Path) -> Path | None:
    """Return the folder of the user's copy of a repository, below `top` with its owner or without; None where there is none."""
    return next((place for place in (top / repo, top / repo.rpartition("/")[2]) if place.is_dir()), None)


def at_hand(path: Path, top: Path, cache: Path, form: str, *, tokenizer: bool = False) -> Folder:
    """Return a folder of the user's; names of files in records are those below `top`. Raises InputError for what is missing."""
    if not path.is_dir():
        there = ", ".join(sorted(entry.name for entry in top.iterdir() if entry.is_dir())[:5]) or "none"
        raise InputError(f"{path} is missing: put {CONFIG} and the weights there (folders in {top}: {there})")
    present = {entry.name for entry in path.iterdir() if entry.is_file()}
    adapter = ADAPTER_CONFIG in present and form != "model"
    found = None
    if not adapter and SAFE not in present and PICKLED in present and INDEX not in present:
        wanted = [CONFIG, PICKLED]
    else:
        found = describe(path, adapters=adapter).checked()
        wanted = [entry.name for entry in (*found.files, *([found.index] if found.index else []))]
        wanted += [ADAPTER_CONFIG if adapter else CONFIG]
    wanted = [*dict.fromkeys((*wanted, *(name for name in BESIDE if name in present)))]
    if tokenizer:
        wanted += [name for name in TOKENIZER if name in present]
    missing = next((name for name in wanted if not (path / name).is_file()), None)
    if missing is not None:
        raise InputError(f"{path} has no {missing}: copy the whole folder that save_pretrained wrote")
    files = {(path / name).relative_to(top).as_posix(): remembered(path / name, cache) for name in wanted}
    return _folder(path, wanted, files, {name: str(top / name) for name in files})


def _folder(path: Path, names: Iterable[str], files: Mapping[str, str], sources: Mapping[str, str]) -> Folder:
    names = list(names)
    weights = next((path / name for name in (INDEX, SAFE, PICKLED) if name in names), None)
    if weights is None and CONFIG in names:
        weights = path  # other names of files, which one the folder's reader says
    beside = (*TOKENIZER, *BESIDE)
    counted = sorted(sha256 for name, sha256 in files.items() if name.rpartition("/")[2].rpartition(":")[2] not in beside)
    sha256 = hashlib.sha256(repr(counted).encode()).hexdigest()
    return Folder(path=path, weights=weights, files=files, sources=sources, sha256=sha256)


def _spelled(repo: str, under: str, listed: Iterable[str]) -> str:
    """Return the folder as the repository spells it; raises InputError where it has none, or several that may be meant."""
    folders = {path.rpartition("/")[0] for path in listed}
    if under in folders or not under:
        return under
    stem = under.rpartition("_")[0]
    alike = sorted(folder for folder in folders if folder.rpartition("_")[0] == stem)
    if len(alike) == 1:
        return alike[0]
    there = " or ".join(alike) if alike else ", ".join(sorted(folders)[:5]) or "nothing"
    raise InputError(f"{repo} has no folder {under!r} (it has {there}): download the one that is meant and give checkpoints.dir")


def _weights(where: str, present: set[str], form: str) -> Iterator[str]:
    """Yield the names of a folder's files that hold its tensors and say what they are."""
    if form == "adapter":
        names = ADAPTER_CONFIG, f"{ADAPTER}.safetensors"
    else:
        names = CONFIG, next((name for name in (INDEX, SAFE, PICKLED) if name in present), SAFE)
    for name in names:
        if name not in present:
            raise InputError(f"{where} has no {name}: it has {', '.join(sorted(present)[:6]) or 'nothing'}; ask its owner for it")
        yield name


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {index}: {' '.join(str(error).split())}; fetch it again") from error
    return sorted(str(name) for name in names)


def _together(paths: Mapping[str, Path], files: Mapping[str, str], cache: Path) -> Path:
    """Return one folder that holds all files: theirs where it is one, else one of copies."""
    parents = {path.parent for path in paths.values()}
    if len(parents) == 1 and all(path.name == name for name, path in paths.items()):
        return parents.pop()
    folder = cache / "checkpoints" / "language" / hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    with locked(folder.with_suffix(".lock")):
        for name, path in paths.items():
            target = folder / name
            if target.is_file():
                continue
            with atomic_file(target) as temporary:
                shutil.copyfile(path, temporary)
    return folder
