"""Language models whose experts are trained on first use: MiniLM, from the weights of its package, and the small ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.data import text as texts
from fusionbench_lite.data.text import Reading, TextTask, Tokenizer
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.language import recipe
from fusionbench_lite.finetuning.language.cached import cached_experts
from fusionbench_lite.finetuning.language.packaged import PACKAGES, packaged
from fusionbench_lite.suites import Wanted
from fusionbench_lite.suites.text import embedded
from fusionbench_lite.suites.text.requests import SMALL, protocol_of

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress


def folder_of(wanted: Wanted, progress: Progress) -> Path:
    """Return the folder of the experts of a checked request of family "embedded", training what the cache lacks."""
    if wanted.model in SMALL:
        return embedded.folder_of(wanted, progress)
    base = base_of(wanted)
    changed = recipe(wanted.model, **dict(wanted.recipe))
    tasks = read(wanted, base, progress)
    return cached_experts(
        wanted.model, base, tasks, changed, cache=wanted.cache, seed=wanted.checkpoints_seed, report=progress
    )


def base_of(wanted: Wanted) -> Path:
    """Return the folder of the pretrained model; raises InputError where it is not at hand."""
    if wanted.model not in PACKAGES:
        raise InputError(f"experts of {wanted.model} cannot be trained here: give a folder of them with checkpoints.dir")
    return packaged(wanted.model)


def read(wanted: Wanted, base: Path, progress: Progress) -> dict[str, TextTask]:
    """Return the tasks of a request as the tokenizer in a folder reads them."""
    reading = Reading(
        tokenizer=Tokenizer(base), protocol=protocol_of(wanted), cache=wanted.cache, data_dir=wanted.data_dir,
        limit=wanted.limit, seed=wanted.checkpoints_seed,
    )
    return {task: texts.load(task, reading, progress) for task in wanted.tasks}
