"""What lies beside the weights of a language model: its configuration and tokenizer, which a merged model needs to load."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import MergeError
from fusionbench_lite.paths import file_sha256
from fusionbench_lite.weights.specs import TensorSpec
from fusionbench_lite.weights.stored.beside import CONFIG, TOKENIZER
from fusionbench_lite.weights.stored.folders import describe

MANIFEST = "merge.json"
"""What a merged folder says of itself: method, inputs, files."""
MODEL = (CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json")
_CODE = re.compile(r"(configuration|modeling|tokenization)_\w+\.py")
"""Code of a model's own, which its configuration names."""
_DTYPES = ("dtype", "torch_dtype")


def folder_of(source: Any) -> Path | None:
    """Return the folder in which the files beside an input's weights are; None for weights in memory."""
    if isinstance(source, (str, os.PathLike)):
        found = describe(source)
        return found.folder if found.fault is None else None
    return None


def copy(pretrained: Any, vocabulary: Any, out: Path, specs: Mapping[str, TensorSpec], rows: int | None) -> list[str]:
    """Copy what lies beside the weights of `pretrained` to `out`, and the tokenizer that lies beside those of `vocabulary`.

    In the configuration `dtype` becomes that of the tensors, where they have one, and the size of the vocabulary `rows`, where
    it was changed. Returns the names of the files. Raises OSError, and MergeError for a configuration that is no JSON.
    """
    home, tokens = folder_of(pretrained), folder_of(vocabulary)
    copied = []
    for folder, names in ((home, MODEL), (tokens, TOKENIZER)):
        for name in _present(folder, names):
            shutil.copyfile(Path(str(folder)) / name, out / name)
            copied.append(name)
    if home is not None:
        code = sorted(path.name for path in home.iterdir() if _CODE.fullmatch(path.name))
        for name in code:
            shutil.copyfile(home / name, out / name)
        copied += code
    if CONFIG in copied:
        _adapt(out / CONFIG, specs, rows)
    return copied


def _present(folder: Path | None, names: Iterable[str]) -> list[str]:
    return [] if folder is None else [name for name in names if (folder / name).is_file()]


def _adapt(path: Path, specs: Mapping[str, TensorSpec], rows: int | None) -> None:
    """Have a configuration say the dtype and the vocabulary of the tensors beside it; one that does already stays as it is."""
    text = path.read_text(encoding="utf-8")
    try:
        config = json.loads(text)
        before = dict(config)
    except (ValueError, TypeError) as error:
        raise MergeError(f"cannot read the pretrained model's {CONFIG}: {error}: fetch it again") from error
    dtypes = {str(spec.dtype).removeprefix("torch.") for spec in specs.values() if spec.dtype.is_floating_point}
    for key in _DTYPES:
        if key in config and len(dtypes) == 1:
            config[key] = next(iter(dtypes))
    if rows is not None:
        config["vocab_size"] = rows
    if config != before:
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(out: Path, said: Mapping[str, Any], copied: Iterable[str]) -> None:
    """Write what a merged folder says of itself, with the SHA-256 of the files that were copied."""
    files = {name: file_sha256(out / name) for name in copied}
    (out / MANIFEST).write_text(json.dumps({**said, "copied": files}, indent=1, default=str) + "\n", encoding="utf-8")


def listed(folder: Path) -> dict[str, str]:
    """Return the files beside the weights of an earlier result that are as they were written, with their SHA-256."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["copied"]
        return {name: sha for name, sha in files.items() if file_sha256(folder / name) == sha}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
