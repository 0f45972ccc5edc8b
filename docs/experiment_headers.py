"""The second line of every published table's file: its distinct runs and their operations, from the plan. Needs no records."""

from __future__ import annotations

from hydra import initialize_config_dir

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, config_dir
from fusionbench_lite.planning import config as configuration
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments.files import paths
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources import work
from fusionbench_lite.resources.hours import Operations, operations
from fusionbench_lite.running import table

MARK = "# cost: "


def stamp() -> None:
    """Write the line into every file, where it differs."""
    for name in experiments.names():
        path = paths()[name]
        text = path.read_text(encoding="utf-8")
        if (stamped := with_cost(text, cost(name))) != text:
            with atomic_file(path) as temporary:
                temporary.write_text(stamped, encoding="utf-8")
            print(f"written {path}")


def with_cost(text: str, line: str) -> str:
    """Return a file with this line as its second."""
    lines = [one for one in text.splitlines() if not one.startswith(MARK)]
    return "\n".join([lines[0], line, *lines[1:]]) + "\n"


def cost(name: str) -> str:
    """Return the line of a table; a run that cannot be planned is said."""
    configuration.register()
    every = experiments.distinct(experiments.cells(experiments.read(name)))
    plans: list[Plan] = []
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        for run in every:
            try:
                plans.append(table.planned(run, []))
            except InputError:
                continue
    if not every:
        return f"{MARK}no run"
    counted = [operations(plan, "cuda") for plan in plans]
    total = sum((one for one in counted if one is not None), start=Operations())
    unplanned = len(every) - sum(one is not None for one in counted)
    said = f"{len(every)} {'run' if len(every) == 1 else 'runs'}"
    said += f", {work.number(total.total)} on a GPU" if total.total else ""
    return f"{MARK}{said}{f'; {unplanned} of them not planned' if unplanned else ''}"
