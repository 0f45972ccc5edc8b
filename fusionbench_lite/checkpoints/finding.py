"""From a request to checked safetensors files: local folders, caches and the hub, each source converted once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.checkpoints import converting, locating, store
from fusionbench_lite.checkpoints.api import Found, Report, Request
from fusionbench_lite.checkpoints.families import Base, Family, Known, Place, caveats, check, family_of
from fusionbench_lite.checkpoints.locating import Hub, Offer, Source
from fusionbench_lite.checkpoints.store import Metadata
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import locked

if TYPE_CHECKING:
    from torch import Tensor

Converted = tuple[Path, Metadata]
Convert = Callable[[Source], tuple[dict[str, "Tensor"], dict[str, str]]]


class Finder:
    """The files of one request. Every `_..._file` method returns a converted file and its metadata."""

    def __init__(self, request: Request, report: Report | None, families: dict[str, Family] | None = None) -> None:
        self.families = check(request.family, request.model, request.tasks, request.manifest) if families is None else families
        self.request, self.report = request, report
        self.hub = Hub(request.cache, report)
        self.files: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []
        self.done, self.total = 0, 2 + 2 * len(request.tasks)
        if request.dir is not None and not request.dir.is_dir():
            raise InputError(f"checkpoints.dir {request.dir} is not a directory: give the folder of the files")

    def found(self) -> Found:
        """Return everything the request names."""
        if self.request.family == "own":
            from fusionbench_lite.checkpoints.own import found

            return found(self)
        family = next(iter(self.families.values()))
        base = self._base(family)
        experts, heads, hashes = {}, {}, {}
        for task in self.request.tasks:
            expert, metadata = self._expert_file(task, base)
            experts[task], hashes[task] = expert, metadata["sha256"]
            heads[task] = self._head_file(task, metadata["origin"])
        text = base.get("text")
        if text is None and None in heads.values():
            text = self.base_part(family, "text")
        return Found(
            self.request.family, self.request.layout, base["pretrained"][0], experts, heads, text[0] if text else None,
            base["constants"][0] if "constants" in base else None, self.files, self.sources,
            0 if family.frozen_projection else converting.virtual_zeros(self.request.size),
            (*caveats(self.families), *dict.fromkeys(self.notes)), hashes,
        )

    # ------------------------------------------------------------------ the pretrained model

    def base(self) -> Found:
        """Return the pretrained model of the request's family alone, without experts and heads."""
        family = family_of("fusionbench" if self.request.family == "fusionbench" else "ta", self.request.manifest)
        if self.request.model not in family.bases:
            known = did_you_mean(self.request.model, family.bases)
            raise InputError(f"no pretrained model {self.request.model!r} is known: {known}")
        base = self._base(family)
        text = base.get("text") or self.base_part(family, "text")
        return Found(
            self.request.family, self.request.layout, base["pretrained"][0], {}, {}, text[0],
            base["constants"][0] if "constants" in base else None, self.files, self.sources, 0, (),
        )

    def _base(self, family: Family) -> dict[str, Converted]:
        """Return the parts of the pretrained model: "pretrained", "text" or "leftovers", and "constants"."""
        local = self._local(family, None, "pretrained") if self.request.dir is not None else None
        if local is not None:
            return {
                part: self.converted(self._base_group(family), part, local, self._base_convert(family, part))
                for part in ("pretrained", "leftovers")
            }
        parts = ["pretrained", "text", *(["constants"] if family.frozen_projection else [])]
        return {part: self.base_part(family, part) for part in parts}

    def base_part(self, family: Family, name: str) -> Converted:
        """Return a part of the family's whole pretrained model, from the user's folder or the base repository."""
        local = self._local(family, None, "base") if self.request.dir is not None else None
        convert = self._base_convert(family, name)
        base = family.bases[self.request.model]
        if local is not None:
            return self.converted(self._base_group(family), name, local, convert)
        offers = locating.base_offers(base)
        return self._from_hub(self._base_group(family), name, offers, convert, lambda reasons: _no_base(base, reasons))

    def _base_group(self, family: Family) -> str:
        return f"base-{family.base}"

    def _base_convert(self, family: Family, name: str) -> Convert:
        return lambda source: converting.base(source, self.request, family, name)

    # ------------------------------------------------------------------ experts and heads

    def _expert_file(self, task: str, base: dict[str, Converted]) -> Converted:
        family = self.families[task]
        reference = (base.get("text") or base["leftovers"]) if not family.frozen_projection else base["constants"]
        pretrained = base["pretrained"][1]["sha256"]

        def convert(source: Source) -> tuple[dict[str, Tensor], dict[str, str]]:
            return converting.expert(source, self.request, family, task, reference[0], pretrained)

        def accept(metadata: Metadata) -> bool:
            return metadata.get("base") == pretrained

        name = f"expert-{task}"
        if self.request.dir is not None:
            local = self._local(family, task, "expert")
            if local is None:
                raise InputError(self._missing_locally(family, task))
            known = locating.known_locally(family, self.request.model, task, "expert", local)
            return self._noted(task, self.converted(family.family, name, local, convert, known, accept))
        places = [(place, locating.offer(family, place, self.request.model, task, "expert")) for place in self._places(family)]
        offers = [made for _, made in places if made is not None]

        def missing(reasons: dict[str, str]) -> str:
            return self._missing_on_hub(family, task, offers, reasons)

        return self._noted(task, self._from_hub(family.family, name, offers, convert, missing, accept, listed=True))

    def _head_file(self, task: str, expert: str) -> Path | None:
        """Return the head that lies beside the expert of this origin; None where it has to be built."""
        family, name = self.families[task], f"head-{task}"

        def convert(source: Source) -> tuple[dict[str, Tensor], dict[str, str]]:
            return converting.head(source, self.request, family, task)

        if self.request.dir is not None:
            local = locating.local_head(self.request.dir, family, self.request.model, task, Path(expert))
            return self.converted(family.family, name, local, convert)[0] if local is not None else None
        for place in self._places(family):
            made = locating.offer(family, place, self.request.model, task, "head")
            if made is None or not expert.startswith(f"{made.repo}:"):
                continue
            kept = self._kept(family.family, name, [made])
            if kept is not None:
                return kept[0]
            listed = self.hub.resolved(made, "head")
            if listed is not None:
                return self._from_hub(family.family, name, [listed], convert, locating.why_missing)[0]
        return None

    def _places(self, family: Family) -> tuple[Place, ...]:
        return family.places_of(self.request.model)

    def _noted(self, task: str, converted: Converted) -> Converted:
        stored = converted[1].get("stored", "float32")
        if stored != "float32":
            self.notes.append(f"The expert of {task} was stored as {stored}: its task vector is rounded to that precision.")
        return converted

    def _local(self, family: Family, task: str | None, kind: str) -> Path | None:
        patterns = locating.local_patterns(family, self.request.model, task, kind)
        return locating.in_folder(self.request.dir, patterns, kind) if self.request.dir is not None else None

    def _missing_locally(self, family: Family, task: str) -> str:
        patterns = " or ".join(locating.local_patterns(family, self.request.model, task, "expert"))
        return f"{self.request.dir} lacks the expert of {task!r}: put it there as {patterns} ({self._publishers(family, task)})"

    def _publishers(self, family: Family, task: str) -> str:
        repos = dict.fromkeys(family.fill(place.repo, self.request.model, task) for place in self._places(family))
        return f"published at {', '.join(repos)}" + (f" and {family.elsewhere}" if family.elsewhere else "")

    def _missing_on_hub(self, family: Family, task: str, offers: list[Offer], reasons: dict[str, str]) -> str:
        about = _size(offers[0].known.size or offers[0].about) if offers else "unknown size"
        pattern = locating.local_patterns(family, self.request.model, task, "expert")[0]
        return (
            f"the {family.family} expert of {task!r} for {self.request.model} ({about}) cannot be had: "
            f"{locating.why_missing(reasons)}; put it into a folder as {pattern} and give checkpoints.dir "
            f"({self._publishers(family, task)})"
        )

    # ------------------------------------------------------------------ conversion

    def _from_hub(
        self, group: str, name: str, offers: list[Offer], convert: Convert, missing: Callable[[dict[str, str]], str],
        accept: Callable[[Metadata], bool] = lambda _: True, listed: bool = False,
    ) -> Converted:
        """Return the first offer that can be had: what is converted, what a cache holds, what the hub has, in this order."""
        kept = self._kept(group, name, offers, accept)
        if kept is not None:
            return kept
        for offer in offers:
            source = self.hub.present(offer)
            if source is not None:
                return self._converted_source(group, name, source, convert, accept)
        reasons: dict[str, str] = {}
        for offer in offers:
            try:
                spelled = self.hub.resolved(offer, "expert") if listed and "/" in offer.file else offer
                if spelled is None:
                    reasons[offer.origin] = "the repository has no such file"
                    continue
                source = self.hub.fetch(spelled)
            except InputError as error:
                reasons[offer.origin] = str(error)
                continue
            return self._converted_source(group, name, source, convert, accept)
        raise InputError(missing(reasons))

    def _kept(
        self, group: str, name: str, offers: list[Offer], accept: Callable[[Metadata], bool] = lambda _: True
    ) -> Converted | None:
        """Return a sound converted file of one of the offers, whether or not its source is still there."""
        def fits(metadata: Metadata) -> bool:
            return accept(metadata) and any(
                metadata.get("origin", "").casefold().startswith(f"{offer.repo}:".casefold())
                and metadata["sha256"].startswith(offer.known.sha256 or "") for offer in offers
            )

        return self._used(self._lookup(group, name, fits))

    def converted(
        self, group: str, name: str, path: Path, convert: Convert, known: Known | None = None,
        accept: Callable[[Metadata], bool] = lambda _: True,
    ) -> Converted:
        """Return the conversion of a local file; one whose size and time are those of an earlier run is not hashed again."""
        origin, state = str(path), locating.state_of(path)
        prefix = known.sha256 or "" if known is not None else ""
        kept = self._used(self._lookup(group, name, lambda metadata: (
            metadata.get("origin") == origin and metadata.get("state") == state and metadata["sha256"].startswith(prefix)
            and accept(metadata)
        )))
        return kept or self._converted_source(group, name, locating.local(path, known), convert, accept)

    def _converted_source(
        self, group: str, name: str, source: Source, convert: Convert, accept: Callable[[Metadata], bool]
    ) -> Converted:
        folder = store.folder_of(self.request.cache, group, self.request.model, self.request.layout)
        with locked(folder / f"{name}.lock"):
            kept = self._lookup(group, name, lambda metadata: (
                metadata["sha256"] == source.sha256 and metadata.get("origin") == source.origin
                and metadata.get("state", "") == source.state and accept(metadata)
            ))
            if kept is None:
                self._tell(f"converting {name}")
                tensors, said = convert(source)
                metadata = {
                    **said, "sha256": source.sha256, "origin": source.origin, "where": source.where, "state": source.state,
                    "group": group, "model": self.request.model, "layout": self.request.layout,
                    "size": store.numbers_of(self.request.size),
                }
                path = store.write(folder, name, tensors, metadata)
                kept = path, metadata
        found = self._used(kept)
        if found is None:
            raise InputError(f"{folder} lost {name} while it was written: do not delete the cache during a run")
        return found

    def _lookup(self, group: str, name: str, accept: Callable[[Metadata], bool]) -> Converted | None:
        folder = store.folder_of(self.request.cache, group, self.request.model, self.request.layout)
        size = store.numbers_of(self.request.size)
        return store.lookup(folder, name, lambda metadata: (
            len(metadata.get("sha256", "")) == 64 and metadata.get("size") == size and accept(metadata)
        ))

    def _used(self, converted: Converted | None) -> Converted | None:
        if converted is not None:
            metadata = converted[1]
            self.used(metadata["origin"], metadata["sha256"], metadata["where"])
        return converted

    def used(self, origin: str, sha256: str, where: str) -> None:
        """Remember a source file of the run; those of the user's folder by their path below it."""
        folder = self.request.dir
        name = Path(origin).relative_to(folder).as_posix() if folder is not None and Path(origin).is_relative_to(folder) else origin
        self.files[name], self.sources[name] = sha256, where
        self.done += 1

    def _tell(self, what: str) -> None:
        if self.report is not None:
            self.report(what, min(self.done, self.total), self.total)


def _no_base(base: Base, reasons: dict[str, str]) -> str:
    return (
        f"the pretrained model {base.repo} ({_size(base.about)}) cannot be had: {locating.why_missing(reasons)}; put it into the "
        f"folder of checkpoints.dir as {base.repo}/{base.files[0]}"
    )


def _size(nbytes: int | None) -> str:
    return "unknown size" if nbytes is None else f"{nbytes / 1e6:,.0f} MB"
