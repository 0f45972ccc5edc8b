"""The embedded suite: a small vision transformer, and tasks that are drawn by code or come from files of one's own.

Experts are trained on first use and kept in the cache, or read from a folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fusionbench_lite.base.task_sets import tasks_of
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import architectures
from fusionbench_lite.models.clip_sizes import EMBEDDED
from fusionbench_lite.suites import Extent, SuiteKind, Wanted
from fusionbench_lite.weights.architecture import Architecture

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.finetuning.options import Options, Trained

TEST, CLASSES = 1000, 10
"""Test images and classes of a drawn task."""
CORRUPTION = ("corruption", "corruption_from", "severity")
"""Keys of `data` that have a meaning here."""


class Embedded(SuiteKind):
    """ViT mini in two sizes, on images of 32 x 32 pixels."""

    models: ClassVar[Mapping[str, Any]] = dict.fromkeys(EMBEDDED, "mini8")

    def check(self, wanted: Wanted) -> Wanted:
        """Resolve the family: that of the experts trained here, or "own"."""
        wanted.refuse("images")
        name, given = wanted.model, wanted.checkpoints is not None
        if wanted.family not in ("auto", "embedded", "own"):
            raise InputError(
                f"checkpoints={wanted.family} holds experts of CLIP models, not of {name}: set model=vit_b32 or leave it out"
            )
        if wanted.layout:
            raise InputError(f"model {name} has one layout: leave model.layout out")
        if wanted.family == "own" and not given:
            raise InputError("checkpoints=own reads files of your own: add checkpoints.dir=FOLDER")
        drawn = tasks_of("mini8")
        for task in wanted.tasks:
            if wanted.data_dir is None and task not in drawn:
                raise InputError(
                    f"model {name} has no data for task {task!r}: use tasks=mini8, or add data_dir with {task}.npz and {task}.json"
                )
        if about := [key for key, _ in wanted.data if key not in ("tasks_file", *CORRUPTION)]:
            raise InputError(f"data.{about[0]} is about images of CLIP models, not of {name}: leave it out")
        corruption_of(wanted)
        return dataclasses.replace(wanted, family="own" if given else "embedded")

    def load(self, wanted: Wanted, progress: Progress) -> Suite:
        """Return the suite, training the experts on first use."""
        from fusionbench_lite.suites.embedded import loading

        return loading.load(wanted, progress)

    def architecture(self, wanted: Wanted) -> Architecture:
        """Return the small transformer."""
        return architectures.encoder(wanted.model)

    def extent(self, wanted: Wanted) -> Extent:
        """Return what drawn tasks have; everything fits everywhere."""
        count = len(wanted.tasks)
        return Extent(classes=(CLASSES,) * count, test_examples=(wanted.limit or TEST,) * count, small=True)

    def sizes(self, model: str, task: str, keys: Mapping[str, str]) -> Mapping[str, Sequence[int]]:
        """Return how many images are drawn, and of how many classes."""
        from fusionbench_lite.data import mini

        return {"train": (mini.TRAIN,), "test": (mini.TEST,), "classes": (CLASSES,)}

    def train(self, wanted: Wanted, options: Options, progress: Progress) -> Trained:
        """Train what the cache lacks of all experts of the tasks."""
        if options.given:
            raise InputError(f"finetune.* is about CLIP models; the recipe of {wanted.model} is checkpoints.recipe={{...}}")
        from fusionbench_lite.suites.embedded import loading

        return loading.train(wanted, progress)


def corruption_of(wanted: Wanted) -> tuple[str, int] | None:
    """Return name and severity of the corruption of test images, None for clean ones; raises InputError.

    There are no published splits of these images: a corruption is always generated, whether `corruption_from` says so or not.
    """
    given = {key: value for key, value in wanted.data if key in CORRUPTION}
    if not given:
        return None
    from fusionbench_lite.data.vision import Sources  # late: a line without such settings does not wait for its imports

    if "corruption" in given:
        given.setdefault("corruption_from", "generated")
    sources = Sources("tall", wanted.cache, **given)
    return None if sources.corruption is None else (sources.corruption, sources.severity)


KIND = Embedded()
