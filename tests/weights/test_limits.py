"""Merged values beyond the range of the dtype of the weights are refused, wherever they are cast, and the advice helps."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from safetensors.torch import load_file

import fusionbench_lite as fbl
from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.weights.limits import is_finite
from tests.methods.test_files import write
from tests.support.adapt_comparison import run
from tests.support.helpers import State, rng, setting


def large(dtype: torch.dtype = torch.float16) -> tuple[State, dict[str, State]]:
    """Weights near 30,000 whose experts are near 50,000: their sum of changes leaves fp16."""
    g = rng(0)
    base = {"attn.weight": (30000 + torch.randn(8, 8, generator=g)).half(), "b": torch.zeros(8).half()}
    experts = {}
    for task, step in (("a", 20000.0), ("b", 25000.0)):
        changed = base["attn.weight"].float() + step + torch.randn(8, 8, generator=g)
        experts[task] = {"attn.weight": changed.half(), "b": torch.ones(8).half()}
    return {n: v.to(dtype) for n, v in base.items()}, {t: {n: v.to(dtype) for n, v in e.items()} for t, e in experts.items()}


BEYOND = [
    ("task_arithmetic", {"scaling": 1.0}), ("ties_merging", {"scaling": 2.0}), ("magmax", {"scaling": 2.0}),
    ("breadcrumbs", {"scaling": 3.0, "keep": 1.0}), ("ta_dare", {"scaling": 1.0, "drop_rate": 0.0}), ("tsv_m", {"scaling": 2.0}),
    ("iso_c", {"scaling": 9.0}), ("consensus_ta", {"scaling": 1.0}), ("knots_ta", {"scaling": 1.0}),
    ("awd_ta", {"scaling": 1.0, "steps": 1}), ("wudi", {"steps": 0}),
]


@pytest.mark.filterwarnings("ignore::fusionbench_lite.errors.MergeWarning")
@pytest.mark.parametrize(("method", "given"), BEYOND, ids=[method for method, _ in BEYOND])
class TestFloat16:
    def test_in_memory_and_in_files(self, method, given, tmp_path):
        base, experts = large()
        words = rf"{method}: 'attn.weight' leaves the range of torch.float16: its largest value is \d+.*, the limit 65504; "
        with pytest.raises(fbl.MergeError, match=words) as error:
            fbl.merge(method, base, experts, **given)
        assert "\n" not in str(error.value)
        assert ("lower scaling" in str(error.value)) == ("scaling" in given)
        files = {task: write(expert, tmp_path / task, "file") for task, expert in experts.items()}
        with pytest.raises(fbl.MergeError, match=words):
            fbl.merge_files(method, write(base, tmp_path / "base", "file"), files, out=tmp_path / "out", **given)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_wider_weights_help(self, method, given, dtype):
        base, experts = large(dtype)
        merged = fbl.merge(method, base, experts, **given).state_dict()
        assert all(is_finite(value) for value in merged.values())
        assert float(merged["attn.weight"].abs().amax()) > 65504

    def test_a_smaller_scaling_helps(self, method, given):
        base, experts = large()
        lower = {"scaling": 0.01} if "scaling" in given else {"steps": 0}
        if method == "wudi":  # whose sum of task vectors has no scaling: fewer experts are another way
            experts.pop("b")
        merged = fbl.merge(method, base, experts, **{**given, **lower}).state_dict()
        assert all(is_finite(value) for value in merged.values())


@pytest.mark.parametrize(("method", "given"), [("tall_masks", {}), ("emr_merging", {})])
def test_models_per_task_are_checked_when_they_are_unfolded(method, given, tmp_path):
    if method == "tall_masks":
        base = {"w": torch.full((2,), -40000.0).half()}
        experts = {"a": {"w": torch.full((2,), 5000.0).half()}, "b": {"w": torch.full((2,), 25000.0).half()}}
    else:  # of 90,000 that task a changed, the elected signs leave 60,000, which are rescaled by 1.5
        base = {"w": torch.zeros(2).half()}
        experts = {"a": {"w": torch.tensor([60000.0, -30000.0]).half()}, "b": {"w": torch.tensor([1.0, 60000.0]).half()}}
    merged = fbl.merge(method, base, experts, **given)
    with pytest.raises(fbl.MergeError, match="'w' leaves the range of torch.float16: its largest value is "):
        [merged.state_dict(task) for task in "ab"]
    with pytest.raises(fbl.MergeError, match="leaves the range of torch.float16"):
        files = {task: write(expert, tmp_path / task, "file") for task, expert in experts.items()}
        fbl.merge_files(method, write(base, tmp_path / "base", "file"), files, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scaling", [1e38, -1e38, 1e300, 10**300])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties_merging", "magmax", "tsv_m", "iso_c", "breadcrumbs", "knots_ta"])
def test_float32_overflows_too(method, scaling):
    g = rng(3)
    base = {"w": torch.randn(4, 4, generator=g)}
    experts = {task: {"w": base["w"] + 100 * torch.randn(4, 4, generator=g)} for task in "ab"}
    given = {"scaling": scaling} | ({"keep": 1.0, "outliers": 0.0} if method == "breadcrumbs" else {})
    with pytest.raises(fbl.MergeError, match=rf"^{method}: .*(leaves the range of torch.float32|beyond the range)") as error:
        fbl.merge(method, base, experts, **given)
    assert "\n" not in str(error.value)
    wide = fbl.merge(method, {"w": base["w"].double()}, {t: {"w": e["w"].double()} for t, e in experts.items()}, **given)
    assert bool(torch.isfinite(wide.state_dict()["w"]).all())


def test_the_mean_of_large_values_asks_for_a_wider_dtype():
    base = {"w": torch.zeros(2)}
    with pytest.raises(fbl.MergeError, match=r"weight_averaging: 'w' .* the limit 3.40282e\+38; give .* torch.float64$"):
        fbl.merge("weight_averaging", base, {task: {"w": torch.full((2,), 3e38)} for task in "ab"})


def test_values_at_the_limit_pass():
    """Sums of many large finite values overflow where no value does."""
    base = {"w": torch.zeros(64, 64).half()}
    experts = {"a": {"w": torch.full((64, 64), 65504.0).half()}, "b": {"w": torch.full((64, 64), -65504.0).half()}}
    for task in "ab":
        merged = fbl.merge("task_arithmetic", base, {task: experts[task]}, scaling=1.0).state_dict()
        assert torch.equal(merged["w"], experts[task]["w"])
    assert not fbl.merge("weight_averaging", base, experts).state_dict()["w"].any()


def test_what_is_written_can_be_read_back_as_an_expert(tmp_path):
    base, experts = large()
    files = {task: write(expert, tmp_path / task, "file") for task, expert in experts.items()}
    out = fbl.merge_files("task_arithmetic", write(base, tmp_path / "base", "file"), files, out=tmp_path / "out", scaling=0.5)
    assert is_finite(load_file(out / "model.safetensors")["attn.weight"])
    assert is_finite(fbl.merge("weight_averaging", tmp_path / "base.safetensors", {"m": out}).state_dict()["attn.weight"])


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_ta", "concrete_ta", "pareto_merging", "metamerging"])
def test_adapted_weights_in_half_precision(method):
    s = setting(steps=1, dtype=torch.float32)
    for number, weights in enumerate((s.pretrained, *s.experts.values())):
        weights["leftover"] = torch.full((4, 3), 20000.0 + 40000.0 * (number > 0)).half()
    s.model.leftover.data = s.model.leftover.data.half()
    given = {"raw": 1.0} if method == "metamerging" else {"scaling": 1.0}
    with pytest.raises(fbl.MergeError, match=re.escape("'leftover' leaves the range of torch.float16: its largest value is")):
        run(method, s, 0, **given).state_dict()


def test_merged_variances_below_zero_are_said():
    base = {"bn.running_var": torch.ones(3), "w": torch.zeros(2)}
    experts = {task: {"bn.running_var": torch.full((3,), 0.1), "w": torch.ones(2)} for task in "ab"}
    with pytest.warns(MergeWarning, match=r"'bn.running_var' negative.*lower scaling"):
        merged = fbl.merge("task_arithmetic", base, experts, scaling=1.0).state_dict()
    assert float(merged["bn.running_var"][0]) == pytest.approx(-0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fbl.merge("task_arithmetic", base, experts, scaling=0.3)
        fbl.merge("weight_averaging", base, experts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_is_finite(dtype):
    limit = torch.finfo(dtype).max
    for values in ([], [0.0], [limit] * 9, [limit, -limit] * 9):
        assert is_finite(torch.tensor(values, dtype=dtype))
    for bad in (float("inf"), -float("inf"), float("nan")):
        for others in ([], [1.0], [limit] * 9):
            assert not is_finite(torch.tensor([*others, bad], dtype=dtype))
            assert not is_finite(torch.tensor([bad, *others], dtype=dtype))
    assert is_finite(torch.arange(3))
