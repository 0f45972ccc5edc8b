"""`LoraExpert` against peft's own merge_and_unload, on adapters that peft wrote."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import LoraExpert, read_adapter
from tests.support.helpers import State, rng, same_bits, snapshot
from tests.support.lora_files import read_saying

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def peft() -> types.ModuleType:
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before peft, whose import leads to torchvision's)

    return pytest.importorskip("peft")


class Plain(nn.Module):
    """An embedding, a convolution, Linears with and without bias, square and not, a LayerNorm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv, self.patch = nn.Conv2d(3, 6, (2, 3)), nn.Conv2d(6, 4, 1, bias=False)
        self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(6, 6), "fc": nn.Linear(6, 10, bias=False)}) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=8, n_embd=12, n_layer=2, n_head=2))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"vocab_size": 17, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3}
    return T5ForConditionalGeneration(T5Config(**shape, feed_forward_proj="gated-gelu"))


def randomised(model: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    g = rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.3)
    return model.to(dtype)


def trained(peft: types.ModuleType, model: nn.Module, folder: Path, **config) -> None:
    """Save an adapter whose every tensor, with the fully trained ones, differs from its start."""
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**{"r": 3, "lora_alpha": 7, **config}))
    g = rng(99)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.3)
    wrapped.save_pretrained(folder)


def both(peft: types.ModuleType, model: nn.Module, folder: Path) -> tuple[LoraExpert, State, State]:
    """Return our expert, peft's, and the pretrained weights."""
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload()
    base = model.state_dict()
    return read_adapter(folder, base), snapshot(merged.state_dict()), base


def check(expert: LoraExpert, expected: State, base: State) -> None:
    """Equal but for the last place of the larger of weight and result; what is not adapted is equal in every bit."""
    assert list(expert) == list(base)
    for name, value in expert.items():
        assert value.dtype == base[name].dtype
        if name not in expert.changed:
            assert torch.equal(expected[name], base[name]), name
            assert value is base[name]
            continue
        assert not torch.equal(value, base[name]), name
        want, scale = expected[name].double(), torch.maximum(expected[name].double().abs(), base[name].double().abs())
        ulp = torch.exp2(torch.floor(torch.log2(scale))) * torch.finfo(value.dtype).eps
        assert bool(((value.double() - want).abs() <= ulp).all()), name
        if expert.factors(name) is not None:
            left, right = (factor.double() for factor in expert.factors(name))
            size = (left @ right).abs().max() + base[name].double().abs().max()
            error = (left @ right + base[name].double() - want).abs().max()
            assert error <= 2 * torch.finfo(value.dtype).eps * size, name


ALL = ["embed", "conv", "patch", "q", "fc"]
CONFIGS = {
    "plain": {"target_modules": ["q", "fc"]},
    "all": {"target_modules": ALL},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "patterns": {
        "target_modules": ALL, "rank_pattern": {"0.q": 5, "conv": 2, "^embed": 4},
        "alpha_pattern": {r"blocks\.1\..*": 2, "fc": 30, "patch": 1},
    },
    "patterns_rslora": {"target_modules": ["q", "fc"], "use_rslora": True, "rank_pattern": {"q": 1}, "alpha_pattern": {"0.q": 9}},
    "bias_all": {"target_modules": ["q", "conv"], "bias": "all"},
    "bias_lora_only": {"target_modules": ["q", "fc"], "bias": "lora_only"},
    "lora_bias": {"target_modules": ["q", "conv"], "lora_bias": True, "init_lora_weights": False},
    "modules_to_save": {"target_modules": ["q"], "modules_to_save": ["head", "norm"]},
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_plain_modules(peft, tmp_path, config):
    model = randomised(Plain(), 1)
    trained(peft, model, tmp_path, **CONFIGS[config])
    expert, expected, base = both(peft, model, tmp_path)
    check(expert, expected, base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_dtypes(peft, tmp_path, dtype, stored):
    model = randomised(Plain(), 2, dtype)
    trained(peft, model, tmp_path, target_modules=ALL)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value.to(stored) for key, value in load_file(path).items()}, path)
    check(*both(peft, model, tmp_path))


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
        (gpt2, {"target_modules": ["attn.c_proj"], "use_rslora": True, "rank_pattern": {"h.0.attn.c_proj": 5}}),
        (gpt2, {"target_modules": ["c_attn", "wte"], "alpha_pattern": {"wte": 1}}),  # wte and lm_head are tied
        (t5, {"target_modules": ["q", "v"]}),
        (t5, {"target_modules": ["q", "v", "wi_0", "wo"], "rank_pattern": {r"decoder.*EncDecAttention\.q": 6}, "use_rslora": True}),
        (t5, {"target_modules": ["shared", "q"], "alpha_pattern": {"encoder.block.1.*": 1}}),  # tied in three places
    ],
)
def test_transformers(peft, tmp_path, model: Callable[[], nn.Module], config):
    network = randomised(model(), 3)
    trained(peft, network, tmp_path, **config)
    expert, expected, base = both(peft, network, tmp_path)
    check(expert, expected, base)
    assert sum(expert.factors(name) is not None for name in base) >= 2


class Kernels(nn.Module):
    """Convolutions in one, two and three dimensions, with kernels of 1 and larger, and one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.wide = nn.Conv1d(4, 6, 3), nn.Conv1d(4, 6, 1)
        self.two, self.three = nn.Conv2d(4, 6, (3, 2)), nn.Conv3d(4, 6, (2, 3, 1))
        self.groups = nn.Conv2d(4, 6, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_convolutions_of_every_dimension(peft, tmp_path, stored):
    model = randomised(Kernels(), 10)
    trained(peft, model, tmp_path, target_modules=["one", "wide", "two", "three"], bias="lora_only")
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value.to(stored) for key, value in load_file(path).items()}, path)
    expert, expected, base = both(peft, model, tmp_path)
    check(expert, expected, base)
    assert len(expert.changed) == 8


def test_a_convolution_in_groups_is_refused_as_peft_refuses_it(peft, tmp_path):
    model = randomised(Kernels(), 10)
    trained(peft, model, tmp_path, target_modules=["groups"], r=4)
    with pytest.raises(fbl.MergeError, match="in groups, which peft cannot fold"):
        read_adapter(tmp_path, model.state_dict())
    with pytest.raises(NotImplementedError, match="groups"):
        peft.PeftModel.from_pretrained(model, tmp_path).merge_and_unload()


def test_adapters_of_peft_are_read_without_a_warning(peft, tmp_path):
    # But where two patterns disagree about blocks.1.fc.
    for number, (name, config) in enumerate(CONFIGS.items()):
        model = randomised(Plain(), number)
        trained(peft, model, tmp_path / name, **config)
        assert len(read_saying(tmp_path / name, model.state_dict())[2]) == (name == "patterns"), name


def test_conv1d_is_recognised_beside_a_linear(peft, tmp_path):
    # peft writes the fan_in_fan_out of the module it saw last: lm_head, which is a Linear.
    network = randomised(gpt2(), 4)
    network.lm_head.weight = nn.Parameter(network.lm_head.weight.detach().clone())
    network.config.tie_word_embeddings = False
    trained(peft, network, tmp_path, target_modules=["attn.c_proj", "lm_head"])
    assert '"fan_in_fan_out": false' in (tmp_path / "adapter_config.json").read_text()
    check(*both(peft, network, tmp_path))


def test_a_part_of_the_model_without_its_prefix(peft, tmp_path):
    network = randomised(gpt2(), 5)
    trained(peft, network, tmp_path, target_modules=["c_attn", "c_proj"])
    expert = read_adapter(tmp_path, network.state_dict())
    part = read_adapter(tmp_path, network.transformer.state_dict())  # h.0… instead of transformer.h.0…
    assert len(part.changed) == len(expert.changed) == 6
    assert same_bits(dict(part), {name: expert[f"transformer.{name}"] for name in part})


def test_two_adapters_of_tied_weights_are_refused(peft, tmp_path):
    network = randomised(gpt2(), 9)
    trained(peft, network, tmp_path, target_modules=["wte", "lm_head"])
    with pytest.raises(fbl.MergeError, match="both change"):
        read_adapter(tmp_path, network.state_dict())


@pytest.mark.parametrize("config", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}])
def test_other_kinds_are_refused(peft, tmp_path, config):
    model = randomised(Plain(), 6)
    trained(peft, model, tmp_path, target_modules=["q"], **config)
    with pytest.raises(fbl.MergeError, match=next(iter(config))):
        read_adapter(tmp_path, model.state_dict())


def test_other_peft_types_are_refused(peft, tmp_path):
    model = randomised(Plain(), 7)
    peft.get_peft_model(model, peft.IA3Config(target_modules=["q"], feedforward_modules=[])).save_pretrained(tmp_path)
    with pytest.raises(fbl.MergeError, match="'IA3'"):
        read_adapter(tmp_path, model.state_dict())


def test_multihead_attention_is_refused(peft, tmp_path):
    # peft up to 0.21 adds the factors of out_proj twice, so a folded weight would depend on the version of peft.
    model = randomised(nn.ModuleDict({"attn": nn.MultiheadAttention(6, 2)}), 8)
    trained(peft, model, tmp_path, target_modules=["attn"])
    with pytest.raises(fbl.MergeError, match="MultiheadAttention"):
        read_adapter(tmp_path, model.state_dict())
