"""What a path of weights is: which files hold the model, in which form, adapter or model, quantised or not.

The one place that decides it, for readers, writers, adapters, checkpoints and `convert`. One stored form of a folder is taken,
never a union: model.safetensors with its shards and index before all others, then other indexes, other names that begin with
"model", and last any other complete form; of two that are equally good neither is. No values are read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite.errors import MergeError
from fusionbench_lite.paths import expanded
from fusionbench_lite.weights.quantised import FIX, sign
from fusionbench_lite.weights.stored.contents import dangling, fault_of, first_line, permitted
from fusionbench_lite.weights.stored.elsewhere import ADAPTER, ADAPTER_CONFIG, base_of, hint_below, is_weights, missing, nothing_in
from fusionbench_lite.weights.stored.forms import Form, chosen, read_form
from fusionbench_lite.weights.stored.headers import Stored, headers
from fusionbench_lite.weights.stored.indexes import SUFFIX, check_places, is_index, missing_parts, part_of, read_index

_FACTOR = re.compile(r".*[._](lora_(A|B|down|up|embedding_[AB])|hada_w[12]_[ab]|lokr_w[12])(\..*)?")
"""Names of tensors that are factors of a change, not weights."""
_WORDS = ("I8", "U8", "I16", "U16", "I32", "U32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsFolder:
    """What a path of weights is.

    Attributes: `path`, as it was given, expanded; `kind`, "model", "adapter" or "none"; `form`, in words; `folder`, where the
    files are; `files`, what is read, and `index`; `tensors`, what the files hold, empty for adapters; `ignored`, other files
    of weights in the folder, which are not read; `quantised`, a tensor and the evidence; `fault`, why the path cannot be used
    and what to do.
    """

    path: Path
    kind: str
    form: str = ""
    folder: Path = Path()
    files: tuple[Path, ...] = ()
    index: Path | None = None
    tensors: Mapping[str, Stored] = dataclasses.field(default_factory=dict, repr=False)
    ignored: tuple[str, ...] = ()
    quantised: tuple[str, str] | None = None
    fault: str | None = None

    @property
    def sentence(self) -> str:
        """What the path is, or why it cannot be used, in one sentence."""
        if self.fault is not None:
            return self.fault
        text = f"{self.path} is {self.form}"
        if self.kind == "model":
            text += f", {len(self.tensors)} tensor{'s' * (len(self.tensors) != 1)}"
        if self.quantised is not None:
            text += f", stored quantised ({self.quantised[0]!r}: {self.quantised[1]})"
        return text + (f"; not read: {', '.join(self.ignored)}" if self.ignored else "")

    @property
    def warning(self) -> str | None:
        """What a user should know of a folder that holds more than is read, None where there is nothing to say."""
        if not self.ignored:
            return None
        others = ", ".join(self.ignored[:3]) + (f" and {len(self.ignored) - 3} more" if len(self.ignored) > 3 else "")
        alone = "what is given by its own path, or lies in a folder of its own, is read alone"
        return f"{self.folder} is read as {self.form}; not read: {others} ({alone})"

    def checked(self, who: str = "") -> WeightsFolder:
        """Return this where it can be merged. Raises MergeError that begins with `who` for faults and quantised weights."""
        start = f"{who}: " if who else ""
        if self.fault is not None:
            raise MergeError(f"{start}{self.fault}")
        if self.quantised is not None:
            tensor, evidence = self.quantised
            raise MergeError(f"{start}{self.path}: {tensor!r} is stored quantised ({evidence}): {FIX}")
        return self


def describe(path: str | os.PathLike[str], adapters: bool = True) -> WeightsFolder:
    """Return what a path of weights is; what cannot be used has a `fault`, nothing is raised.

    `adapters`: whether an adapter is of use, as for an expert and not for the model that it changes.
    """
    if not os.fspath(path):  # which would be the working directory
        return WeightsFolder(path=Path(), kind="none", fault="the path is empty: give a .safetensors file or a directory of them")
    expanded_path = expanded(path)
    try:
        return _decide(os.fspath(path), expanded_path, adapters)
    except MergeError as error:
        return WeightsFolder(path=expanded_path, kind="none", folder=expanded_path, fault=str(error))


def _decide(given: str, path: Path, adapters: bool) -> WeightsFolder:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        broken = dangling(path)
        raise MergeError(f"cannot read {path}: {broken}" if broken else missing(given, path, error)) from error
    return _folder(path, adapters) if path.is_dir() else _file(path, adapters)


def _file(path: Path, adapters: bool) -> WeightsFolder:
    name, parent = path.name, path.parent
    if name == ADAPTER_CONFIG:
        return dataclasses.replace(_adapter(parent, _entries(parent), adapters), path=path)
    if is_index(name) or name.lower().endswith(".index.json"):
        siblings = _entries(parent)
        return _model(path, parent, read_form(parent, path, siblings), (), siblings)
    if name.lower().endswith(".json"):
        raise MergeError(f"{path} is a configuration, not weights: give its folder {parent}")
    if fault := fault_of(path):
        raise MergeError(f"cannot read {path}: {fault}")
    siblings = _entries(parent)
    _check_whole(path, siblings)
    found = _model(path, parent, Form(name=name, files=(path,)), (), siblings)
    factor = next(filter(_FACTOR.fullmatch, found.tensors), None)
    if factor is None:
        return found
    if ADAPTER_CONFIG in siblings and name == ADAPTER + SUFFIX:
        return dataclasses.replace(_adapter(parent, siblings, adapters), path=path)
    raise MergeError(_lonely(path, factor, siblings))


def _check_whole(path: Path, siblings: list[str]) -> None:
    """Refuse one file of several, as its name says or an index beside it. Raises MergeError."""
    part, parent = part_of(path.name), path.parent
    what = f"part {part.number} of {part.total} of a model" if part else ""
    for index in filter(is_index, siblings) if not what else ():
        try:
            names = set(read_index(parent / index).values())
        except MergeError:
            continue  # of another model, or damaged: not what was given
        if path.name in names and len(names) > 1:
            what = f"one of the {len(names)} files of a model that {index} lists"
    if not what:
        return
    whole = describe(parent)
    if whole.fault is None and path in whole.files:
        raise MergeError(f"{path} is {what}: give the folder {parent}")
    why = whole.fault or f"{parent} is read as {whole.form}: move the parts into a folder of their own"
    renamed = "; where it is a whole model, call it by another name" if part else ""
    raise MergeError(f"{path} is {what}, and {why}{renamed}")


def _lonely(path: Path, factor: str, siblings: list[str]) -> str:
    """Return what helps with a file of factors that is no adapter of PEFT as it lies there."""
    if ADAPTER_CONFIG not in siblings:
        return (
            f"{path} holds the factors of a LoRA adapter ({factor!r}), no model, and no {ADAPTER_CONFIG} is beside it, which says "
            "rank and alpha: copy it there and give the folder, or fold the adapter into its model and give that"
        )
    return (
        f"{path} holds the factors of a LoRA adapter ({factor!r}), no model: call it {ADAPTER + SUFFIX} beside its "
        f"{ADAPTER_CONFIG} and give the folder"
    )


def _folder(path: Path, adapters: bool) -> WeightsFolder:
    names = _entries(path)
    factors = [name for name in names if name.startswith(ADAPTER) and name.lower().endswith((SUFFIX, ".bin"))]
    indexes = [name for name in names if is_index(name) and not name.startswith((".", ADAPTER))]
    files = [name for name in names if is_weights(name) and name not in factors and not (path / name).is_dir()]
    states = [name for name in names if name.lower().endswith(SUFFIX) and not name.startswith(".") and not is_weights(name)]
    ours = [*factors, ADAPTER_CONFIG] if ADAPTER_CONFIG in names else factors
    if not files and not indexes:
        if ours:
            return _adapter(path, names, adapters)
        raise MergeError(nothing_in(path, names))
    if ADAPTER_CONFIG in ours and factors and adapters:
        found = _adapter(path, names, adapters)
        return dataclasses.replace(found, ignored=tuple(files))
    form, others = chosen(path, files, indexes, names)
    found = _model(path, path, form, (*others, *states, *ours), names)
    factor = next(filter(_FACTOR.fullmatch, found.tensors), None)
    if factor is not None:
        raise MergeError(_lonely(found.files[0], factor, names))
    return found


def _adapter(folder: Path, names: list[str], adapters: bool) -> WeightsFolder:
    """Return the adapter that a folder holds. Raises MergeError where it is not complete or of no use."""
    here = [name for name in names if name.startswith(ADAPTER) and name.lower().endswith((SUFFIX, ".bin"))]
    if ADAPTER_CONFIG not in names:
        raise MergeError(
            f"{folder} holds {here[0]}, the tensors of an adapter, without its {ADAPTER_CONFIG}, which says rank and alpha: "
            "copy it there, or fold the adapter into its model and give that"
        )
    if not here:
        raise MergeError(f"adapter {folder}: there is no {ADAPTER + SUFFIX}: copy it beside {ADAPTER_CONFIG}{hint_below(folder)}")
    if not adapters:
        raise MergeError(f"{folder} is a LoRA adapter, not a model: give the model that it was trained from{base_of(folder)}")
    parts = [ADAPTER + SUFFIX] if ADAPTER + SUFFIX in here else [name for name in here if part_of(name)]
    if not parts:
        raise MergeError(
            f"adapter {folder}: {here[0]} is a pickle or another's file, which is not read: convert it to safetensors with peft's "
            f"save_pretrained(..., safe_serialization=True), which writes {ADAPTER + SUFFIX}"
        )
    if lacks := missing_parts(parts):
        raise MergeError(f"adapter {folder}: {lacks[0]} is missing, {parts[0]} is there: copy all parts beside {ADAPTER_CONFIG}")
    for name in parts:
        if fault := fault_of(folder / name):
            raise MergeError(f"adapter {folder}: {name} cannot be read: {fault}")
    form = "a LoRA adapter" + (f" in {len(parts)} shards" if len(parts) > 1 else "")
    return WeightsFolder(path=folder, kind="adapter", form=form, folder=folder, files=tuple(folder / name for name in parts))


def _model(path: Path, folder: Path, form: Form, ignored: tuple[str, ...], names: list[str]) -> WeightsFolder:
    """Return the model of a form with what the headers of its files hold. Raises MergeError."""
    tensors: dict[str, Stored] = {}
    for file in form.files:
        for name, stored in headers(file).items():
            if name in tensors:
                both = f"{tensors[name].file.name} and {file.name} both hold {name!r}"
                raise MergeError(f"{folder}: {both}: fetch both again, or give the path of one that is whole")
            tensors[name] = stored
    if form.index is not None:
        check_places(form.index, form.places, {name: stored.file for name, stored in tensors.items()})
    quantised = sign({name: stored.dtype for name, stored in tensors.items()}) or _configured(folder, tensors, names)
    return WeightsFolder(
        path=path, kind="model", form=form.words, folder=folder, files=form.files, index=form.index, tensors=tensors,
        ignored=ignored, quantised=quantised,
    )


def _configured(folder: Path, tensors: Mapping[str, Stored], names: list[str]) -> tuple[str, str] | None:
    """Return a tensor of words where config.json beside the model says that it is quantised."""
    if "config.json" not in names:
        return None
    try:
        method = json.loads((folder / "config.json").read_bytes())["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    words = (name for name, stored in tensors.items() if stored.dtype in _WORDS and len(stored.shape) > 1)
    return next(((name, f"{tensors[name].dtype} values, and config.json names {method!r}") for name in words), None)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise MergeError(f"cannot read {folder}: {first_line(error)}: {permitted(error)}") from error
