"""Tensors without values to merge are refused before any arithmetic, by every method, and the advice helps."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import fusionbench_lite as fbl
from fusionbench_lite import registry
from tests.support.adapt_comparison import run
from tests.support.helpers import State, setting

DATA_FREE = [m for m in registry.names() if not registry.get(m).adaptive]
ADAPTIVE = [m for m in registry.names() if registry.get(m, learning=True).adaptive]
EYE = torch.eye(4)


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(4, 4)


def emptied() -> Tensor:
    tensor = torch.ones(4, 4)
    tensor.untyped_storage().resize_(0)
    return tensor


class Wrapped(torch.Tensor):
    """A tensor whose values are made when they are asked for."""

    @staticmethod
    def __new__(cls, values: Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was called")

    def dequantize(self) -> Tensor:
        return self.values.float()


BAD: dict[str, tuple[Callable[[], Tensor], str, Callable[[Tensor], Tensor] | None]] = {
    "meta": (lambda: EYE.to("meta"), "on the meta device.*device_map", None),
    "sparse": (EYE.to_sparse, r"not dense \(torch.sparse_coo\).*\.to_dense\(\)", lambda t: t.to_dense()),
    "compressed": (EYE.to_sparse_csr, r"not dense \(torch.sparse_csr\).*\.to_dense\(\)", lambda t: t.to_dense()),
    "mkldnn": (EYE.to_mkldnn, r"not dense.*\.to_dense\(\)", lambda t: t.to_dense()),
    "qint8": (
        lambda: torch.quantize_per_tensor(EYE, 0.1, 0, torch.qint8),
        r"torch.qint8.* is quantised: load it in 16 or 32 bits first.*\.dequantize\(\)", lambda t: t.dequantize(),
    ),
    "wrapped": (lambda: Wrapped(EYE.half()), r"Wrapped.*16 or 32 bits first.*\.dequantize\(\)", lambda t: t.dequantize()),
    "fp8": (
        lambda: EYE.to(torch.float8_e4m3fn), "F8_E4M3 values.* is quantised: load it in 16 or 32 bits first", lambda t: t.float(),
    ),
    "complex": (
        lambda: EYE.to(torch.complex64).conj(), r"complex.*view_as_real\(tensor.resolve_conj\(\)\)",
        lambda t: torch.view_as_real(t.resolve_conj()),
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r"nested.*\.to_padded_tensor\(0.0\)",
        lambda t: t.to_padded_tensor(0.0),
    ),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        r"nested.*\.to_padded_tensor\(0.0\)", lambda t: t.to_padded_tensor(0.0),
    ),
    "fake": (fake, "FakeTensor", None),
    "lazy": (nn.UninitializedParameter, "not initialised", None),
    "emptied": (emptied, "has no memory.*gather", None),
}


def state(value: Tensor) -> State:
    return {"w": torch.ones(4, 4), "x": value}


@pytest.mark.filterwarnings("ignore")  # torch's about prototypes
class TestKinds:
    @pytest.mark.parametrize("kind", BAD)
    @pytest.mark.parametrize("method", ["weight_averaging", "task_arithmetic", "tsv_m", "individual", "pretrained", "ties_merging"])
    def test_an_expert_and_the_pretrained_model(self, method, kind):
        make, words, _ = BAD[kind]
        with pytest.raises(fbl.MergeError, match=f"^expert 'b': 'x' .*{words}") as caught:
            fbl.merge(method, state(EYE), {"a": state(EYE), "b": state(make())})
        assert "\n" not in str(caught.value)
        bad = make()
        with pytest.raises(fbl.MergeError, match=f"^pretrained: 'x' .*{words}"):
            fbl.merge(method, state(bad), {"a": state(bad)})

    @pytest.mark.parametrize("kind", [kind for kind, (_, _, fix) in BAD.items() if fix is not None])
    def test_the_advice_helps(self, kind):
        make, _, fix = BAD[kind]
        plain = fix(make())
        merged = fbl.merge("weight_averaging", state(plain), {"a": state(plain), "b": state(plain)}).state_dict()
        assert torch.equal(merged["x"], plain)

    @pytest.mark.parametrize("kind", ["meta", "sparse", "complex", "emptied"])
    def test_statistics_and_trained_weights(self, kind):
        make, words, _ = BAD[kind]
        base, experts = {"x": EYE}, {"a": {"x": EYE}}
        for method, name in (("fisher_merging", "fisher"), ("regmean", "gram"), ("tatr", "gradients")):
            with pytest.raises(fbl.MergeError, match=f"{name} of task 'a': 'x' .*{words}"):
                fbl.merge(method, base, experts, **{name: {"a": {"x": make()}}})
        with pytest.raises(fbl.MergeError, match=f"'traditional_mtl': 'x' .*{words}"):
            fbl.merge("traditional_mtl", base, experts, multitask={"x": make()})

    @pytest.mark.parametrize("method", DATA_FREE)
    def test_every_method_refuses_an_offloaded_layer(self, method):
        inputs = {"fisher_merging": "fisher", "regmean": "gram", "tatr": "gradients", "traditional_mtl": "multitask"}
        given = {inputs[method]: {}} if method in inputs else {}
        with pytest.raises(fbl.MergeError, match="expert 'b': 'x' is on the meta device"):
            fbl.merge(method, state(EYE), {"a": state(EYE), "b": state(EYE.to("meta"))}, **given)

    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_every_adaptive_method_refuses_an_offloaded_layer(self, method):
        s = setting(steps=1)
        s.experts["task1"]["proj"] = s.experts["task1"]["proj"].to("meta")
        with pytest.raises(fbl.MergeError, match="expert 'task1': 'proj' is on the meta device"):
            run(method, s, 1)


def test_a_meta_tensor_in_tied_weights_is_not_read():
    offloaded = EYE.to("meta")
    with pytest.raises(fbl.MergeError, match="pretrained: 'a' is on the meta device"):
        fbl.merge("weight_averaging", {"a": offloaded, "b": offloaded}, {"x": {"a": EYE, "b": EYE}})
    with pytest.raises(fbl.MergeError, match="expert 'x': 'a' is on the meta device"):
        fbl.merge("weight_averaging", {"a": EYE, "b": EYE}, {"x": {"a": offloaded, "b": offloaded}})


class Named(torch.Tensor):
    """A subclass that adds nothing to what its values are."""


@pytest.mark.parametrize("make", [
    lambda v: nn.Parameter(v), lambda v: v.T, lambda v: v[:1].expand(4, 4), lambda v: v.as_subclass(Named),
    lambda v: torch._neg_view(v), lambda v: v.requires_grad_() * 1, lambda v: torch.stack([v, v])[1],
])
def test_views_parameters_and_plain_subclasses_pass(make):
    value = make(torch.randn(4, 4))
    base = {"x": torch.zeros(4, 4)}
    merged = fbl.merge("task_arithmetic", base, {"a": {"x": value}}, scaling=1.0).state_dict()
    assert torch.equal(merged["x"], value.detach())


def test_what_is_no_tensor_is_named():
    with pytest.raises(fbl.MergeError, match=re.escape("expert 'a': 'x' must be a tensor, got float")):
        fbl.merge("weight_averaging", {"x": EYE}, {"a": {"x": 1.0}})


def test_the_state_that_a_module_adds_of_its_own_is_left_out():
    base = {"fc.weight": EYE, "fc._extra_state": {"amax": 1.0}}
    with pytest.raises(fbl.MergeError, match=r"'fc\._extra_state' must be a tensor, got dict: leave such entries"):
        fbl.merge("weight_averaging", base, {"a": base})
    del base["fc._extra_state"]
    fbl.merge("weight_averaging", base, {"a": base})


@pytest.mark.parametrize("name", [0, ("fc", "weight"), None])
def test_names_are_text(name):
    with pytest.raises(fbl.MergeError, match=re.escape(f"pretrained: the name {name!r} is a ")):
        fbl.merge("weight_averaging", {name: EYE}, {"a": {name: EYE}})
