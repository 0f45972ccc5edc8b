"""What a request needs, from names and caches alone: no network, no torch."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from fusionbench_lite.base.needs import Need
from fusionbench_lite.checkpoints import locating, store
from fusionbench_lite.checkpoints.api import Request
from fusionbench_lite.checkpoints.families import EXPERT, HEADS, PRETRAINED, Family, check, family_of
from fusionbench_lite.checkpoints.locating import Hub, Offer
from fusionbench_lite.checkpoints.stated import stated_family
from fusionbench_lite.errors import InputError
from fusionbench_lite.hub.settings import offline as hub_offline

_WHOLE = "image tower, text tower and projection"


def inventory(request: Request) -> list[Need]:
    """Return the files of a request, present or not. Raises InputError for what no file can mend."""
    families = check(request.family, request.model, request.tasks, request.manifest)
    if request.family == "own":
        return _own(request)
    family = next(iter(families.values()))
    items = [_base(request, family)]
    for task in request.tasks:
        items.append(_file(request, families[task], task, "expert"))
        head = _head(request, families[task], task)
        if head is not None:
            items.append(head)
    if items[0].note != _WHOLE and any(item.what == "head" and not item.present for item in items):
        items.append(_whole(request, family, "text tower"))
    return items


def _own(request: Request) -> list[Need]:
    folder = request.dir or Path("checkpoints.dir")
    wanted = [("pretrained", None, PRETRAINED), *(("expert", task, EXPERT.format(task=task)) for task in request.tasks)]
    items = [_local_item(what, task, folder / file) for what, task, file in wanted]
    heads = folder / HEADS
    stored = store.shapes_of(heads) if heads.is_file() else {}
    for task in request.tasks:
        note = "" if task in stored else "built from prompts"
        items.append(Need(
            what="head", task=task, where=str(heads), path=str(heads), nbytes=_bytes(heads), present=task in stored, note=note,
            downloadable=False, made=bool(note),
        ))
    if any(not item.present for item in items if item.what == "head"):
        owner = "fusionbench" if stated_family(folder) == "fusionbench" else "ta"
        items.append(_whole(request, family_of(owner, request.manifest), "text tower"))
    return items


def _local_item(what: str, task: str | None, path: Path) -> Need:
    return Need(
        what=what, task=task, where=str(path), path=str(path), nbytes=_bytes(path), present=path.is_file(), note="",
        downloadable=False,
    )


def _base(request: Request, family: Family) -> Need:
    """Return the pretrained model: a file of the user's folder, else that of the base repository."""
    if request.dir is not None:
        path = locating.in_folder(request.dir, locating.local_patterns(family, request.model, None, "pretrained"), "pretrained")
        if path is not None:
            return _local_item("pretrained", None, path)
    return _whole(request, family, "pretrained")


def _whole(request: Request, family: Family, what: str) -> Need:
    offers = locating.base_offers(family.bases[request.model])
    if request.dir is not None:
        path = locating.in_folder(request.dir, locating.local_patterns(family, request.model, None, "base"), "base")
        if path is not None:
            return Need(what=what, task=None, where=str(path), path=str(path), nbytes=_bytes(path), present=True, note=_WHOLE)
    part = "text" if what == "text tower" else "pretrained"
    return _on_hub(request, f"base-{family.base}", part, what, None, offers, _WHOLE)


def _file(request: Request, family: Family, task: str, kind: str, note: str = "") -> Need:
    patterns = locating.local_patterns(family, request.model, task, kind)
    if request.dir is not None:
        path = locating.in_folder(request.dir, patterns, kind)
        if path is None and kind == "head":
            expert = locating.in_folder(request.dir, locating.local_patterns(family, request.model, task, "expert"), "expert")
            path = None if expert is None else locating.local_head(request.dir, family, request.model, task, expert)
        offers = _offers(request, family, task, kind)
        where = ", ".join(offer.origin for offer in offers) + (f" or {family.elsewhere}" if family.elsewhere else "")
        if path is not None:
            return Need(what=kind, task=task, where=where, path=str(path), nbytes=_bytes(path), present=True, note=note)
        return Need(
            what=kind, task=task, where=where, path=str(request.dir / patterns[0]), nbytes=_expected(offers[0]), present=False,
            note=note, downloadable=False,
        )
    return _on_hub(request, family.family, f"{kind}-{task}", kind, task, _offers(request, family, task, kind), note)


def _head(request: Request, family: Family, task: str) -> Need | None:
    """Return the shipped head; None for a family that ships none."""
    if not _offers(request, family, task, "head"):
        return None
    item = _file(request, family, task, "head", "built from prompts where there is none")
    return dataclasses.replace(item, made=not item.present and _is_built(request, family, task))


def _is_built(request: Request, family: Family, task: str) -> bool:
    """Say whether a head that is not here is built from prompts: of a folder, or where it is known that none is published."""
    if request.dir is not None or not hub_offline():
        return request.dir is not None
    hub, listed = Hub(request.cache, None), []
    for offer in _offers(request, family, task, "head"):
        with contextlib.suppress(InputError):  # a repository that was never listed gave no expert either
            listed.append(hub.resolved(offer, "head"))
    return bool(listed) and not any(listed)


def _offers(request: Request, family: Family, task: str, kind: str) -> list[Offer]:
    made = [locating.offer(family, place, request.model, task, kind) for place in family.places_of(request.model)]
    return [offer for offer in made if offer is not None]


def _on_hub(
    request: Request, group: str, name: str, what: str, task: str | None, offers: list[Offer], note: str
) -> Need:
    folder = store.folder_of(request.cache, group, request.model, request.layout)
    where = ", ".join(offer.origin for offer in offers)
    repos = tuple(f"{offer.repo}:".casefold() for offer in offers)
    size = store.numbers_of(request.size)
    kept = store.lookup(folder, name, lambda metadata: (
        metadata.get("size") == size and metadata.get("origin", "").casefold().startswith(repos)
    ))
    if kept is not None:
        return Need(what=what, task=task, where=where, path=str(kept[0]), nbytes=_bytes(kept[0]), present=True, note=note)
    hub = Hub(request.cache, None)
    for offer in offers:
        source = hub.present(offer)
        if source is not None:
            return Need(
                what=what, task=task, where=where, path=str(source.path), nbytes=_bytes(source.path), present=True, note=note
            )
    path = request.cache / "hub" / f"models--{offers[0].repo.replace('/', '--')}"
    return Need(what=what, task=task, where=where, path=str(path), nbytes=_expected(offers[0]), present=False, note=note)


def _expected(offer: Offer) -> int | None:
    return offer.published.size or offer.about


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
