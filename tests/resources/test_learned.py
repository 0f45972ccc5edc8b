"""What methods say that they learn, against what the optimizers of their procedures hold."""

from __future__ import annotations

import math

import pytest
import torch

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.procedure import Context
from fusionbench_lite.models import clip
from fusionbench_lite.models.architectures import of_size
from fusionbench_lite.resources import Inputs
from fusionbench_lite.weights.experts import Experts

SIZE = clip.ClipSize(image=16, patch=8, width=24, layers=2, heads=2, output=12, text_width=12, text_layers=1, text_heads=2)
TASKS = 3
MATRICES = {"matrices": "attn_mlp"}
ADAPTIVE = [id for id in registry.names() if registry.get(id, learning=True).adaptive]
VARIANTS = [
    *(("adarank_ta", {"learn": learn}) for learn in ("coefficients", "masks")), ("adarank_tsvm", {"extra": "none"}),
    *((id, {"top_only": True, "rank_ratio": 0.5}) for id in ("adarank_ta", "adarank_iso_cts")),
    ("concrete_am", {"level": "task"}), ("pareto_merging", {"learn_coefficients": False}), ("pareto_merging", {"rank": 3}),
    ("prob_surgery", {"shared": True}), ("surgery", {"rank": 5}), ("metamerging", {"rank": 5}),
    *(("metamerging", {"adapters": adapters}) for adapters in ("none", "final")), ("metamerging", {"base": "task_arithmetic"}),
]


@pytest.mark.parametrize(("method", "values"), [*((id, {}) for id in ADAPTIVE), *VARIANTS], ids=str)
def test_what_is_learned_is_what_the_optimizers_hold(method, values):
    entry, of = registry.get(method, learning=True), of_size("small", SIZE, "packed")
    values = {name: value for name, value in MATRICES.items() if name in entry.defaults} | values
    model = clip.build(SIZE, "packed").requires_grad_(False)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    experts = {f"task{number}": {key: t + 0.01 * torch.randn_like(t) for key, t in base.items()} for number in range(TASKS)}
    context = Context(model, dict.fromkeys(experts, lambda features: features), 3, example=torch.rand(1, 3, 16, 16))
    procedure = entry.function(Experts(base, experts), entry.configure(**values))(context)
    held = {parameter for optimizer in procedure.optimizers() for group in optimizer.param_groups for parameter in group["params"]}
    others = of.count - len(of.matrices())
    # Coefficients of tensors that Iso-CTS has no common block of, and that doGe does not merge, are there and change nothing.
    idle = others if method.endswith("iso_cts") else TASKS * others if method == "doge_am" else 0
    assert Inputs(
        encoder=of, method=method, tasks=TASKS, values=values
    ).learned + idle == sum(parameter.numel() for parameter in held)


def test_modifications_are_learned_before_the_steps():
    of = of_size("small", SIZE, "packed")
    for method, before in (("awd_am", of.parameters), ("doge_am", sum(map(math.prod, of.matrices().values())))):
        entry = registry.get(method)
        values = {name: value for name, value in MATRICES.items() if name in entry.defaults}
        learned = entry.learned(of, TASKS, entry.configure(**values))
        assert learned.total - learned.in_steps == before
