"""Language models on tasks of texts: published experts on GLUE, a small pretrained model, and models trained here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fusionbench_lite.base.needs import Needs
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.suites import Extent, SuiteKind, Wanted
from fusionbench_lite.suites.text.requests import MODELS, SMALL, protocol_of, request_of
from fusionbench_lite.weights.architecture import Architecture

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.finetuning.options import Options, Trained

ANY_TEST, ANY_CLASSES = 1000, 2
"""Test examples and classes of a task of one's own, for plans."""
TOKENS = 128
"""Tokens of a text, for plans: few texts of GLUE are longer, whatever the protocol's limit is."""


class Text(SuiteKind):
    """GPT-2, RoBERTa, Flan-T5, MiniLM and four small models that are trained here."""

    models: ClassVar[Mapping[str, Any]] = {name: model.tasks for name, model in MODELS.items()}
    uses_hub = True

    def tasks(self, data_dir: Path | None) -> Sequence[str]:
        """Return the tasks of texts: those of a folder, and GLUE's."""
        from fusionbench_lite.data import text

        return text.names(data_dir)

    def check(self, wanted: Wanted) -> Wanted:
        """Resolve the family, and refuse what the model does not have."""
        name = wanted.model
        if wanted.layout is not None:
            raise InputError(f"model {name} has one layout: leave model.layout out")
        if about := [key for key, _ in wanted.data if key != "protocol"]:
            raise InputError(f"data.{about[0]} is about images, {name} reads texts: leave it out")
        if MODELS[name].elsewhere:
            raise InputError(f"model {name} is no run here: {MODELS[name].elsewhere}")
        resolved = dataclasses.replace(wanted, family=_family(wanted))
        if wanted.manifest is not None:
            raise InputError(f"checkpoints.manifest lists files of CLIP models, not of {name}: leave it out")
        if resolved.recipe and resolved.family != "embedded":
            raise InputError(f"checkpoints.recipe trains embedded experts, and those of {name} are there: leave it out")
        protocol_of(resolved)
        _check_tasks(resolved)
        return resolved

    def load(self, wanted: Wanted, progress: Progress) -> Suite:
        """Return the suite, downloading, converting and tokenising what the cache lacks."""
        from fusionbench_lite.suites.text import loading

        return loading.load(wanted, progress)

    def sizes(self, model: str, task: str, keys: Mapping[str, str]) -> Mapping[str, Sequence[int]]:
        """Return the numbers of texts of a task of GLUE in the splits that a protocol reads, or of a drawn one."""
        from fusionbench_lite.data import text

        found = text.sizes(task, text.protocol(keys.get("data.protocol"), model))
        return {split: (size,) for split, size in found.items()}

    def needs(self, wanted: Wanted, training: int | None) -> Needs:
        """Return files, texts and caveats of experts and tasks."""
        from fusionbench_lite.checkpoints import language
        from fusionbench_lite.data import text

        protocol = protocol_of(wanted)
        items = [] if wanted.family == "embedded" else language.inventory(request_of(wanted))
        for task in wanted.tasks:
            items += text.inventory(task, protocol, wanted.cache, wanted.data_dir)
        if training == 0 and wanted.family != "embedded":
            items = [item for item in items if item.what != "training texts"]
        published = wanted.family not in ("embedded", "own")
        notes = language.release(wanted.family, wanted.model).caveats if published else ()
        return Needs(tuple(items), tuple(dict.fromkeys((*notes, *protocol.caveats))))

    def architecture(self, wanted: Wanted) -> Architecture | None:
        """Return the encoder of the published size, or of the configuration of a folder of one's own."""
        from fusionbench_lite.models import language_shapes
        from fusionbench_lite.models.language_configs import read_config

        size = language_shapes.SIZES.get(wanted.model)
        if wanted.family == "own" and wanted.checkpoints is not None:
            size = language_shapes.size_of(read_config(wanted.checkpoints / "pretrained"))
        tokens = min(protocol_of(wanted).longest, TOKENS)
        tensors = "all" if wanted.tensors == "auto" else wanted.tensors
        return None if size is None else language_shapes.of_size(wanted.model, size, tensors=tensors, tokens=tokens)

    def extent(self, wanted: Wanted) -> Extent:
        """Return the published sizes of the tasks of GLUE."""
        from fusionbench_lite.data.text import descriptions, glue, own

        protocol, classes, tests = protocol_of(wanted), [], []
        for task in wanted.tasks:
            known = task in descriptions.glue_names() and not own.reads(task, wanted.data_dir)
            entry = descriptions.glue(task) if known else None
            count = ANY_TEST if entry is None else entry.rows.get(protocol.splits.get(task, glue.TEST), ANY_TEST)
            tests.append(min(count, wanted.limit or count))
            classes.append(ANY_CLASSES if entry is None else len(entry.classes or ("score",)))
        small = MODELS[wanted.model].embedded
        return Extent(classes=tuple(classes), test_examples=tuple(tests), experts="memory" if small else "disk", small=small)

    def slow_to_train(self, model: str) -> bool:
        """Those that are published are; the others are small."""
        return not MODELS[model].embedded

    def train(self, wanted: Wanted, options: Options, progress: Progress) -> Trained:
        """Fine-tune an expert of every task."""
        from fusionbench_lite.suites.text import training

        return training.train(wanted, options, progress)


KIND = Text()


def _family(wanted: Wanted) -> str:
    """Return whose the experts are."""
    from fusionbench_lite.checkpoints.language import OWN, PRETRAINED, families_of

    name, given, folder = wanted.model, wanted.family, wanted.checkpoints
    published = families_of(name)
    offered = (*(("embedded",) if MODELS[name].embedded else published), OWN)
    if given == "auto":
        own = folder is not None and (folder / PRETRAINED / "config.json").is_file()
        given = OWN if own or (folder is not None and "embedded" in offered) else offered[0]
    if given not in offered:
        raise InputError(f"checkpoints={given} has no experts of {name}: {did_you_mean(given, ('auto', *offered))}")
    if given == OWN and folder is None:
        raise InputError("checkpoints=own reads files of your own: add checkpoints.dir=FOLDER")
    if given == "embedded" and folder is not None:
        raise InputError(f"checkpoints=embedded trains the experts of {name}: leave checkpoints.dir out, or set checkpoints=own")
    return given


def _check_tasks(wanted: Wanted) -> None:
    """Raise InputError where the family has no expert of one of the tasks."""
    from fusionbench_lite.checkpoints.language import families, release

    if wanted.model in SMALL and wanted.family == "embedded":
        _check_drawn(wanted)
    if wanted.family not in families():
        return
    published = release(wanted.family, wanted.model)
    for task in wanted.tasks:
        if task not in published.tasks:
            raise InputError(
                f"checkpoints={wanted.family} has no expert of task {task!r} for {wanted.model} (it has "
                f"{', '.join(published.tasks)}): checkpoints=own reads your own"
            )


def _check_drawn(wanted: Wanted) -> None:
    """Raise InputError for texts that a small model has no words for."""
    from fusionbench_lite.base.task_sets import tasks_of

    drawn = tasks_of("mini_text")
    for task in wanted.tasks:
        if task not in drawn or wanted.data_dir is not None:
            given = f"task {task!r}" if task not in drawn else f"the texts of {wanted.data_dir}"
            raise InputError(
                f"model {wanted.model} knows the words of drawn tasks alone ({', '.join(drawn)}), not {given}: use tasks=mini_text "
                "without data_dir, or model=minilm"
            )
