"""Integer and boolean tensors: quantised codes are refused, changed counters and masks are said, equal ones pass."""

from __future__ import annotations

import warnings

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite import registry
from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.weights.readers import SafetensorsWeights
from tests.methods.test_files import write
from tests.support.adapt_comparison import run
from tests.support.helpers import State, setting, snapshot
from tests.support.lora_files import factors, write_adapter

ONE_MODEL = ["weight_averaging", "task_arithmetic", "ties_merging", "cart", "slerp"]
PER_TASK = ["tall_masks", "emr_merging", "tsv_c"]
REFERENCES = ["individual", "pretrained"]


def state(value: float, **buffers: torch.Tensor) -> State:
    return {"fc.weight": torch.full((4, 4), value), **{name.replace("__", "."): tensor for name, tensor in buffers.items()}}


def caught(method: str, base: State, experts: dict[str, State]) -> tuple[State, list[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = fbl.merge(method, base, experts)
        merged = result.state_dict("b") if result.per_task else result.state_dict()
    return merged, [str(warning.message) for warning in said if issubclass(warning.category, MergeWarning)]


def quantised(value: float) -> State:
    return {"fc.weight": torch.full((4, 4), 7, dtype=torch.int8), "fc.SCB": torch.full((4,), value), "ln.weight": torch.ones(4)}


@pytest.mark.parametrize("method", [*ONE_MODEL, *PER_TASK, *REFERENCES])
def test_codes_beside_scales_are_refused_even_where_they_are_equal(method, tmp_path):
    """The codes of base and experts are the same here: only names and types tell."""
    base, experts = quantised(1.0), {"a": quantised(2.0), "b": quantised(3.0)}
    words = r"'fc.weight' \(I8 values beside 'fc.SCB'\) is quantised: load it in 16 or 32 bits first"
    with pytest.raises(fbl.MergeError, match=words) as error:
        fbl.merge(method, base, experts)
    assert "\n" not in str(error.value)
    files = {task: write(expert, tmp_path / task, "file") for task, expert in experts.items()}
    with pytest.raises(fbl.MergeError, match="quantised.*: load it in 16 or 32 bits first"):
        fbl.merge_files(method, write(base, tmp_path / "base", "file"), files, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adaptation_refuses_codes_beside_scales():
    s = setting(steps=1)
    for weights in (s.pretrained, *s.experts.values()):
        weights |= {"fc.qweight": torch.ones(2, 2, dtype=torch.int32), "fc.scales": torch.ones(2)}
    with pytest.raises(fbl.MergeError, match="pretrained: 'fc.qweight' .*quantised: load it in 16 or 32 bits first"):
        run("adamerging_layerwise", s, 1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("method", [*ONE_MODEL, *PER_TASK, *REFERENCES])
def test_integers_that_differ_and_count_nothing_are_refused(method, dtype, tmp_path):
    table = torch.arange(6, dtype=dtype)
    base = state(0.0, fc__table=table)
    experts = {"a": state(1.0, fc__table=table), "b": state(2.0, fc__table=table + 1)}
    words = "expert 'b': 'fc.table' holds integers .*16 or 32 bits first"
    with pytest.raises(fbl.MergeError, match=words) as error:
        fbl.merge(method, base, experts)
    assert "\n" not in str(error.value)
    with pytest.raises(fbl.MergeError, match=words):
        files = {task: write(expert, tmp_path / task, "file") for task, expert in experts.items()}
        fbl.merge_files(method, write(base, tmp_path / "base", "file"), files, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merged, said = caught("weight_averaging", base, {t: {**e, "fc.table": table} for t, e in experts.items()})  # the advice
    assert torch.equal(merged["fc.table"], table)
    assert not said


COUNTED = {
    "bn.num_batches_tracked": (torch.tensor(100), torch.tensor(900)),
    "head.pruned": (torch.tensor([True, False]), torch.tensor([False, False])),
    "ema.n_averaged": (torch.tensor(1), torch.tensor(3)),
    "router.token_counts": (torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])),
}


@pytest.mark.parametrize("method", [*ONE_MODEL, *PER_TASK])
def test_changed_counters_and_masks_stay_and_are_said_once(method):
    base = state(0.0) | {name: before for name, (before, _) in COUNTED.items()}
    changed = {name: after for name, (_, after) in COUNTED.items()}
    experts = {"a": state(1.0) | changed, "b": state(3.0) | changed}
    merged, said = caught(method, base, experts)
    assert all(torch.equal(merged[name], base[name]) for name in COUNTED)
    kept = [text for text in said if "which no method merges" in text]
    assert len(kept) == 1
    assert all(repr(name) in kept[0] for name in COUNTED)


@pytest.mark.parametrize("files", [False, True])
def test_individual_is_the_expert_exactly(files, tmp_path):
    base = state(0.0) | {name: before for name, (before, _) in COUNTED.items()}
    own = state(3.0) | {name: after for name, (_, after) in COUNTED.items()}
    experts = {"a": state(1.0) | {name: before for name, (before, _) in COUNTED.items()}, "b": own}
    if files:
        given = {task: write(expert, tmp_path / task, "file") for task, expert in experts.items()}
        merged, said = caught("individual", write(base, tmp_path / "base", "file"), given)
    else:
        merged, said = caught("individual", snapshot(base), {task: snapshot(expert) for task, expert in experts.items()})
    assert not said
    assert list(merged) == list(base) or files
    assert all(torch.equal(merged[name], value) and merged[name].dtype == value.dtype for name, value in own.items())


def test_large_counters_keep_their_bits():
    count = torch.tensor(2**40 + 1)
    base, expert = state(0.0, n__steps=torch.tensor(0)), state(1.0, n__steps=count)
    assert int(fbl.merge("individual", base, {"a": expert}).state_dict("a")["n.steps"]) == 2**40 + 1


def test_traditional_mtl_has_the_buffers_that_training_left():
    base, trained = state(0.0, bn__steps=torch.tensor(1)), state(2.0, bn__steps=torch.tensor(9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = fbl.merge("traditional_mtl", base, {"a": base}, multitask=trained).state_dict()
    assert int(merged["bn.steps"]) == 9
    assert torch.equal(merged["fc.weight"], trained["fc.weight"])


def test_many_names_are_cut_short():
    names = [f"layers.{i}.num_batches_tracked" for i in range(12)]
    base = state(0.0) | {name: torch.tensor(0) for name in names}
    _, said = caught("weight_averaging", base, {"a": state(1.0) | {name: torch.tensor(5) for name in names}})
    assert len(said) == 1
    assert "and 4 more" in said[0]


@pytest.mark.parametrize("method", [m for m in registry.names() if registry.get(m).adaptive and "rank" not in m][:3])
def test_adaptation_says_it_once_too(method):
    s = setting(steps=1)
    s.experts["task0"]["position_ids"] = s.experts["task0"]["position_ids"].clone()
    for number, weights in enumerate((s.pretrained, *s.experts.values())):
        weights["bn.num_batches_tracked"] = torch.tensor(number)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = run(method, s, 1)
    assert [str(w.message).count("'bn.num_batches_tracked'") for w in said if issubclass(w.category, MergeWarning)] == [1]
    assert int(got.state_dict()["bn.num_batches_tracked"]) == 0


def test_masks_and_counters_of_a_file_are_read_once(tmp_path, monkeypatch):
    """Adapters read no buffer of the pretrained file again, and asking a file for a name reads nothing."""
    masks = {"attn.bias": torch.ones(4, 4, dtype=torch.bool), "bn.num_batches_tracked": torch.tensor(2)}
    base = {"fc.weight": torch.ones(4, 4), **masks}
    pretrained = write(base, tmp_path / "base", "file")
    trained = write(base, tmp_path / "trained", "file")
    adapters = {name: write_adapter(tmp_path / name, factors("fc", 4, 4)) for name in ("one", "two")}
    read: list[tuple[str, str]] = []
    once = SafetensorsWeights.__getitem__

    def noted(self: SafetensorsWeights, name: str) -> torch.Tensor:
        read.append((str(self.path), name))
        return once(self, name)

    monkeypatch.setattr(SafetensorsWeights, "__getitem__", noted)
    fbl.merge_files("weight_averaging", pretrained, {"trained": trained, **adapters}, tmp_path / "out")
    buffers = [(str(path), name) for path, name in read if name != "fc.weight"]
    assert sorted(buffers) == sorted((str(path), name) for path in (pretrained, trained) for name in masks)
    read.clear()
    assert "fc.weight" in SafetensorsWeights(pretrained)
    assert not read
