"""What a run works on: one module of this package for every modality, found by name.

A module that binds `KIND` to a `SuiteKind` is one: `embedded`, `clip` and `text` do. Nothing else in the package knows which
there are. Modules import torch only when a suite is loaded, because lines are checked before.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fusionbench_lite.base.needs import Needs
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.weights.architecture import Architecture

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.finetuning.options import Options, Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What decides which suite a run works on.

    `family` is whose the experts are; `stated` the family that experts of one's own stand in for, by the manifest in their
    folder; `layout` how the model's tensors are laid out, None where there is one way alone. `recipe` holds changes of the
    training recipe, `checkpoints` is a folder of files, `manifest` a list of them, `data` what differs from the defaults in
    the section of that name, `limit` the test examples per task, and `eval_batch` the examples in one forward pass, None for
    all that fit. `tensors`: which are merged, "auto" for the usual ones, "all", "blocks", or "blocks_on_mean", beside which the
    others have the mean of the experts. `options` are what presets say of the suite; they come after `SuiteKind.check`, once the
    method is known, as `tensors` does where it was "auto".
    """

    model: str
    tasks: tuple[str, ...]
    family: str = "auto"
    stated: str | None = None
    layout: str | None = None
    data_dir: Path | None = None
    cache: Path
    seed: int = 0
    checkpoints_seed: int = 0
    recipe: tuple[tuple[str, Any], ...] = ()
    checkpoints: Path | None = None
    manifest: Path | None = None
    data: tuple[tuple[str, Any], ...] = ()
    limit: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    eval_batch: int | None = None
    tensors: str = "auto"
    options: tuple[tuple[str, Any], ...] = ()

    def refuse(self, what: str) -> None:
        """Raise InputError where a key is set that has no meaning for models of `what`."""
        if self.tensors != "auto":
            raise InputError(f"checkpoints.tensors chooses tensors of language models, {self.model} is of {what}: leave it out")
        if "protocol" in dict(self.data):
            raise InputError(f"data.protocol is about tasks of texts, {self.model} is of {what}: leave it out")

    def option(self, name: str, usual: Any) -> Any:
        """Return an option, `usual` where nothing is said of it."""
        return dict(self.options).get(name, usual)

    @property
    def release(self) -> str:
        """The family whose rules the experts follow."""
        return self.stated or self.family


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extent:
    """How much a run reads and holds, for plans of memory and work.

    `classes` and `test_examples` are the tasks' numbers, in order. `experts` says where those are held while a method makes
    something of them: "disk" or "memory". `small`: no adaptation needs a plan, because everything fits everywhere.
    """

    classes: tuple[int, ...]
    test_examples: tuple[int, ...]
    experts: str = "memory"
    small: bool = False


class SuiteKind:
    """A modality: what it offers, and how a suite of it is checked, loaded, planned and trained.

    `models` maps the names of its models to the tasks that the key `tasks` means by default. A new kind has to define
    `check` and `load`; what else it leaves out, its commands do without.
    """

    models: ClassVar[Mapping[str, Any]]
    uses_hub = False
    """Whether files may come from a hub, which `doctor` then asks for."""

    def tasks(self, data_dir: Path | None) -> Sequence[str]:
        """Return names of tasks beyond those of conf/task_sets.yaml: those of the files in a folder of one's own."""
        return sorted(path.stem for path in data_dir.glob("*.npz")) if data_dir is not None else ()

    def check(self, wanted: Wanted) -> Wanted:
        """Return what is wanted with `family`, `stated` and `layout` resolved. Raises InputError for what this kind does not
        have; never imports torch."""
        raise NotImplementedError

    def load(self, wanted: Wanted, progress: Progress) -> Suite:
        """Return the suite; raises InputError."""
        raise NotImplementedError

    def needs(self, wanted: Wanted, training: int | None) -> Needs:
        """Return what a run needs; `training` is the number of training examples of a task that it reads, None for all."""
        return Needs()

    def architecture(self, wanted: Wanted) -> Architecture | None:
        """Return names and shapes of the tensors that are merged, None where nothing is counted or planned for the model."""
        return None

    def counted(self, wanted: Wanted) -> Architecture | None:
        """Return the tensors of the experts' files, which papers count: those that are merged, unless a kind has more to say."""
        return self.architecture(wanted)

    def extent(self, wanted: Wanted) -> Extent | None:
        """Return how much a run reads and holds, None where no plan is made of it; an extent needs an architecture."""
        return None

    def sizes(self, model: str, task: str, keys: Mapping[str, str]) -> Mapping[str, Sequence[int]]:
        """Return how many examples the splits of a task have (train, validation, test) and how many classes; where published
        results use several, the one of this package first. `keys` are those of a command line that may choose. Nothing is loaded;
        raises InputError for a task that is not of this kind."""
        return {}

    def caveats(self, wanted: Wanted, defaults: Mapping[str, Any]) -> Sequence[str]:
        """Return sentences that a result needs because hyperparameters were left at these `defaults`."""
        return ()

    def slow_to_train(self, model: str) -> bool:
        """Whether an expert of a model takes hours, so that `finetune` wants its tasks named."""
        return False

    def train(self, wanted: Wanted, options: Options, progress: Progress) -> Trained:
        """Train experts; raises InputError where this kind trains none."""
        raise InputError(f"experts of {wanted.model} cannot be trained here: give a folder of them with checkpoints.dir")


def kind_of(model: str) -> SuiteKind:
    """Return the kind that offers a model; raises InputError with the nearest name where none does."""
    for kind in kinds():
        if model in kind.models:
            return kind
    raise InputError(f"unknown model {model!r}: {did_you_mean(str(model), model_names())}")


def model_names() -> list[str]:
    """Return the names of all models."""
    return [name for kind in kinds() for name in kind.models]


@functools.cache
def kinds() -> tuple[SuiteKind, ...]:
    """Return all kinds, by the names of their modules."""
    modules = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    return tuple(module.KIND for module in sorted(modules, key=lambda module: module.__name__) if hasattr(module, "KIND"))
