"""Models whose parts are compiled or wrapped, whose names fit the weights in part, or whose gradients go astray."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import fusionbench_lite as fbl
from tests.support.helpers import Setting, refused, same_bits, setting, snapshot
from tests.support.tiny_models import Encoder, tiny


def adapted(s: Setting, method: str = "adamerging_layerwise", steps: int = 3, **given):
    return fbl.adapt(method, *s.arguments(), steps, **given)


def same(got, want) -> bool:
    names = list(got.coefficients) == list(want.coefficients)
    return names and torch.equal(got.losses, want.losses) and same_bits(got.state_dict(), want.state_dict())


def renamed(s: Setting, name_of) -> Setting:
    def rename(state):
        return {name_of(name): tensor for name, tensor in state.items()}

    return dataclasses.replace(s, pretrained=rename(s.pretrained), experts={t: rename(e) for t, e in s.experts.items()})


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def compiled_part(model: nn.Module) -> nn.Module:
    model.visual = compiled(model.visual)
    return model


def compiled_layer(model: nn.Module) -> nn.Module:
    model.visual[2] = compiled(model.visual[2])
    return model


def checkpointed(model: nn.Module) -> nn.Module:
    model.visual[2] = checkpoint_wrapper(model.visual[2])
    model.visual = checkpoint_wrapper(model.visual)
    return model


def all_at_once(model: nn.Module) -> nn.Module:
    return nn.DataParallel(compiled(checkpointed(compiled_layer(model))))


WRAPPERS = [compiled, compiled_part, compiled_layer, checkpointed, nn.DataParallel, AveragedModel, all_at_once]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_is_the_model(wrap):
    """Names are those of the weights, bits those of the plain model; the model that was given stays as it is."""
    want = adapted(tiny())
    s = tiny()
    s.model = wrap(s.model)
    names, before = [name for name, _ in s.model.named_modules()], snapshot(s.model.state_dict())
    got = adapted(s)
    assert same(got, want)
    assert torch.equal(got.encode(s.batches["task0"][0], "task0"), want.encode(s.batches["task0"][0], "task0"))
    assert [name for name, _ in s.model.named_modules()] == names
    assert same_bits(s.model.state_dict(), before)


@pytest.mark.parametrize("wrap", [compiled, compiled_part, nn.DataParallel, all_at_once])
def test_weights_saved_from_the_wrapped_model(wrap):
    """Coefficients and weights keep the names that the pretrained weights have."""
    want = adapted(tiny())
    s = tiny()
    plain = list(s.pretrained)
    s.model = wrap(s.model)
    names = dict(zip(plain, s.model.state_dict(), strict=True))
    got = adapted(renamed(s, names.__getitem__))
    assert list(got.coefficients) == list(got.state_dict()) == list(names.values())
    assert torch.equal(got.losses, want.losses)
    assert all(torch.equal(got.coefficients[names[name]], row) for name, row in want.coefficients.items())


@pytest.mark.parametrize("method", ["surgery_v2", "wemoe", "twin_merging", "metamerging"])
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_methods_that_hook_or_replace_modules(method, how):
    want = adapted(setting(steps=9), method, 2)
    s = setting(steps=9)
    if how == "wrapped":
        s.model.resblocks[0].mlp = compiled(s.model.resblocks[0].mlp)
        s.model = compiled(s.model)
    else:
        s.model.compile(backend="eager")
    got = adapted(s, method, 2)
    assert torch.equal(got.losses, want.losses)
    assert same_bits(got.learned, want.learned)


# ---------------------------------------------------------------- names that do not fit


def test_a_parametrized_weight_is_no_weight():
    s = tiny()
    parametrizations.weight_norm(s.model.proj)
    with refused(r"1 of the 5 weights: for 'proj.weight' it has 'proj.parametrizations.weight.original0'", "remove_param"):
        adapted(s)
    parametrize.remove_parametrizations(s.model.proj, "weight")
    assert same(adapted(s), adapted(tiny()))


class Adapter(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora_A = layer, nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_A(x)


def test_a_layer_with_an_adapter_is_no_layer():
    s = tiny()
    s.model.proj = Adapter(s.model.proj)
    with refused("for 'proj.weight' it has 'proj.base_layer.weight'", "unload"):
        adapted(s)
    s.model.proj = s.model.proj.base_layer
    assert same(adapted(s), adapted(tiny()))


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = model

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def test_a_model_inside_another():
    s = tiny()
    s.model = Around(s.model)
    with refused("it has 'encoder.visual.0.weight', they have 'visual.0.weight'", "model's names"):
        adapted(s)
    assert torch.equal(adapted(renamed(s, "encoder.{}".format)).losses, adapted(tiny()).losses)


def test_a_tensor_of_another_name_and_weights_of_more_layers():
    s = renamed(tiny(), lambda name: name.replace("proj.weight", "proj.gamma"))
    with refused("1 of the 5 weights: for 'proj.gamma' it has 'proj.weight'", "model's names"):
        adapted(s)
    s = tiny()
    for number, state in enumerate([s.pretrained, *s.experts.values()]):
        state["visual.4.weight"] = torch.full((16, 16), float(number))
    with pytest.warns(fbl.MergeWarning, match=r"lacks 1 of the 6 weights, 'visual.4.weight' among them") as caught:
        got = adapted(s)
    assert len(caught) == 1
    assert caught[0].filename == __file__.replace(".pyc", ".py")
    assert torch.equal(got.losses, adapted(tiny()).losses)


def test_weights_that_no_expert_changed_may_be_missing():
    """A text tower that was frozen in training merges to itself, whatever is learned."""
    s = tiny()
    for state in (s.pretrained, *s.experts.values()):
        state["text.weight"] = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fbl.MergeWarning)
        got = adapted(s)
    assert torch.equal(got.losses, adapted(tiny()).losses)
    assert torch.equal(got.state_dict()["text.weight"], torch.ones(3))


def test_tensors_of_the_model_alone_are_warned_of():
    s = tiny()
    for state in (s.pretrained, *s.experts.values()):
        del state["proj.weight"]
    own = s.model.proj.weight.detach().clone()
    with pytest.warns(fbl.MergeWarning, match=r"lack 1 of the model's 5 tensors, 'proj.weight' among them") as caught:
        got = adapted(s)
    assert len(caught) == 1
    assert "proj.weight" not in got.state_dict()
    assert torch.equal(s.model.proj.weight, own)


class Tied(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.visual


def tied() -> Setting:
    s = tiny(Tied())
    for state in (s.pretrained, *s.experts.values()):
        state |= {name: state[name.replace("again", "visual")] for name in state if name.startswith("again")}
    return s


def test_a_compiled_part_that_is_tied():
    want, s = adapted(tied()), tied()
    s.model.visual = s.model.again = compiled(s.model.visual)
    got = adapted(s)
    assert same(got, want)
    assert torch.equal(got.coefficients["again.0.weight"], got.coefficients["visual.0.weight"])


class Listed(Encoder):
    """Knows a part by a list too, where torch does not see it."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.__dict__.setdefault("steps", [self.visual, torch.tanh, self.proj]):
            x = layer(x)
        return x


def test_references_beside_the_modules_follow():
    s = tiny(Listed())
    s.model = compiled_part(s.model)
    s.model.__dict__["steps"] = [s.model.visual, torch.tanh, s.model.proj]
    assert same(adapted(s), adapted(tiny()))


# ---------------------------------------------------------------- models that cannot be adapted


class Checkpointed(Encoder):
    reentrant = False
    on = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return super().forward(x)
        return self.proj(torch.tanh(checkpoint(self.visual, x, use_reentrant=self.reentrant)))


class Reentrant(Checkpointed):
    reentrant = True


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize(("model", "part"), [(Checkpointed, "'visual' again in the backward"), (Reentrant, "'visual.0' without")])
@pytest.mark.parametrize("method", ["adamerging_layerwise", "pareto_merging"])
def test_activations_that_are_recomputed(model, part, method):
    """The backward pass would read the model's own weights: gradients that are wrong, or none."""
    s = tiny(model())
    with refused(model.__name__, part, "checkpointing"):
        adapted(s, method)
    s.model.on = False
    assert same(adapted(s, method), adapted(tiny(), method))


class NoGrad(Encoder):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Detached(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


@pytest.mark.parametrize("model", [NoGrad, Detached])
def test_models_without_a_gradient(model):
    with refused(model.__name__, "gradient", "detach, no_grad"):
        adapted(tiny(model()))
    assert torch.equal(adapted(tiny(model()), "surgery").losses, adapted(tiny(), "surgery").losses)  # learns behind the model


def of_output(change):
    return type("Odd", (Encoder,), {"forward": lambda self, x: change(Encoder.forward(self, x))})


@pytest.mark.parametrize(("change", "parts"), [
    (lambda f: (f, None), [r"tuple of 2", r"super\(\).forward\(...\)\[0\]"]),
    (lambda f: {"last_hidden_state": f[:, None], "pooler_output": f}, ["dict with last_hidden_state", r"\['pooler_output'\]"]),
    (lambda f: f.mean(0, keepdim=True), [r"\(1, 4\)", "2 examples"]),
    (lambda f: f.argmax(1), ["int64", "floating-point"]),
    (lambda f: f.sum(), [r"\(\)"]),
])
def test_outputs_that_are_no_features(change, parts):
    with refused("Odd returns", *parts):
        adapted(tiny(of_output(change)()))


def test_the_subclass_that_the_refusal_asks_for():
    odd = of_output(lambda f: {"pooler_output": f})
    fixed = type("Fixed", (odd,), {"forward": lambda self, x: odd.forward(self, x)["pooler_output"]})
    assert same(adapted(tiny(fixed())), adapted(tiny()))


def test_models_whose_weights_cannot_be_replaced():
    s = tiny()
    original = s.model
    s.model = lambda x: original(x)
    with refused("torch.nn.Module", "function"):
        adapted(s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        s.model = torch.jit.trace(original, s.batches["task0"][0])
    with refused("TorchScript"):
        adapted(s)
    s.model = Encoder().to("meta")
    with refused("'visual.0.weight' is on the meta device", "to_empty"):
        adapted(s)
    s.model = s.model.to_empty(device="cpu")
    assert same(adapted(s), adapted(tiny()))


class Merging(nn.Linear):
    """Changes its weight when it is switched to evaluation, as some adapters do."""

    def train(self, mode: bool = True) -> Merging:
        if not mode:
            self.weight.data += 1
        return super().train(mode)


def test_modes_are_set_without_what_switching_does():
    s = tiny()
    layer = Merging(16, 4, bias=False)
    layer.load_state_dict(s.model.proj.state_dict())
    s.model.proj = layer.train()
    before = snapshot(s.model.state_dict())
    assert same(adapted(s), adapted(tiny()))
    assert same_bits(s.model.state_dict(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_keeps_its_mode(fails):
    s = tiny()
    s.heads = {t: nn.Sequential(nn.Dropout(0.5), h) for t, h in s.heads.items()}
    modules = [*s.model.modules(), *itertools.chain.from_iterable(h.modules() for h in s.heads.values())]
    for number, module in enumerate(modules):
        module.training = number % 2 == 0
    if fails:
        s.batches["task1"][2] = torch.full((8, 6), torch.nan)
        with refused("non-finite"):
            adapted(s)
    else:
        adapted(s)
    assert [module.training for module in modules] == [number % 2 == 0 for number in range(len(modules))]
