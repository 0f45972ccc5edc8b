"""From a request to the checked weights of language models: pretrained, experts and heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fusionbench_lite.checkpoints.language import folders
from fusionbench_lite.checkpoints.language.api import OWN, PRETRAINED, Folder, Found, Report, Request
from fusionbench_lite.checkpoints.language.bases import check_base
from fusionbench_lite.checkpoints.language.releases import release
from fusionbench_lite.checkpoints.language.tensors import Named, named
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.models import language
from fusionbench_lite.models.language.building import ENCODERS, check_names, is_tied, own_state
from fusionbench_lite.weights import lora


class Finder:
    """The weights of one request; `base` may be given where the pretrained model is at hand already, as a package's."""

    def __init__(self, request: Request, report: Report | None, base: Path | None = None) -> None:
        self.request, self.report, self._given = request, report, base
        self.release = None if request.family == OWN else release(request.family, request.model)
        self.files: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = list(self.release.caveats) if self.release is not None else []

    def found(self) -> Found:
        """Return everything that the request names."""
        request, kind = self.request, self.request.kind
        base = self._used(self.base())
        config = language.read_config(base.path)
        if config.get("model_type") != kind:
            said = config.get("model_type")
            raise InputError(f"{base.path}: model_type is {said!r}, and {request.model} is a {kind}: give its folder")
        pretrained, model = self._pretrained(named(base, kind, request.cache), config, str(base.path))
        experts: dict[str, Mapping[str, Tensor]] = {}
        heads: dict[str, Mapping[str, Tensor]] = {}
        hashes, places = {}, {}
        for number, task in enumerate(request.tasks):
            if self.report is not None:
                self.report("loading experts", number, len(request.tasks))
            folder = self._used(self._expert(task))
            experts[task], heads[task] = self._read(task, folder, base, pretrained)
            hashes[task], places[task] = folder.sha256, folder.path
        return Found(
            folder=base.path, model=model, pretrained=pretrained, experts=experts, heads=heads, files=self.files,
            sources=self.sources, expert_hashes=hashes, base_hash=base.sha256, folders=places,
            caveats=tuple(dict.fromkeys(self.notes)),
        )

    # ------------------------------------------------------------------ folders

    def base(self) -> Folder:
        """Return the folder of the pretrained model."""
        request = self.request
        if self._given is not None:
            return folders.at_hand(self._given, self._given.parent, request.cache, "model", tokenizer=True)
        if self.release is None:
            assert request.dir is not None
            return folders.at_hand(request.dir / PRETRAINED, request.dir, request.cache, "model", tokenizer=True)
        return self._published(self.release.base, "", "model", tokenizer=True)

    def _expert(self, task: str) -> Folder:
        if self.release is None:
            assert self.request.dir is not None
            return folders.at_hand(self.request.dir / task, self.request.dir, self.request.cache, "any")
        if task not in self.release.tasks:
            raise InputError(
                f"checkpoints={self.release.family} has no expert of {task!r} for {self.request.model} (it has "
                f"{', '.join(self.release.tasks)}): checkpoints=own reads your own"
            )
        return self._published(*self.release.place(task), self.release.form)

    def _published(self, repo: str, under: str, form: str, *, tokenizer: bool = False) -> Folder:
        """Return a folder of a repository: from the user's copy of it where there is one, else from the hub."""
        top = self.request.dir
        if top is not None:
            place = folders.copy_of(repo, top)
            if place is None:
                raise InputError(f"{top} has no {repo}: put the files of that repository there, or leave checkpoints.dir out")
            return folders.at_hand(place / under, top, self.request.cache, form, tokenizer=tokenizer)
        return folders.on_hub(repo, under, form, self.request.cache, self.report, tokenizer=tokenizer)

    def _used(self, folder: Folder) -> Folder:
        self.files |= folder.files
        self.sources |= folder.sources
        return folder

    # ------------------------------------------------------------------ tensors

    def _read(
        self, task: str, folder: Folder, base: Folder, pretrained: Named
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return body and head of an expert."""
        kind, who = self.request.kind, f"the expert of task {task!r} in {folder.path}"
        if folder.weights is None:
            check_base(folder.path, base.path, self.release.base if self.release else None, self.request.model, self.notes)
            try:
                adapted = lora.read_adapter(folder.path, pretrained)
            except MergeError as error:
                raise InputError(f"the expert of task {task!r}: {error}") from error
            return Named(adapted, {name: name for name in adapted}), {}
        config = language.read_config(folder.path)
        if config.get("model_type") != kind:
            said = config.get("model_type")
            raise InputError(f"{who}: model_type is {said!r}, and {self.request.model} is a {kind}: put its expert there")
        weights = named(folder, kind, self.request.cache)
        body = self._body(weights, pretrained, who)
        beginnings = ENCODERS[kind].HEAD
        head = {name: weights[name] for name in weights if beginnings and name.startswith(beginnings)}
        if beginnings and not head:
            raise InputError(f"{who} has no head ({beginnings[0]}*): it is a pretrained model, or the body of an expert alone")
        if weights.halved:
            self.notes.append(f"The expert of {task} is stored in half precision: its task vector is rounded to that.")
        return body, head

    def _pretrained(self, weights: Named, config: Mapping[str, Any], who: str) -> tuple[Named, Any]:
        """Return the tensors of the pretrained model without a head, in the order of its class, and the model with them."""
        beginnings, weights = ENCODERS[self.request.kind].HEAD, _tied(weights)
        model = language.new_model(config, tied="lm_head.weight" not in weights)
        state = own_state(model)
        check_names(self.request.kind, {name: weights.spec(name) for name in weights}, state, who)
        body = weights.only(name for name in state if not beginnings or not name.startswith(beginnings))
        model.load_state_dict(dict(body), strict=False)
        return body, model.eval()

    def _body(self, weights: Named, pretrained: Named, who: str) -> Named:
        """Return the checked tensors of an expert without its head, in the order of the pretrained model."""
        weights = _tied(weights)
        for name in pretrained:
            if name not in weights:
                why = "its lm_head is tied, the pretrained model's is not" if name == "lm_head.weight" else "fetch it again"
                raise InputError(f"{who} lacks {name!r}, which the pretrained model has: {why}")
            own, base = weights.spec(name).shape, pretrained.spec(name).shape
            if own != base:
                other = _of_vocabulary(name, own, base)
                raise InputError(f"{who}: {name!r} has shape {own}, the pretrained model's {base}: it is of another model{other}")
        beginnings = ENCODERS[self.request.kind].HEAD
        extra = [name for name in weights if name not in pretrained and not (beginnings and name.startswith(beginnings))]
        if extra:
            raise InputError(f"{who} has {extra[0]!r}, which the pretrained model lacks: it is of another model")
        return weights.only(pretrained)


def _tied(weights: Named) -> Named:
    """Return the tensors without an lm_head that is its embeddings."""
    if "lm_head.weight" in weights and is_tied(weights):
        return weights.only(name for name in weights if name != "lm_head.weight")
    return weights


def _of_vocabulary(name: str, own: tuple[int, ...], base: tuple[int, ...]) -> str:
    if own[1:] != base[1:] or not any(part in name for part in ("wte", "word_embeddings", "shared", "lm_head")):
        return ""
    return f", or its tokenizer is another ({own[0]} and {base[0]} tokens)"
