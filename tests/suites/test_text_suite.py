"""The language suite against transformers and peft: what a record of individual models holds is what their own code predicts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionbench_lite.models import language
from fusionbench_lite.running import loading
from fusionbench_lite.tables.records import Record
from tests.support import language_files
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.text_suite import TEST, TextSuite
from tests.support.text_suite import texts as texts

TASKS = {"gpt2": "[sst2,mnli]", "roberta": "[mrpc,mnli]", "flan_t5_base": "[sst2,mnli,stsb]"}


def rows(task: str, model: str) -> list[dict[str, object]]:
    """The texts of a task's test split, as the model's protocol chooses it."""
    return language_files.rows(task, TEST, 40 if task == "mnli" and model == "gpt2" else 0)


def predictions(record: Record, task: str, what: str = "predictions") -> np.ndarray:
    with np.load(record.path / "samples.npz") as samples:
        return samples[f"last/{task}/{what}"]


def check_batches(record: Record) -> None:
    """The suite that was run predicts the same with any number of examples in a pass, and of a part of them."""
    (suite,) = loading._latest.values()
    for size in (1, 5):
        evaluator = dataclasses.replace(suite.evaluator, batch_size=size)
        for task, weights in suite.experts.items():
            result = evaluator.task(task, suite.encoder(weights))
            assert result.predictions.tolist() == predictions(record, task).tolist()


@pytest.mark.parametrize("model", ["gpt2", "roberta"])
def test_individual_models_predict_as_transformers_does(texts: TextSuite, model: str):
    from transformers import AutoTokenizer, GPT2ForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

    record = texts.run(f"method=individual model={model} tasks={TASKS[model]}")
    base = texts.models / ("openai-community/gpt2" if model == "gpt2" else "FacebookAI/roberta-base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token if model == "gpt2" else "<pad>"
    varied = False
    for task in record.data["tasks"]:
        if model == "gpt2":
            full = GPT2ForSequenceClassification.from_pretrained(texts.models / f"tanganke/gpt2_{task}", pad_token_id=0)
        else:
            rate = "5e-05" if task == "mrpc" else "1e-05"
            folder = texts.models / f"vanillaOVO/roberta_base_glue_ckpts/{task}/roberta-base_lr{rate}"
            full = RobertaForSequenceClassification(RobertaConfig.from_pretrained(folder))
            full.load_state_dict(torch.load(folder / "pytorch_model.bin"), strict=False)
        columns = language_files.COLUMNS[task]
        read = [[str(row[name]) for row in rows(task, model)] for name in columns]
        batch = tokenizer(*read, padding=True, return_tensors="pt")
        with torch.no_grad():
            want = full.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
        varied |= len(set(want.tolist())) > 1
        assert predictions(record, task).tolist() == want.tolist()
    assert varied
    check_batches(record)


def test_individual_adapters_answer_as_peft_and_transformers_do(texts: TextSuite):
    from peft import PeftModel
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    record = texts.run(f"method=individual model=flan_t5_base tasks={TASKS['flan_t5_base']}")
    place = texts.models / "google/flan-t5-base"
    tokenizer = AutoTokenizer.from_pretrained(place)
    prompts = language_files.prompts()
    for task in record.data["tasks"]:
        base = T5ForConditionalGeneration.from_pretrained(place, config=T5Config.from_pretrained(place)).eval()
        assert base.lm_head.weight.data_ptr() != base.shared.weight.data_ptr()
        full = PeftModel.from_pretrained(base, texts.models / f"tanganke/flan-t5-base_glue-{task}_lora-16").merge_and_unload()
        read = [prompts[task].format(**row) for row in rows(task, "flan_t5_base")]
        batch = tokenizer(read, padding=True, truncation=True, max_length=512, return_tensors="pt")
        answers = tokenizer.batch_decode(full.generate(**batch, max_length=10, do_sample=False), skip_special_tokens=True)
        assert len(set(answers)) > 1
        assert predictions(record, task, "answers" if task == "stsb" else "predictions").tolist() == answers
    check_batches(record)


def test_a_record_says_protocol_tensors_and_sources(texts: TextSuite):
    record = texts.run("method=task_arithmetic model=gpt2 tasks=[cola,mnli] data.protocol=fusionbench checkpoints.tensors=blocks")
    data = record.data
    assert [cell["metric"] for cell in data["selections"]["last"]["per_task"].values()] == ["accuracy", "accuracy"]
    assert data["checkpoints"]["family"] == "fusionbench"
    assert data["model_details"] == {"protocol": "fusionbench", "tensors": "blocks", "longest": 512}
    sources = data["checkpoints"]["sources"]
    assert set(data["checkpoints"]["files"]) == set(sources)
    name = "tanganke/gpt2_mnli:model.safetensors"
    assert sources[name].startswith("tanganke/gpt2_mnli@")
    assert "validation_matched" in data["images"]["mnli"]["source"]
    other = texts.run("method=task_arithmetic model=gpt2 tasks=[cola,mnli] data.protocol=fusionbench")
    assert other.key != record.key


def test_a_t5_that_ties_and_one_that_does_not(tmp_path: Path):
    language_files.flan_t5(tmp_path, tasks=())
    model = language.full_model(tmp_path / "google/flan-t5-base")
    assert model.lm_head.weight is not model.shared.weight
    assert not model.config.scale_decoder_outputs
