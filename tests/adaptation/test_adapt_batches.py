"""Loaders and inputs of users: what is taken, what is refused, and the mend that each refusal names."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fusionbench_lite as fbl
from tests.support.helpers import Setting, refused, same_bits, setting
from tests.support.tiny_models import BATCH, Encoder, tiny


def adapted(s: Setting, method: str = "adamerging_layerwise", steps: int = 3, **given):
    return fbl.adapt(method, *s.arguments(), steps, **given)


def of_batches(change) -> Setting:
    s = tiny()
    s.batches = {t: change(b) for t, b in s.batches.items()}
    return s


def same_losses(s: Setting) -> bool:
    return torch.equal(adapted(s).losses, adapted(tiny()).losses)


class Stream(IterableDataset):
    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


TAKEN = {
    "lists of one": lambda b: [[x] for x in b], "tuples of one": lambda b: [(x,) for x in b], "generator": iter,
    "loader of tensors": lambda b: DataLoader(torch.cat(b), batch_size=BATCH),
    "loader of a TensorDataset": lambda b: DataLoader(TensorDataset(torch.cat(b)), batch_size=BATCH),
    "stream of batches": Stream, "named": lambda b: [{"x": x} for x in b],
    "with a gradient": lambda b: [x.clone().requires_grad_() * 1 for x in b],
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken(kind):
    assert same_losses(of_batches(TAKEN[kind]))


REFUSED = {
    "pairs": (lambda b: [(x, torch.zeros(len(x))) for x in b], lambda b: (batch[0] for batch in b), ["tuple of 2", r"batch\[0\]"]),
    "one tensor": (torch.cat, lambda b: b.split(BATCH), [r"one tensor \(32, 6\)", "split"]),
    "data set": (lambda b: TensorDataset(torch.cat(b)), lambda d: DataLoader(d, batch_size=BATCH), ["TensorDataset", "DataLoader"]),
    "one mapping": (lambda b: {"x": b[0]}, lambda m: [m] * 4, ["one dict of x", "list"]),
    "numpy": (lambda b: [x.numpy() for x in b], lambda b: [torch.as_tensor(x) for x in b], ["step 1", "ndarray", "as_tensor"]),
    "named lists": (
        lambda b: [{"x": x.tolist()} for x in b], lambda b: [{"x": torch.as_tensor(m["x"])} for m in b], ["list", "as_tensor"],
    ),
    "text": (lambda b: [["one", "two"]] * 4, None, ["str", "token ids"]),
    "empty last": (lambda b: [*b[:2], b[0][:0]], None, ["step 3", r"\(0, 6\)", "empty"]),
    "number": (lambda b: 5, None, ["iterable", "int"]),
    "other shape": (lambda b: [b[0], b[1][:, :5], *b[2:]], None, ["Encoder does not run", r"\(16, 5\)"]),
    "double": (lambda b: [x.double() for x in b], lambda b: [x.to(torch.float32) for x in b], ["float64", r"x.to\(torch.float32"]),
    "bytes": (lambda b: [x.byte() for x in b], lambda b: [x.to(torch.float32) for x in b], ["uint8", r"x.to\(torch.float32"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_and_mended(kind):
    breaks, mends, parts = REFUSED[kind]
    s = of_batches(breaks)
    with refused(*parts):
        adapted(s)
    if mends is not None:
        s.batches = {t: mends(b) for t, b in s.batches.items()}
        assert bool(torch.isfinite(adapted(s).losses).all())


def test_one_iterator_for_two_tasks():
    s = tiny()
    whole = [x for b in s.batches.values() for x in b]
    s.batches = dict.fromkeys(s.batches, iter(whole))
    with refused("'task0' and 'task1' have one iterator"):
        adapted(s)
    s.batches = dict.fromkeys(s.batches, whole)  # a list can be read twice
    assert len(adapted(s).losses) == 3


@pytest.mark.parametrize("argument", ["heads", "batches"])
def test_a_task_of_almost_the_name(argument):
    s = tiny()
    given = getattr(s, argument)
    given["Task-1"] = given.pop("task1")
    with refused(f"{argument} lacks task 'task1'", "did you mean 'Task-1'"):
        adapted(s)
    given["task1"] = given["Task-1"]
    assert same_losses(s)  # further entries do no harm


@pytest.mark.parametrize("steps", [np.int64(2), torch.tensor(2)])
def test_steps_of_other_integer_types(steps):
    assert torch.equal(adapted(tiny(), steps=steps).losses, adapted(tiny(), steps=2).losses)
    with refused("steps", "True"):
        adapted(tiny(), steps=True)


def test_half_precision_weights_and_wider_inputs():
    s = tiny(dtype=torch.float16)
    s.batches = tiny().batches
    with refused("Encoder does not run", "torch.float32", r"weights are in torch.float16", r"x.to\(torch.float16\)"):
        adapted(s)
    s.batches = {t: [x.to(torch.float16) for x in b] for t, b in s.batches.items()}
    adapted(s)
    s.heads["task1"] = s.heads["task1"].float()
    with refused("task 'task1'", r"head.to\(torch.float16\)"):
        adapted(s)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mlp = nn.Embedding(10, 8), nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.mlp(self.embedding(input_ids).mean(1))


def words(**extra: Tensor) -> Setting:
    s = tiny(Words())
    s.batches = {
        t: [collections.UserDict({"input_ids": torch.arange(40).view(8, 5) % 10, **extra}) for _ in range(4)] for t in s.heads
    }
    return s


def test_named_inputs_that_the_model_does_not_take():
    want = adapted(words()).losses
    assert torch.equal(adapted(words(attention_mask=torch.ones(8, 5))).losses, want)
    s = words(labels=torch.zeros(8, dtype=torch.long))
    with refused("Words does not run", "takes input_ids, attention_mask", "take 'labels' out"):
        adapted(s)
    for batch in (batch for b in s.batches.values() for batch in b):
        del batch["labels"]
    assert torch.equal(adapted(s).losses, want)


@pytest.mark.parametrize("late", [False, True])
def test_token_ids_beyond_the_vocabulary(late):
    s = words()
    s.batches["task1" if late else "task0"][2 if late else 0]["input_ids"][3 if late else 0] = 99
    with refused("Words does not run", "to 99", "10 rows"):
        adapted(s)


def test_what_was_made_in_inference_mode():
    """Weights, and batches that a loader makes under it, are taken; gradients could not read them as they are."""
    for method in ("adamerging_layerwise", "surgery_v2", "metamerging", "awd_am"):
        want = adapted(setting(steps=9), method, 2)
        with torch.inference_mode():
            s, fresh = setting(steps=9), setting(steps=9)
        plain = setting(steps=9)
        s.model, s.heads = plain.model, plain.heads
        got = adapted(s, method, 2)
        assert torch.equal(got.losses, want.losses)
        assert torch.equal(got.encode(fresh.batches["task0"][0], "task0"), want.encode(plain.batches["task0"][0], "task0"))


def test_encode_asks_for_inputs_too():
    s = tiny()
    got = adapted(s)
    x = s.batches["task0"][0]
    assert torch.equal(got.encode([x], "task0"), got.encode(x, "task0"))
    with refused("task 'task0'", "tuple of 2"):
        got.encode((x, torch.zeros(8)), "task0")
    with refused("Encoder does not run", r"\(8, 5\)"):
        got.encode(x[:, :5], "task0")


class Drawing(Encoder):
    """Draws a number in every pass, as no model should in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        return super().forward(x)


def test_random_numbers_of_the_caller_are_left_alone():
    s = tiny(Drawing())
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    adapted(s)
    assert torch.equal(torch.rand(3), want)


def test_the_model_is_left_as_it_was():
    s = tiny()
    before = {name: tensor.clone() for name, tensor in s.model.state_dict().items()}
    adapted(s)
    assert same_bits(s.model.state_dict(), before)
    assert all(p.grad is None and p.requires_grad for p in s.model.parameters())
    assert not any(module._forward_pre_hooks for module in s.model.modules())
