"""What each family of tables does with a task, by model."""

from __future__ import annotations

import pytest

from fusionbench_lite.data.text import protocols
from fusionbench_lite.data.text.protocols import protocol
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.metrics import METRICS

PUBLISHED = [
    ("gpt2", None, ("adarank", 512, "pair", "validation_mismatched", "matthews", "accuracy")),
    ("roberta", None, ("adarank", 128, "pair", "validation_matched", "matthews", "accuracy")),
    ("gpt2", "metamerging", ("metamerging", 512, "pair", "validation_mismatched", "accuracy", "accuracy")),
    ("gpt2", "fusionbench", ("fusionbench", 512, "pair", "validation_matched", "accuracy", "accuracy")),
    ("flan_t5_base", None, ("fusionbench", 512, "prompt", "validation_matched", "exact_match", "spearman")),
    ("flan_t5_large", None, ("fusionbench", 512, "prompt", "validation_matched", "exact_match", "spearman")),
    ("flan_t5_base", "subspace_fusion", ("subspace_fusion", 512, "prompt", "validation_matched", "exact_match", "spearman")),
    ("minilm", None, ("plain", 64, "pair", "validation_matched", "accuracy", "spearman")),
    ("text_mini_seq2seq", None, ("plain", 128, "prompt", "validation_matched", "exact_match", "spearman")),
]


@pytest.mark.parametrize(("model", "name", "expected"), PUBLISHED, ids=lambda value: value if isinstance(value, str) else None)
def test_a_protocol_is_that_of_the_published_code(model: str, name: str | None, expected: tuple):
    found = protocol(name, model)
    told = (found.name, found.longest, found.style, found.splits["mnli"], found.metric("cola"), found.metric("stsb"))
    assert told == expected
    assert found.source


def test_mrpc_and_qqp_are_judged_by_accuracy_everywhere():
    for model, name, (*_, style) in ((model, name, expected) for model, name, expected in PUBLISHED):
        usual = "exact_match" if protocol(name, model).style == "prompt" else "accuracy"
        assert {protocol(name, model).metric(task) for task in ("mrpc", "qqp", "sst2")} == {usual}, style


def test_a_task_s_own_metric_counts_where_the_protocol_says_nothing():
    plain = protocol("plain", "roberta")
    assert plain.metric("mine", "f1") == "f1"
    assert protocol("plain", "flan_t5_base").metric("mine", "f1") == "exact_match"
    assert protocol("plain", "flan_t5_base").metric("mine", "spearman") == "spearman"


def test_every_metric_is_known_and_only_plain_truncates_at_the_model():
    table, _ = protocols._table()
    for name, entry in table.items():
        for model in entry["models"]:
            found = protocol(name, model)
            assert set(found.metrics.values()) <= set(METRICS)
            assert found.beyond == ("truncate" if name == "plain" else "refuse")


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("adarnk", "gpt2", "unknown protocol 'adarnk': did you mean 'adarank'"),
        ("metamerging", "roberta", "protocol metamerging is not of roberta: choose one of adarank, plain"),
        (None, "gpt3", "no protocol is of model 'gpt3': did you mean 'gpt2'"),
    ],
)
def test_what_is_not_published_is_refused(name: str | None, model: str, said: str):
    with pytest.raises(InputError, match=said):
        protocol(name, model)
