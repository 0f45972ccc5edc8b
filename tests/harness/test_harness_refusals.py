"""What an evaluation refuses, in one line each, and what it leaves then: nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.harness import running, sets
from fusionbench_lite.harness.running import Settings
from tests.harness.conftest import SUMS, WRITTEN
from tests.support.tiny_llama import tokenizer, write_model, write_task

COMMAND = "fusionbench_lite.evaluate_llm"
pytestmark = pytest.mark.usefixtures("harness")


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy of a model to spoil."""
    return shutil.copytree(llama, tmp_path / "model")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "sums", {"test": [{**row, "answer": "1"} for row in SUMS[:2]]}, **WRITTEN)
    write_task(folder, "unsafe", {"test": [{**row, "answer": "1"} for row in SUMS[:2]]}, unsafe_code=True, **WRITTEN)
    write_task(folder, "zero", {"test": [{**row, "answer": "1"} for row in SUMS[:2]]}, num_fewshot=0, **WRITTEN)
    write_task(folder, "absent", {"test": []}, **WRITTEN)
    (folder / "absent.test.jsonl").unlink()
    (folder / "both.yaml").write_text(json.dumps({"group": "both", "task": ["sums", "zero"]}))
    return folder


def infinite(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = float("inf")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def half(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def larger(model: Path) -> None:
    words = tokenizer()
    words.add_tokens(["[PAD]", "[MASK]"])
    words.save_pretrained(model)


SPOILED = {
    "no config": (lambda model: (model / "config.json").unlink(), "has no config.json: copy it from the pretrained model"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
    "a broken index": (lambda model: (model / "model.safetensors.index.json").write_text("[]"), "no index of shards"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer"),
    "an infinite value": (infinite, "model.layers.1.mlp.up_proj.weight has values that are not finite"),
    "a larger tokenizer": (larger, "the tokenizer has 101 entries, the embedding 99 rows"),
    "half a file": (half, "transformers cannot load it"),
    "another class": (lambda model: (model / "config.json").write_text('{"model_type": "lama"}'), "transformers cannot load it"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_folder_that_is_no_model(what, model, tasks, command):
    spoil, said = SPOILED[what]
    spoil(model)
    done = command(str(model), "tasks=sums", f"task_dir={tasks}", "device=cpu", module=COMMAND)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fusionbench_lite: ")]
    assert said in line
    assert str(model) in line
    assert not (model.parent / "results").exists()


def test_an_index_that_names_a_missing_shard(tmp_path, command):
    model = write_model(tmp_path / "model", shard="40KB")
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.unlink()
    done = command("model", "tasks=gsm8k", module=COMMAND)
    assert done.returncode == 2
    assert f"names {shard.name}, which is not there" in done.stderr


TASKS = {
    "sum": ({}, "unknown task 'sum'"),
    "unsafe": ({}, "unsafe: programs that the model writes would run on this machine"),
    "zero": ({"shots": 2}, "shots=2: zero is written for none"),
    "both": ({}, "both has no score of its own: name its tasks, sums, zero"),
    "absent": ({}, "absent: the harness cannot read it (FileNotFoundError"),
    "sums": ({"chat_template": True}, "the tokenizer has no chat template"),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_cannot_be_evaluated(name, llama, tasks, monkeypatch):
    from lm_eval import tasks as library

    whole = library.TaskManager
    # the harness' own 14,685 tasks take 12 s to read, and no name here is theirs
    monkeypatch.setattr(library, "TaskManager", lambda include_path, include_defaults=False: whole(
        include_path=include_path, include_defaults=False))  # fmt: skip
    given, said = TASKS[name]
    with pytest.raises(InputError, match=re.escape(said)):
        running.run(llama, sets.asked(name), Settings(device="cpu", **given), tasks)


def test_without_the_harness_one_line_says_what_to_install(monkeypatch, llama, command):
    import importlib.metadata

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    done = command(str(llama), "tasks=gsm8k", module=COMMAND)
    assert done.stderr == "fusionbench_lite: evaluation needs lm-evaluation-harness: pip install 'fusionbench_lite[llm]'\n"


def test_a_place_of_another_evaluation_is_kept(llama, tasks, tmp_path, command):
    line = [str(llama), "tasks=sums", f"task_dir={tasks}", "device=cpu", "out=record.json"]
    assert command(*line, module=COMMAND).returncode == 0
    before = (tmp_path / "record.json").read_bytes()
    done = command(*line, "limit=1", module=COMMAND)
    assert done.returncode == 2
    assert "record.json is of another evaluation" in done.stderr
    assert (tmp_path / "record.json").read_bytes() == before
    assert command(*line, "limit=1", "overwrite=true", module=COMMAND).returncode == 0
    assert json.loads((tmp_path / "record.json").read_text())["trial"]


def test_permission_to_run_programs_is_taken_back(llama, tasks):
    import os

    running.run(llama, sets.asked("unsafe"), Settings(unsafe_code=True, device="cpu"), tasks)
    assert running.CODE not in os.environ
    with pytest.raises(InputError, match="programs that the model writes"):
        running.run(llama, sets.asked("unsafe"), Settings(device="cpu"), tasks)
