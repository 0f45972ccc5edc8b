"""`python -m fusionbench_lite.components KEY=VALUE ...`: what single singular components of the task vectors do to the losses.

As Figures 1 and 2 of AdaRank (Lee et al. 2025): for every matrix and task t the change of each task's loss when
λ_t s_r u_r v_rᵀ is added to the merged model at the method's start, to first order for all components and by
evaluation for the leading ones. Takes the keys of `python -m fusionbench_lite` and besides them

    components.matrix=all            or the name of one matrix
    components.objective=entropy     or cross_entropy, which reads labels
    components.examples=64           of each task's test split
    components.top=2                 leading components of every task vector that are evaluated
    components.out=DIR               default: pictures/components/ in results_dir
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, integer, location, word
from fusionbench_lite.paths import expanded, folder
from fusionbench_lite.planning.command_line import command

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.models.inputs import Inputs
    from fusionbench_lite.planning.plan import Plan

USAGE = f"usage: python -m fusionbench_lite.components [KEY=VALUE ...]\n\n{__doc__}"
PREFIX = "components."
OBJECTIVES = ("entropy", "cross_entropy")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is computed; see the module's text."""

    matrix: str = word("all")
    objective: str = choice("entropy", OBJECTIVES)
    examples: int = integer(64, low=1)
    top: int = integer(2, low=0)
    out: str | None = location(None, optional=True)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 bad input."""
    return command(USAGE, arguments, PREFIX, Options, _main)


def _main(plan: Plan, options: Options) -> int:
    for picture in _run(plan, options):
        print(picture)
    return 0


def _run(plan: Plan, options: Options) -> list[Path]:
    from fusionbench_lite.adaptation.streams import Stream
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.component_changes import changes, matrices, start_of
    from fusionbench_lite.running import loading
    from fusionbench_lite.tables import component_pictures
    from fusionbench_lite.weights.experts import Experts

    out = folder("components.out", expanded(options.out)) if options.out else plan.results_dir / "pictures" / "components"
    batches: dict[str, tuple[Inputs, Tensor | None]] = {}
    with Progress() as progress:
        suite = loading.load(plan, progress)
        for task in suite.tasks:
            chosen = Stream(
                kind="epoch", size=suite.size(task, "test"), batch_size=options.examples, batches=1, seed=plan.seed, task=task
            ).indices(0)
            batches[task] = suite.inputs(task, "test", chosen), suite.labels(task, "test", chosen).long()
        experts = Experts(suite.pretrained, suite.experts)
        start = start_of(plan.method, experts, plan.values)
        names = matrices(experts, str(plan.values.get("matrices", "attn_mlp")), options.matrix)
        frame = changes(
            suite.model, experts, start, suite.heads, batches, names, objective=options.objective,
            top=options.top, progress=progress,
        )
    what = "all" if options.matrix == "all" else options.matrix
    subtitle = (
        f"{plan.model}, {plan.task_set}, seed {plan.seed}; {options.objective.replace('_', ' ')} on "
        f"{min(len(labels) for _, labels in batches.values() if labels is not None)} test examples per task; "
        + (f"{len(names)} matrices together" if len(names) > 1 else names[0])
    )
    return component_pictures.draw(frame, experts.tasks, out / f"{plan.method}-{what}.png", plan.method, subtitle)


if __name__ == "__main__":
    sys.exit(main())
