"""`Merged.storage`: what a server of all tasks keeps, by the formulas of the papers, and that no more is kept alive."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import fusionbench_lite as fbl
from fusionbench_lite import registry
from tests.methods.test_files import write
from tests.support.helpers import State, clip_state, experts_of, rng, touched
from tests.support.key_sets import gpt2_state, tied_experts_of
from tests.support.merging import PAIRS, arguments

METHODS = [m for m in registry.names() if not registry.get(m).adaptive]
PER_TASK = [m for m in METHODS if registry.get(m).per_task]
TASKS = 3


def size(state: State, names: list[str] | None = None) -> int:
    return sum(state[name].nbytes for name in (state if names is None else names))


def work_bytes(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 4


def storage(method: str, base: State, tasks: int = TASKS, /, **given) -> dict[str, int]:
    return dict(fbl.merge(method, base, experts_of(base, tasks), **given).storage)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [{}, {"base": "ties"}, {"threshold": 0.0}])
def test_tall_masks_is_a_vector_and_a_bit_per_weight_and_task(dtype, given):
    base = clip_state(0, dtype, 7)
    counts = [base[name].numel() for name in touched(base)]
    assert any(count % 8 for count in counts)
    assert storage("tall_masks", base, **given) == {
        "pretrained": size(base),
        "shared": sum(counts) * work_bytes(dtype),
        "per_task": TASKS * sum(-(-count // 8) for count in counts),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rescale", ["tensor_mean", "global"])
def test_emr_merging_has_a_factor_per_task_as_well(dtype, rescale):
    base = clip_state(0, dtype, 7)
    counts = [base[name].numel() for name in touched(base)]
    assert storage("emr_merging", base, rescale=rescale) == {
        "pretrained": size(base),
        "shared": sum(counts) * work_bytes(dtype),
        "per_task": TASKS * (sum(-(-count // 8) for count in counts) + 8),  # ρ in float64
    }


@pytest.mark.parametrize("method", ["tall_masks", "emr_merging"])
@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_bits_of_a_tensor_of_many_blocks(method, tasks):
    count = 3 * (1 << 19) + 5
    base = {"w": torch.randn(count, generator=rng(0)), "b": torch.randn(9, generator=rng(1))}
    found = storage(method, base, tasks)
    assert found["per_task"] == tasks * (-(-count // 8) + 2 + (8 if method == "emr_merging" else 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ratio", [None, 0.5, 1.0, 0.01])
def test_tsv_c_has_two_factors_per_matrix_and_task(dtype, ratio):
    base = clip_state(0, dtype)
    per_task = 0
    for name in touched(base):
        if base[name].ndim != 2:
            per_task += base[name].nbytes
            continue
        rank = int((1 / TASKS if ratio is None else ratio) * min(base[name].shape))
        per_task += rank * sum(base[name].shape) * work_bytes(dtype)
    expected = {"pretrained": size(base), "shared": 0, "per_task": TASKS * per_task}
    assert storage("tsv_c", base, rank_ratio=ratio) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_individual_models_are_the_experts(dtype):
    base = clip_state(0, dtype)
    own = [name for name, value in base.items() if value.is_floating_point()]
    assert storage("individual", base) == {"pretrained": 0, "shared": 0, "per_task": TASKS * size(base, own)}


@pytest.mark.parametrize("method", [m for m in METHODS if m not in PER_TASK])
def test_one_model_for_all_tasks(method):
    base = clip_state(0)
    tasks = 2 if method in PAIRS else TASKS
    given = {"multitask": experts_of(base, 1)["task0"]} if method == "traditional_mtl" else {}
    given |= {"matrices": "all_2d"} if method == "doge_ta" else {}
    given |= {"steps": 2} if method in ("awd_ta", "doge_ta", "wudi") else {}
    given = arguments(method, base, [f"task{t}" for t in range(tasks)], given)
    assert storage(method, base, tasks, **given) == {"pretrained": 0, "shared": size(base), "per_task": 0}


@pytest.mark.parametrize("method", ["task_arithmetic", *PER_TASK])
def test_a_tied_tensor_is_stored_once(method):
    tied = gpt2_state()
    alone = {name: value for name, value in tied.items() if name != "lm_head.weight"}
    found = fbl.merge(method, tied, tied_experts_of(tied)).storage
    assert found == fbl.merge(method, alone, tied_experts_of(alone)).storage


@pytest.mark.parametrize("method", PER_TASK)
def test_files_need_the_same(tmp_path, method):
    base = clip_state(0)
    experts = experts_of(base, TASKS)
    paths = {task: write(state, tmp_path / task, "file") for task, state in experts.items()}
    expected = fbl.merge(method, base, experts).storage
    assert fbl.merge(method, write(base, tmp_path / "base", "file"), paths).storage == expected


# ---------------------------------------------------------------- what is kept alive


def alive(method: str, base: State, **given) -> tuple[fbl.Merged, dict[str, set[str]]]:
    """The merged model and, per task, the tensors of its expert that live on when the caller has dropped the experts."""
    experts = experts_of(base, TASKS)
    watched = {task: {n: StorageWeakRef(v.untyped_storage()) for n, v in e.items() if v.numel()} for task, e in experts.items()}
    merged = fbl.merge(method, base, experts, **given)
    del experts
    gc.collect()
    return merged, {task: {n for n, storage in found.items() if not storage.expired()} for task, found in watched.items()}


@pytest.mark.parametrize("method", ["task_arithmetic", "ties_merging", "tsv_m", "tall_masks", "emr_merging", "tsv_c"])
def test_experts_that_are_not_needed_are_let_go(method):
    base = clip_state(0, width=64)
    before = {name: value.clone() for name, value in base.items()}
    expected = fbl.merge(method, base, experts_of(base, TASKS)).state_dict("task1")
    merged, living = alive(method, base)
    needed = {name for name in touched(base) if base[name].ndim != 2} if method == "tsv_c" else set()
    for task, names in living.items():
        assert names <= needed, f"{method} keeps {names - needed} of {task}"
    state = merged.state_dict("task1")
    assert all(torch.equal(state[name], expected[name]) for name in base)
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_what_is_kept_is_what_is_counted():
    base = clip_state(0, width=64)
    merged = fbl.merge("tsv_c", base, experts_of(base, TASKS))
    dense = TASKS * size(base)
    assert merged.storage["per_task"] < dense
    first, second = merged.state_dict("task0"), merged.state_dict("task0")
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(first.values(), second.values(), strict=True) if a.numel())
