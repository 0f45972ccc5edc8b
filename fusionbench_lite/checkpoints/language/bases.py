"""Whether an adapter was trained on the pretrained model that it is to change."""

from __future__ import annotations

import json
from pathlib import Path

from fusionbench_lite.checkpoints.language.api import PRETRAINED
from fusionbench_lite.checkpoints.language.releases import families_of, release
from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.stored.elsewhere import ADAPTER_CONFIG


def check_base(adapter: Path, base: Path, repo: str | None, model: str, notes: list[str]) -> None:
    """Raise InputError where an adapter names another model of the hub than the pretrained one, which is `repo` or in `base`.

    A path of another machine says little: it is noted where its last part is another.
    """
    said = _entry(adapter / ADAPTER_CONFIG, "base_model_name_or_path")
    if not said:
        return
    known = [repo] if repo else [release(family, model).base for family in families_of(model)]
    named = _entry(base / "config.json", "_name_or_path") if repo is None else None
    names = [name for name in (*known, named) if name]
    last = {_last(name) for name in names}
    if _last(said) in last or (repo is None and _last(said) in (PRETRAINED, base.name.casefold())):
        return
    is_path = said.startswith(("/", ".", "~")) or "\\" in said or said.count("/") > 1
    if not is_path and names:
        raise InputError(
            f"adapter {adapter} was trained on {said}, the pretrained model is {names[0]}: give adapters of the same model"
        )
    notes.append(f"The adapter in {adapter.name} says that it was trained on {said}, which cannot be compared with {base.name}.")


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def _entry(path: Path, key: str) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}; fetch it again") from error
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, str) else ""
