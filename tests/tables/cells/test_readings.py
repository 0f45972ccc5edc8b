"""What cells read off records: every statistic against numbers computed by hand."""

from pathlib import Path

import numpy as np
import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.experiments import CellSpec, Run, Statistic
from fusionbench_lite.planning.experiments.runs import run_of
from fusionbench_lite.planning.experiments.statistics import parsed
from fusionbench_lite.tables import records
from fusionbench_lite.tables.cells.readings import reading
from fusionbench_lite.tables.records import Record
from tests.support.record_factory import TASKS, hits, store

ACCURACIES = {task: 0.6 + 0.05 * place for place, task in enumerate(TASKS)}
LOWER = {task: value - 0.2 for task, value in ACCURACIES.items()}


def run(name: str, seed: int = 0) -> Run:
    return run_of([f"method={name}", f"seed={seed}"])


@pytest.fixture
def there(tmp_path: Path) -> dict[Run, Record]:
    found = {}
    for seed in (0, 1):
        shifted = {task: value + 0.02 * seed for task, value in ACCURACIES.items()}
        for name, values in (("tsv_m", shifted), ("task_arithmetic", LOWER)):
            best = {task: value + 0.1 for task, value in values.items()} if name == "tsv_m" else None
            key = store(tmp_path, name, values, seed=seed, best=best)
            record = records.find(tmp_path, key)
            assert record is not None
            found[run(name, seed)] = record
    return found


def spec(statistic: str, *, seeds: int = 2, beside: str | None = None, select: str = "last", **more: object) -> CellSpec:
    runs = tuple(run("tsv_m", seed) for seed in range(seeds))
    others = (tuple(run(beside, seed) for seed in range(seeds)),) if beside else ()
    fields = {"runs": (runs,), "beside": others, **more}
    return CellSpec(row="r", column="c", statistic=parsed(statistic), select=select, **fields)  # type: ignore[arg-type]


def test_the_average_over_tasks_and_seeds_in_percent(there: dict[Run, Record]) -> None:
    found = reading(spec("average"), there, "percent")
    assert found is not None
    by_seed = [100 * np.mean([np.mean(hits(v + 0.02 * seed, seed=seed)) for v in ACCURACIES.values()]) for seed in (0, 1)]
    assert found.value == pytest.approx(np.mean(by_seed))
    assert found.sd == pytest.approx(np.std(by_seed, ddof=1))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert (found.seeds, len(found.keys), found.families, found.trial) == (2, 2, ("embedded",), False)


def test_a_task_in_fractions(there: dict[Run, Record]) -> None:
    found = reading(spec("task:signs", seeds=1), there, "fraction")
    assert found is not None
    assert found.value == np.mean(hits(ACCURACIES["signs"]))
    assert found.sd is None
    assert found.higher


def test_a_gain_is_the_difference_of_averages_with_a_paired_interval(there: dict[Run, Record]) -> None:
    found = reading(spec("gain", beside="task_arithmetic"), there, "percent")
    assert found is not None
    assert found.value == pytest.approx(20 + 1.0)
    wide = reading(spec("average"), there, "percent")
    assert wide is not None
    assert found.low is not None
    assert found.high is not None
    assert wide.low is not None
    assert wide.high is not None
    assert found.low < found.value < found.high


def test_scores_relative_to_a_specialist_are_a_hundred_for_itself(there: dict[Run, Record]) -> None:
    itself = reading(spec("normalized:letters", seeds=1, beside="tsv_m"), there, "normalized")
    other = reading(spec("normalized:letters", seeds=1, beside="task_arithmetic"), there, "normalized")
    assert itself is not None
    assert other is not None
    assert itself.value == 100
    assert other.value == pytest.approx(100 * np.mean(hits(0.65)) / np.mean(hits(0.45)))


@pytest.mark.parametrize(("statistic", "unit", "value"), [
    ("seconds:merge", "seconds", 1.25), ("seconds:total", "seconds", 23.75), ("peak_bytes", "megabytes", 123456 / 2**20),
])
def test_seconds_and_bytes(there: dict[Run, Record], statistic: str, unit: str, value: float) -> None:
    found = reading(spec(statistic, seeds=1), there, unit)
    assert found is not None
    assert found.value == value
    assert found.low is None
    assert not found.higher


def test_seconds_that_a_run_did_not_measure_are_not_nought(there: dict[Run, Record]) -> None:
    with pytest.raises(InputError, match="did not measure the seconds of 'svd'; run it again with overwrite=true"):
        reading(spec("seconds:svd"), there, "seconds")


def test_the_smallest_and_the_largest_of_several_variations(there: dict[Run, Record]) -> None:
    runs = ((run("tsv_m"),), (run("task_arithmetic"),))
    small, large = (reading(spec("average", reduce=how, **{"runs": runs}), there, "percent") for how in ("min", "max"))
    assert small is not None
    assert large is not None
    assert large.value - small.value == pytest.approx(20)
    assert small.low is None


def test_seeds_without_a_record_are_left_out(there: dict[Run, Record]) -> None:
    del there[run("tsv_m", 0)]
    found = reading(spec("average"), there, "percent")
    assert found is not None
    assert found.seeds == 1
    del there[run("tsv_m", 1)]
    assert reading(spec("average"), there, "percent") is None


def test_the_selection_rule_of_the_cell(there: dict[Run, Record]) -> None:
    found = reading(spec("average", seeds=1, select="best_test"), there, "percent")
    last = reading(spec("average", seeds=1), there, "percent")
    assert found is not None
    assert last is not None
    assert found.value == pytest.approx(last.value + 10)
    assert found.uses_test_labels
    assert not last.uses_test_labels


def test_seen_and_unseen_tasks_go_by_the_experts_that_were_merged(tmp_path: Path) -> None:
    config = {"checkpoints": {"experts": ["signs", "digits"]}}
    key = store(tmp_path, "tsv_m", ACCURACIES, config=config)
    record = records.find(tmp_path, key)
    assert record is not None
    there = {run("tsv_m"): record}
    seen, unseen = (reading(spec(f"average_{which}", seeds=1), there, "percent") for which in ("seen", "unseen"))
    assert seen is not None
    assert unseen is not None
    assert seen.value == pytest.approx(100 * np.mean([np.mean(hits(ACCURACIES[task])) for task in ("signs", "digits")]))
    assert unseen.value == pytest.approx(100 * np.mean([np.mean(hits(ACCURACIES[task])) for task in ("letters", "garments")]))


def test_unseen_tasks_that_there_are_not(there: dict[Run, Record]) -> None:
    with pytest.raises(InputError, match="every task has an expert that was merged"):
        reading(spec("average_unseen"), there, "percent")


def test_a_column_of_a_task_that_the_runs_have_not(there: dict[Run, Record]) -> None:
    with pytest.raises(InputError, match="has no task 'cars', which the column 'c' shows"):
        reading(spec("task:cars"), there, "percent")


def test_a_trial_is_marked(tmp_path: Path) -> None:
    record = records.find(tmp_path, store(tmp_path, "tsv_m", ACCURACIES, limit=10))
    assert record is not None
    found = reading(spec("average", seeds=1), {run("tsv_m"): record}, "percent")
    assert found is not None
    assert found.trial


def test_units_without_a_published_number() -> None:
    names = (("average", ""), ("seconds", "svd"), ("parameters", "relative"), ("size", "train"))
    units = [Statistic(name, of).unit for name, of in names]
    assert units == ["percent", "seconds", "normalized", "count"]
