"""`python -m fusionbench_lite.convert SOURCE OUT [model=vit_b32] [layout=packed|separate]`: a checkpoint as safetensors.

SOURCE is a pickled module of an image encoder or a head (Task Arithmetic, TALL-masks), a pickled state dict, or a safetensors
file of open_clip or transformers; nothing in it is run. OUT is the .safetensors file to write: an image tower under the plain
names of its layout, or a head as "weight". model= checks the tower against a model; without it, the tower's shapes tell.
layout= converts the tower; without it, the tower keeps its own. A text side or other tensors beside the tower are counted
and left out.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import atomic_file, expanded, file_sha256
from fusionbench_lite.planning.refusals import exit_status

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.checkpoints.reading import Raw

USAGE = f"usage: python -m fusionbench_lite.convert SOURCE OUT [model=NAME] [layout=packed|separate]\n\n{__doc__}"
MODELS, LAYOUTS = ("vit_b32", "vit_b16", "vit_l14"), ("packed", "separate")


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    source: Path
    out: Path
    model: str | None
    layout: str | None


@dataclasses.dataclass(frozen=True)
class Result:
    """What a source held and what is written of it: `lines` say it in words."""

    tensors: dict[str, Tensor]
    lines: list[tuple[str, str]]


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
    choices = {"model": MODELS, "layout": LAYOUTS}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        is_path = argument.endswith(".safetensors") or Path(argument).exists()  # the = is in the name of a folder
        if not equals or not (key in choices or (key.isidentifier() and not is_path)):
            files.append(argument)
        elif key not in choices:
            raise InputError(f"unknown key {key!r}: {did_you_mean(key, choices)}")
        elif value not in choices[key]:
            raise InputError(f"unknown {key} {value!r}: {did_you_mean(value, choices[key])}")
        else:
            settings[key] = value
    if len(files) != 2:
        raise InputError(f"give SOURCE and OUT, got {len(files)} paths: python -m fusionbench_lite.convert --help tells more")
    source, out = (expanded(file) for file in files)
    if not source.is_file():
        raise InputError(f"{source} is no file: give the checkpoint to convert")
    if out.suffix != ".safetensors":
        raise InputError(f"{out} must end in .safetensors: that is what is written")
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the source itself: give another OUT")
    return Options(source, out, settings.get("model"), settings.get("layout"))


def convert(options: Options) -> list[tuple[str, str]]:
    """Write OUT and return what was found, as pairs of label and text. Raises InputError."""
    from fusionbench_lite.checkpoints import reading
    from fusionbench_lite.weights.readers import write_tensors

    sha256 = file_sha256(options.source)
    raw = reading.read(options.source)
    result = _head(raw, options) if _is_head(raw) else _tower(raw, options)
    metadata = {"format": "pt", "source": options.source.name, "source_sha256": sha256}
    with atomic_file(options.out) as temporary:
        write_tensors(temporary, result.tensors, metadata)
    parameters = sum(tensor.numel() for tensor in result.tensors.values())
    return [
        ("source", f"{options.source} ({options.source.stat().st_size:,} bytes)"), ("sha256", sha256), ("form", _form(raw)),
        *result.lines, ("written", f"{options.out}: {len(result.tensors)} tensors, {parameters:,} parameters"),
    ]


def _form(raw: Raw) -> str:
    plain = {key: value for key, value in raw.attributes.items() if key != "training"}
    kinds = {"module": f"pickled module {raw.class_name}", "state_dict": "pickled state dict", "safetensors": "safetensors"}
    kind = kinds[raw.form]
    return kind + (f" with {', '.join(f'{key}={value!r}' for key, value in plain.items())}" if plain else "")


def _is_head(raw: Raw) -> bool:
    return {name.rsplit(".", 1)[-1] for name in raw.tensors} in ({"weight"}, {"weight", "bias"}) and len(raw.tensors) <= 2


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
    parts = clip_keys.split(raw.tensors, who)
    model = options.model or reading.looks_like(parts.visual, parts.layout)[0]
    if model not in clip.SIZES:
        numbers = "patch {}, width {}, {} blocks".format(*reading.looks_like(parts.visual, parts.layout)[1])
        raise InputError(f"{who} is the tower of no known model ({numbers}): choose among {', '.join(clip.SIZES)}")
    layout = options.layout or parts.layout
    tower = reading.tower(raw, model, clip.SIZES[model], None, layout, who)
    which = "with" if clip_keys.PROJECTION[layout] in tower.visual else "without"
    parameters = sum(tensor.numel() for tensor in raw.tensors.values())
    lines = [
        ("what", f"image tower of {model}, {which} its projection"), ("family", _family(raw, parts.layout, parts.rest)),
        ("found", f"{len(raw.tensors)} tensors, {parameters:,} parameters, {tower.stored}"),
        ("leftovers", _leftovers(tower.rest)), ("layout", f"{layout}, from {parts.layout}" if layout != parts.layout else layout),
    ]
    return Result(converting.ordered(tower.visual, clip.SIZES[model], layout), lines)


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
