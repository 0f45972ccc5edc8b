"""Weights behind files, read to a device: the same bits wherever they wait, and nothing read before it is asked for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import fusionbench_lite as fbl
from fusionbench_lite.errors import MergeError
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.placed import HELD, PlacedWeights
from fusionbench_lite.weights.readers import SafetensorsWeights
from tests.support.helpers import clip_state, experts_of
from tests.support.second_device import DEVICE, Elsewhere, Machine

METHODS = {
    "task_arithmetic": {}, "weight_averaging": {}, "ties_merging": {}, "magmax": {}, "breadcrumbs": {}, "ta_dare": {},
    "pcb_merging": {}, "consensus_ta": {}, "emr_merging": {}, "tsv_m": {"rank": "numerical"}, "iso_c": {}, "cart": {},
    "doge_ta": {"matrices": "attn_mlp", "steps": 3}, "awd_ta": {"steps": 3}, "model_stock": {}, "individual": {},
    "wudi": {"steps": 2}, "pretrained": {},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    base = clip_state()
    states = {"pretrained": base, **experts_of(base)}
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    return folder, states


class Counted(SafetensorsWeights):
    """A file that counts its reads."""

    def __init__(self, path) -> None:
        super().__init__(path)
        self.reads: list[str] = []

    def __getitem__(self, name):
        self.reads.append(name)
        return super().__getitem__(name)


def placed(files, place, device="cpu"):
    folder, states = files
    base, *experts = ((name, PlacedWeights(Counted(folder / f"{name}.safetensors"), device, place)) for name in states)
    return base[1], dict(experts)


def states_of(merged):
    return [merged.state_dict(task) for task in merged.tasks] if merged.per_task else [merged.state_dict()]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("place", HELD)
@pytest.mark.parametrize("method", METHODS)
def test_merges_have_the_bits_of_state_dicts_in_memory(method, place, files):
    _, states = files
    base, *experts = states.items()
    plain = states_of(fbl.merge(method, base[1], dict(experts), **METHODS[method]))
    found = states_of(fbl.merge(method, *placed(files, place), **METHODS[method]))
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))


@pytest.mark.parametrize("place", HELD)
@pytest.mark.parametrize("method", ["individual", "pretrained", "task_arithmetic"])
def test_a_result_shares_no_memory_with_what_is_held(method, place, files):
    folder, states = files
    base, experts = placed(files, place)
    for result in states_of(fbl.merge(method, base, experts)):
        for tensor in result.values():
            tensor.zero_()
    for name, weights in (("pretrained", base), *experts.items()):
        assert same(dict(weights), states[name])
        assert same(dict(SafetensorsWeights(folder / f"{name}.safetensors")), states[name])


@pytest.mark.parametrize(("place", "reads"), [("disk", 3), ("cpu", 1), ("device", 1)])
def test_what_is_read_and_when(place, reads, files):
    base, experts = placed(files, place)
    view = Experts(base, experts)
    assert view.shape("visual.proj") == (8, 6)
    assert not base.source.reads
    for _ in range(3):
        view.base("visual.proj")
    assert base.source.reads == ["visual.proj"] * reads
    view.drop_held()
    view.base("visual.proj")
    assert len(base.source.reads) == reads + 1


def test_release_drops_what_is_held(files):
    base, experts = placed(files, "cpu")
    view = Experts(base, experts)
    view.check_unread()
    assert all(weights._held for weights in (base, *experts.values()))
    view.release(["visual.proj"])
    assert not any(weights._held for weights in (base, *experts.values()))
    assert torch.equal(view.expert("task0", "visual.proj"), files[1]["task0"]["visual.proj"])


@pytest.mark.parametrize("place", HELD)
def test_everything_happens_on_the_device(place, files):
    """On the second device of tests/support/second_device.py, which refuses to mix its tensors with others."""
    plain = Experts(files[1]["pretrained"], {name: state for name, state in files[1].items() if name != "pretrained"})
    weights, name = [0.3, 0.2, 0.1], "visual.transformer.resblocks.0.mlp.c_fc.weight"
    with Machine():
        view = Experts(*placed(files, place, DEVICE))
        assert view.device == DEVICE
        values = {
            "combination": lambda of: of.combination(name, weights), "stack": lambda of: of.stack(name),
            "mean": lambda of: of.mean(name), "task_vectors": lambda of: of.task_vectors(name),
            "filled": lambda of: of.filled(name, ((part, block.sum(0)) for part, block in of.blocks(name))),
        }
        for what, call in values.items():
            there = call(view)
            assert isinstance(there, Elsewhere), what
            assert torch.equal(there.inner, call(plain)), what
        assert torch.equal(view.inner_products(name), plain.inner_products(name))
        assert view.new(name).device == DEVICE


def test_held_memory_is_aligned_like_torch_s(files):
    base, _ = placed(files, "cpu")
    for name in base:
        assert base[name].data_ptr() % 64 == 0
        assert base[name].data_ptr() == base[name].data_ptr()


def test_an_unknown_place(files):
    with pytest.raises(MergeError, match="unknown place 'dsk': did you mean 'disk'"):
        PlacedWeights({}, "cpu", "dsk")
