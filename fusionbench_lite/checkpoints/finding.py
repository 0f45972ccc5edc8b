"""From a request to checked safetensors files: local folders, caches and the hub, each source converted once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.checkpoints import converting, locating, store
from fusionbench_lite.checkpoints.api import Found, Report, Request
from fusionbench_lite.checkpoints.conversions import Conversions, Convert, Converted
from fusionbench_lite.checkpoints.families import Base, Family, Place, caveats, check, family_of
from fusionbench_lite.checkpoints.locating import Offer, SourceFile
from fusionbench_lite.checkpoints.store import Metadata
from fusionbench_lite.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


class Finder:
    """The files of one request. Every `_..._file` method returns a converted file and its metadata."""

    def __init__(self, request: Request, report: Report | None, families: dict[str, Family] | None = None) -> None:
        self.families = check(request.family, request.model, request.tasks, request.manifest) if families is None else families
        self.request, self.conversions = request, Conversions(request, report)
        self.files, self.sources = self.conversions.files, self.conversions.sources
        self.notes: list[str] = []
        if request.dir is not None and not request.dir.is_dir():
            raise InputError(f"checkpoints.dir {request.dir} is not a directory: give the folder of the files")

    def collected(self) -> Found:
        """Return everything that a request of a published family names."""
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
            family=self.request.family, layout=self.request.layout, pretrained=base["pretrained"][0], experts=experts, heads=heads,
            text=text[0] if text else None, constants=base["constants"][0] if "constants" in base else None, files=self.files,
            sources=self.sources, virtual_zeros=0 if family.frozen_projection else converting.virtual_zeros(self.request.size),
            caveats=(*caveats(self.families), *dict.fromkeys(self.notes)), expert_hashes=hashes,
        )

    # ------------------------------------------------------------------ the pretrained model

    def base(self) -> Found:
        """Return the pretrained model of the request's family alone, without experts and heads."""
        family = family_of("fusionbench" if self.request.family == "fusionbench" else "ta", self.request.manifest)
        if self.request.model not in family.bases:
            hint = did_you_mean(self.request.model, family.bases)
            raise InputError(f"no pretrained model {self.request.model!r} is known: {hint}")
        base = self._base(family)
        text = base.get("text") or self.base_part(family, "text")
        self.conversions.check()
        return Found(
            family=self.request.family, layout=self.request.layout, pretrained=base["pretrained"][0], experts={}, heads={},
            text=text[0], constants=base["constants"][0] if "constants" in base else None, files=self.files, sources=self.sources,
            virtual_zeros=0, caveats=(),
        )

    def _base(self, family: Family) -> dict[str, Converted]:
        """Return the parts of the pretrained model: "pretrained", "text" or "leftovers", and "constants"."""
        local = self._local(family, None, "pretrained") if self.request.dir is not None else None
        if local is not None:
            return {
                part: self.conversions.converted(self._base_group(family), part, local, self._base_convert(family, part))
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
            return self.conversions.converted(self._base_group(family), name, local, convert)
        offers = locating.base_offers(base)
        return self.conversions.from_hub(self._base_group(family), name, offers, convert, lambda reasons: _no_base(base, reasons))

    def _base_group(self, family: Family) -> str:
        return f"base-{family.base}"

    def _base_convert(self, family: Family, name: str) -> Convert:
        return lambda source: converting.base(source, self.request, family, name)

    # ------------------------------------------------------------------ experts and heads

    def _expert_file(self, task: str, base: dict[str, Converted]) -> Converted:
        family = self.families[task]
        reference = (base.get("text") or base["leftovers"]) if not family.frozen_projection else base["constants"]
        pretrained = base["pretrained"][1]["sha256"]

        def convert(source: SourceFile) -> tuple[dict[str, Tensor], dict[str, str]]:
            store.check([reference])  # else a sound expert is refused
            return converting.expert(source, self.request, family, task, reference[0], pretrained)

        def accept(metadata: Metadata) -> bool:
            return metadata.get("base") == pretrained

        name = f"expert-{task}"
        if self.request.dir is not None:
            local = self._local(family, task, "expert")
            if local is None:
                raise InputError(self._missing_locally(family, task))
            published = locating.published_of(family, self.request.model, task, "expert", local)
            return self._noted(task, self.conversions.converted(family.family, name, local, convert, published, accept))
        places = [(place, locating.offer(family, place, self.request.model, task, "expert")) for place in self._places(family)]
        offers = [made for _, made in places if made is not None]

        def missing(reasons: dict[str, str]) -> str:
            return self._missing_on_hub(family, task, offers, reasons)

        return self._noted(task, self.conversions.from_hub(family.family, name, offers, convert, missing, accept, listed=True))

    def _head_file(self, task: str, expert: str) -> Path | None:
        """Return the head that lies beside the expert of this origin; None where it has to be built."""
        family, name = self.families[task], f"head-{task}"

        def convert(source: SourceFile) -> tuple[dict[str, Tensor], dict[str, str]]:
            return converting.head(source, self.request, family, task)

        if self.request.dir is not None:
            local = locating.local_head(self.request.dir, family, self.request.model, task, Path(expert))
            return self.conversions.converted(family.family, name, local, convert)[0] if local is not None else None
        for place in self._places(family):
            made = locating.offer(family, place, self.request.model, task, "head")
            if made is None or not expert.startswith(f"{made.repo}:"):
                continue
            kept = self.conversions.kept(family.family, name, [made])
            if kept is not None:
                return kept[0]
            listed = self.conversions.hub.resolved(made, "head")
            if listed is not None:
                return self.conversions.from_hub(family.family, name, [listed], convert, locating.why_missing)[0]
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
        about = _size(offers[0].published.size or offers[0].about) if offers else "unknown size"
        pattern = locating.local_patterns(family, self.request.model, task, "expert")[0]
        return (
            f"the {family.family} expert of {task!r} for {self.request.model} ({about}) cannot be had: "
            f"{locating.why_missing(reasons)}; put it into a folder as {pattern} and give checkpoints.dir "
            f"({self._publishers(family, task)})"
        )


def _no_base(base: Base, reasons: dict[str, str]) -> str:
    return (
        f"the pretrained model {base.repo} ({_size(base.about)}) cannot be had: {locating.why_missing(reasons)}; put it into the "
        f"folder of checkpoints.dir as {base.repo}/{base.files[0]}"
    )


def _size(nbytes: int | None) -> str:
    return "unknown size" if nbytes is None else f"{nbytes / 1e6:,.0f} MB"
