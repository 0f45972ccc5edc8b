"""`python -m fusionbench_lite.finetune model=vit_mini tasks=mini8`: train the experts of a task set.

Takes the keys of `python -m fusionbench_lite`; those of merging and evaluation have no effect. What is already in the
cache is not trained again.
"""

from __future__ import annotations

import sys

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fusionbench_lite import config as configuration
from fusionbench_lite import plan as planning
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir
from fusionbench_lite.plan import Plan

USAGE = f"usage: python -m fusionbench_lite.finetune [KEY=VALUE ...]\n\n{__doc__}"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 bad input."""
    overrides = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(overrides):
        print(USAGE)
        return 0
    configuration.register()
    try:
        try:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                plan = planning.resolve(compose("config", overrides=overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise configuration.explain(error, overrides) from None
        _train(plan)
    except InputError as error:
        print(f"fusionbench_lite: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _train(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from fusionbench_lite import suite as suites
    from fusionbench_lite.progress import Progress

    with Progress() as progress:
        suite = suites.load(plan, progress)
    table = Table("model", *suite.data, "average", title=f"Test accuracy of the experts of tasks={plan.tasks.label}")
    rows = {
        "pretrained": suite.evaluator.evaluate(suite.encoder(suite.pretrained)),
        "individual": {t: suite.evaluator.task(t, suite.encoder(w)) for t, w in suite.experts.items()},
    }
    if suite.multitask is not None:
        rows["traditional_mtl"] = suite.evaluator.evaluate(suite.encoder(suite.multitask))
    for name, evaluation in rows.items():
        values = [100 * result.accuracy for result in evaluation.values()]
        table.add_row(name, *(f"{value:.1f}" for value in values), f"{sum(values) / len(values):.1f}")
    console = Console()
    console.print(table)
    console.print(f"experts in {suite.folder}", style="dim", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
