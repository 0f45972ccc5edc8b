"""What a request for language models needs, from names and caches alone: no network, no torch."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite import hub
from fusionbench_lite.base.needs import Need
from fusionbench_lite.checkpoints.language import folders
from fusionbench_lite.checkpoints.language.api import OWN, PRETRAINED, Request
from fusionbench_lite.checkpoints.language.releases import release
from fusionbench_lite.weights.stored.elsewhere import ADAPTER, ADAPTER_CONFIG

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", f"{ADAPTER}.safetensors")


def inventory(request: Request) -> list[Need]:
    """Return the files of a request, present or not. Raises InputError for what no file can mend."""
    if request.family == OWN:
        top = request.dir or Path("checkpoints.dir")
        return [_local("pretrained", None, top / PRETRAINED), *(_local("expert", task, top / task) for task in request.tasks)]
    published = release(request.family, request.model)
    items = [_published(request, "pretrained", None, published.base, "", published.base_about, "model")]
    for task in request.tasks:
        repo, under = published.place(task)
        items.append(_published(request, "expert", task, repo, under, published.about, published.form))
    return items


def _local(what: str, task: str | None, folder: Path, about: int | None = None) -> Need:
    found = _weights_in(folder)
    present = found is not None and any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
    return Need(
        what=what, task=task, where=str(folder), path=str(found or folder), nbytes=found.stat().st_size if found else about,
        present=present, downloadable=False,
    )


def _published(request: Request, what: str, task: str | None, repo: str, under: str, about: int, form: str) -> Need:
    top = request.dir
    if top is not None:
        return _local(what, task, (folders.copy_of(repo, top) or top / repo) / under, about)
    names = (f"{ADAPTER}.safetensors",) if form == "adapter" else _WEIGHTS[:3]
    where = f"{repo}:{under}" if under else repo
    for name in names:
        found = hub.present(repo, f"{under}/{name}" if under else name, cache=request.cache)
        if found is not None:
            size = found.path.stat().st_size
            return Need(what=what, task=task, where=where, path=str(found.path), nbytes=size, present=True)
    path = request.cache / "hub" / f"models--{repo.replace('/', '--')}"
    return Need(what=what, task=task, where=where, path=str(path), nbytes=about, present=False)


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
