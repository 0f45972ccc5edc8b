"""What published code does with language models in a step: dropout that a key decides, and MetaMerging by states at all positions,
with a step after each task. Oracles are autograd in float64 through transformers' own models."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.engine.descent import descend
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.parts import Vectors
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.base.randomness import seed_of
from fusionbench_lite.weights.experts import Experts
from tests.oracles import adaptive
from tests.oracles import metamerging as oracle
from tests.support.adapter_checks import check_learned
from tests.support.helpers import distance, refused
from tests.support.language_models import PAD, language_setting, loss_of, one_of_each
from tests.support.small_models import FlatPerceptron, small_setting

DOUBLE = torch.float64
SEED = 5

# ---------------------------------------------------------------- dropout


def procedure_of(s, objective, dropout=SEED, chunk=None):
    view = Experts(s.setting.pretrained, s.setting.experts)
    parts = {name: Vectors(view.base(name), view.task_vectors(name)) for name in view.names}
    learner = descend(Parametrisation(view, parts, 0.3, lr=1e-3), objective)
    return learner(Context(s.setting.model, s.setting.heads, 9, chunk, dropout=dropout))


def slopes(procedure, s, step, tasks=None):
    """Losses and the gradient in λ of one step."""
    batch = {t: Examples(s.setting.batches[t][step]) for t in tasks or s.setting.batches}
    procedure.optimizers()
    seen = {}

    def update(losses, optimizer, clip=None):
        seen["gradient"] = procedure.parametrisation.coefficients.grad.clone()

    losses = procedure.step(step, [batch], update)
    return losses, seen["gradient"]


def dropped(s, step, mean):
    """The same through transformers' models in training mode, heads at evaluation, random numbers seeded by the key."""
    problem = adaptive.adamerging(*one_of_each(s), clamp=False)
    coefficients, logits = adaptive.initial(problem)
    for tensor in coefficients.values():
        tensor.requires_grad_()
    state = adaptive.merged(problem, coefficients, logits)
    losses = {}
    for task, full in s.full.items():
        model = copy.deepcopy(full).double().train()
        for name, module in model.named_modules():
            if name.startswith("classifier"):
                module.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(SEED, "dropout", step, task, 0) % 2**63)
            losses[task] = loss_of(s, model, state, s.setting.batches[task][step], mean)
    sum(losses.values()).backward()
    return losses, {name: tensor.grad for name, tensor in coefficients.items()}


@pytest.mark.parametrize(("kind", "mean"), [("gpt2", True), ("t5", True), ("roberta", False)])
def test_dropout_is_transformers_own(kind, mean):
    s = language_setting(kind, 2, start=1 if kind == "t5" else 0)
    name = "entropy_of_mean" if mean else "entropy"
    procedure = procedure_of(s, name)
    tolerance = 1e-6 if kind == "t5" else 1e-12
    for step in (0, 1):
        losses, gradient = slopes(procedure, s, step)
        want, wanted = dropped(s, step, mean)
        plain, _ = slopes(procedure_of(s, name, dropout=None), s, step)
        for task in losses:
            assert distance(losses[task], want[task].detach()) <= tolerance
            assert abs(float(losses[task] - plain[task])) > 1e-4
        for tensor, value in wanted.items():
            row = procedure.parametrisation.rows[tensor]
            assert float((gradient[row] - value).abs().max()) <= 10 * tolerance, tensor


def test_what_is_dropped_depends_on_seed_step_and_task_alone():
    s = language_setting("gpt2", 3)  # two of the tasks have one length, and run together without dropout
    one = s.setting.batches
    for task in one:
        one[task] = [one[task][0]] * 3
    together, _ = slopes(procedure_of(s, "entropy"), s, 1)
    alone = {t: slopes(procedure_of(s, "entropy"), s, 1, [t])[0][t] for t in reversed(one)}
    assert all(torch.equal(together[task], alone[task]) for task in alone)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    modes = [module.training for module in s.setting.model.modules()]
    again, _ = slopes(procedure_of(s, "entropy"), s, 1)
    assert all(torch.equal(together[task], again[task]) for task in alone)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in s.setting.model.modules()] == modes
    others = slopes(procedure_of(s, "entropy"), s, 2)[0], slopes(procedure_of(s, "entropy", dropout=6), s, 1)[0]
    assert all(not torch.equal(together[task], other[task]) for other in others for task in together)


def test_parts_of_a_batch_drop_the_same_for_the_mean_and_for_its_slope():
    """The entropy of the mean over parts takes two passes: losses and gradients are those of one function."""
    s = language_setting("gpt2", 1)
    procedure = procedure_of(s, "entropy_of_mean", chunk=2)
    losses, gradient = slopes(procedure, s, 0)
    with torch.no_grad():
        moved = procedure.parametrisation.coefficients
        ends = []
        for sign in (1, -1):
            moved[3, 0] += sign * 1e-5
            ends.append(total(procedure, s))
            moved[3, 0] -= sign * 1e-5
    assert float(gradient[3, 0]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)
    assert float(sum(losses.values())) > 0


def total(procedure, s):
    with torch.enable_grad():
        return float(sum(slopes(procedure, s, 0)[0].values()))


def test_losses_and_features_know_no_dropout():
    s = language_setting("gpt2", 1)
    with_dropout, without = procedure_of(s, "entropy"), procedure_of(s, "entropy", dropout=None)
    batch = {t: Examples(batches[0]) for t, batches in s.setting.batches.items()}
    for procedure in (with_dropout, without):
        procedure.refresh(0)
    assert all(torch.equal(with_dropout.losses(batch)[t], without.losses(batch)[t]) for t in batch)
    assert torch.equal(with_dropout.encode("task0", batch["task0"]), without.encode("task0", batch["task0"]))


# ---------------------------------------------------------------- MetaMerging


class Everywhere(nn.Module):
    """transformers' GPT-2 as a function of a batch that puts out its last hidden states at all positions."""

    def __init__(self, full: nn.Module, length: int | None) -> None:
        super().__init__()
        self.transformer, self.length = full.transformer, length

    def forward(self, batch) -> torch.Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        more = (0, self.length - ids.shape[1]) if self.length else (0, 0)
        ids, mask = F.pad(ids, more, value=PAD["gpt2"]), F.pad(mask, more)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        states = self.transformer(input_ids=ids, attention_mask=mask, position_ids=positions)[0]
        return states if self.length else states * mask[..., None]


def right_padded(steps, seed=0):
    s = language_setting("gpt2", steps, seed=seed)
    for batches in s.setting.batches.values():
        for number, batch in enumerate(batches):
            mask, ids = batch["attention_mask"].sort(dim=1, descending=True, stable=True)
            batches[number] = {"input_ids": batch["input_ids"].gather(1, ids), "attention_mask": mask}
    return s


def by_task(problem, batches, steps, raw, inner_lr, lr):
    """Raw and losses of first-order steps after each task's loss, of one inner step, by plain autograd."""
    value = torch.full((len(problem.tasks),), raw, dtype=DOUBLE, requires_grad=True)
    adam = torch.optim.Adam([value], lr=lr)
    losses, streams = [], {task: iter(batches[task]) for task in problem.tasks}
    for _ in range(steps):
        total = 0.0
        for task in problem.tasks:
            state = oracle.theta(problem, value)
            phi = {n: v.clone().requires_grad_() for n, v in problem.start[task].items()}
            fixed = {name: tensor.detach() for name, tensor in state.items()}
            gradients = torch.autograd.grad(oracle.task_loss(problem, fixed, phi, task, next(streams[task])), list(phi.values()))
            phi = {n: (v - inner_lr * g).detach() for (n, v), g in zip(phi.items(), gradients, strict=True)}
            loss = oracle.task_loss(problem, state, phi, task, next(streams[task]))
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += float(loss.detach())
        losses.append(total)
    return value.detach(), losses, streams


@pytest.mark.parametrize("length", [None, 9])
@pytest.mark.parametrize("updates", ["sum", "task"])
def test_metamerging_at_all_positions(length, updates):
    s, steps, adapters = right_padded(14), 6, 2
    given = {"raw": -1.872, "inner_lr": 0.1, "lr": 0.01, "order": "first"}
    problem = oracle.problem(
        Everywhere(s.full["task0"], length), s.setting.pretrained, s.setting.experts, s.setting.batches["task0"][0], rank=3
    )
    if updates == "task":
        raw, losses, streams = by_task(problem, s.setting.batches, steps, -1.872, 0.1, 0.01)
        last = oracle.learn_adapters(problem, oracle.theta(problem, raw), streams, adapters, 1e-3)
        losses = torch.cat([torch.tensor(losses, dtype=DOUBLE), last.losses])
    else:
        last = oracle.run(problem, s.setting.batches, steps + adapters, adapter_steps=adapters, **given)
        raw, losses = last.raw, last.losses
    got = fbl.adapt(
        "metamerging", *s.setting.arguments(), steps + adapters, adapter_steps=adapters, rank=3, features="positions",
        length=length, updates=updates, **given,
    )
    want = {"raw": raw, **{f"{t}/{n}": v for t, own in last.adapters.items() for n, v in own.items()}}
    check_learned(got.learned, want, 1e-9, DOUBLE)
    assert distance(got.losses, losses) <= 1e-12
    assert all(distance(value, last.state[name]) <= 1e-9 for name, value in got.state_dict().items())
    other = fbl.adapt(
        "metamerging", *s.setting.arguments(), steps + adapters, adapter_steps=adapters, rank=3, updates=updates, **given
    )
    assert distance(other.losses, losses) > 1e-3
    # What heads read is the last token's state, with the adapters behind the blocks.
    batch = s.setting.batches["task1"][0]
    assert got.encode(batch, "task1").shape == (len(batch["input_ids"]), 8)


def test_second_order_at_all_positions():
    s = right_padded(6)
    problem = oracle.problem(
        Everywhere(s.full["task0"], 7), s.setting.pretrained, s.setting.experts, s.setting.batches["task0"][0], rank=3
    )
    want = oracle.run(problem, s.setting.batches, 3, adapter_steps=0)
    got = fbl.adapt("metamerging", *s.setting.arguments(), 3, adapter_steps=0, rank=3, features="positions", length=7)
    assert distance(got.learned["raw"], want.raw) <= 1e-9
    assert distance(got.losses, want.losses) <= 1e-12


def test_states_at_all_positions():
    s = right_padded(1)
    model, batch = s.setting.model.eval(), s.setting.batches["task1"][0]
    before = model(**batch)
    mask = batch["attention_mask"]
    with model.at_positions():
        states = model(**batch)
        with model.at_positions(10):
            padded = model(**batch)
        assert torch.equal(model(**batch), states)
    assert torch.equal(model(**batch), before)
    assert states.shape == (*mask.shape, 8)
    assert padded.shape == (len(mask), 10, 8)
    assert not bool(states[mask == 0].any())
    assert distance(padded[:, : mask.shape[1]][mask == 1].detach(), states[mask == 1].detach()) <= 1e-12
    assert bool(padded[:, -1].abs().sum() > 0)
    last = mask.sum(1) - 1
    assert distance(states[torch.arange(len(mask)), last].detach(), before.detach()) <= 1e-12


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "t5"])
def test_positions_that_are_not_there_are_one_line(kind):
    s = language_setting(kind, 2)
    given = {"adapter_steps": 1, "features": "positions", "rank": 2}
    if kind == "t5":
        with refused("T5Encoder", "features"):
            fbl.adapt("metamerging", *s.setting.arguments(), 2, **given)
        return
    for length in (13, 3):  # more positions than the model has, fewer than the inputs
        with refused("length", str(length)):
            fbl.adapt("metamerging", *s.setting.arguments(), 2, **given, length=length)


def test_a_model_without_positions_is_refused():
    s = small_setting(FlatPerceptron(), 2)
    with refused("at_positions", "features"):
        fbl.adapt("metamerging", *s.arguments(), 2, adapters="final", features="positions")
