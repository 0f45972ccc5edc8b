"""Language models in transformers' layout, loaded by transformers here, and one with adapters in the own layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite import export
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running.loading import load
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.text_suite import TEST, TextSuite
from tests.support.text_suite import texts as texts

STEPS = "steps=2 method.adaptation.batch_size=4"


def inputs_of(texts: TextSuite, line: str, task: str) -> dict[str, torch.Tensor]:
    """The token ids of a task's test texts, all in one batch."""
    with Progress() as progress:
        return dict(load(plan_of(texts.line(line)), progress).inputs(task, "test", np.arange(TEST)))


def recorded(record, task: str) -> np.ndarray:
    with np.load(record.path / "samples.npz") as samples:
        return samples[f"last/{task}/predictions"]


@pytest.mark.parametrize(("model", "more"), [("gpt2", "method=adarank " + STEPS), ("roberta", "method=task_arithmetic")])
def test_models_with_heads_have_a_folder_for_every_task(texts: TextSuite, tmp_path: Path, model: str, more: str, capsys):
    import transformers

    line = f"{more} model={model} tasks=[sst2,mnli]"
    record, out = texts.run(line), tmp_path / "out"
    assert export.main([str(record.path), f"out={out}", "select=last"]) == 0
    assert f"mnli: {TEST} of {TEST} predictions equal" in capsys.readouterr().out
    for task, classes in (("sst2", 2), ("mnli", 3)):
        loaded, said = transformers.AutoModelForSequenceClassification.from_pretrained(out / task, output_loading_info=True)
        assert not said["missing_keys"]
        assert loaded.config.num_labels == classes
        tokenizer = transformers.AutoTokenizer.from_pretrained(out / task)
        assert len(tokenizer("a text")["input_ids"])
        with torch.no_grad():
            logits = loaded.eval()(**inputs_of(texts, line, task)).logits
        assert (logits.argmax(-1).numpy() == recorded(record, task)).all()
    assert json.loads((out / "sst2" / "config.json").read_text())["id2label"]["0"] != "LABEL_0"


def test_a_model_that_generates_is_one_folder(texts: TextSuite, tmp_path: Path):
    import transformers

    line = "method=ties_merging model=flan_t5_base tasks=[sst2,rte]"
    record, out = texts.run(line), tmp_path / "out"
    assert export.main([str(record.path), f"out={out}"]) == 0
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for task in ("sst2", "rte"):
        with torch.no_grad():
            ids = loaded.generate(**inputs_of(texts, line, task), max_length=10, do_sample=False, num_beams=1)
        answers = np.array(tokenizer.batch_decode(ids, skip_special_tokens=True))
        assert (answers == recorded(record, task)).all()


@pytest.mark.parametrize(("method", "more"), [("surgery", STEPS), ("twin_merging", STEPS), ("tall_masks", "")])
def test_parts_of_tasks_are_in_the_own_layout(texts: TextSuite, tmp_path: Path, method: str, more: str):
    line = f"method={method} {more} model=roberta tasks=[sst2,mnli]"
    record, out = texts.run(line), tmp_path / "out"
    assert export.main([str(record.path), f"out={out}", "select=last"]) == 0
    model = fbl.load_exported(out)
    for task in ("sst2", "mnli"):
        made = model.logits(inputs_of(texts, line, task), task)
        assert (made.argmax(-1).numpy() == recorded(record, task)).all()


def test_masks_of_a_model_that_generates_are_kept_small(texts: TextSuite, tmp_path: Path, capsys):
    import transformers

    line = "method=emr_merging model=flan_t5_base tasks=[sst2,stsb]"
    record, out = texts.run(line), tmp_path / "out"
    assert export.main([str(record.path), f"out={out}"]) == 0
    assert f"stsb: {TEST} of {TEST} predictions equal" in capsys.readouterr().out
    model, inputs = fbl.load_exported(out), inputs_of(texts, line, "sst2")
    ids = model.answers(inputs, "sst2")
    answers = transformers.AutoTokenizer.from_pretrained(out).batch_decode(ids, skip_special_tokens=True)
    assert answers == recorded(record, "sst2").tolist()
    with pytest.raises(fbl.MergeError, match=r"call answers\(inputs, 'sst2'\)"):
        model.logits(inputs, "sst2")


def test_a_small_llama_is_loaded_for_causal_language(command, tmp_path: Path):
    import transformers

    recipe = "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3}"
    assert command("method=ties_merging", "model=text_mini_llama", "limit=8", recipe, "results_dir=r").returncode == 0
    (place,) = (tmp_path / "r" / "records").iterdir()
    done = command(str(place), f"out={tmp_path / 'out'}", "results_dir=r", module="fusionbench_lite.export")
    assert done.returncode == 0, done.stderr
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "llama"


def test_a_merge_of_adapters_is_an_adapter(texts: TextSuite, tmp_path: Path, capsys):
    """Loaded by peft on transformers' base, it predicts the record; the weights agree with those of the whole model."""
    import peft
    import transformers

    line = "method=task_arithmetic model=flan_t5_base tasks=[sst2,rte]"
    record = texts.run(line)
    for layout in ("peft", "transformers"):
        assert export.main([str(record.path), f"out={tmp_path / layout}", f"layout={layout}"]) == 0
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "google/flan-t5-base"
    assert config["r"] <= 8
    place = texts.models / "google/flan-t5-base"
    base, before = (transformers.AutoModelForSeq2SeqLM.from_pretrained(place) for _ in range(2))
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").merge_and_unload().state_dict()
    whole = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "transformers").state_dict()
    assert all(torch.allclose(adapted[name], tensor, atol=1e-5) for name, tensor in whole.items())
    assert not all(torch.equal(adapted[name], tensor) for name, tensor in before.state_dict().items())


def test_what_is_no_adapter_is_not_made_one(texts: TextSuite, tmp_path: Path, capsys):
    record = texts.run("method=ties_merging model=flan_t5_base tasks=[sst2,rte]")
    assert export.main([str(record.path), f"out={tmp_path / 'a'}", "layout=peft"]) == 2
    assert "it is no adapter" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    record = texts.run("method=task_arithmetic model=roberta tasks=[sst2,rte]")
    assert export.main([str(record.path), f"out={tmp_path / 'a'}", "layout=peft"]) == 2
    assert "are not written with layout=peft" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "layout"), [
    ("method=task_arithmetic model=gpt2 tasks=[sst2]", "transformers"), ("method=emr_merging model=gpt2 tasks=[sst2,rte]", "own"),
    ("method=task_arithmetic model=flan_t5_base tasks=[sst2,rte]", "transformers"),
    ("method=task_arithmetic model=flan_t5_base tasks=[sst2,rte]", "own"),
])
def test_the_lines_of_the_card_run(texts: TextSuite, tmp_path: Path, line: str, layout: str):
    record, out = texts.run(line), tmp_path / "out"
    assert export.main([str(record.path), f"out={out}", f"layout={layout}"]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    names = {"texts": ["one text", "another, longer text"], "prompts": ["one text", "another, longer text"]}
    exec(code.replace("'out", f"'{out}"), names)
    assert len(names["answers"] if "answers" in names else names["logits"]) == 2
    assert "under the protocol" in card
