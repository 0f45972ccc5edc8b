"""Bad input to the elementwise, interpolating and data-light methods: a one-line MergeError that names what is wrong."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from tests.support.helpers import clip_state, experts_of, refused, same_bits, says, snapshot
from tests.support.key_sets import fisher_of, gpt2_state, gram_of
from tests.support.merging import PAIRS, models

KEY = "visual.transformer.resblocks.0.mlp.c_fc.weight"
SCALED = [
    "ta_dare", "ties_dare", "consensus_ta", "consensus_ties", "pcb_merging", "breadcrumbs", "magmax", "tatr", "tatr_zero_shot",
]
METHODS = [*SCALED, "tall_masks", "emr_merging", "fisher_merging", "regmean", "metagpt", "slerp", "nuslerp", "model_stock"]
TASKS = ["task0", "task1", "task2"]


def refuse(method, *parts: str, weights=None, experts=None, **given) -> str:
    weights = clip_state() if weights is None else weights
    experts = experts_of(weights, 2 if method in PAIRS else 3) if experts is None else experts
    with refused(*parts) as message:
        models(method, weights, experts, **given)
    return message[0]


# ---------------------------------------------------------------- hyperparameters

NEGATIVE = [-1e-9, -1, "0.3", "", None, math.nan, [0.3], 1j, math.inf, -math.inf]
BAD = {  # every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that a merge asks for it
    "ta_dare": ("drop_rate", 1.0), "ties_dare": ("seed", 2.5), "consensus_ta": ("min_tasks", -1),
    "consensus_ties": ("virtual_zeros", -1), "pcb_merging": ("ratio", 0), "breadcrumbs": ("outliers", 1.0),
    "magmax": ("scaling", math.nan), "tall_masks": ("base", "TA"), "emr_merging": ("rescale", None),
    "fisher_merging": ("epsilon", -1e-9), "regmean": ("off_diagonal", 1.0001), "slerp": ("t", math.inf), "nuslerp": ("t", True),
    "model_stock": ("average", "degrees"),
}
GOOD = [
    ("ta_dare", "drop_rate", [0, 0.0, 0.999, np.float32(0.5)]),
    ("ta_dare", "seed", [0, -5, 2**63, np.int64(7)]),
    ("tall_masks", "threshold", [0, 5, 1e9, np.float64(0.3)]),
    ("consensus_ta", "min_tasks", [0, 10**9, np.int64(1)]),
    ("pcb_merging", "ratio", [1e-9, 1, 1.0, np.float32(0.5)]),
    ("pcb_merging", "virtual_zeros", [0, 10**9, np.int64(7)]),
    ("breadcrumbs", "keep", [1e-9, 1, 1.0]),
    ("breadcrumbs", "outliers", [0, 0.0, 0.999]),
    ("fisher_merging", "epsilon", [0, 1, 1e30, np.float32(0.5)]),
    ("fisher_merging", "normalize", [True, False]),
    ("regmean", "off_diagonal", [0, 1, 0.0, 1.0, np.float64(0.5)]),
    ("slerp", "t", [0, 1, 0.0, 1.0, np.float32(0.25)]),
    *((m, "scaling", [0, -2, 7.5, np.float32(0.25), np.int64(2)]) for m in SCALED),
]


@pytest.mark.parametrize("method", BAD)
def test_value_out_of_range(method):
    name, value = BAD[method]
    message = refuse(method, rf"\b{name}\b", **{name: value})
    assert says(message, value)


@pytest.mark.parametrize(("method", "name", "values"), GOOD, ids=[f"{m}-{n}" for m, n, _ in GOOD])
def test_value_in_range(method, name, values):
    base = clip_state()
    experts = experts_of(base, 2)
    for value in values:
        for state in models(method, base, experts, **{name: value}).values():
            assert all(bool(torch.isfinite(v).all()) for v in state.values())


@pytest.mark.parametrize("method", METHODS)
def test_unknown_hyperparameter(method):
    refuse(method, "scalling", scalling=0.3)


@pytest.mark.parametrize(("method", "name"), [("magmax", "scalling"), ("tall_masks", "treshold"), ("ta_dare", "droprate")])
def test_nearest_hyperparameter(method, name):
    nearest = {"scalling": "scaling", "treshold": "threshold", "droprate": "drop_rate"}[name]
    refuse(method, name, nearest, **{name: 0.3})


# ---------------------------------------------------------------- thresholds per task

THRESHOLDED = pytest.mark.parametrize("method", ["tall_masks", "consensus_ta", "consensus_ties"])


@THRESHOLDED
def test_threshold_for_other_tasks(method):
    refuse(method, "threshold", "task2", threshold={"task0": 0.2, "task1": 0.3})
    refuse(method, "threshold", "task9", threshold=dict.fromkeys([*TASKS, "task9"], 0.4))
    refuse(method, "threshold", "task", threshold={})
    refuse(method, "threshold", "task1|tusk1", threshold={"task0": 0.2, "tusk1": 0.2, "task2": 0.2})


@THRESHOLDED
@pytest.mark.parametrize("value", [*NEGATIVE, True])
def test_threshold_of_one_task_out_of_range(method, value):
    refuse(method, "threshold", "task1", threshold={"task0": 0.2, "task1": value, "task2": 0.2})


# ---------------------------------------------------------------- Fisher information, Gram matrices


def changed(statistics, change, task="task1"):
    statistics = {t: dict(s) for t, s in statistics.items()}
    change(statistics[task])
    return statistics


def with_bad_entry(value):
    def change(entries):
        entries[KEY] = entries[KEY].clone()
        entries[KEY][0, 0] = value

    return change


@pytest.mark.parametrize(("method", "name", "make"), [("fisher_merging", "fisher", fisher_of), ("regmean", "gram", gram_of)])
class TestStatistics:
    def test_not_given(self, method, name, make):
        refuse(method, name, **{name: None})
        with pytest.raises(fbl.MergeError, match=name):
            fbl.merge(method, clip_state(), experts_of(clip_state()))

    @pytest.mark.parametrize("value", [1.0, "file.pt", [], torch.ones(3)])
    def test_not_a_mapping(self, method, name, make, value):
        refuse(method, name, **{name: value})

    def test_tasks_are_those_of_the_experts(self, method, name, make):
        statistics = make(clip_state(), [*TASKS, "task9"])
        refuse(method, name, "task9", **{name: statistics})
        refuse(method, name, "task2", **{name: {t: statistics[t] for t in ("task0", "task1")}})
        refuse(method, name, "task0", **{name: {}})

    @pytest.mark.parametrize("value", [None, 1.0, torch.ones(3)])
    def test_one_task_is_not_a_mapping(self, method, name, make, value):
        refuse(method, name, "task1", **{name: make(clip_state(), TASKS) | {"task1": value}})

    @pytest.mark.parametrize("shape", [(16, 9), (128,), (8, 16), (2, 8, 8), (1, 1), (0, 0), (16, 1), (7, 7)])
    def test_shape(self, method, name, make, shape):
        statistics = changed(make(clip_state(), TASKS), lambda s: s.update({KEY: torch.ones(shape)}))
        refuse(method, name, "task1", re.escape(KEY), r",\s*".join(map(str, shape)), **{name: statistics})

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite(self, method, name, make, value):
        statistics = changed(make(clip_state(), TASKS), with_bad_entry(value))
        refuse(method, name, "task1", re.escape(KEY), "nan|inf|finite", **{name: statistics})

    @pytest.mark.parametrize("value", [None, 1.0, np.ones((16, 8), dtype=np.float32), [[1.0] * 8] * 16])
    def test_not_a_tensor(self, method, name, make, value):
        statistics = changed(make(clip_state(), TASKS), lambda s: s.update({KEY: value}))
        refuse(method, name, "task1", re.escape(KEY), **{name: statistics})

    def test_missing_tensor(self, method, name, make):
        """RegMean averages what no task lists; a tensor that only some tasks list is refused, as in Fisher merging."""
        statistics = changed(make(clip_state(), TASKS), lambda s: s.pop(KEY))
        refuse(method, name, "task1", re.escape(KEY), **{name: statistics})

    def test_nothing_is_modified(self, method, name, make):
        base = clip_state()
        statistics = make(base, TASKS)
        before = {t: snapshot(s) for t, s in statistics.items()}
        models(method, base, experts_of(base), **{name: statistics})
        assert all(same_bits(statistics[t], before[t]) for t in TASKS)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_any_floating_dtype_is_taken(self, method, name, make, dtype):
        base = clip_state()
        statistics = {t: {n: v.to(dtype) for n, v in s.items()} for t, s in make(base, TASKS).items()}
        for state in models(method, base, experts_of(base), **{name: statistics}).values():
            assert all(bool(torch.isfinite(v).all()) for v in state.values())


@pytest.mark.parametrize(
    "name", ["visual.prok", "visual.class_embedding", "visual.conv1.weight", "visual.position_ids", "logit_scale"]
)
def test_gram_of_what_is_not_a_matrix(name):
    gram = {t: {**s, name: torch.eye(8)} for t, s in gram_of(clip_state(), TASKS).items()}
    refuse("regmean", "gram", re.escape(name), gram=gram)


def test_gram_sizes_differ_between_tasks():
    """Both dimensions of a matrix are accepted, for Linear and Conv1D, but the same one for every task."""
    base = gpt2_state()
    experts = experts_of(base)
    gram = gram_of(base, list(experts))
    key = "transformer.h.0.attn.c_attn.weight"
    gram["task2"][key] = torch.eye(18)
    with pytest.raises(fbl.MergeError, match="c_attn.weight"):
        fbl.merge("regmean", base, experts, gram=gram)


def test_fisher_is_a_mean_of_squares():
    fisher = changed(fisher_of(clip_state(), TASKS), with_bad_entry(-1e-6))
    refuse("fisher_merging", "fisher", "task1", re.escape(KEY), fisher=fisher)


# ---------------------------------------------------------------- experts


@pytest.mark.parametrize("method", PAIRS)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_interpolation_takes_two_experts(method, count):
    base = clip_state()
    refuse(method, "two|2", str(count), weights=base, experts=experts_of(base, count))


@pytest.mark.parametrize("method", METHODS)
def test_no_experts(method):
    with pytest.raises(fbl.MergeError, match="expert"):
        models(method, clip_state(), {})


@pytest.mark.parametrize("method", METHODS)
def test_missing_extra_and_misshapen_tensors(method):
    base = clip_state()
    experts = experts_of(base, 2)
    for change, part in (
        (lambda e: e.pop(KEY), re.escape(KEY)),
        (lambda e: e.update({"visual.extra": torch.zeros(3)}), "visual.extra"),
        (lambda e: e.update({KEY: torch.zeros(8, 16)}), r"8,\s*16"),
        (lambda e: e.update({KEY: e[KEY].double()}), "float64"),
    ):
        refuse(method, "task1", part, weights=base, experts=changed(experts, change))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_weights(method, value):
    base = clip_state()
    experts = experts_of(base, 2)
    refuse(method, "task1", re.escape(KEY), weights=base, experts=changed(experts, with_bad_entry(value)))
    broken = snapshot(base)
    broken[KEY][3, 1] = value
    refuse(method, "pretrained", re.escape(KEY), weights=broken, experts=experts)


@pytest.mark.parametrize("method", ["tall_masks", "emr_merging"])
def test_methods_with_one_model_per_task_need_a_known_task(method):
    base = clip_state()
    merged = fbl.merge(method, base, experts_of(base))
    assert merged.per_task
    with pytest.raises(fbl.MergeError, match="task"):
        merged.state_dict()
    with pytest.raises(fbl.MergeError, match="task1"):
        merged.state_dict("tusk1")
