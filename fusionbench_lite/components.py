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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.plan import Plan

USAGE = f"usage: python -m fusionbench_lite.components [KEY=VALUE ...]\n\n{__doc__}"
PREFIX = "components."
OBJECTIVES = ("entropy", "cross_entropy")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is computed; see the module's text."""

    matrix: str = "all"
    objective: str = "entropy"
    examples: int = 64
    top: int = 2
    out: str | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"unknown {PREFIX}objective {self.objective!r}: {did_you_mean(self.objective, OBJECTIVES)}")
        if self.examples < 1 or self.top < 0:
            raise InputError(f"{PREFIX}examples must be at least 1 and {PREFIX}top at least 0")


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 bad input."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fusionbench_lite import config as configuration
    from fusionbench_lite import plan as planning
    from fusionbench_lite.paths import config_dir

    given = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    overrides = [argument for argument in given if not argument.startswith(PREFIX)]
    configuration.register()
    try:
        options = _options([argument for argument in given if argument.startswith(PREFIX)])
        try:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                plan = planning.resolve(compose("config", overrides=overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise configuration.explain(error, overrides) from None
        for path in _run(plan, options):
            print(path)
    except InputError as error:
        print(f"fusionbench_lite: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _options(given: Sequence[str]) -> Options:
    known = {field.name: str(field.type) for field in dataclasses.fields(Options)}
    values: dict[str, Any] = {}
    for argument in given:
        key, _, value = argument.removeprefix(PREFIX).partition("=")
        if key not in known:
            raise InputError(f"unknown key {PREFIX + key!r}: {did_you_mean(key, known)}")
        if known[key] == "int" and not value.isdigit():
            raise InputError(f"{PREFIX}{key} must be an integer, got {value!r}")
        values[key] = int(value) if known[key] == "int" else value
    return Options(**values)


def _run(plan: Plan, options: Options) -> list[Path]:
    from fusionbench_lite import suite as suites
    from fusionbench_lite.adaptation.streams import Stream
    from fusionbench_lite.data import normalise
    from fusionbench_lite.evaluation.components import changes, matrices, start_of
    from fusionbench_lite.progress import Progress
    from fusionbench_lite.tables import component_pictures
    from fusionbench_lite.weights.experts import Experts

    batches: dict[str, tuple[Tensor, Tensor | None]] = {}
    with Progress() as progress:
        suite = suites.load(plan, progress)
        for task, data in suite.data.items():
            chosen = Stream("epoch", len(data.test_labels), options.examples, 1, plan.seed, task).indices(0)
            images = normalise(torch.from_numpy(data.test_images[chosen]).to(suite.device))
            batches[task] = images, torch.from_numpy(data.test_labels[chosen]).long().to(suite.device)
        experts = Experts(suite.pretrained, suite.experts)
        start = start_of(plan.method, experts, plan.values)
        names = matrices(experts, str(plan.values.get("matrices", "attn_mlp")), options.matrix)
        frame = changes(
            suite.model, experts, start, suite.evaluator.heads, batches, names, objective=options.objective,
            top=options.top, progress=progress,
        )
    folder = Path(options.out) if options.out else plan.results_dir / "pictures" / "components"
    what = "all" if options.matrix == "all" else options.matrix
    subtitle = (
        f"{plan.model}, {plan.tasks.label}, seed {plan.seed}; {options.objective.replace('_', ' ')} on "
        f"{min(len(inputs) for inputs, _ in batches.values())} test examples per task; "
        + (f"{len(names)} matrices together" if len(names) > 1 else names[0])
    )
    return component_pictures.draw(frame, experts.tasks, folder / f"{plan.method}-{what}.png", plan.method, subtitle)


if __name__ == "__main__":
    sys.exit(main())
