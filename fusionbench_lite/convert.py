"""`python -m fusionbench_lite.convert SOURCE OUT [model=vit_b32] [layout=packed|separate] [tower=PREFIX]`: to safetensors.

SOURCE is a pickled module of an image encoder or a head (Task Arithmetic, TALL-masks), a pickled state dict or training
checkpoint (open_clip's epoch_N.pt, Lightning's .ckpt), a safetensors file of open_clip or transformers, or a folder of these;
nothing in it is run. OUT is the .safetensors file to write: an image tower under the plain names of its layout, or a head as
"weight". Entries that hold the model (state_dict, model, ...) and prefixes (module., _orig_mod., net., ...) are taken off and
told. model= checks the tower against a model; without it, the tower's shapes tell. layout= converts the tower; without it, the
tower keeps its own. tower= says which of two towers is meant, by what its names begin with, as in tower=state_dict_ema. A text
side or other tensors beside the tower are counted and left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import atomic_file, expanded, file_sha256
from fusionbench_lite.planning.refusals import exit_status
from fusionbench_lite.weights import foreign, prefixes
from fusionbench_lite.weights.stored import contents

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.checkpoints.reading import Raw

USAGE = f"usage: python -m fusionbench_lite.convert SOURCE OUT [model=NAME] [layout=packed|separate] [tower=PREFIX]\n\n{__doc__}"
MODELS, LAYOUTS = ("vit_b32", "vit_b16", "vit_l14"), ("packed", "separate")


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    source: Path
    out: Path
    model: str | None
    layout: str | None
    tower: str | None


@dataclasses.dataclass(frozen=True)
class Result:
    """What a source held and what is written of it: `lines` say it in words."""

    tensors: dict[str, Tensor]
    lines: list[tuple[str, str]]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(given))


def _main(given: list[str]) -> int:
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    for label, text in convert(parse(given)):
        print(f"{label:<12}{text}")
    return 0


def parse(arguments: list[str]) -> Options:
    """Return the options of a command line. Raises InputError."""
    settings: dict[str, str] = {}
    files = []
    choices = {"model": MODELS, "layout": LAYOUTS, "tower": ()}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        is_path = argument.endswith(".safetensors") or _is_there(Path(argument))  # the = is in the name of a folder
        if not equals or not (key in choices or (key.isidentifier() and not is_path)):
            files.append(argument)
        elif key not in choices:
            raise InputError(f"unknown key {key!r}: {did_you_mean(key, choices)}")
        elif choices[key] and value not in choices[key]:
            raise InputError(f"unknown {key} {value!r}: {did_you_mean(value, choices[key])}")
        else:
            settings[key] = value
    if len(files) != 2:
        raise InputError(f"give SOURCE and OUT, got {len(files)} paths: python -m fusionbench_lite.convert --help tells more")
    source, out = map(expanded, files)
    if not _is_there(source):
        broken = contents.dangling(source)
        near = "" if broken else did_you_mean(source.name, _entries(source.parent))
        raise InputError(f"{source} is no file ({broken or near}): give the checkpoint to convert")
    if out.suffix != ".safetensors":
        raise InputError(f"{out} must end in .safetensors: that is what is written")
    if _is_there(out) and out.samefile(source):
        raise InputError(f"{out} is the source itself: give another OUT")
    if source.is_dir() and out.absolute().parent == source.absolute():
        raise InputError(f"{out} would lie among the files of the source: give an OUT in another folder")
    return Options(
        source=source, out=out, model=settings.get("model"), layout=settings.get("layout"), tower=settings.get("tower"),
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that must not be entered
        raise InputError(f"cannot use {path}: {error.strerror or error}; give another path") from error


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def convert(options: Options) -> list[tuple[str, str]]:
    """Write OUT and return what was found, as pairs of label and text. Raises InputError."""
    from fusionbench_lite.checkpoints import reading
    from fusionbench_lite.weights.readers import write_tensors

    raw = reading.read(options.source)
    if options.tower is not None:
        raw = dataclasses.replace(raw, tensors=prefixes.chosen(raw.tensors, options.tower, str(options.source)))
    sha256, nbytes = _identity(options.source)
    result = _head(raw, options) if _is_head(raw) else _tower(raw, options)
    metadata = {"format": "pt", "source": options.source.name, "source_sha256": sha256, **result.metadata}
    with atomic_file(options.out) as temporary:
        write_tensors(temporary, result.tensors, metadata)
    parameters = sum(tensor.numel() for tensor in result.tensors.values())
    return [
        ("source", f"{options.source} ({nbytes:,} bytes)"), ("sha256", sha256), ("form", _form(raw)),
        *result.lines, ("written", f"{options.out}: {len(result.tensors)} tensors, {parameters:,} parameters"),
    ]


def _identity(source: Path) -> tuple[str, int]:
    """Return SHA-256 and size of a file; of several files of a folder the SHA-256 of theirs, one below the other."""
    from fusionbench_lite.weights.stored import folders

    files = folders.describe(source).files if source.is_dir() or source.suffix == ".json" else (source,)
    try:
        hashes = [file_sha256(file) for file in files]
        nbytes = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest(), nbytes


def _form(raw: Raw) -> str:
    plain = {key: value for key, value in raw.attributes.items() if key != "training"}
    kinds = {
        "module": f"pickled module {raw.class_name}", "state_dict": "pickled state dict",
        "checkpoint": "pickled checkpoint", "safetensors": "safetensors",
    }
    kind = kinds[raw.form]
    return kind + (f" with {', '.join(f'{key}={value!r}' for key, value in plain.items())}" if plain else "")


def _is_head(raw: Raw) -> bool:
    """Whether a file holds the matrix of one linear layer, perhaps with its bias, and nothing else."""
    places = {name.rpartition(".")[0] for name in raw.tensors}
    kinds = {name.rpartition(".")[2] for name in raw.tensors}
    matrices = [tensor for name, tensor in raw.tensors.items() if name.rpartition(".")[2] == "weight"]
    if prefixes.roots(raw.tensors) or foreign.known(raw.tensors):  # a tower of one tensor, an adapter
        return False
    return len(places) == 1 and kinds in ({"weight"}, {"weight", "bias"}) and matrices[0].dim() == 2


def _head(raw: Raw, options: Options) -> Result:
    from fusionbench_lite.checkpoints import reading
    from fusionbench_lite.models import clip

    width = next(tensor.shape[-1] for name, tensor in raw.tensors.items() if name.endswith("weight"))
    size = clip.SIZES[options.model] if options.model else dataclasses.replace(clip.SIZES["vit_b32"], output=width)
    weight = reading.head(raw, size, None, str(options.source))
    norm = float(weight.norm(dim=1).mean())
    what = f"head of {weight.shape[0]} classes, {weight.shape[1]} wide, row norm {norm:.4g}"
    return Result({"weight": weight}, [("what", what)])


def _tower(raw: Raw, options: Options) -> Result:
    from fusionbench_lite.checkpoints import converting, reading
    from fusionbench_lite.models import clip
    from fusionbench_lite.weights import clip_keys

    who = str(options.source)
    parts = reading.parted(raw, who)
    model = options.model or reading.looks_like(parts.visual, parts.layout)[0]
    if model not in clip.SIZES:
        numbers = "patch {}, width {}, {} blocks".format(*reading.looks_like(parts.visual, parts.layout)[1])
        with reading.whole(raw, who):
            raise InputError(f"{who} is the tower of no known model ({numbers}): give one of {', '.join(clip.SIZES)}")
    layout = options.layout or parts.layout
    tower = reading.tower(raw, model, clip.SIZES[model], None, layout, who)
    which = "with" if clip_keys.PROJECTION[layout] in tower.visual else "without"
    parameters = sum(tensor.numel() for tensor in raw.tensors.values())
    taken = [("taken off", f"{tower.taken} of the names of its tensors")] if tower.taken else []
    twins = [("twice", f"the same tensors are at {', '.join(parts.twins)} too")] if parts.twins else []
    lines = [
        ("what", f"image tower of {model}, {which} its projection"), ("family", _family(raw, parts.layout, parts.rest)),
        ("found", f"{len(raw.tensors)} tensors, {parameters:,} parameters, {tower.stored}"),
        *taken, *twins, ("leftovers", _leftovers(tower.rest)),
        ("layout", f"{layout}, from {parts.layout}" if layout != parts.layout else layout),
    ]
    metadata = {"taken_off": tower.taken} if tower.taken else {}
    return Result(converting.ordered(tower.visual, clip.SIZES[model], layout), lines, metadata)


def _family(raw: Raw, layout: str, rest: dict[str, Tensor]) -> str:
    """Say which family a file looks like, by its form and by what it holds beside the tower."""
    from fusionbench_lite.weights import clip_keys

    if layout == "separate":
        return "fusionbench" if not rest else "a whole model of transformers"
    if raw.form == "module":
        return "ta"
    if set(rest) == set(clip_keys.TEXT_SIDE):
        return "tall (or a plain re-upload of ta)"
    return "own" if not rest else "a whole model of open_clip"


def _leftovers(rest: dict[str, Tensor]) -> str:
    if not rest:
        return "none"
    shown = ", ".join(map(repr, list(rest)[:6])) + (", ..." if len(rest) > 6 else "")
    return f"{len(rest)} tensors, {sum(tensor.numel() for tensor in rest.values()):,} parameters left out: {shown}"


if __name__ == "__main__":
    sys.exit(main())
