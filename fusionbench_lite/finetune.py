"""`python -m fusionbench_lite.finetune model=vit_b32 task=dtd [KEY=VALUE ...]`: train experts.

Takes the keys of `python -m fusionbench_lite`; those of merging have no effect. For vit_mini all experts of the task set
are trained, and what is already in the cache is not trained again. For a CLIP model every task gets an expert by the
recipe of its checkpoint family, under a frozen zero-shot head; a run that was killed goes on where it was. Besides:

    task=dtd                     one task, short for tasks=[dtd]; a CLIP model needs one of the two, tasks=8 for all eight
    finetune.recipe=tall         or ta, fusionbench, joint (one model for all tasks: traditional multi-task learning)
    finetune.out=FOLDER          default: finetuned/ in the cache; read with checkpoints=own checkpoints.dir=FOLDER
    finetune.steps=1000          in place of the recipe's epochs or steps; likewise batch, lr
    finetune.images=square       crops of the 224 x 224 squares of evaluation; ta, tall and joint crop the original images
    finetune.checkpoint_every=200
    finetune.evaluate_every=500  on the part of the training images that is held out
    overwrite=true               train again what is in the folder
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import integer, real, word
from fusionbench_lite.planning.command_line import command
from fusionbench_lite.planning.plan import Plan

if TYPE_CHECKING:
    from fusionbench_lite.evaluation.evaluator import Evaluation

USAGE = f"usage: python -m fusionbench_lite.finetune [KEY=VALUE ...]\n\n{__doc__}"


@dataclasses.dataclass(frozen=True)
class Options:
    """How a CLIP model is fine-tuned; see the module's text."""

    recipe: str | None = word(None, optional=True)
    out: str | None = word(None, optional=True)
    steps: int | None = integer(None, low=1, optional=True)
    batch: int | None = integer(None, low=1, optional=True)
    lr: float | None = real(None, low=0, open_low=True, optional=True)
    images: str | None = word(None, optional=True)
    checkpoint_every: int = integer(200, low=1)
    evaluate_every: int | None = integer(None, low=1, optional=True)

    @property
    def changes(self) -> dict[str, Any]:
        """What replaces values of the recipe."""
        return {name: value for name in ("steps", "batch", "lr", "images") if (value := getattr(self, name)) is not None}


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = [one for one in given if re.match(r"(\+{0,2}tasks|task)=", one)]
    given = [f"tasks=[{one.removeprefix('task=')}]" if one.startswith("task=") else one for one in given]

    def run(plan: Plan, options: Options) -> int:
        _check_choice(chosen, plan)
        return _main(plan, options)

    return command(USAGE, given, "finetune.", Options, run)


def _check_choice(chosen: Sequence[str], plan: Plan) -> None:
    """Refuse tasks that were named twice, of which one would be dropped, and for hours of training none at all."""
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} name tasks: give one of them, such as tasks=[mnist,dtd] for several tasks")
    if not chosen and plan.backbone.is_clip:
        raise InputError(
            f"no task is named, and every task trains {plan.model} for hours: add task=dtd for one, tasks=[mnist,dtd] for "
            f"some, or tasks={plan.tasks.label} for all {len(plan.tasks.names)}"
        )


def _main(plan: Plan, options: Options) -> int:
    if plan.backbone.is_clip:
        _train_clip(plan, options)
    elif options != Options():
        raise InputError(f"finetune.* is about CLIP models; the recipe of {plan.model} is checkpoints.recipe={{...}}")
    else:
        _train_embedded(plan)
    return 0


def _train_embedded(plan: Plan) -> None:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.suites import suite as suites

    with Progress() as progress:
        suite = suites.load(plan, progress)
        rows = {
            "pretrained": suite.evaluator.evaluate(suite.encoder(suite.pretrained)),
            "individual": {t: suite.evaluator.task(t, suite.encoder(w)) for t, w in suite.experts.items()},
        }
        if suite.multitask is not None:
            rows["traditional_mtl"] = suite.evaluator.evaluate(suite.encoder(suite.multitask))
    _show(f"Test accuracy of the experts of tasks={plan.tasks.label}", rows, suite.folder)


def _train_clip(plan: Plan, options: Options) -> None:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.finetuning.clip import train

    with Progress() as progress:
        rows, folder = train(plan, options, progress)
    _show(f"Test accuracy of {plan.model} fine-tuned on tasks={plan.tasks.label}", rows, folder)


def _show(title: str, rows: Mapping[str, Evaluation], folder: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    tasks = list(next(iter(rows.values())))
    table = Table("model", *tasks, "average", title=title)
    for name, evaluation in rows.items():
        values = [100 * result.accuracy for result in evaluation.values()]
        table.add_row(name, *(f"{value:.1f}" for value in values), f"{sum(values) / len(values):.1f}")
    console = Console()
    console.print(table)
    console.print(f"experts in {folder}", style="dim", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
