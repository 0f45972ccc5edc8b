"""Published language models from the hub to a record: GPT-2, RoBERTa and Flan-T5 on GLUE, as the papers run them."""

from __future__ import annotations

import numpy as np
import pytest

from fusionbench_lite.evaluation.results import score_in
from fusionbench_lite.tables import records
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.text_suite import TEST, TextSuite
from tests.support.text_suite import texts as texts

STEPS = "method.adaptation.steps=2 method.adaptation.batch_size=4"


@pytest.mark.parametrize("model", ["gpt2", "roberta"])
def test_adarank_on_models_with_heads(texts: TextSuite, model: str):
    record = texts.run(f"method=adarank model={model} tasks=glue7 {STEPS}")
    cells = record.data["selections"]["last"]["per_task"]
    assert list(cells) == ["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte"]
    assert [cell["metric"] for cell in cells.values()] == ["matthews", *["accuracy"] * 6]
    assert all(cell["examples"] == TEST for cell in cells.values())


def test_doge_on_models_that_generate(texts: TextSuite):
    record = texts.run("method=doge_ta model=flan_t5_base tasks=glue8 method.steps=3")
    cells = record.data["selections"]["last"]["per_task"]
    assert list(cells) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    assert [cell["metric"] for cell in cells.values()] == [*["exact_match"] * 7, "spearman"]
    with np.load(record.path / "samples.npz") as samples:
        assert samples["last/sst2/predictions"].dtype.kind == "U"
        assert samples["last/stsb/answers"].shape == samples["last/stsb/predictions"].shape == (TEST,)
    assert 0 <= cells["stsb"]["unreadable"] <= TEST


def test_an_adaptation_of_a_model_that_generates_keeps_its_answers(texts: TextSuite):
    record = texts.run(f"method=adamerging_layerwise model=flan_t5_base tasks=[sst2,stsb] {STEPS}")
    cells = record.data["selections"]["last"]["per_task"]
    with np.load(record.path / "samples.npz") as samples:
        answers, scores = samples["last/stsb/answers"], samples["last/stsb/predictions"]
    assert [score_in(text) or 0.0 for text in answers.tolist()] == scores.tolist()
    assert cells["stsb"]["unreadable"] == sum(score_in(text) is None for text in answers.tolist())
    losses = (record.path / "history.csv").read_text().splitlines()
    assert losses[2] != losses[3]


def test_a_small_llama_answers_in_words(command, tmp_path):
    """Merged, judged by exact match; and the large one of the papers' table is no run."""
    recipe = "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3}"
    for method in ("ties_merging", "doge_ta", "adamerging_layerwise"):
        line = [f"method={method}", "model=text_mini_llama", "limit=8", recipe, *(["steps=1"] if "ada" in method else [])]
        done = command(*line, "results_dir=r")
        assert done.returncode == 0, done.stderr
    (record,) = [record for record in records.read_all(tmp_path / "r") if record.method == "ties_merging"]
    assert {cell["metric"] for cell in record.data["selections"]["last"]["per_task"].values()} == {"exact_match"}
    refused = command("model=llama2_13b")
    assert refused.returncode == 2
    assert "merge_files and evaluate_llm merge and judge such models" in refused.stderr
