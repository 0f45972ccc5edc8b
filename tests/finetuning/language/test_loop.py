"""The loop of language fine-tuning: descent as torch's optimizers do it, and the same bits after a stop anywhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fusionbench_lite.adaptation.learners.training import Course
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.finetuning.language import optimise

STEPS, EVERY = 11, 3


def model_of(dropout: float = 0.3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(step)
    return torch.randn(6, 5, generator=drawn), torch.randint(3, (6,), generator=drawn)


def loss_of(model: nn.Module):
    def loss_of_step(step: int):
        inputs, labels = batch_of(step)
        yield nn.functional.cross_entropy(model(inputs), labels)

    return loss_of_step


class Norms:
    """The norm of the weights after every other step."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.found = model, []

    def wants(self, completed: int) -> bool:
        return completed % 2 == 0

    def after(self, completed: int) -> None:
        assert not self.model.training
        assert not torch.is_grad_enabled()
        self.found.append([completed, float(self.model[0].weight.norm())])

    def state_dict(self):
        return {"found": self.found}

    def load_state_dict(self, state):
        self.found = state["found"]


COURSE = Course(lr=0.02, weight_decay=0.1, warmup=3, clip=0.5, schedule="linear")


def train(checkpoint=None, stop=None, course=COURSE):
    model = model_of()
    watcher = Norms(model)

    def report(completed: int, loss: float) -> None:
        if completed == stop:
            raise KeyboardInterrupt

    losses = optimise(
        model, loss_of(model), dict(model.named_parameters()), course, steps=STEPS, key=(1, "toy"), checkpoint=checkpoint,
        checkpoint_every=EVERY, watchers=[watcher], report=report,
    )
    return losses, watcher.found, [tensor.tolist() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("course", [COURSE, Course(lr=0.02, optimizer="adam", schedule="constant")], ids=["adamw", "adam"])
def test_equals_torch(course):
    ours = train(course=course)
    model = model_of()
    decay = [tensor for tensor in model.parameters() if tensor.dim() == 2]
    others = [tensor for tensor in model.parameters() if tensor.dim() == 1]
    kind = torch.optim.AdamW if course.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind([{"params": decay, "weight_decay": course.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=1.0)
    losses = []
    from fusionbench_lite.base.randomness import seed_of

    with torch.random.fork_rng(devices=[]):
        for step in range(STEPS):
            falling = 1.0 if course.schedule == "constant" else (STEPS - step) / (STEPS - course.warmup)
            rate = course.lr * (step + 1) / 3 if step < course.warmup else course.lr * falling
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(seed_of(1, "toy", "dropout", step) % 2**63)
            loss = next(loss_of(model)(step))
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), course.clip or 1e9)
            optimizer.step()
    assert ours[0] == pytest.approx(losses, rel=1e-5)
    for mine, theirs in zip(ours[2], model.state_dict().values(), strict=True):
        torch.testing.assert_close(torch.tensor(mine), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stops", [(1,), (3,), (7, 8), (2, 4, 10), (STEPS,)], ids=str)
def test_stopped_anywhere_ends_with_the_same_bits(tmp_path, stops):
    path = tmp_path / "state.ckpt"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(path, stop)
    assert path.exists() == (stops[-1] > EVERY)
    assert train(path) == train()


def test_parts_of_a_batch_sum_to_its_loss():
    def parts(model):
        def loss_of_step(step):
            inputs, labels = batch_of(step)
            for rows in (slice(0, 2), slice(2, 6)):
                yield nn.functional.cross_entropy(model(inputs[rows]), labels[rows], reduction="sum") / len(labels)

        return loss_of_step

    results = []
    for made in (loss_of, parts):
        model = model_of(dropout=0.0)
        losses = optimise(model, made(model), dict(model.named_parameters()), COURSE, steps=4, key=("x",))
        results.append((losses, model.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(tensor, results[1][1][name], rtol=1e-4, atol=1e-6)


def test_leaves_mode_random_numbers_and_other_parameters():
    model = model_of().eval()
    before = model[0].weight.clone()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    optimise(model, loss_of(model), dict(model[4].named_parameters()), COURSE, steps=2, key=(0,))
    assert torch.equal(torch.rand(3), expected)
    assert not model.training
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.grad is None


def test_bad_losses_name_the_step(tmp_path):
    model = model_of()

    def bad(step: int):
        loss = model(batch_of(step)[0]).sum()
        yield loss * (math.nan if step == 2 else 1.0)

    with pytest.raises(MergeError, match="loss of step 3 is nan: lower the learning rate"):
        optimise(model, bad, dict(model.named_parameters()), COURSE, steps=5, key=(0,))

    def steep(step: int):
        yield torch.sqrt((model(batch_of(step)[0]) * 0).sum())

    with pytest.raises(MergeError, match="gradient of step 1 is not finite"):
        optimise(model, steep, dict(model.named_parameters()), COURSE, steps=5, key=(0,))
    path = tmp_path / "state.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train(path, 7)
    with pytest.raises(InputError, match="is of step 6, the training has 4: remove it"):
        optimise(model_of(), bad, dict(model_of().named_parameters()), COURSE, steps=4, key=(0,), checkpoint=path)
