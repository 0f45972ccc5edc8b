"""A parameter without dimension, such as `logit_scale`, is merged by every method as one of shape (1,) is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fusionbench_lite as fbl
from fusionbench_lite import registry
from tests.oracles import adaptive
from tests.support.helpers import Setting, State, clip_state, expert_of, experts_of, rng
from tests.support.key_sets import fisher_of, gram_of
from tests.support.small_models import Transformer, small_setting

DATA_FREE = [m for m in registry.names() if not registry.get(m).adaptive]
ADAPTIVE = [m for m in registry.names() if registry.get(m, learning=True).adaptive]
MERGED = [m for m in DATA_FREE if m not in ("pretrained", "knots_ta", "knots_ties", "doge_ta")]
"""Methods that do not leave tensors other than matrices at θ0 by their definition."""
FLOATS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def listed(state: State) -> State:
    """The same model with (1,) for the shape of every scalar."""
    return {name: value.reshape(1) if value.dim() == 0 else value for name, value in state.items()}


def options(method: str, base: State, tasks: list[str]) -> dict[str, object]:
    given: dict[str, object] = {"steps": 3} if method in ("awd_ta", "doge_ta", "wudi") else {}
    if method == "fisher_merging":
        given["fisher"] = fisher_of(base, tasks)
    if method == "regmean":
        given["gram"] = gram_of(base, tasks)
    if method == "tatr":
        given["gradients"] = fisher_of(base, tasks)
    if method == "traditional_mtl":
        given["multitask"] = expert_of(base, 900)
    return given


def models(method: str, base: State, experts: dict[str, State], **given: object) -> list[State]:
    result = fbl.merge(method, base, experts, **given)
    return [result.state_dict(task) for task in experts] if result.per_task else [result.state_dict()]


@FLOATS
@pytest.mark.parametrize("method", [m for m in DATA_FREE if m != "breadcrumbs"])
def test_scalars_merge_as_tensors_of_one_entry(method, dtype):
    base = clip_state(3, dtype) | {"gate": torch.tensor(0.5, dtype=dtype)}
    experts = experts_of(base, 2, 70)
    given = options(method, base, list(experts))
    plain = models(method, base, experts, **given)
    if method == "fisher_merging":
        given["fisher"] = {task: listed(values) for task, values in given["fisher"].items()}
    if method == "tatr":
        given["gradients"] = {task: listed(values) for task, values in given["gradients"].items()}
    if method == "traditional_mtl":
        given["multitask"] = listed(given["multitask"])
    want = models(method, listed(base), {task: listed(expert) for task, expert in experts.items()}, **given)
    for got, other in zip(plain, want, strict=True):
        for name, value in base.items():
            assert got[name].shape == value.shape
            assert torch.equal(got[name].reshape(-1), other[name].reshape(-1)), name


@FLOATS
@pytest.mark.parametrize("method", MERGED)
def test_scalars_do_not_stay_at_the_pretrained_value(method, dtype):
    base = clip_state(3, dtype)
    experts = experts_of(base, 2, 70, 0.5)
    experts["task0"]["logit_scale"] = base["logit_scale"] + 5
    experts["task1"]["logit_scale"] = base["logit_scale"] + 2.5
    given = options(method, base, list(experts))
    if method == "pcb_merging":
        given["ratio"] = 1.0
    if method.startswith("tatr"):  # what moves most is what it leaves out first
        given["left_out"] = 0.0
    moved = [float((state["logit_scale"] - base["logit_scale"]).abs()) for state in models(method, base, experts, **given)]
    if method == "ta_dare":  # its one entry may be dropped
        moved = [float((models(method, base, experts, drop_rate=0.0)[0]["logit_scale"] - base["logit_scale"]).abs())]
    assert min(moved) > 0.01


@pytest.mark.parametrize("method", [
    "weight_averaging", "metagpt", "cart", "emr_merging", "individual", "fisher_merging", "regmean", "model_stock", "star", "tsv_c",
])
def test_one_expert_alone_is_returned_with_its_scalars(method):
    base = clip_state(5, torch.float64)
    expert = expert_of(base, 8)
    for state in models(method, base, {"only": expert}, **options(method, base, ["only"])):
        assert float((state["logit_scale"] - expert["logit_scale"]).abs()) < 1e-12


@FLOATS
def test_task_arithmetic_and_breadcrumbs_add_all_of_a_scalar(dtype):
    """Breadcrumbs has no row of a scalar to mask: θ0 + α Σ τ."""
    base = {"s": torch.tensor(4.0, dtype=dtype), "w": torch.randn(4, 40, generator=rng(0)).to(dtype)}
    experts = experts_of(base, 3)
    for number, expert in enumerate(experts.values()):
        expert["s"] = torch.tensor(4.0 + number, dtype=dtype)
    for method in ("task_arithmetic", "breadcrumbs"):
        for given in ({}, {"granularity": "tensor"}) if method == "breadcrumbs" else ({},):
            state = fbl.merge(method, base, experts, scaling=0.25, **given).state_dict()
            assert state["s"].shape == ()
            assert float(state["s"]) == 4.75


def test_a_scalar_is_one_entry_of_the_quantiles():
    """Of 4 entries TIES keeps those at least as large as the third smallest: the largest two."""
    base = {"s": torch.tensor(0.0), "w": torch.zeros(3)}
    expert = {"s": torch.tensor(3.0), "w": torch.tensor([1.0, 2.0, 4.0])}
    state = fbl.merge("ties_merging", base, {"a": expert}, keep=0.25, scaling=1.0).state_dict()
    assert (float(state["s"]), state["w"].tolist()) == (3.0, [0.0, 0.0, 4.0])
    squares = fbl.merge("metagpt", base, {"a": {**base, "s": torch.tensor(2.0)}, "b": {**base, "w": torch.tensor([0.0, 0.0, 2.0])}})
    assert float(squares.state_dict()["s"]) == 1.0


def test_scalars_of_tied_tensors_and_of_low_precision():
    scale = torch.tensor(2.0, dtype=torch.float16)
    base = {"a": scale, "b": scale, "w": torch.zeros(2, 2)}
    experts = {}
    for task, value in (("x", 3.0), ("y", 4.0)):
        own = torch.tensor(value, dtype=torch.float16)
        experts[task] = {"a": own, "b": own, "w": torch.zeros(2, 2)}
    state = fbl.merge("weight_averaging", base, experts).state_dict()
    assert state["a"].data_ptr() == state["b"].data_ptr()
    assert (float(state["a"]), state["a"].dtype, state["a"].shape) == (3.5, torch.float16, ())


# ---------------------------------------------------------------- adaptive methods


class Scaled(Transformer):
    """Features times a learned scale, of shape () or (1,)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full(shape, 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.logit_scale


def scaled(shape: tuple[int, ...]) -> Setting:
    s = small_setting(Scaled(()), steps=8)
    for number, state in enumerate((s.pretrained, *s.experts.values())):
        state["logit_scale"] = torch.full(shape, 1.5 + 0.25 * number, dtype=torch.float64)
    s.model = Scaled(shape).double()
    s.model.load_state_dict(s.pretrained)
    return s


def adapted(method: str, s: Setting):
    given: dict[str, object] = {}
    if method in ("doge_am", "awd_am"):
        given = {"doge_am": {"delta_steps": 2, "matrices": "attn_mlp"}, "awd_am": {"awd_steps": 2}}[method]
    if method in ("traditional_mtl", "map"):
        s.batches = {t: [(x, torch.zeros(len(x), dtype=torch.int64)) for x in batches] for t, batches in s.batches.items()}
    return fbl.adapt(method, *s.arguments(), 2, **given)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_take_scalars_as_tensors_of_one_entry(method):
    with_scalar, with_entry = scaled(()), scaled((1,))
    got, want = adapted(method, with_scalar), adapted(method, with_entry)
    state = got.state_dict()
    assert state["logit_scale"].shape == ()
    assert got.losses.tolist() == want.losses.tolist()
    assert set(got.coefficients) == set(want.coefficients)
    assert all(torch.equal(value, want.coefficients[name]) for name, value in got.coefficients.items())
    other = want.state_dict()
    assert all(torch.equal(value.reshape(-1), other[name].reshape(-1)) for name, value in state.items())
    task = got.tasks[0]
    inputs = with_scalar.batches[task][0]
    inputs = inputs[0] if isinstance(inputs, tuple) else inputs
    assert torch.equal(got.encode(inputs, task), want.encode(inputs, task))


@pytest.mark.parametrize("method", [m for m in ADAPTIVE if m.startswith(("adamerging", "adarank", "awd", "pareto"))])
def test_a_scalar_has_coefficients_of_its_own(method):
    s = scaled(())
    got = adapted(method, s)
    assert got.coefficients["logit_scale"].shape == (2,)
    start = fbl.adapt(method, *scaled(()).arguments(), 0, **({"awd_steps": 2} if method == "awd_am" else {})).coefficients
    assert bool((got.coefficients["logit_scale"] != start["logit_scale"]).all())
    assert not torch.equal(got.state_dict()["logit_scale"], s.pretrained["logit_scale"])


@pytest.mark.parametrize(("method", "level"), [("adamerging_layerwise", "layer"), ("adamerging_taskwise", "task")])
def test_the_gradient_of_a_scalar_is_that_of_autograd(method, level):
    s = scaled(())
    problem = adaptive.adamerging(s.pretrained, s.experts, level)
    want = adaptive.run(problem, s.model, s.heads, s.batches, 5, 0.01)
    got = fbl.adapt(method, *s.arguments(), 5, lr=0.01)
    expected = want.coefficients["logit_scale" if level == "layer" else "*"]
    assert torch.allclose(got.coefficients["logit_scale"], expected, atol=1e-9)
    assert torch.allclose(got.state_dict()["logit_scale"], want.state["logit_scale"], atol=1e-9)
    assert torch.allclose(got.losses, want.losses, atol=1e-9)
