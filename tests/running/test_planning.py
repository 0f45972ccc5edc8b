"""`plan=true`: of a run, an experiment, a published table and all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fusionbench_lite.__main__ import main
from fusionbench_lite.hub import reaching
from fusionbench_lite.resources import work
from fusionbench_lite.resources.rates import Rates
from fusionbench_lite.running import planning
from tests.support.lines import called
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.vision_suite import Suite, small  # noqa: F401  (a fixture)

SMALL = ("tasks=[digits,signs,land]", "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}")


@pytest.fixture(autouse=True)
def abacus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of round numbers, so that nothing is measured."""
    rate = Rates(
        device="cpu", name="abacus", precision="fp32", rows=8, width=4, flops=1e12, decompositions=1e9, elements=1e9, images=100,
        cores=2, measured="2026-01-02 03:04",
    )
    monkeypatch.setattr(work, "rates", lambda asked, cache: dict.fromkeys(asked, rate))


def counts(said: str) -> tuple[int, ...]:
    """Distinct runs, those with a record, those to be made."""
    found = re.search(r"runs +([\d,]+) distinct, ([\d,]+) with a record here, ([\d,]+) to be made", said)
    assert found is not None, said
    return tuple(int(number.replace(",", "")) for number in found.groups())


def test_a_run_that_has_a_record_takes_nothing(command, tmp_path: Path):
    line = ("method=weight_averaging", "limit=8", *SMALL)
    before = command(*line, "plan=true").stdout
    assert counts(before) == (1, 0, 1)
    assert "experts are trained on first use" in before
    assert "abacus" in before
    assert not list(tmp_path.rglob("result.json"))
    assert command(*line).returncode == 0
    after = command(*line, "plan=true").stdout
    assert counts(after) == (1, 1, 0)


def test_an_experiment_counts_its_rows(command):
    said = command("experiment=mini/demo", "plan=true").stdout
    rows = int(re.search(r"cells +(\d+)", said)[1])
    assert rows > 2
    assert counts(said) == (rows, 0, rows)


def test_nothing_is_downloaded_for_a_plan(small: Suite):  # noqa: F811
    status, said = called(main, small.line("method=tsv_m plan=true"))
    assert status == 0, said
    assert "expert" in re.search(r"files +(.*)", said)[1]
    assert not small.mirror.asked("*finetuned*")
    small.run("method=tsv_m")
    said = called(main, small.line("method=iso_c plan=true"))[1]
    assert re.search(r"files +all are here", said)
    assert "images to decode" not in said


def test_a_hub_that_does_not_answer_is_asked_once(small: Suite, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    small.mirror.close()
    asked: list[object] = []
    connect = reaching.socket.create_connection
    monkeypatch.setattr(reaching.socket, "create_connection", lambda *place, **more: (asked.append(place), connect(*place, **more)))
    status, said = called(main, small.line("method=tsv_m plan=true"))
    assert status == 0, said
    assert "does not answer" in said
    assert "of unknown size" in said
    assert "trying again" not in said
    assert len(asked) == 1


def test_all_tables_in_one_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A line per table; a run that two of them ask for counts once below."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = ["metamerging/table_7", "metamerging/table_8"]
    monkeypatch.setattr(planning.experiments, "names", lambda: names)
    line = [f"cache_dir={tmp_path}", f"results_dir={tmp_path}", "plan=true", "device=cpu"]
    status, said = called(main, ["experiment=all", *line])
    assert status == 0, said
    each = [called(main, [f"experiment={name}", *line])[1] for name in names]
    alone = [counts(one)[2] for one in each]
    for name, missing in zip(names, alone, strict=True):
        assert re.search(rf"^{name} +\d+ +{missing} +{missing} ", said, flags=re.MULTILINE)
    assert max(alone) <= counts(said)[2] < sum(alone)
    assert re.search(r"time +[\d,.]+ h", said)
