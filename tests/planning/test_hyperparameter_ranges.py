"""The range of every hyperparameter of every method, stated once more and on its own (docs/decisions.md, D21)."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError
from fusionbench_lite.fields import describe

ANY, POSITIVE, NOT_NEGATIVE = (f"a finite number in {interval}" for interval in ("(-inf, inf)", "(0, inf)", "[0, inf)"))
SHARE, PART, RATE = (f"a finite number in {interval}" for interval in ("(0, 1]", "[0, 1]", "[0, 1)"))
PER_TASK = f"{NOT_NEGATIVE}, or such a number for every task as {{task: number}}"
FLAG, NAME, SEED = "true or false", "a name, at least one character long", "an integer"
COUNT, AT_LEAST_ONE = "an integer of at least 0", "an integer of at least 1"
MATRICES, RANK = "one of attn_mlp, all_2d, encoder_linear, block_linear, query_value", "one of fixed, numerical"

ADAMERGING = {"scaling": ANY, "clamp": FLAG, "lr": POSITIVE}
ADARANK = {
    "scaling": ANY, "rank_ratio": SHARE, "temperature": POSITIVE, "lr": POSITIVE, "learn": "one of both, coefficients, masks",
    "top_only": FLAG, "matrices": MATRICES, "objective": "one of entropy, cross_entropy",
}
TIES = {"keep": SHARE, "reduce": "one of sum, mean, max", "scaling": ANY, "virtual_zeros": COUNT, "count_tied": FLAG}
SURGERY = {"base": NAME, "rank": AT_LEAST_ONE, "lr": POSITIVE, "seed": SEED}
AWD = {"group": "one of tensor, global", "optimizer": "one of gd, adam"}
RANGES = {
    "adamerging_cart": {"scaling": ANY, "rank_ratio": SHARE, "lr": POSITIVE, "matrices": MATRICES},
    "adamerging_iso_cts": {"scaling": ANY, "common_fraction": PART, "lr": POSITIVE, "matrices": MATRICES},
    "adamerging_layerwise": {**ADAMERGING, "objective": "one of entropy, entropy_of_mean"},
    "adamerging_pp_layerwise": {**ADAMERGING, "virtual_zeros": COUNT},
    "adamerging_pp_taskwise": {**ADAMERGING, "virtual_zeros": COUNT},
    "adamerging_taskwise": {**ADAMERGING, "objective": "one of entropy, entropy_of_mean"},
    "adamerging_tsvm": {"scaling": ANY, "rank_ratio": f"{SHARE} or null", "lr": POSITIVE, "matrices": MATRICES},
    "adarank_cart": ADARANK,
    "adarank_iso_cts": {**ADARANK, "common_fraction": PART},
    "adarank_ta": ADARANK,
    "adarank_tsvm": {**ADARANK, "rank_ratio": f"{SHARE} or null", "extra": "one of raw, none"},
    "awd_am": {"alpha": NOT_NEGATIVE, "awd_lr": POSITIVE, "awd_steps": COUNT, **AWD, **ADAMERGING},
    "awd_ta": {"alpha": NOT_NEGATIVE, "lr": POSITIVE, "steps": COUNT, "scaling": ANY, **AWD},
    "breadcrumbs": {"keep": SHARE, "outliers": RATE, "scaling": ANY, "granularity": "one of row, tensor"},
    "cart": {"scaling": ANY, "rank_ratio": SHARE, "matrices": MATRICES},
    "concrete_am": {
        **ADAMERGING, "temperature": POSITIVE, "level": "one of layer, task", "mask_lr": POSITIVE, "inner_lr": POSITIVE,
        "mask_steps": f"{COUNT} or null", "order": "one of paper, released", "seed": SEED,
    },
    "concrete_ta": {"scaling": ANY, "temperature": POSITIVE, "lr": POSITIVE, "seed": SEED},
    "consensus_ta": {"threshold": PER_TASK, "min_tasks": COUNT, "scaling": ANY},
    "consensus_ties": {"threshold": PER_TASK, "min_tasks": COUNT, "scaling": ANY, "virtual_zeros": COUNT},
    "doge_am": {
        "eta": POSITIVE, "keep": SHARE, "delta_steps": COUNT, "delta_lr": POSITIVE, "subspace_divisor": f"{AT_LEAST_ONE} or null",
        "deltas": "one of shared, per_task", "matrices": MATRICES, "rank": RANK, **ADAMERGING,
    },
    "doge_ta": {
        "eta": POSITIVE, "keep": SHARE, "steps": COUNT, "lr": POSITIVE, "subspace_divisor": AT_LEAST_ONE, "matrices": MATRICES,
        "rank": RANK, "coefficients": "one of layer, task, uniform", "scaling": ANY,
        "projection": "one of orthogonal, none, onto", "loss": "one of row, matrix",
    },
    "emr_merging": {"rescale": "one of tensor_mean, global"},
    "fisher_merging": {"epsilon": NOT_NEGATIVE, "normalize": FLAG},
    "individual": {},
    "iso_c": {"scaling": ANY, "matrices": MATRICES, "rank": RANK},
    "iso_cts": {"scaling": ANY, "common_fraction": PART, "matrices": MATRICES},
    "knots_ta": {"scaling": ANY, "cutoff": NOT_NEGATIVE},
    "knots_ties": {"scaling": ANY, "keep": SHARE, "cutoff": NOT_NEGATIVE},
    "magmax": {"scaling": ANY},
    "map": {"high": POSITIVE, "metric": "one of error, loss", "scaling": ANY, "seed": SEED},
    "metagpt": {},
    "metamerging": {
        "raw": ANY, "inner_steps": COUNT, "inner_lr": NOT_NEGATIVE, "lr": POSITIVE, "order": "one of second, first",
        "adapters": "one of blocks, final, none", "rank": AT_LEAST_ONE, "adapter_lr": POSITIVE,
        "adapter_steps": f"{COUNT} or null", "loss": "one of mse, norm", "optimizer": "one of adam, sgd", "seed": SEED,
        "base": f"{NAME} or null", "outer_batch_size": f"{AT_LEAST_ONE} or null",
        "adapter_batch_size": f"{AT_LEAST_ONE} or null", "features": "one of final, positions",
        "length": f"{AT_LEAST_ONE} or null", "updates": "one of sum, task", "split": "one of test, train",
        "judged": "one of adapted, merged",
    },
    "model_stock": {"average": "one of angles, cosines", "granularity": "one of tensor, row"},
    "nuslerp": {"t": PART, "vectors": "one of task_vectors, weights", "dimension": "one of flat, last, first"},
    "pareto_merging": {
        "scaling": ANY, "learn_coefficients": FLAG, "rank": AT_LEAST_ONE, "mode": "one of entropy, distance",
        "scalarisation": "one of tchebycheff, linear", "mu": POSITIVE, "preference": "one of equal, task", "matrices": MATRICES,
        "lr": POSITIVE, "seed": SEED,
    },
    "pcb_merging": {"ratio": SHARE, "scaling": ANY, "variant": "one of A, B, C", "virtual_zeros": COUNT},
    "pretrained": {},
    "prob_surgery": {"base": NAME, "hidden": AT_LEAST_ONE, "lr": POSITIVE, "kl": NOT_NEGATIVE, "shared": FLAG, "seed": SEED},
    "regmean": {"off_diagonal": PART, "square": "one of last, first"},
    "slerp": {"t": PART},
    "star": {"eta": "a finite number in (0, 100]"},
    "surgery": {**SURGERY, "normalise": FLAG, "moments": "one of own, all"},
    "surgery_v2": SURGERY,
    "ta_dare": {"drop_rate": RATE, "seed": SEED, "scaling": ANY},
    "tall_masks": {"threshold": PER_TASK, "base": "one of ta, ties", "virtual_zeros": COUNT},
    "task_arithmetic": {"scaling": ANY},
    "tatr": {"left_out": PART, "scaling": ANY},
    "tatr_zero_shot": {"left_out": PART, "scaling": ANY},
    "ties_dare": {**TIES, "drop_rate": RATE, "seed": SEED},
    "ties_merging": TIES,
    "traditional_mtl": {"lr": POSITIVE, "weight_decay": NOT_NEGATIVE, "warmup": COUNT, "clip": POSITIVE},
    "tsv_c": {"rank_ratio": f"{SHARE} or null"},
    "tsv_m": {"scaling": ANY, "rank_ratio": f"{SHARE} or null", "matrices": MATRICES, "rank": RANK},
    "twin_merging": {
        "scaling": ANY, "rank_ratio": PART, "router": "one of tasks, entropy", "lr": POSITIVE, "dropout": RATE, "seed": SEED,
    },
    "weight_averaging": {},
    "wemoe": {
        "scaling": ANY, "lr": POSITIVE, "schedule": "one of cosine, constant", "routing": "one of example, batch", "seed": SEED,
    },
    "wudi": {"steps": COUNT, "lr": POSITIVE},
}

NOT_NUMBERS = ["0.3", "", [0.3], 1j, True, False, math.nan, math.inf, -math.inf, float]
NOT_INTEGERS = ["3", "", [3], 1j, True, False, math.nan, math.inf, 2.5, 3.0]
NOT_WORDS = ["", "neither", 1, True, math.nan, ["row"]]
VALUES = {  # what is in a range and what is not, ends and neighbours of ends among them
    ANY: ([0, -2, 7.5, -1e9, np.float32(0.25), np.int64(2)], NOT_NUMBERS),
    POSITIVE: ([1e-12, 1, 1e9, np.float64(0.1)], [0, 0.0, -1e-9, -3, *NOT_NUMBERS]),
    NOT_NEGATIVE: ([0, 0.0, 1e-12, 1e30, np.float32(0.5)], [-1e-9, -1, *NOT_NUMBERS]),
    SHARE: ([1e-9, 0.5, 1, 1.0, np.float32(0.5)], [0, 0.0, -0.1, 1.0001, 20, *NOT_NUMBERS]),
    PART: ([0, 0.0, 0.5, 1, 1.0], [-1e-9, 1.0001, 80, *NOT_NUMBERS]),
    RATE: ([0, 0.0, 0.999], [1, 1.0, -0.1, 20, *NOT_NUMBERS]),
    "a finite number in (0, 100]": ([1e-9, 40, 100], [0, 0.0, -1, 100.001, 1000, *NOT_NUMBERS]),
    PER_TASK: ([0, 5, {"a": 0.2, "b": 0}], [-1e-9, {"a": -1}, {"a": "0.3"}, *NOT_NUMBERS]),
    SEED: ([0, -5, 2**63, np.int64(7)], NOT_INTEGERS),
    COUNT: ([0, 1, 10**9, np.int64(7)], [-1, -400, *NOT_INTEGERS]),
    AT_LEAST_ONE: ([1, 10**9, np.int64(7)], [0, -1, *NOT_INTEGERS]),
    FLAG: ([True, False], [0, 1, 2, "yes", "", math.nan, [True]]),
    NAME: (["task_arithmetic", "x"], ["", 3, True, math.nan, ["x"]]),
}


def values_of(accepts: str) -> tuple[list, list]:
    """Values in the range, and values that are not."""
    kind, null, _ = accepts.partition(" or null")
    words = kind.removeprefix("one of ").split(", ") if kind.startswith("one of ") else None
    inside, outside = VALUES[kind] if words is None else (words, [*NOT_WORDS, words[0] + "x", words[0].swapcase(), [words[0]]])
    return ([*inside, None], outside) if null else (inside, [*outside, None])


def test_every_method_is_in_the_table():
    assert set(RANGES) == set(registry.names())


@pytest.mark.parametrize("id", RANGES)
def test_ranges_are_those_of_the_table(id):
    assert registry.get(id, learning=True).accepted == RANGES[id]


@pytest.mark.parametrize(("id", "name"), [(id, name) for id, ranges in RANGES.items() for name in ranges])
def test_values_in_and_out_of_range(id, name):
    method = registry.get(id, learning=True)
    inside, outside = values_of(RANGES[id][name])
    for value in inside:
        assert getattr(method.configure(**{name: value}), name) == value
    for value in outside:
        with pytest.raises(MergeError, match=f"^method '{id}': {name} must be ") as caught:
            method.configure(**{name: value})
        assert str(caught.value).endswith(f"got {'null' if value is None else repr(value)}")
        assert re.escape(RANGES[id][name].split(",")[0]) in re.escape(str(caught.value))


@pytest.mark.parametrize("id", RANGES)
def test_defaults_are_in_range_and_other_names_are_refused(id):
    method = registry.get(id, learning=True)
    assert describe(method.configure(**method.defaults)) == method.defaults
    with pytest.raises(MergeError, match=f"^method '{id}' has no hyperparameter 'nothing_like_it'"):
        method.configure(nothing_like_it=1)
