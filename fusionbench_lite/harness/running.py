"""A model of a folder under lm-evaluation-harness, which is imported here and nowhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.base.devices import device_of
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.harness import sets
from fusionbench_lite.harness.scores import Score, score
from fusionbench_lite.harness.sets import Set

CODE = "HF_ALLOW_CODE_EVAL"
"""What Hugging Face's code_eval asks for before it runs programs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the results besides the model; `batch` and `device` decide the time alone, up to rounding."""

    shots: int | None = None
    limit: int | None = None
    dtype: str = "auto"
    chat_template: bool = False
    seed: int = 0
    unsafe_code: bool = False
    batch: int = 8
    device: str = "auto"


def version() -> str:
    """Return the harness' version. Raises InputError where it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("evaluation needs lm-evaluation-harness: pip install 'fusionbench_lite[llm]'") from None


def run(folder: Path, wanted: Sequence[Set], settings: Settings, task_dir: Path | None) -> tuple[dict[str, Score], dict[str, Any]]:
    """Return the results by set, and what the model is. Raises InputError for what cannot be loaded.

    Sets are read before weights; a task of `task_dir` goes before one of that name of the harness.
    """
    sets.confirm([one.name for one in wanted if one.unsafe], settings.unsafe_code)
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)

    with _code_allowed(settings.unsafe_code):
        from lm_eval.evaluator import evaluate

        tasks = _tasks(wanted, _manager(wanted, task_dir))
        leaves: Mapping[str, Any] = tasks["tasks"]
        sets.confirm([name for name, task in leaves.items() if getattr(task, "UNSAFE_CODE", False)], settings.unsafe_code)
        for name, task in leaves.items():
            _prepare(name, task, settings)
        model, about = _model(folder, settings)
        # not simple_evaluate, which asks git and the machine about themselves for seconds, and says what it did not find
        results = evaluate(
            model, tasks, limit=settings.limit, apply_chat_template=settings.chat_template, fewshot_as_multiturn=True,
            confirm_run_unsafe_code=settings.unsafe_code, bootstrap_iters=1000,
        )
    return {one.name: score(one, results) for one in wanted}, about


def _prepare(name: str, task: Any, settings: Settings) -> None:
    """Set the number and the draw of worked examples. Raises InputError for a task that allows none."""
    usual = task.get_config("num_fewshot")
    if settings.shots and usual == 0:
        raise InputError(f"shots={settings.shots}: {name} is written for none: leave shots out, or evaluate it by itself")
    if settings.shots is not None or usual is None:
        task.set_config(key="num_fewshot", value=settings.shots or 0)
    task.set_fewshot_seed(seed=settings.seed)


@contextlib.contextmanager
def _code_allowed(allowed: bool) -> Iterator[None]:
    before = os.environ.get(CODE)
    if allowed:
        os.environ[CODE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CODE, None)
        else:
            os.environ[CODE] = before


def _manager(wanted: Sequence[Set], task_dir: Path | None) -> Any:
    """Return the harness' finder of tasks. Its whole index takes 12 seconds to read, and is where a name is not found else."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    root, own = Path(lm_eval.__file__).parent / "tasks", [task_dir] if task_dir else []
    near = TaskManager(include_path=[*(root / one.folder for one in wanted if one.folder), *own], include_defaults=False)
    found = {one.task for one in wanted} <= set(near.all_tasks)
    return near if found else TaskManager(include_path=own)


def _tasks(wanted: Sequence[Set], manager: Any) -> dict[str, dict[str, Any]]:
    """Return the harness' tasks, groups and members of groups, each by name, of all sets."""
    found: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for one in wanted:
        if one.task not in manager.all_tasks:
            raise InputError(f"unknown task {one.name!r}: {did_you_mean(one.name, {*sets.published(), *manager.all_tasks})}")
        try:
            loaded = manager.load([one.task])
        except Exception as error:
            raise InputError(_unread(one, error)) from error
        group = loaded["groups"].get(one.task)
        if not (one.task in loaded["tasks"] if group is None else group.has_aggregation):
            raise InputError(f"{one.name} has no score of its own: name its tasks, {', '.join(sorted(loaded['tasks']))}")
        for kind, entries in found.items():
            entries.update(loaded[kind])
    return found


def _unread(one: Set, error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    return (
        f"{one.name}: the harness cannot read it ({type(error).__name__}: {said}): check its YAML file, the packages it needs, and "
        "the network or HF_DATASETS_CACHE for its data; a copy of its data is used through a task of that name in task_dir"
    )


def _model(folder: Path, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return the harness' model, with checked weights and vocabulary, and its class, parameters and dtype."""
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    transformers.set_seed(settings.seed)
    device = str(device_of(settings.device))
    try:
        model = HFLM(pretrained=str(folder), device=device, dtype=settings.dtype, batch_size=settings.batch)
    except Exception as error:  # whatever a damaged file makes transformers or safetensors raise
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise InputError(f"{folder}: transformers cannot load it ({reason})") from error
    inner = model.model
    bad = next((name for name, weight in inner.named_parameters() if not bool(torch.isfinite(weight).all())), None)
    if bad is not None:
        raise InputError(f"{folder}: {bad} has values that are not finite: merge again, in bfloat16 or float32")
    rows, words = inner.get_input_embeddings().num_embeddings, len(model.tokenizer)
    if words > rows:
        raise InputError(
            f"{folder}: the tokenizer has {words} entries, the embedding {rows} rows: copy the tokenizer of the pretrained model"
        )
    if settings.chat_template and model.tokenizer.chat_template is None:
        raise InputError(f"{folder}: the tokenizer has no chat template: leave chat_template=true out")
    parameters, dtype = sum(weight.numel() for weight in inner.parameters()), str(inner.dtype).removeprefix("torch.")
    return model, {"class": type(inner).__name__, "parameters": parameters, "dtype": dtype, "device": device}
