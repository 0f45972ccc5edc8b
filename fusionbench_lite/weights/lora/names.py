"""Which tensors of the pretrained model the names of an adapter mean: the same names, or one shift of prefixes for all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from fusionbench_lite.errors import nearest
from fusionbench_lite.weights.lora.config import AdapterConfig
from fusionbench_lite.weights.lora.files import AdapterFile
from fusionbench_lite.weights.lora.keys import unwrapped

OTHER_MODEL = (
    "use the model that the adapter was trained on; if it is that model, its library renames weights when it loads them: give the "
    "loaded model's state_dict()"
)
"""What helps where names are not found: transformers stores ViT, LLaVA and others under older names than its modules have."""
_PLAIN = frozenset({"module", "model", "transformer", "base_model", "backbone"})
"""Prefixes that say nothing of which part of a model is meant."""
_LEAD = 2
"""How many parts of a name may come before what a shift drops or adds: `model.` before `language_model.`."""
_VISION = re.compile(r"(vision|visual|image)(_(model|tower|encoder|transformer))?")
_TEXT = re.compile(r"(text|language)(_(model|tower|encoder|transformer))?")
_VISION_MARKS = re.compile(r"(patch_embed|class_embedding|cls_token|conv1\.)")
_TEXT_MARKS = re.compile(r"(token_embedding|embed_tokens|wte\.|word_embeddings)")


@dataclass(frozen=True)
class Shift:
    """One change of names: after `lead`, drop the parts `dropped` and put the parts `added`, one of them empty."""

    lead: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def run(self) -> tuple[str, ...]:
        """The parts that it drops or adds."""
        return self.dropped or self.added

    def of(self, name: str) -> str | None:
        """Return the name in the pretrained model; None for one beside what is dropped, which lies outside that model."""
        parts = tuple(name.split("."))
        start = len(self.lead)
        if parts[:start] != self.lead:
            return name
        if parts[start : start + len(self.dropped)] != self.dropped:
            return None
        return ".".join((*self.lead, *self.added, *parts[start + len(self.dropped) :]))


class Names:
    """The names of the pretrained model, as those of one adapter find them.

    `wanted` are the weights of the adapter's LoRA modules, by name, with a key of each. The names are taken as they are
    where all are found; else one prefix is dropped or added, the same for all, and none with a number in it, since that
    would be another layer. Raises MergeError where that fits not all names, or in two ways.
    """

    def __init__(self, file: AdapterFile, wanted: Mapping[str, str], pretrained: Collection[str]) -> None:
        self._file = file
        self.known: dict[str, str] = {unwrapped(name): name for name in pretrained}
        if len(self.known) < len(pretrained):
            self.known = {name: name for name in pretrained}
        self.shift = self._chosen(wanted)

    def find(self, name: str) -> str | None:
        """Return the tensor of the pretrained model that a name of the adapter means, None where there is none."""
        moved = self.shift.of(name)
        return None if moved is None else self.known.get(moved)

    def moved(self, name: str) -> str:
        """Return what the tensor would be called in the pretrained model, whether it is there or not."""
        return self.shift.of(name) or name

    def own(self, name: str) -> str | None:
        """Return what the adapter would call a tensor of the pretrained model, None for one outside its own model."""
        return Shift(self.shift.lead, self.shift.added, self.shift.dropped).of(name)

    def lacking(self, key: str, name: str) -> str:
        """Return the sentence that a key needs a tensor which the pretrained model lacks."""
        if self.shift.of(name) is None:
            what = f"lies outside {'.'.join(self.shift.dropped)!r}, the part of its model that the pretrained one holds"
            return f"{key!r} {what}: {OTHER_MODEL}"
        near = nearest(self.moved(name), self.known) or next(iter(self.known), None)
        example = "" if near is None else f" (of its {len(self.known)} keys one is {near!r})"
        return f"{key!r} needs {self.moved(name)!r}, which the pretrained model lacks{example}: {OTHER_MODEL}"

    def check_meaning(self, config: AdapterConfig) -> None:
        """Warn where the shift drops or adds the name of a part, of which a model may have several; refuse the wrong one."""
        shift = self.shift
        if _is_plain(shift, config):
            return
        before, after = (".".join((*shift.lead, *parts, "*")) for parts in (shift.dropped, shift.added))
        vision, text = (any(marks.search(name) for name in self.known) for marks in (_VISION_MARKS, _TEXT_MARKS))
        ours = [any(kind.fullmatch(part) for part in shift.run) for kind in (_VISION, _TEXT)]
        other = ours in ([False, True], [True, False]) and vision != text and ours != [vision, text]
        if shift.dropped and other:
            raise self._file.error(
                f"its names are {before!r}, but the pretrained model is a {'vision' if vision else 'text'} model: give the one "
                "that the adapter was trained on"
            )
        self._file.warn(
            f"its names {before!r} are taken for {after!r} of the pretrained model; where that is another part of a model with "
            "several, the result is wrong: rename the keys of one side, so that they agree"
        )

    def _chosen(self, wanted: Mapping[str, str]) -> Shift:
        if all(name in self.known for name in wanted):
            return Shift()
        # The longest of the names that are not found leaves the fewest shifts to try.
        missing = max((name for name in wanted if name not in self.known), key=lambda name: name.count("."))
        fitting: dict[tuple[str | None, ...], Shift] = {}
        for shift in dict.fromkeys(self._shifts(missing)):
            moved = tuple(shift.of(name) for name in wanted)
            if all(name in self.known for name in moved) and _is_meant(shift, wanted):
                fitting.setdefault(moved, shift)
        if len(fitting) > 1:
            one, other = [shift.of(missing) for shift in list(fitting.values())[:2]]
            raise self._file.error(
                f"{wanted[missing]!r} may stand for {one!r} or {other!r} of the pretrained model: rename one side, so that the "
                "names agree"
            )
        return next(iter(fitting.values()), None) or self._best(missing, wanted)

    def _best(self, missing: str, wanted: Mapping[str, str]) -> Shift:
        """Return the shift that fits most names, for the message about the first that it does not fit."""
        shifts = [Shift(), *(shift for shift in self._shifts(missing) if _is_meant(shift, wanted))]
        return max(shifts, key=lambda shift: sum(shift.of(name) in self.known for name in wanted))

    def _shifts(self, name: str) -> Iterator[Shift]:
        """Yield the shifts that make the name one of the pretrained model's."""
        ours = tuple(name.split("."))
        for other in self.known:
            theirs = tuple(other.split("."))
            longer, size = (ours, len(ours) - len(theirs)) if len(ours) > len(theirs) else (theirs, len(theirs) - len(ours))
            if not size or ours[-1] != theirs[-1]:
                continue
            for start in range(min(len(ours), len(theirs), _LEAD + 1)):
                if ours[:start] != theirs[:start]:
                    break
                run = longer[start : start + size]
                shift = Shift(ours[:start], run, ()) if longer is ours else Shift(ours[:start], (), run)
                if not any(part.isdigit() for part in (*shift.lead, *run)) and shift.of(name) == other:
                    yield shift


def _is_plain(shift: Shift, config: AdapterConfig) -> bool:
    """Say whether what is dropped or added is a common wrapper, or the name of the adapter's own architecture."""
    return all(part in _PLAIN or part in config.library.split(".") for part in shift.run)


def _is_meant(shift: Shift, wanted: Mapping[str, str]) -> bool:
    """Say whether the shift leaves a path in some name: equal last parts alone say nothing of the layer."""
    if all(part in _PLAIN for part in shift.run):
        return True
    rest = [name.split(".")[len(shift.lead) + len(shift.dropped) : -1] for name in wanted]
    return any(len(parts) > 1 for parts in rest)
