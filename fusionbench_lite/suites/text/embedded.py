"""The small language models: trained on first use on tasks that are drawn by code, and kept in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.data import text as texts
from fusionbench_lite.data.text import Reading, Tokenizer
from fusionbench_lite.finetuning.language import small, zoo
from fusionbench_lite.suites import Wanted
from fusionbench_lite.suites.text.requests import protocol_of

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress


def folder_of(wanted: Wanted, progress: Progress) -> Path:
    """Return the folder of the experts of a checked request, in the own arrangement; trains what the cache lacks."""
    recipe = small.recipe_of(wanted.model, dict(wanted.recipe))
    reading = Reading(
        tokenizer=Tokenizer(zoo.tokenizer_folder(wanted.model, wanted.cache)), protocol=protocol_of(wanted), cache=wanted.cache,
        seed=wanted.checkpoints_seed,
    )
    data = {task: texts.load(task, reading, progress) for task in wanted.tasks}
    return zoo.load_or_build(wanted.model, data, wanted.cache, wanted.checkpoints_seed, recipe, progress)
