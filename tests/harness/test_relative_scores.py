"""Scores relative to individual models: doGe's printed ones from their counts, ratios on the same examples, what is not alike."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.intervals import wilson
from fusionbench_lite.harness import normalising, sets


def record(scores: dict[str, list[float]], folder: str = "merged", **about) -> dict:
    """A record with these scores of examples by set."""
    shared = {"task": "t", "metric": "m", "filter": "f", "shots": 0, "version": "1", "data": "d", "prompts": "p"} | about
    return {
        "key": f"key of {folder}", "model": {"folder": folder}, "settings": {"chat_template": False},
        "sets": {
            name: shared | {"scores": of, "value": float(np.mean(of)), "interval": list(wilson(int(sum(of)), len(of)))}
            for name, of in scores.items()
        },
    }


def counted(right: int, of: int) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


PRINTED = {
    "gsm8k": {889: 105.0}, "math": {662: 94.4}, "humaneval": {30: 50.0, 36: 60.0, 38: 63.3, 48: 80.0, 34: 56.7},
    "mbpp": {149: 87.6, 152: 89.4, 158: 92.9, 157: 92.4, 147: 86.5},
}


INDIVIDUAL = {"gsm8k": 0.6422, "math": 0.1402, "humaneval": 0.3659, "mbpp": 0.34}


@pytest.mark.parametrize("name", PRINTED)
def test_printed_scores_are_those_of_their_counts(name):
    """The counts behind the columns of doGe's Table 10; 149 of MBPP is printed as 87.7."""
    for right, printed in PRINTED[name].items():
        items = sets.published()[name].items
        part = normalising.relative(record({name: counted(right, items)}), {name: None})["sets"][name]
        assert round(part["value"], 1) == printed
        assert part["individual"] == pytest.approx(INDIVIDUAL[name], abs=5e-5)


def test_the_mean_of_the_published_ones_says_what_is_missing():
    scores = {name: counted(next(iter(PRINTED[name])), sets.published()[name].items) for name in PRINTED}
    found = normalising.relative(record(scores), dict.fromkeys(scores))
    values = [part["value"] for part in found["sets"].values()]
    assert found["average"] == pytest.approx(sum(values) / 4)
    half = np.sqrt(sum((part["value"] - part["interval"][0]) ** 2 for part in found["sets"].values())) / 4
    assert found["interval"][0] == pytest.approx(found["average"] - half)
    assert [part["model"] for part in found["sets"].values()] == ["WizardMath-13B-V1.0"] * 2 + ["WizardLM-13B-V1.2"] * 2
    assert any("Table 10 has AlpacaEval too" in text for text in found["caveats"])
    assert sets.INDIVIDUAL in found["caveats"]
    assert sets.PROTOCOL in found["caveats"]


def test_a_ratio_is_of_the_same_examples():
    """Where both models are right on the same examples, the ratio is known exactly, however few there are."""
    scores = counted(10, 40)
    same = normalising.relative(record({"t": scores}), {"t": record({"t": scores}, "expert")})["sets"]["t"]
    assert same == {"value": 100.0, "interval": [100.0, 100.0], "individual": 0.25, "model": "expert", "source": "key of expert"}
    apart = normalising.relative(record({"t": scores}), {"t": record({"t": scores[::-1]}, "expert")})["sets"]["t"]
    assert apart["value"] == 100.0
    assert apart["interval"][0] < 60 < 160 < apart["interval"][1]


def test_the_interval_of_a_ratio_covers_it():
    """Of 200 draws of two models whose true ratio is 80, about 95 % of intervals hold it."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(200):
        expert = (generator.random(150) < 0.5).astype(float)
        merged = np.where(generator.random(150) < 0.7, expert, generator.random(150) < 1 / 6)  # 0.7 x 0.5 + 0.3 / 6 = 0.4
        found = normalising.relative(record({"t": merged.astype(float).tolist()}), {"t": record({"t": expert.tolist()})})
        held += found["interval"][0] <= 80 <= found["interval"][1]
    assert 180 <= held <= 199


def test_an_expert_that_is_never_right_in_some_resamples_leaves_no_interval():
    part = normalising.relative(record({"t": counted(2, 6)}), {"t": record({"t": counted(1, 6)})})
    assert (part["sets"]["t"]["value"], part["sets"]["t"]["interval"], part["interval"]) == (pytest.approx(200), None, None)


@pytest.mark.parametrize("what", ["task", "metric", "filter", "shots", "version", "data", "prompts"])
def test_what_was_not_measured_alike_is_refused(what):
    here, there = record({"t": counted(2, 6)}), record({"t": counted(1, 6)}, "expert", **{what: "other"})
    with pytest.raises(InputError, match=rf"individual\.t: {what} is .* for expert: evaluate both alike"):
        normalising.relative(here, {"t": there})


def test_chat_templates_may_differ_but_not_their_use():
    here, there = record({"t": counted(2, 6)}), record({"t": counted(2, 6)}, "expert", prompts="in another template")
    for one in (here, there):
        one["settings"] = {"chat_template": True}
    assert normalising.relative(here, {"t": there})["average"] == 100
    there["settings"] = {"chat_template": False}
    with pytest.raises(InputError, match="chat_template is True here and False"):
        normalising.relative(here, {"t": there})


ZERO = record({"t": counted(0, 6)}, "expert")
UNDIVIDED = [
    ("t", ZERO, "individual.t: expert scores 0"), ("u", ZERO, "individual.u: expert was evaluated on t only"),
    ("gsm9k", None, "has no 'gsm9k', did you mean 'gsm8k'?"),
]


@pytest.mark.parametrize(("name", "individual", "said"), UNDIVIDED)
def test_what_cannot_be_divided_by_is_refused_before_anything_runs(name, individual, said):
    with pytest.raises(InputError, match=re.escape(said)):
        normalising.check(name, individual)
