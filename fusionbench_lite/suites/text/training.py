"""Fine-tuning language models on the training texts of their tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.base.devices import device_of
from fusionbench_lite.checkpoints import language as checkpoints
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.language import LanguageRecipe, train_expert
from fusionbench_lite.finetuning.language import recipe as recipe_of
from fusionbench_lite.finetuning.options import Options, Trained
from fusionbench_lite.paths import expanded, folder
from fusionbench_lite.suites import Wanted
from fusionbench_lite.suites.text import loading, trained
from fusionbench_lite.suites.text.requests import MODELS, SMALL, request_of

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.evaluator import Evaluation
    from fusionbench_lite.evaluation.suite import Suite

CHANGES = ("steps", "epochs", "batch", "lr")
"""Options that replace values of the recipe."""
OPTIONS = ("recipe", "out", *CHANGES, "checkpoint_every", "evaluate_every")
RECIPES = {"flan_t5_base": "flan_t5", "flan_t5_large": "flan_t5"}
"""Models whose recipe is not called like them."""
CHECKPOINT_EVERY = 200


def train(wanted: Wanted, options: Options, progress: Progress) -> Trained:
    """Train an expert of every task, and evaluate them and the pretrained model under their heads.

    Experts that are trained on first use are those of the cache, unless options ask for others.
    """
    options.check(OPTIONS, wanted.model)
    if wanted.family == "embedded" and wanted.model in SMALL and options.given:
        raise InputError(f"finetune.* is about pretrained models; the recipe of {wanted.model} is checkpoints.recipe={{...}}")
    if wanted.family == "embedded" and not options.given:
        suite = loading.load(wanted, progress)
    else:
        place = _train(wanted, options, progress)
        suite = loading.load_from(place, wanted, progress)
    return Trained(f"{wanted.model} fine-tuned", _rows(suite), suite.folder)


def _rows(suite: Suite) -> dict[str, Evaluation]:
    individual = {task: suite.judge(task, suite.encoder(weights)) for task, weights in suite.experts.items()}
    return {"pretrained": suite.evaluate(suite.encoder(suite.pretrained)), "individual": individual}


def _train(wanted: Wanted, options: Options, progress: Progress) -> Path:
    """Train what the folder lacks, and return it."""
    given = options.given
    place, recipe = _folder(wanted, options), _recipe(wanted, options)
    base, name, files = _base(wanted, progress)
    for task in trained.read(wanted, base, progress).values():
        train_expert(
            base, task, recipe, out=place, seed=wanted.seed, device=device_of(wanted.device), precision=wanted.precision,
            checkpoint_every=given.get("checkpoint_every", CHECKPOINT_EVERY), evaluate_every=given.get("evaluate_every"),
            chunk=options.chunk, overwrite=options.overwrite, model=wanted.model, base=name, inputs=files, report=progress,
        )
    return place


def _base(wanted: Wanted, progress: Progress) -> tuple[Path, str, dict[str, str]]:
    """Return the folder of the pretrained model, its name, and the hashes of its files."""
    if wanted.family == "embedded":
        return trained.base_of(wanted), wanted.model, {}
    found = checkpoints.find_base(request_of(wanted), progress)
    own = wanted.family == checkpoints.OWN
    name = checkpoints.PRETRAINED if own else checkpoints.release(wanted.family, wanted.model).base
    return found.path, name, dict(found.files)


def _recipe(wanted: Wanted, options: Options) -> LanguageRecipe:
    changes = {name: options.given[name] for name in CHANGES if name in options.given}
    name = options.given.get("recipe") or RECIPES.get(wanted.model, wanted.model)
    recipe = recipe_of(name, **changes)
    if recipe.lora is not None and MODELS[wanted.model].kind != "t5":
        raise InputError(f"recipe {name!r} trains adapters of T5, {wanted.model} has other layers: leave finetune.recipe out")
    return recipe


def _folder(wanted: Wanted, options: Options) -> Path:
    """Return where experts go: what was asked for, else the folder of one's own, else the cache."""
    if "out" in options.given:
        return folder("finetune.out", expanded(options.given["out"]))
    if wanted.family == checkpoints.OWN and wanted.checkpoints is not None:
        return wanted.checkpoints
    return wanted.cache / "finetuned" / wanted.model
