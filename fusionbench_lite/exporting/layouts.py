"""Layouts of written folders: the package's own, and those of libraries, which kinds of models offer."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.exporting import own
from fusionbench_lite.exporting.forms import Form
from fusionbench_lite.exporting.loading import load_exported
from fusionbench_lite.exporting.proving import Loaded

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.exporting.remaking import Remade

OWN = "own"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a folder is written and loaded again.

    `write(made, form, tasks, folder)` writes it; `load(made, tasks, folder)` has the library load it, and gives models by task;
    `usage(folder)` are the lines of Python that do. `whole`: it holds merged weights alone, without parts of tasks or routers.
    `per_task`: it holds a head, so that there is a folder for every task. `says`: what a reader of the folder should know.
    """

    name: str
    write: Callable[[Remade, Form, tuple[str, ...], Path], None]
    load: Callable[[Remade, tuple[str, ...], Path], Mapping[str, Loaded]]
    usage: Callable[[str, str], str]
    whole: bool = True
    per_task: bool = False
    says: tuple[str, ...] = ()


def layout_of(made: Remade, asked: str | None, whole: bool, progress: Progress) -> Layout:
    """Return the layout to write: the one that is asked for, else the kind's first that can hold the model.

    `whole`: the model is merged weights alone. Raises InputError for one that the kind does not have, or that cannot hold it.
    """
    offered = {layout.name: layout for layout in _offered(made, progress)}
    if asked is None:
        return next(layout for layout in offered.values() if whole or not layout.whole)
    if asked not in offered:
        raise InputError(f"models of {made.plan.model} are not written with layout={asked}: {did_you_mean(asked, offered)}")
    if offered[asked].whole and not whole:
        raise InputError(
            f"layout={asked} holds weights alone, and {made.plan.method} has parts for tasks or routers: leave layout out"
        )
    return offered[asked]


def _offered(made: Remade, progress: Progress) -> tuple[Layout, ...]:
    kind = type(made.plan.kind).__module__.rpartition(".")[2]
    try:
        module: Any = importlib.import_module(f"fusionbench_lite.exporting.{kind}")
    except ModuleNotFoundError as error:
        if error.name != f"fusionbench_lite.exporting.{kind}":
            raise
        raise InputError(f"models of {made.plan.model} are of a kind ({kind}) that is not exported") from None
    offered: tuple[Layout, ...] = module.layouts(made, progress)
    return offered


def own_layout(encoder: Mapping[str, Any]) -> Layout:
    """Return the package's own layout, with what builds the encoder again."""
    return Layout(
        name=OWN, write=functools.partial(_write, encoder), load=_load, usage=_usage, whole=False,
        says=("The folder is loaded by fusionbench_lite.load_exported: JSON and safetensors, no code.",),
    )


def transformers_quietly() -> Any:
    """Return transformers, whose progress bars stay away. Raises InputError where it is missing."""
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)

    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError("this layout needs transformers: pip install 'fusionbench_lite[language]'") from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def _write(encoder: Mapping[str, Any], made: Remade, form: Form, tasks: tuple[str, ...], folder: Path) -> None:
    own.write(made, form, tasks, {**encoder, "constants": sorted(made.suite.constants)}, folder)


def _load(made: Remade, tasks: tuple[str, ...], folder: Path) -> dict[str, Loaded]:
    exported = load_exported(folder, made.suite.device)
    answering = exported.encoder if made.suite.evaluator.generates else None
    return {
        task: Loaded(encode=functools.partial(exported.features, task=task), head=exported.head(task), model=answering)
        for task in tasks
    }


def _usage(folder: str, task: str) -> str:
    return (
        "import fusionbench_lite as fbl\n\n"
        f"model = fbl.load_exported({folder!r})\n"
        "# images: uint8 [B, H, W, 3], as large as the encoder wants them\n"
        f"logits = model.logits(model.prepare(images), {task!r})  # [B, C]\n"
        f"names = model.classes[{task!r}]"
    )


