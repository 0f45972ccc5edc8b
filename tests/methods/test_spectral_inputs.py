"""How inputs of the spectral and the optimised methods may come: views, parameters, other mappings, mixed precisions."""

from __future__ import annotations

import types

import pytest
import torch

import fusionbench_lite as fbl
from tests.oracles import optimised, spectral
from tests.support.helpers import check_state, experts_of, rng, same_bits, snapshot, touched
from tests.support.spectral_cases import decades, hf_clip_state

METHODS = ["tsv_c", "iso_cts", "star", "knots_ta", "knots_ties", "doge_ta", "awd_ta", "wudi"]
OPTIMISED = ["doge_ta", "awd_ta", "wudi"]


def merge(method, base, experts):
    steps = {"steps": 5} if method in OPTIMISED else {}
    return fbl.merge(method, base, experts, **steps).state_dict("task1" if method == "tsv_c" else None)


@pytest.mark.parametrize("method", METHODS)
def test_views_parameters_and_other_mappings_are_accepted(method):
    base = hf_clip_state(2, torch.float64)
    experts = experts_of(base, 3, size=1e-2)
    expected = merge(method, base, experts)
    matrix = "vision_model.encoder.layers.0.mlp.fc1.weight"

    def awkward(state):
        state = snapshot(state)
        state[matrix] = state[matrix].T.contiguous().T
        for name in ("vision_model.encoder.layers.0.mlp.fc2.weight", "vision_model.embeddings.class_embedding"):
            state[name] = torch.nn.Parameter(state[name])
        return types.MappingProxyType(state)

    state = merge(method, awkward(base), types.MappingProxyType({t: awkward(e) for t, e in experts.items()}))
    for name in touched(base):
        assert torch.allclose(state[name], expected[name], rtol=0, atol=1e-9), name
        assert not state[name].requires_grad
        assert state[name].is_contiguous()


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_inside_no_grad_or_under_another_default_dtype_is_the_same(method):
    base = hf_clip_state(2)
    experts = decades(base, 3)
    expected = merge(method, base, experts)
    with torch.no_grad():
        assert same_bits(merge(method, base, experts), expected)
    with torch.inference_mode():
        assert same_bits(merge(method, base, experts), expected)
    torch.set_default_dtype(torch.float64)
    try:
        state = merge(method, base, experts)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.allclose(state[n], expected[n], rtol=0, atol=1e-6) for n in touched(base))
    assert all(state[n].dtype == base[n].dtype for n in base)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precisions_in_one_state_dict(method):
    g = rng(12)
    shapes = {"encoder.a.weight": (7, 5), "b": (7,), "encoder.c.weight": (6, 8), "d": (9,)}
    base = {
        n: (0.05 * torch.randn(s, generator=g, dtype=torch.float64)).to(torch.float64 if i % 3 == 0 else torch.float32)
        for i, (n, s) in enumerate(shapes.items())
    }
    experts = experts_of(base, 3, size=1e-2)
    if method == "tsv_c":
        expected = spectral.tsv_c(base, experts)["task1"]
    else:
        oracles = {**spectral.ORACLES, **optimised.ORACLES}
        expected = oracles[method](base, experts, **({"steps": 5} if method in OPTIMISED else {}))
    check_state(merge(method, base, experts), expected, base, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_neither_changed_nor_shared(method):
    base = hf_clip_state(2)
    experts = decades(base, 3)
    before = snapshot(base), {t: snapshot(e) for t, e in experts.items()}
    for value in merge(method, base, experts).values():
        value.zero_()
    assert same_bits(base, before[0])
    assert all(same_bits(experts[t], before[1][t]) for t in experts)
