"""`python -m fusionbench_lite.merge_files method=NAME base=DIR 'experts={a: DIR, b: DIR}' out=DIR [method.NAME=VALUE ...]`.

Merges checkpoints of any size on disk, tensor by tensor. base and experts are folders of safetensors (or one file; an expert may be
a LoRA adapter's folder), out is the folder to write. method.NAME=VALUE sets a hyperparameter, as in method.scaling=0.4.
shard_size=5GB is the largest file that is written (KB, MB, GB). resize=mean|pad: models whose vocabulary is smaller than the
largest get rows that are the mean of their own, or zeros. Configuration, generation settings and tokenizer of the base are copied.

Where the command was killed or interrupted, the same command continues; the unfinished folder is hidden beside out. From Python:
fusionbench_lite.merge_files(method, base, experts, out, ...).
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.base.needs import bytes_of, size_text
from fusionbench_lite.base.signals import TERMINATED
from fusionbench_lite.errors import InputError, MergeWarning
from fusionbench_lite.fields import REQUIRED, kind, location, word
from fusionbench_lite.planning.command_line import options_of
from fusionbench_lite.planning.refusals import exit_status
from fusionbench_lite.weights.vocabulary import RESIZE

USAGE = f"usage: python -m fusionbench_lite.merge_files KEY=VALUE ...\n\n{__doc__}"
INTERRUPTED = "interrupted: the same command continues"


def _paths(value: Any) -> dict[str, str]:
    """Return the paths of experts by task. Raises ValueError for text that is no mapping of names to paths."""
    try:
        node = yaml.compose(value, Loader=yaml.BaseLoader) if isinstance(value, str) else None
    except yaml.YAMLError:
        raise ValueError("quote paths with commas, colons or brackets") from None
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise ValueError
    found: dict[str, str] = {}
    for key, path in node.value:
        if not isinstance(key, yaml.ScalarNode) or not isinstance(path, yaml.ScalarNode) or not path.value:
            raise ValueError
        if key.value in found:
            raise ValueError(f"{key.value!r} is there twice")
        found[key.value] = path.value
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; see the module's text."""

    method: str = word(REQUIRED)
    base: str = location(REQUIRED)
    experts: Mapping[str, str] = kind(REQUIRED, _paths, "paths by task, as in 'experts={a: DIR, b: DIR}'", is_text=True)
    out: str = location(REQUIRED)
    shard_size: int | None = kind(None, bytes_of, "a size, as in 5GB or 500MB", optional=True, is_text=True)
    resize: str | None = RESIZE


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 bad input, 1 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return exit_status(lambda: _main(given), INTERRUPTED)
    except SystemExit as ended:
        if ended.code == TERMINATED:
            print(INTERRUPTED, file=sys.stderr)
        raise


def _main(given: Sequence[str]) -> int:
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    own = [argument for argument in given if not argument.startswith("method.")]
    for argument in given:
        if "=" not in argument:
            raise InputError(f"{argument!r} sets nothing: give KEY=VALUE; --help lists the keys")
    missing = [key for key in ("method", "base", "experts", "out") if not any(one.startswith(f"{key}=") for one in own)]
    if missing:
        raise InputError(f"{missing[0]} is missing: give method=NAME base=DIR 'experts={{a: DIR, b: DIR}}' out=DIR")
    options = options_of(own, "", Options)
    values = _hyperparameters(options.method, [argument for argument in given if argument not in own])
    print(_merged(options, values))
    return 0


def _hyperparameters(method: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the hyperparameters that a line gives, checked. Raises MergeError for an unknown method, name or value."""
    from fusionbench_lite import registry

    entry = registry.get(method)
    values = {}
    for argument in given:
        key, _, text = argument.removeprefix("method.").partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
            value = float(value)  # 1e-5 is no number to YAML
        values[key] = value
    entry.configure(**{name: value for name, value in values.items() if name not in entry.inputs})
    return values


def _merged(options: Options, values: Mapping[str, Any]) -> str:
    from fusionbench_lite.methods.files import merge_files
    from fusionbench_lite.weights.shards import SHARD_BYTES

    with warnings.catch_warnings():
        warnings.showwarning = _said  # type: ignore[assignment]
        warnings.simplefilter("always", MergeWarning)
        out = merge_files(
            options.method, options.base, options.experts, options.out, shard_bytes=options.shard_size or SHARD_BYTES,
            resize=options.resize, **values,
        )
    files = [file.stat().st_size for file in out.rglob("*.safetensors")]
    return f"{out}: {len(files)} file{'s' * (len(files) != 1)}, {size_text(sum(files))} written and read back"


def _said(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    print(f"fusionbench_lite: {' '.join(str(message).split())}", file=sys.stderr)


class _Callable(types.ModuleType):
    """The API has a function of this module's name, which importing the module hides: the module can be called as well."""

    def __call__(self, *given: Any, **named: Any) -> Path:
        from fusionbench_lite.methods.files import merge_files

        return merge_files(*given, **named)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
