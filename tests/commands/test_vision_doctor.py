"""What the doctor says of runs at full size: what is to be fetched by hand, what is made here, and what is on its way."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from fusionbench_lite import doctor
from fusionbench_lite.data.vision import stock
from fusionbench_lite.data.vision.sources import Sources
from fusionbench_lite.running import loading
from tests.support.lines import called
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.vision_suite import Suite, small  # noqa: F401  (a fixture)

SQUARE = 224 * 224 * 3


def told(suite: Suite, line: str) -> tuple[int, dict[str, Any]]:
    status, said = called(doctor.main, suite.line(f"{line} doctor.format=json"))
    return status, json.loads(said[said.index("{"):])


def missing(found: dict[str, Any]) -> set[str]:
    return {item["what"] for item in found["items"] if not item["present"]}


@pytest.mark.parametrize("family", ["ta", "tall", "fusionbench"])
def test_without_a_network_downloads_are_to_be_fetched_by_hand(
    small: Suite, family: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
):
    line = f"checkpoints={family} method=task_arithmetic"
    for head in (small.mirror.root / "models").rglob("head_MNIST.pt"):
        head.unlink()  # that one is built from prompts
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, found = told(small, line)
    assert status == 1
    assert {item["what"] for item in found["items"] if item["downloadable"]} == {"decoded test images"}
    status, said = called(doctor.main, small.line(line))
    assert "HF_HUB_OFFLINE is set" in said
    assert "By hand, to" in said
    monkeypatch.delenv("HF_HUB_OFFLINE")
    status, found = told(small, line)
    assert (status, found["hints"]) == (0, [])
    small.run(line)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, found = told(small, line)
    assert (status, found["hints"]) == (0, [])
    assert missing(found) <= {"head"}
    loading._latest.clear()
    small.run(f"checkpoints={family} method=weight_averaging")


def test_a_hub_that_does_not_answer_is_no_hub_that_is_forbidden(small: Suite):  # noqa: F811
    small.mirror.close()
    status, found = told(small, "checkpoints=fusionbench method=task_arithmetic")
    assert (status, found["hints"]) == (0, [])
    assert "does not answer" in found["machine"]["hub"]


def test_heads_of_a_folder_that_are_built_are_not_asked_for(small: Suite):  # noqa: F811
    folder = small.mirror.root / "models/SphereLab/vision_models_in_FDA"
    for head in folder.rglob("head_*.pt"):
        head.unlink()
    status, found = told(small, f"checkpoints=ta checkpoints.dir={folder} method=task_arithmetic")
    assert "head" in missing(found)
    assert status == 0


def test_experts_of_ones_own_are_named_once_with_the_line_that_makes_them(small: Suite):  # noqa: F811
    folder = small.folder / "own"
    folder.mkdir()
    status, said = called(doctor.main, small.line(f"checkpoints=own checkpoints.dir={folder} method=task_arithmetic"))
    assert status == 1
    expert = folder / "individual-mnist.safetensors"
    assert [line for line in said.splitlines() if line.startswith(f"By hand, to {expert}")] == [
        f"By hand, to {expert}: expert of mnist"
    ]
    assert f"python -m fusionbench_lite.finetune model=vit_b32 task=mnist finetune.out={folder}" in said
    assert not any("head of" in line for line in said.splitlines() if line.startswith("By hand"))


def test_the_line_that_makes_experts_follows_the_folders_family(small: Suite):  # noqa: F811
    folder = small.folder / "my own"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"family": "fusionbench"}')
    given = ["checkpoints=own", f"checkpoints.dir='{folder}'", "method=task_arithmetic"]
    _, found = told(small, shlex.join(given))
    (hint,) = found["hints"]
    assert shlex.split(hint.partition(": ")[2])[4:] == ["task=mnist", "checkpoints=fusionbench", f"finetune.out={folder}"]
    _, found = told(small, shlex.join([*given, "model.layout=packed"]))
    assert "checkpoints=fusionbench model.layout=packed" in found["hints"][0]


def test_class_folders_that_a_run_refuses_are_refused(small: Suite):  # noqa: F811
    data = small.folder / "data"
    for name in range(10):
        (data / "mnist/test" / f"figure {chr(65 + name)}").mkdir(parents=True)
    status, said = called(doctor.main, small.line(f"method=task_arithmetic data_dir={data}"))
    assert status == 2
    assert "order cannot be checked" in said


def test_what_a_stopped_download_of_the_hub_has_left_is_counted(small: Suite):  # noqa: F811
    line = "checkpoints=fusionbench method=task_arithmetic tasks=[mnist]"
    _, before = told(small, line)
    small.mirror.inject("truncated", "*test-00000*", at=1000)
    small.mirror.inject("forbidden", "*test-00000*", method="GET")
    small.refused(line)
    _, after = told(small, line)
    (item,) = (item for item in after["items"] if item["what"] == "test images")
    assert (item["arrived"], item["present"]) == (1000, False)
    others = sum(item["nbytes"] or 0 for item in before["items"] if not item["present"]) - sum(
        item["nbytes"] or 0 for item in after["items"] if not item["present"]
    )
    assert after["missing_bytes"] == before["missing_bytes"] - others - 1000


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("method=task_arithmetic", None), ("method=regmean method.statistics.examples=8", 8),
        ("method=adarank steps=1 method.adaptation.batch_size=2 method.adaptation.eval_every=1 method.adaptation.held_out=6", 6),
        ("method=twin_merging steps=1 method.adaptation.batch_size=2 method.adaptation.held_out=6", 40),
        ("method=regmean method.statistics.examples=4000", 40),
    ],
)
def test_room_for_training_images_where_they_are_read(small: Suite, line: str, count: int | None):  # noqa: F811
    _, found = told(small, f"{line} tasks=[mnist] checkpoints=fusionbench")
    items = [item for item in found["items"] if item["what"] == "decoded training images"]
    expected = [] if count is None else [(count * SQUARE, False, True)]
    assert [(item["nbytes"], item["present"], item["made"]) for item in items] == expected


def test_decoded_training_images_are_found_again(small: Suite):  # noqa: F811
    line = "method=regmean method.statistics.examples=8 checkpoints=fusionbench"
    small.run(line)
    assert not missing(told(small, line)[1])
    assert missing(told(small, line.replace("=8", "=9"))[1]) == {"decoded training images"}


def test_an_inventory_asks_for_no_training_images_by_itself(small: Suite):  # noqa: F811
    given = Sources("fusionbench", small.cache, tasks_file=small.tasks_file)
    assert "decoded training images" not in [item.what for item in stock.inventory("mnist", given)]
    items = stock.inventory("mnist", given, trained=None)
    assert (items[-1].what, items[-1].nbytes) == ("decoded training images", 40 * SQUARE)
    assert "at most" in items[-1].note


def test_a_line_per_task_and_totals_first(small: Suite, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """What twenty tasks need on a page: 81 files in 21 lines, behind what is missing in all and how long the run takes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = ["method=adarank", "model=vit_l14", "tasks=20", f"cache_dir={small.cache}", "device=cpu"]
    status, said = called(doctor.main, line)
    assert status == 1
    lines = said.splitlines()
    table = lines[next(number for number, one in enumerate(lines) if one.split()[:2] == ["Task", "Needed"]) + 2:]
    rows = table[: table.index("")]
    assert len(rows) == 21
    assert rows[0].split()[:2] == ["all", "pretrained"]
    assert "expert, head, test images, decoded test images" in rows[1]
    heads = ("81 missing", "time ", "Memory and work")
    place = {start: number for number, one in enumerate(lines) for start in heads if one.startswith(start)}
    assert place["81 missing"] < place["time "] < lines.index(rows[0]) < place["Memory and work"]
    assert sum(one.startswith("By hand") for one in lines) == 4
    assert "57 more by hand: --verbose lists every file" in said
    for verbose in ("--verbose", "doctor.verbose=true"):
        whole = called(doctor.main, [*line, verbose])[1]
        assert whole.count("By hand, to") == 61
        assert "decoded test images   kmnist" in whole


def test_a_task_whose_files_are_here_lacks_nothing(small: Suite):  # noqa: F811
    small.run("method=weight_averaging")
    said = called(doctor.main, small.line("method=iso_c tasks=[mnist,dtd,svhn]"))[1]
    missing = {one.split()[0]: one.split()[-1] for one in said.splitlines() if one.strip().startswith(("mnist", "dtd", "svhn"))}
    assert (missing["mnist"], missing["dtd"]) == ("-", "-")
    assert missing["svhn"] == "images"
