"""Experts of language models that do not fit, and lines that cannot be run: one line each that names the thing and the fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import text_files
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.text_suite import TextSuite
from tests.support.text_suite import texts as texts

FLAN = "method=task_arithmetic model=flan_t5_base tasks=[sst2,rte]"
GPT2 = "method=task_arithmetic model=gpt2 tasks=[sst2,mnli]"


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def has(said: str, *parts: str) -> None:
    assert all(part in said for part in parts), said


def own(texts: TextSuite) -> Path:
    """A folder of GPT-2's experts in the own arrangement."""
    folder = texts.folder / "own"
    shutil.copytree(texts.models / "openai-community/gpt2", folder / "pretrained")
    for task in ("sst2", "mnli"):
        shutil.copytree(texts.models / f"tanganke/gpt2_{task}", folder / task)
    return folder


def test_an_adapter_of_another_base(texts: TextSuite):
    adapter = texts.models / "tanganke/flan-t5-base_glue-rte_lora-16"
    edit(adapter / "adapter_config.json", base_model_name_or_path="google/flan-t5-large")
    has(texts.refused(FLAN), "google/flan-t5-large", "google/flan-t5-base", "give adapters of the same model")


def test_an_adapter_of_another_width(texts: TextSuite):
    adapter = texts.models / "tanganke/flan-t5-base_glue-rte_lora-16/adapter_model.safetensors"
    save_file({name: torch.zeros(*(side + 1 for side in t.shape)) for name, t in load_file(adapter).items()}, adapter)
    has(texts.refused(FLAN), "'rte'", "lora_")


def test_an_expert_of_another_vocabulary_or_tokenizer(texts: TextSuite):
    folder = own(texts)
    line = f"{GPT2} checkpoints.dir={folder}"
    vocabulary = json.loads((folder / "sst2/vocab.json").read_text())
    first, second = list(vocabulary)[300:302]
    swapped = {**vocabulary, first: vocabulary[second], second: vocabulary[first]}
    (folder / "sst2/vocab.json").write_text(json.dumps(swapped))
    has(texts.refused(line), "'sst2'", "tokenizer", "another")
    (folder / "sst2/vocab.json").write_text(json.dumps(vocabulary))
    file = folder / "sst2/model.safetensors"
    tensors = load_file(file)
    tensors["transformer.wte.weight"] = torch.zeros(text_files.VOCABULARY + 1, 16)
    save_file(tensors, file)
    has(texts.refused(line), "transformer.wte.weight", f"{text_files.VOCABULARY + 1} and {text_files.VOCABULARY} tokens")


def test_a_head_of_another_class_count(texts: TextSuite):
    shutil.rmtree(texts.models / "tanganke/gpt2_sst2")
    shutil.copytree(texts.models / "tanganke/gpt2_mnli", texts.models / "tanganke/gpt2_sst2")
    has(texts.refused(GPT2), "'sst2'", "3 classes", "data 2")


def shards(folder: Path, missing: str) -> None:
    """Store a model in two shards, of which the index names one that is not there."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, folder / "model-00001-of-00002.safetensors")
    places = {name: "model-00001-of-00002.safetensors" if name in names[:5] else missing for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_a_shard_index_that_names_a_missing_file(texts: TextSuite):
    shards(texts.models / "tanganke/gpt2_mnli", "model-00002-of-00002.safetensors")
    has(texts.refused(GPT2), "model.safetensors.index.json", "model-00002-of-00002.safetensors")
    folder = texts.folder / "own"
    shutil.copytree(texts.models / "openai-community/gpt2", folder / "pretrained")
    for task in ("sst2", "mnli"):
        shutil.copytree(texts.models / f"tanganke/gpt2_{task}", folder / task)
    has(texts.refused(f"{GPT2} checkpoints.dir={folder}"), "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("method", ["surgery", "surgery_v2"])
def test_methods_that_change_features_of_a_model_that_generates(texts: TextSuite, method: str):
    steps = "method.adaptation.steps=2 method.adaptation.batch_size=4"
    has(texts.refused(f"method={method} model=flan_t5_base tasks=[sst2,rte] {steps}"), "features", "merges weights")


def test_an_expert_whose_classes_have_another_order(texts: TextSuite):
    folder = own(texts)
    line = f"{GPT2} checkpoints.dir={folder} limit=2"
    edit(folder / "mnli/config.json", id2label={"0": "Contradiction", "1": "Neutral", "2": "Entailment"})
    has(texts.refused(line), "'mnli'", "contradiction, neutral, entailment", "entailment, neutral, contradiction")
    edit(folder / "mnli/config.json", id2label={"0": "entailment", "1": "neutral", "2": "contradiction"})
    texts.run(line)


def test_an_answer_that_is_never_generated_whole(texts: TextSuite):
    data = text_files.task(texts.folder / "data", "rte", template="{sentence}", words=["no", "yes and no " * 9])
    has(texts.refused(f"{FLAN} data_dir={data}"), "'rte'", "'yes and no ", "9 tokens")


def test_a_mean_of_experts_that_are_not_merged(texts: TextSuite):
    line = f"{GPT2} checkpoints.tensors=blocks_on_mean checkpoints.experts=1"
    has(texts.refused(line), "blocks_on_mean", "checkpoints.experts", "tasks=['sst2']")


def test_what_a_folder_of_ones_own_lacks(texts: TextSuite):
    folder = own(texts)
    line = f"{GPT2} checkpoints.dir={folder}"
    edit(folder / "mnli/config.json", model_type="roberta")
    has(texts.refused(line), "'mnli'", "'roberta'", "gpt2")
    edit(folder / "mnli/config.json", model_type="gpt2")
    tensors = load_file(folder / "mnli/model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != "score.weight"}, folder / "mnli/model.safetensors")
    has(texts.refused(line), "'mnli'", "no head")
    shutil.rmtree(folder / "mnli")
    has(texts.refused(line), "own/mnli is missing", "pretrained, sst2")


@pytest.mark.parametrize(("line", "parts"), [
    ("model=gpt2 tasks=glue8", ("'stsb'", "gpt2")),
    ("model=gpt2 tasks=[sst2] checkpoints=tall", ("checkpoints=tall", "fusionbench")),
    ("model=gpt2 tasks=[sst2] checkpoints=own", ("checkpoints.dir",)),
    ("model=gpt2 tasks=[sst2] data.protocol=adarang", ("'adarang'", "'adarank'")),
    ("model=roberta tasks=[sst2] data.protocol=metamerging", ("metamerging", "roberta")),
    ("model=gpt2 tasks=[sst2] data.corruption=motion_blur", ("data.corruption", "images")),
    ("model=gpt2 tasks=[sst2] checkpoints.tensors=heads", ("checkpoints.tensors", "heads")),
    ("model=gpt2 tasks=[mnist]", ("mnist",)),
    ("model=vit_mini tasks=mini8 data.protocol=plain", ("data.protocol", "images")),
    ("model=vit_b32 tasks=[mnist] checkpoints.tensors=blocks", ("checkpoints.tensors", "images")),
])
def test_lines_that_cannot_be_run(texts: TextSuite, line: str, parts: tuple[str, ...]):
    has(texts.refused(f"method=task_arithmetic {line}"), *parts)
