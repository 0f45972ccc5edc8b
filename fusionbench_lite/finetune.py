"""`python -m fusionbench_lite.finetune model=vit_b32 task=dtd [KEY=VALUE ...]`: train experts.

Takes the keys of `python -m fusionbench_lite`; those of merging have no effect. For embedded models all experts of the task
set are trained, and what is already in the cache is not trained again. Other models get an expert of every task, CLIP's by the
recipe of the checkpoint family under a frozen zero-shot head, language models by their own recipe with a head of the task's
classes or with adapters (Flan-T5); a run that was killed goes on where it was. Besides:

    task=dtd                     one task, short for tasks=[dtd]; large models need one of the two, tasks=8 for all eight
    finetune.recipe=tall         or ta, fusionbench, joint (one model for all tasks: traditional multi-task learning);
                                 of language models roberta, gpt2, flan_t5, minilm
    finetune.out=FOLDER          default: finetuned/ in the cache; read with checkpoints=own checkpoints.dir=FOLDER
    finetune.steps=1000          in place of the recipe's epochs or steps; likewise batch, lr, and epochs of language models
    finetune.images=square       crops of the 224 x 224 squares of evaluation; ta, tall and joint crop the original images
    finetune.checkpoint_every=200
    finetune.evaluate_every=500  on the part of the training examples that is held out
    overwrite=true               train again what is in the folder
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.base import at_work
from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import integer, location, real, word
from fusionbench_lite.planning.command_line import command
from fusionbench_lite.planning.plan import Plan

if TYPE_CHECKING:
    from fusionbench_lite.evaluation.evaluator import Evaluation

USAGE = f"usage: python -m fusionbench_lite.finetune [KEY=VALUE ...]\n\n{__doc__}"


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is fine-tuned; see the module's text. Which options a model has is its kind's to say."""

    recipe: str | None = word(None, optional=True)
    out: str | None = location(None, optional=True)
    steps: int | None = integer(None, low=1, optional=True)
    epochs: int | None = integer(None, low=1, optional=True)
    batch: int | None = integer(None, low=1, optional=True)
    lr: float | None = real(None, low=0, open_low=True, optional=True)
    images: str | None = word(None, optional=True)
    checkpoint_every: int = integer(200, low=1)
    evaluate_every: int | None = integer(None, low=1, optional=True)


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
    if not chosen and plan.kind.slow_to_train(plan.model):
        first, second = (*plan.tasks, *plan.tasks)[:2]
        raise InputError(
            f"no task is named, and every task trains {plan.model} for hours: add task={first} for one, "
            f"tasks=[{first},{second}] for some, or tasks={plan.task_set} for all {len(plan.tasks)}"
        )


def _main(plan: Plan, options: Options) -> int:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.finetuning.options import Options as Asked

    usual = dataclasses.asdict(Options())
    given = {name: value for name, value in dataclasses.asdict(options).items() if value != usual[name]}
    with Progress() as progress:
        asked = Asked(given, chunk=plan.trainer["chunk"], overwrite=plan.overwrite)
        at_work.register(plan.wanted.cache)
        trained = plan.kind.train(plan.wanted, asked, progress)
    _show(f"{trained.what} on tasks={plan.task_set}", trained.rows, trained.folder)
    return 0


def _show(what: str, rows: Mapping[str, Evaluation], folder: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from fusionbench_lite.evaluation.results import shared

    first = next(iter(rows.values()))
    measure = shared(first)
    heads = [t if r.measure == measure else f"{t} ({r.measure.label})" for t, r in first.items()]
    table = Table("model", *heads, "average", title=f"Test {measure.label if measure else 'results'} of {what}")
    for name, evaluation in rows.items():
        values = [result.measure.scale * result.value for result in evaluation.values()]
        mean = f"{sum(values) / len(values):.{measure.decimals}f}" if measure else ""
        printed = (f"{value:.{r.measure.decimals}f}" for value, r in zip(values, evaluation.values(), strict=True))
        table.add_row(name, *printed, mean)
    console = Console(markup=False, emoji=False)  # a path or a task in brackets is no style
    console.print(table)
    console.print(f"experts in {folder}", style="dim", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
