"""Checked safetensors files of a run, each converted once from a file of the hub or of the user's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.checkpoints import locating, store
from fusionbench_lite.checkpoints.api import Report, Request
from fusionbench_lite.checkpoints.families import Published
from fusionbench_lite.checkpoints.locating import Hub, Offer, SourceFile
from fusionbench_lite.checkpoints.store import Metadata
from fusionbench_lite.errors import InputError, WriteError
from fusionbench_lite.paths import locked

if TYPE_CHECKING:
    from torch import Tensor

Converted = tuple[Path, Metadata]
Convert = Callable[[SourceFile], tuple[dict[str, "Tensor"], dict[str, str]]]


class Conversions:
    """The converted files of one request. `files` maps the name of every source file that was used to its SHA-256, `sources`
    to where it is from."""

    def __init__(self, request: Request, report: Report | None) -> None:
        self.request, self.report = request, report
        self.hub = Hub(request.cache, report)
        self.files: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.converted_files: dict[Path, Metadata] = {}
        self.done, self.total = 0, 2 + 2 * len(request.tasks)

    def from_hub(
        self, group: str, name: str, offers: list[Offer], convert: Convert, missing: Callable[[dict[str, str]], str],
        accept: Callable[[Metadata], bool] = lambda _: True, listed: bool = False,
    ) -> Converted:
        """Return the first offer that can be had: what is converted, what a cache holds, what the hub has, in this order."""
        kept = self.kept(group, name, offers, accept)
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
            except WriteError:  # the next offer would not fit either
                raise
            except InputError as error:
                reasons[offer.origin] = str(error)
                continue
            return self._converted_source(group, name, source, convert, accept)
        raise InputError(missing(reasons))

    def kept(
        self, group: str, name: str, offers: list[Offer], accept: Callable[[Metadata], bool] = lambda _: True
    ) -> Converted | None:
        """Return a sound converted file of one of the offers, whether or not its source is still there."""

        def fits(metadata: Metadata) -> bool:
            return accept(metadata) and any(
                metadata.get("origin", "").casefold().startswith(f"{offer.repo}:".casefold())
                and metadata["sha256"].startswith(offer.published.sha256 or "") for offer in offers
            )

        return self._used(self._lookup(group, name, fits))

    def converted(
        self, group: str, name: str, path: Path, convert: Convert, published: Published | None = None,
        accept: Callable[[Metadata], bool] = lambda _: True,
    ) -> Converted:
        """Return the conversion of a local file; one that is as in an earlier run is not hashed again."""
        source = locating.local(path, self.request.cache, published)
        kept = self._used(self._lookup(group, name, lambda metadata: _is_made_of(source, metadata) and accept(metadata)))
        return kept or self._converted_source(group, name, source, convert, accept)

    def _converted_source(
        self, group: str, name: str, source: SourceFile, convert: Convert, accept: Callable[[Metadata], bool]
    ) -> Converted:
        folder = store.folder_of(self.request.cache, group, self.request.model, self.request.layout)
        with locked(folder / f"{name}.lock"):
            kept = self._lookup(group, name, lambda metadata: _is_made_of(source, metadata) and accept(metadata))
            if kept is None:
                self._tell(f"converting {name}")
                tensors, said = convert(source)
                metadata = {
                    **said, "sha256": source.sha256, "origin": source.origin, "where": source.where,
                    "group": group, "model": self.request.model, "layout": self.request.layout,
                    "size": store.numbers_of(self.request.size),
                }
                path = store.write(folder, name, tensors, metadata)
                kept = path, store.metadata_of(path) or metadata
        converted = self._used(kept)
        if converted is None:
            raise InputError(f"{folder} lost {name} while it was written: do not delete the cache during a run")
        return converted

    def _lookup(self, group: str, name: str, accept: Callable[[Metadata], bool]) -> Converted | None:
        folder = store.folder_of(self.request.cache, group, self.request.model, self.request.layout)
        size = store.numbers_of(self.request.size)
        return store.lookup(folder, name, lambda metadata: (
            len(metadata.get("sha256", "")) == 64 and metadata.get("size") == size and accept(metadata)
        ))

    def _used(self, converted: Converted | None) -> Converted | None:
        if converted is not None:
            metadata = converted[1]
            self.converted_files[converted[0]] = metadata
            self.used(metadata["origin"], metadata["sha256"], metadata["where"])
        return converted

    def check(self) -> None:
        """Compare all bytes of the converted files that were used with their checksums. Raises soundness.Damaged."""
        store.check(self.converted_files.items(), self.report)

    def used(self, origin: str, sha256: str, where: str) -> None:
        """Remember a source file of the run; those of the user's folder by their path below it."""
        folder = self.request.dir
        name = Path(origin).relative_to(folder).as_posix() if folder is not None and Path(origin).is_relative_to(folder) else origin
        self.files[name], self.sources[name] = sha256, where
        self.done += 1

    def _tell(self, what: str) -> None:
        if self.report is not None:
            self.report(what, min(self.done, self.total), self.total)


def _is_made_of(source: SourceFile, metadata: Metadata) -> bool:
    return metadata["sha256"] == source.sha256 and metadata.get("origin") == source.origin
