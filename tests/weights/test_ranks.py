"""Rank-deficient experts: the warning that names them, and the mode that is stable (docs/decisions.md, D16)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.weights.ranks import RankWarning
from tests.support.helpers import State, distance, experts_of, rng
from tests.support.lora_files import PREFIX, write_adapter
from tests.support.spectral_cases import hf_clip_state, lora_experts, still

METHODS: dict[str, dict] = {"doge_ta": {"steps": 20}, "tsv_m": {}, "iso_c": {}}
LAYER = "vision_model.encoder.layers.0."
RANK = 4


def base_state(dtype: torch.dtype = torch.float32) -> State:
    return hf_clip_state(2, dtype, width=32)


def matrices(method: str, base: State) -> list[str]:
    names = [n for n, v in base.items() if v.ndim == 2 and v.numel() and v.is_floating_point()]
    return [n for n in names if "encoder" in n] if method == "doge_ta" else names


def quiet(method: str, base: State, experts: Mapping, **given) -> State:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RankWarning)
        return fbl.merge(method, base, experts, **METHODS[method], **given).state_dict()


def loud(method: str, base: State, experts: Mapping, **given) -> tuple[State, str]:
    with pytest.warns(RankWarning) as caught:
        state = fbl.merge(method, base, experts, **METHODS[method], **given).state_dict()
    # A space that one task of low rank and one of full rank share has equal votes too, which is said apart.
    (message,) = [str(one.message) for one in caught if issubclass(one.category, RankWarning)]
    return state, message


# ---------------------------------------------------------------- the warning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_warning_names_method_matrix_rank_and_the_way_out(method, dtype):
    base = base_state(dtype)
    # iso_c sums the task vectors: rank 2 · 4 = 8 of 32; the others take ⌊32 / 2⌋ = 16 components of each.
    _, message = loud(method, base, lora_experts(base, 2, RANK, size=0.01))
    wanted, rank = (32, 2 * RANK) if method == "iso_c" else (16, RANK)
    assert message.startswith(f"{method} takes {wanted} singular components of ")
    assert f"'{LAYER}mlp.fc1.weight'" in message  # of those that lack as many the first by name
    assert f"numerical rank is {rank} " in message
    found = re.search(r"\((\d+) of (\d+) matrices are deficient\)", message)
    assert found
    deficient = [n for n in matrices(method, base) if min(base[n].shape) > 5]  # the position embedding takes less
    assert (int(found[1]), int(found[2])) == (len(deficient), len(matrices(method, base)))
    assert message.endswith('rank="numerical" is stable')
    assert "\n" not in message
    if method != "iso_c":
        assert "expert 'task0'" in message


@pytest.mark.parametrize("method", METHODS)
def test_one_deficient_matrix_of_one_expert_is_found(method):
    base = base_state()
    experts = experts_of(base, 2, size=0.01)
    name = f"{LAYER}self_attn.v_proj.weight"
    low = lora_experts(base, 2, RANK, size=0.01)
    experts["task1"][name] = low["task1"][name]
    if method == "iso_c":
        quiet(method, base, experts)  # the sum has full rank
        experts["task0"][name] = low["task0"][name]
    _, message = loud(method, base, experts)
    assert f"{name!r}" in message
    assert f"(1 of {len(matrices(method, base))} matrices" in message
    assert method == "iso_c" or "expert 'task1'" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_no_warning_for_full_rank(method, dtype):
    base = base_state(dtype)
    quiet(method, base, experts_of(base, 3, size=1e-3))
    quiet(method, base, experts_of(base, 1, size=1e-2))


@pytest.mark.parametrize("method", METHODS)
def test_no_warning_where_the_components_taken_are_there(method):
    base = base_state()
    if method == "iso_c":
        quiet(method, base, lora_experts(base, 8, RANK, size=0.01))  # 8 · 4 = 32
    else:
        quiet(method, base, lora_experts(base, 32 // RANK, RANK, size=0.01))  # ⌊32 / 8⌋ = 4


@pytest.mark.parametrize("where", ["tensor", "tensor of one expert", "expert", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_no_warning_for_zero_task_vectors(method, where):
    base = base_state()
    quiet(method, base, still(experts_of(base, 3, size=0.01), base, where))


@pytest.mark.parametrize("method", METHODS)
def test_no_warning_in_the_numerical_mode(method):
    base = base_state()
    quiet(method, base, lora_experts(base, 2, RANK, size=0.01), rank="numerical")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_both_modes_agree_for_full_rank(method, dtype):
    base = base_state(dtype)
    experts = experts_of(base, 3, size=0.01)
    fixed, numerical = (quiet(method, base, experts, rank=mode) for mode in ("fixed", "numerical"))
    assert all(torch.equal(fixed[name], numerical[name]) for name in base)


# ---------------------------------------------------------------- stability


def shifted(base: State, experts: Mapping[str, State], seed: int, size: float = 1e-9) -> dict[str, State]:
    """The low-rank task vectors in float64, moved by `size` per entry, before the experts are rounded to float32."""
    g, out = rng(seed), {}
    for task, state in experts.items():
        out[task] = {}
        for name, value in state.items():
            if not value.is_floating_point():
                out[task][name] = value
                continue
            noise = size * torch.randn(value.shape, generator=g, dtype=torch.float64)
            out[task][name] = (value + noise).to(base[name].dtype)
    return out


@pytest.mark.parametrize("method", METHODS)
def test_only_the_numerical_mode_is_stable_under_perturbations(method):
    base = base_state()
    # Task vectors of 1e-4: float32 leaves 4e-9 of noise, above what float64 cannot tell from zero (1e-6 of the largest).
    wide = {name: value.double() if value.is_floating_point() else value for name, value in base.items()}
    exact = lora_experts(wide, 2, RANK, size=1e-4)
    one, other = shifted(base, exact, 1), shifted(base, exact, 2)
    deviation = {}
    for mode in ("fixed", "numerical"):
        call = loud if mode == "fixed" else lambda *given, **named: (quiet(*given, **named), "")
        (a, _), (b, _) = (call(method, base, experts, rank=mode) for experts in (one, other))
        names = [n for n in matrices(method, base) if min(base[n].shape) > 5]
        updates = [({n: s[n].double() - base[n].double() for n in names}) for s in (a, b)]
        deviation[mode] = max(distance(updates[0][n], updates[1][n]) for n in names)
    assert deviation["numerical"] < 1e-3, deviation
    assert deviation["fixed"] > 0.05, deviation


# ---------------------------------------------------------------- adapters


def adapters(folder, base: State, tasks: int = 2) -> dict[str, str]:
    """LoRA adapters of all matrices of the encoder."""
    paths = {}
    for t in range(tasks):
        g, tensors = rng(40 + t), {}
        for name in matrices("doge_ta", base):
            rows, columns = base[name].shape
            module = PREFIX + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = 0.1 * torch.randn(RANK, columns, generator=g)
            tensors[f"{module}.lora_B.weight"] = 0.1 * torch.randn(rows, RANK, generator=g)
        paths[f"task{t}"] = str(write_adapter(folder / f"task{t}", tensors, r=RANK, lora_alpha=RANK))
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_adapters_and_folded_weights_agree_in_the_numerical_mode(tmp_path, method, dtype):
    base = base_state(dtype)
    paths = adapters(tmp_path, base)
    folded = {task: fbl.merge("individual", base, paths).state_dict(task) for task in paths}
    assert not torch.equal(folded["task0"][f"{LAYER}mlp.fc1.weight"], base[f"{LAYER}mlp.fc1.weight"])
    from_factors, dense = (quiet(method, base, experts, rank="numerical") for experts in (paths, folded))
    for name in matrices("doge_ta", base):
        error = distance(from_factors[name].double() - base[name].double(), dense[name].double() - base[name].double())
        # The folded task vectors are rounded to the checkpoint's dtype, the factors are not.
        assert error < (1e-4 if dtype == torch.float32 else 1e-10), f"{name}: {error:.1e}"


@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_warned_of_in_the_fixed_mode(tmp_path, method):
    base = base_state()
    _, message = loud(method, base, adapters(tmp_path, base))
    assert f"numerical rank is {2 * RANK if method == 'iso_c' else RANK} " in message
