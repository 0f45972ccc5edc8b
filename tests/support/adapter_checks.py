"""Checks shared by the tests of adapters and routers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

import fusionbench_lite as fbl
from tests.support.helpers import Setting, distance, refused, same_bits, says, snapshot


def check_learned(got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float, dtype: torch.dtype) -> None:
    """Same names, shapes and values, each to an absolute `tolerance`; nothing is attached to a graph."""
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert got[name].dtype in (dtype, torch.float32), name
        assert not got[name].requires_grad
        error = float((got[name].double() - value).abs().max())
        assert error <= tolerance, f"{name}: {error:.2e}"


def check_losses(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert not got.requires_grad
    if len(want):
        assert distance(got, want) <= tolerance


def check_encode(got, encode, s: Setting, tolerance: float) -> None:
    """The adapted features of every task, for a batch and for a single example of it."""
    for task in s.experts:
        for x in (s.batches[task][0], s.batches[task][-1][:1]):
            features = got.encode(x, task)
            assert features.dtype == x.dtype
            assert not features.requires_grad
            assert distance(features, encode(x, task).detach()) <= tolerance, task


def picture(s: Setting) -> tuple:
    """Everything that adaptation has to leave as it was, in a form that can be compared."""
    modules = [s.model, *s.heads.values()]
    flags = [[p.requires_grad for p in m.parameters()] + [c.training for c in m.modules()] for m in modules]
    grads = [[p.grad is None for p in m.parameters()] for m in modules]
    hooks = [[len(c._forward_hooks) + len(c._forward_pre_hooks) for c in m.modules()] for m in modules]
    identities = [[id(p) for p in m.parameters()] + [id(c) for c in m.modules()] for m in modules]
    states = [snapshot(x) for x in (*(m.state_dict() for m in modules), s.pretrained, *s.experts.values())]
    return (flags, grads, hooks, identities), states, [b.clone() for x in s.batches.values() for b in x]


@contextlib.contextmanager
def unmodified(s: Setting) -> Iterator[None]:
    """Model, heads, weights and batches are the same after the block, bit for bit, whatever it does."""
    before = picture(s)
    try:
        yield
    finally:
        after = picture(s)
        assert before[0] == after[0]
        assert all(same_bits(a, b) for a, b in zip(before[1], after[1], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


def refuse(method: str, s: Setting, *parts: str, steps: int = 2, **given) -> str:
    """`fbl.adapt` is refused in one line that every pattern matches, and leaves everything as it was."""
    with unmodified(s):
        with refused(*parts) as message:
            fbl.adapt(method, *s.arguments(), steps, **given)
    return message[0]


def check_out_of_range(method: str, s: Setting, name: str, value: object, **given) -> None:
    """The message names the hyperparameter and the value."""
    message = refuse(method, s, name, **{**given, name: value})
    assert says(message, value), message


def cases(table: Mapping[tuple[str, ...], Mapping[str, list]]) -> list[tuple[str, str, object]]:
    return [(m, n, v) for methods, rows in table.items() for m in methods for n, values in rows.items() for v in values]


def check_stream_faults(method: str, s: Setting, steps: int, **given) -> None:
    """A stream that is missing, too short (both counts are named) or not finite is refused, naming the task."""
    full = dict(s.batches)
    s.batches = {t: iter(b[:4] if t == "task1" else b) for t, b in full.items()}
    with refused("task1", r"\b4\b", rf"\b{len(full['task1'])}\b"):
        fbl.adapt(method, *s.arguments(), steps, **given)
    s.batches = {t: b for t, b in full.items() if t != "task0"}
    refuse(method, s, "task0", "batch", steps=steps, **given)
    s.batches = {t: [x.clone() for x in b] for t, b in full.items()}
    s.batches["task1"][2].view(-1)[0] = float("nan")
    with refused("task1", "nan|inf|finite"):
        fbl.adapt(method, *s.arguments(), steps, **given)
    s.batches = full


def identify(case: tuple[str, Mapping[str, object]]) -> str:
    return case[0] + "".join(f"-{k}={v}" for k, v in case[1].items())


def gradient_of(change: Tensor, lr: float) -> Tensor:
    """Undo Adam's first step, -lr g / (|g| + 1e-8), in float64."""
    ratio = change.abs() / lr
    return -change.sign() * 1e-8 * ratio / (1 - ratio)
