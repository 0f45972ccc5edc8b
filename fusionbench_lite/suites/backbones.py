"""Which models there are, which checkpoint families fit them, and how their tensors are laid out. Never imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models.clip_sizes import LAYOUTS, SIZES
from fusionbench_lite.planning import task_sets
from fusionbench_lite.planning.task_sets import TaskSet

EMBEDDED = ("vit_mini",)
CLIP = tuple(SIZES)
FAMILIES = ("ta", "tall", "ta_tall", "fusionbench", "own")
"""Families of CLIP checkpoints; the first three hold open_clip's tensors, fusionbench transformers'."""

DEFAULT_TASKS = {"vit_mini": "mini8", **dict.fromkeys(CLIP, 8)}
_STANDARD = "8"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model with the family of its experts, and the layout of its tensors (None where there is one alone).

    `stated` is the family that experts of one's own stand in for, by the manifest in their folder.
    """

    model: str
    family: str
    layout: str | None
    stated: str | None = None

    @property
    def is_clip(self) -> bool:
        """Whether this is a CLIP model at full size."""
        return self.model in CLIP

    @property
    def release(self) -> str:
        """The family whose rules the experts follow."""
        return self.stated or self.family

    @property
    def usual_layout(self) -> str:
        """The layout that the experts were published in."""
        return "separate" if self.release == "fusionbench" else "packed"

    @property
    def variant(self) -> str:
        """The variant of the data sets and prompts that the experts were trained with."""
        return "fusionbench" if self.release == "fusionbench" else "tall"


def choose(model: Mapping[str, Any], checkpoints: Mapping[str, Any]) -> Backbone:
    """Return the backbone of a configuration; raises InputError for an unknown model, family or layout, or for a family
    that does not hold experts of the model."""
    name, family, layout = model.get("name"), checkpoints["family"], model.get("layout")
    known = (*EMBEDDED, *CLIP)
    if name not in known:
        raise InputError(f"unknown model {name!r}: {did_you_mean(str(name), known)}")
    if family not in (families := ("auto", "embedded", *FAMILIES)):
        raise InputError(f"unknown checkpoints.family {family!r}: {did_you_mean(str(family), families)}")
    own = checkpoints["dir"] is not None
    if name in EMBEDDED:
        if family not in ("auto", "embedded", "own"):
            raise InputError(f"checkpoints={family} holds experts of CLIP models, not of {name}: set model=vit_b32 or leave it out")
        if layout is not None:
            raise InputError(f"model {name} has one layout: leave model.layout out")
        if family == "own" and not own:
            raise InputError("checkpoints=own reads files of your own: add checkpoints.dir=FOLDER")
        return Backbone(name, "own" if own else "embedded", None)
    if layout not in (None, *LAYOUTS):
        raise InputError(f"unknown model.layout {layout!r}: {did_you_mean(str(layout), LAYOUTS)}")
    if checkpoints["recipe"]:
        raise InputError(f"checkpoints.recipe trains embedded experts, not {name}: leave it out; fine-tuning has finetune.recipe")
    if family == "embedded":
        raise InputError(f"checkpoints=embedded holds experts of vit_mini, not of {name}: set checkpoints=ta_tall")
    if family == "auto":
        family = "own" if own and (Path(checkpoints["dir"]).expanduser() / "pretrained.safetensors").is_file() else "ta_tall"
    if family == "own" and not own:
        raise InputError("checkpoints=own reads files of your own: add checkpoints.dir=FOLDER")
    stated = _stated(Path(checkpoints["dir"]).expanduser()) if family == "own" else None
    found = Backbone(name, family, layout, stated)
    return dataclasses.replace(found, layout=layout or found.usual_layout)


def _stated(folder: Path) -> str | None:
    from fusionbench_lite.checkpoints.release import release_of  # late: few lines need it

    return release_of(folder)


def check_tasks(backbone: Backbone, tasks: TaskSet, asked: Any, data_dir: Path | None) -> None:
    """Raise InputError where the backbone has no data or no experts for one of the tasks."""
    drawn, published = task_sets.resolve("mini8", None).names, task_sets.resolve(20, None).names
    if not backbone.is_clip:
        for name in tasks.names:
            if data_dir is None and name not in drawn:
                raise InputError(
                    f"model {backbone.model} has no data for task {name!r} of tasks={asked}: use tasks=mini8, or add data_dir "
                    f"with {name}.npz and {name}.json"
                )
        return
    if backbone.family == "own":
        return
    standard = task_sets.resolve(_STANDARD, None).names
    for name in tasks.names:
        if name not in published:
            hint = "tasks=8" if name in drawn else did_you_mean(name, published)
            whose = f"checkpoints={backbone.family} has no expert of task {name!r}"
            raise InputError(f"{whose}: {hint} (checkpoints=own reads your own)")
        if backbone.family == "ta" and name not in standard:
            raise InputError(f"checkpoints=ta has experts of eight tasks, not of {name!r}: set checkpoints=ta_tall or tall")


def check_data(data: Mapping[str, Any], backbone: Backbone, data_dir: Path | None) -> None:
    """Raise InputError for settings of the `data` section that cannot be, as `data.vision.Sources` has them."""
    from fusionbench_lite.planning.config import Data

    usual = dataclasses.asdict(Data())
    given = {name: value for name, value in data.items() if value != usual[name]}
    about = [name for name in sorted(given) if name != "tasks_file"]
    if about and not backbone.is_clip:
        raise InputError(f"data.{about[0]} is about images of CLIP models, not of {backbone.model}: leave it out")
    given.pop("tasks_file", None)  # read where the tasks are
    if given:
        from fusionbench_lite.data.vision import Sources  # late: a line without such settings does not wait for its imports

        Sources(backbone.variant, Path(), data_dir, **given)
