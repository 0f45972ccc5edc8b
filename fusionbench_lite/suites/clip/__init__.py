"""CLIP's image encoders at full size: published experts, zero-shot heads, and the images of twenty tasks."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusionbench_lite.base.needs import Need, Needs
from fusionbench_lite.base.task_sets import tasks_of
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models import architectures
from fusionbench_lite.models.clip_sizes import LAYOUTS, SIZES
from fusionbench_lite.suites import Extent, SuiteKind, Wanted
from fusionbench_lite.suites.clip.requests import layout_of, request_of, sources_of, usual_layout, variant_of
from fusionbench_lite.weights.architecture import Architecture

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.finetuning.options import Options, Trained

FAMILIES = ("ta", "tall", "ta_tall", "fusionbench", "own")
"""Families of checkpoints; the first three hold open_clip's tensors, fusionbench transformers'."""
PACKED = FAMILIES[:3]
ANY_TEST, ANY_CLASSES = 1000, 10
"""Test images and classes of a task of one's own, for plans."""


class Clip(SuiteKind):
    """ViT-B/32, B/16 and L/14."""

    models = dict.fromkeys(SIZES, 8)
    uses_hub = True

    def check(self, wanted: Wanted) -> Wanted:
        """Resolve family, layout and the family that one's own experts stand in for."""
        wanted.refuse("images")
        resolved = _resolved(wanted)
        _check_tasks(resolved)
        given = {name: value for name, value in wanted.data if name != "tasks_file"}  # the file is read where the tasks are
        if given:
            from fusionbench_lite.data.vision import Sources  # late: a line without such settings does not wait for its imports

            Sources(variant_of(resolved), wanted.cache, wanted.data_dir, **given)
        return resolved

    def load(self, wanted: Wanted, progress: Progress) -> Suite:
        """Return the suite, downloading, converting and decoding what the cache lacks."""
        from fusionbench_lite.suites.clip import loading

        return loading.load(wanted, progress)

    def needs(self, wanted: Wanted, training: int | None) -> Needs:
        """Return files, images and caveats of the experts and tasks."""
        from fusionbench_lite import checkpoints
        from fusionbench_lite.checkpoints.families import caveats as of_experts
        from fusionbench_lite.checkpoints.families import check
        from fusionbench_lite.data import vision

        request, sources = request_of(wanted), sources_of(wanted)
        images = [item for task in wanted.tasks for item in vision.inventory(task, sources, trained=training)]
        items = [*checkpoints.inventory(request), *images]
        if training == 0:
            items = [item for item in items if item.what != "training images"]
        published = [task for task in wanted.tasks if task in vision.names()]
        families = check(request.family, request.model, request.tasks, request.manifest)
        notes = (*of_experts(families), *(note for task in published for note in vision.caveats(task, variant_of(wanted))))
        return Needs(tuple(items), tuple(dict.fromkeys(notes)), tuple(_hints(wanted, items)))

    def sizes(self, model: str, task: str, keys: Mapping[str, str]) -> Mapping[str, Sequence[int]]:
        """Return the numbers of images and classes of a published task, in all data variants."""
        from fusionbench_lite.data import vision

        found = [vision.task(task, variant) for variant in vision.VARIANTS]
        tests = [size for one in found for size in one.test_sizes]
        every = {"train": [one.train for one in found], "test": tests, "classes": [one.classes for one in found]}
        return {split: tuple(dict.fromkeys(sizes)) for split, sizes in every.items()}

    def architecture(self, wanted: Wanted) -> Architecture:
        """Return the image tower in the layout of the run; FusionBench's experts do not have its projection."""
        return architectures.encoder(wanted.model, wanted.layout, tower_alone=wanted.release == "fusionbench")

    def counted(self, wanted: Wanted) -> Architecture:
        """Return the image tower, with what the files of Task Arithmetic and TALL-masks hold of a text tower."""
        return architectures.architecture(wanted.model) if wanted.release in PACKED else self.architecture(wanted)

    def extent(self, wanted: Wanted) -> Extent:
        """Return the published sizes of the tasks where all are published."""
        from fusionbench_lite.data import vision

        count = len(wanted.tasks)
        classes, tests = (ANY_CLASSES,) * count, (wanted.limit or ANY_TEST,) * count
        if set(wanted.tasks) <= set(vision.names()):
            tasks = [vision.task(name, variant_of(wanted)) for name in wanted.tasks]
            classes = tuple(task.classes for task in tasks)
            tests = tuple(min(task.test, wanted.limit or task.test) for task in tasks)
        return Extent(classes=classes, test_examples=tests, experts="disk")

    def caveats(self, wanted: Wanted, defaults: Mapping[str, Any]) -> Sequence[str]:
        """Return what is not known of experts whose release nothing says."""
        if "virtual_zeros" not in defaults or wanted.release != "own":
            return ()
        return (
            "virtual_zeros is 0: nothing says which release these experts stand in for, and with experts of ta and tall this "
            "method counts the zeros of the text side. The manifest.json of a fine-tuning says it (family).",
        )

    def slow_to_train(self, model: str) -> bool:
        """Every one of them is."""
        return True

    def train(self, wanted: Wanted, options: Options, progress: Progress) -> Trained:
        """Fine-tune an expert of every task, or one model of all."""
        from fusionbench_lite.suites.clip import training

        return training.train(wanted, options, progress)


KIND = Clip()


def _resolved(wanted: Wanted) -> Wanted:
    name, family, folder = wanted.model, wanted.family, wanted.checkpoints
    if wanted.layout not in (None, *LAYOUTS):
        raise InputError(f"unknown model.layout {wanted.layout!r}: {did_you_mean(str(wanted.layout), LAYOUTS)}")
    if wanted.recipe:
        raise InputError(f"checkpoints.recipe trains embedded experts, not {name}: leave it out; fine-tuning has finetune.recipe")
    if family == "embedded":
        raise InputError(f"checkpoints=embedded holds experts of vit_mini, not of {name}: set checkpoints=ta_tall")
    if family == "auto":
        family = "own" if folder is not None and (folder / "pretrained.safetensors").is_file() else "ta_tall"
    if family not in FAMILIES:
        raise InputError(f"unknown checkpoints.family {family!r}: {did_you_mean(str(family), ('auto', 'embedded', *FAMILIES))}")
    if family == "own" and folder is None:
        raise InputError("checkpoints=own reads files of your own: add checkpoints.dir=FOLDER")
    stated = None
    if family == "own" and folder is not None:
        from fusionbench_lite.checkpoints.stated import stated_family  # late: few lines need it

        stated = stated_family(folder)
    chosen = dataclasses.replace(wanted, family=family, stated=stated)
    return dataclasses.replace(chosen, layout=layout_of(chosen))


def _check_tasks(wanted: Wanted) -> None:
    """Raise InputError where the family has no expert of one of the tasks."""
    if wanted.family == "own":
        return
    published, eight = tasks_of("20"), tasks_of("8")
    for name in wanted.tasks:
        if name not in published:
            hint = "tasks=8" if name in tasks_of("mini8") else did_you_mean(name, published)
            raise InputError(
                f"checkpoints={wanted.family} has no expert of task {name!r}: {hint} (checkpoints=own reads your own)"
            )
        if wanted.family == "ta" and name not in eight:
            raise InputError(f"checkpoints=ta has experts of eight tasks, not of {name!r}: set checkpoints=ta_tall or tall")


def _hints(wanted: Wanted, items: Sequence[Need]) -> list[str]:
    """Return the line that makes experts of one's own."""
    missing = [item for item in items if not item.present and not item.made]
    if wanted.family != "own" or not any(item.what in ("pretrained", "expert") for item in missing):
        return []
    task = next((item.task for item in missing if item.task and item.what == "expert"), wanted.tasks[0])
    keys = [f"model={wanted.model}", f"task={task}", *([f"checkpoints={wanted.stated}"] if wanted.stated else [])]
    keys += [f"model.layout={wanted.layout}"] if layout_of(wanted) != usual_layout(wanted) else []
    line = shlex.join(["python", "-m", "fusionbench_lite.finetune", *keys, f"finetune.out={wanted.checkpoints}"])
    return [f"Experts and their pretrained model are made by fine-tuning: {line}"]
