"""Comparisons of `fbl.adapt` with the results of the oracles, and settings for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fusionbench_lite as fbl
from tests.support.helpers import (
    Setting,
    check_passthrough,
    check_state,
    distance,
    refused,
    same_bits,
    says,
    setting,
    snapshot,
    touched,
)

DOUBLE = torch.float64
TOLERANCE = {torch.float32: 1e-5, DOUBLE: 1e-9}


class Tower(nn.Module):
    """A model whose matrices have "encoder" in their names."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)


def tower_setting(**given) -> Setting:
    s = setting(**given)

    def renamed(state):
        return {f"encoder.{n}": v for n, v in state.items()}

    return Setting(Tower(s.model), renamed(s.pretrained), {t: renamed(e) for t, e in s.experts.items()}, s.heads, s.batches)


def labelled(s: Setting, seed: int = 0) -> Setting:
    """The same setting with (inputs, labels) pairs as batches."""
    g = torch.Generator().manual_seed(seed)
    pairs = {}
    for task, batches in s.batches.items():
        classes = len(s.heads[task].weight)
        pairs[task] = [(x, torch.randint(0, classes, (len(x),), generator=g)) for x in batches]
    return Setting(s.model, s.pretrained, s.experts, s.heads, pairs)


def identify(case) -> str:
    return case[0] + "".join(f"-{k}={v}" for k, v in case[1].items())


def run(method, s, steps=5, **given):
    return fbl.adapt(method, *s.arguments(), steps, **given)


def check_coefficients(got, want, count: int, tolerance: float, scaling: float, clamp: bool = False) -> None:
    """Coefficients by name; "*" in `want` holds for every tensor. Tensors that never take part keep `scaling`."""
    assert "*" in want or set(got) >= set(want), sorted(set(want) - set(got))
    assert got
    for name, value in got.items():
        assert not value.requires_grad
        key = "*" if "*" in want else name
        if key not in want:
            assert value.shape == (count,), name
            assert bool((value == value.new_tensor(scaling)).all()), name
            continue
        assert value.shape == want[key].shape, name
        error = float((value.double() - want[key]).abs().max())
        if clamp:  # the clamped value may be reported too
            error = min(error, float((value.double() - want[key].clamp(0, 1)).abs().max()))
        assert error <= tolerance, f"{name}: {error:.2e}"


def check_masks(got, want) -> None:
    assert set(got) == set(want)
    for name, mask in got.items():
        assert mask.dtype == torch.bool, name
        assert mask.shape == want[name].shape, name
        assert torch.equal(mask, want[name]), name


def check_losses(got, want, tolerance: float) -> None:
    assert got.shape == want.shape
    if len(want):
        assert distance(got, want) <= max(10 * tolerance, 1e-9)


def check_merged(got, state, s, tolerance: float, task: str | None = None) -> None:
    check_state(got.state_dict(task), {n: v.numpy() for n, v in state.items()}, s.pretrained, tolerance)


def check_encode(got, state, s, task: str, tolerance: float) -> None:
    """`encode` is the model with these weights, in evaluation mode."""
    inputs = s.batches[task][0]
    inputs = inputs[0] if isinstance(inputs, tuple) else inputs
    model = s.copy().model.double().eval()
    want = torch.func.functional_call(model, dict(state), (inputs.double(),))
    features = got.encode(inputs, task)
    assert not features.requires_grad
    assert distance(features, want.detach()) <= tolerance


def refuse(*parts: str, method, s=None, steps=2, **given) -> str:
    """`fbl.adapt` refuses, the message matches every part, and the model is as it was."""
    s = s or setting(steps=2)
    before = snapshot(s.model.state_dict())
    with refused(*parts) as message:
        fbl.adapt(method, *s.arguments(), steps, **given)
    assert same_bits(s.model.state_dict(), before)
    return message[0]


def refuse_value(method, name, value, s=None) -> None:
    message = refuse(name, method=method, s=s, **{name: value})
    assert says(message, value)


def close_states(a, b, base, tolerance: float) -> None:
    check_passthrough(a, base)
    for name in touched(base):
        assert distance(a[name], b[name]) <= tolerance, name


def same_moves(a, b, order, tolerance: float) -> None:
    """Coefficients of a run whose tasks were given in another order: `order[i]` is the place of b's task i in a."""
    assert set(a) == set(b)
    for name, value in a.items():
        picked = value if len(value) != len(order) else value[order]
        assert torch.allclose(picked, b[name], atol=tolerance), name
