"""Mixed precision is that of the encoder's passes: merges, gradients of what is learned, adapters and logits stay exact."""

from __future__ import annotations

import pytest
import torch

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.objectives import objective
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.weights.experts import Experts
from tests.support.engine_job import TASKS, Encoder, job

ADAPTIVE = [name for name in registry.names() if registry.get(name, learning=True).adaptive]
SETTINGS = {"concrete_am": {"mask_steps": 2}, "metamerging": {"adapter_steps": 1}}
MERGING = ["adamerging_layerwise", "adarank_cart", "adarank_iso_cts", "concrete_ta", "pareto_merging"]
WITHOUT_PASSES = {"surgery", "prob_surgery"}


@pytest.mark.parametrize(
    ("method", "values"),
    [*((name, SETTINGS.get(name, {})) for name in ADAPTIVE), ("pareto_merging", {"mode": "distance"}),
     ("twin_merging", {"router": "entropy"}), ("wemoe", {"routing": "batch"})],
    ids=str,
)  # fmt: skip
def test_every_method_steps(method, values):
    exact, mixed = job(method, 3, **values), job(method, 3, precision="bf16-mixed", **values)
    assert mixed["losses"] == pytest.approx(exact["losses"], rel=0.08)
    if method in WITHOUT_PASSES or values == {"mode": "distance"}:
        assert mixed["losses"] == exact["losses"]
    elif (method, values) != ("twin_merging", {}):  # whose router reads what is computed before
        assert mixed["losses"] != exact["losses"]
    assert all(tensor.dtype != torch.bfloat16 for tensor in mixed["final"].values())


@pytest.mark.parametrize("method", MERGING)
def test_merges_and_gradients_are_those_of_full_precision(method):
    def found(*, mixed: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        base = {name: torch.randn(tensor.shape) for name, tensor in Encoder().state_dict().items()}
        experts = {task: {name: t + 0.3 * torch.randn(t.shape) for name, t in base.items()} for task in TASKS}
        heads = {task: torch.nn.Identity() for task in TASKS}
        entry = registry.get(method, learning=True)
        procedure = entry.function(Experts(base, experts), entry.configure())(Context(Encoder(), heads, 3))
        with torch.no_grad():  # so that the update of a matrix is none of zeros
            for name, learnable in procedure.learnables.named_parameters():
                if "core" in name:
                    learnable.copy_(torch.randn(learnable.shape))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            procedure.refresh(0)
            merged = {name: leaf.detach().clone() for name, leaf in procedure.encoder.leaves.items()}
            procedure.parametrisation.pull_back({name: torch.randn(leaf.shape) for name, leaf in merged.items()})
        gradients = {f"d {name}": p.grad for name, p in procedure.learnables.named_parameters() if p.grad is not None}
        assert gradients
        return merged | gradients

    exact, mixed = found(mixed=False), found(mixed=True)
    assert exact.keys() == mixed.keys()
    assert all(torch.equal(exact[name], mixed[name]) for name in exact)


@pytest.mark.parametrize("name", ["entropy", "cross_entropy", "entropy_of_mean"])
def test_logits_of_cosines_times_a_hundred_are_exact(name):
    torch.manual_seed(0)
    head, features = ZeroShotHead(torch.randn(6, 32), 100.0), torch.randn(4, 32).bfloat16()
    examples = Examples(features, labels=torch.arange(4))
    exact = objective(name, {"one": head})("one", features.float(), examples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(name, {"one": head})("one", features, examples), exact)
        coarse = head(features).float()
    assert (coarse - head(features.float())).abs().max() > 0.01
