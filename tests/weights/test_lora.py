"""Adapters written by hand: the folded tensors, the factors, keys under other names, storage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import read_adapter
from fusionbench_lite.weights.readers import SafetensorsWeights
from fusionbench_lite.weights.specs import TensorSpec
from tests.support.helpers import same_bits, snapshot
from tests.support.lora_files import PREFIX, base_state, draw, factors, linear_tensors, read_saying, write_adapter

Q = "encoder.0.q.weight"
Q_B = f"{PREFIX}encoder.0.q.lora_B.weight"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_folded_in_the_work_dtype_and_rounded_once(tmp_path, dtype, stored):
    tensors = {key: value.to(stored) for key, value in linear_tensors().items()}
    base = base_state(dtype)
    expert = read_adapter(write_adapter(tmp_path, tensors), base)
    assert list(expert) == list(base)
    assert len(expert) == len(base)
    assert expert.changed == {f"encoder.{block}.{module}.weight" for block in (0, 1) for module in ("q", "v")}
    work = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in expert.items():
        assert (value.dtype, value.shape) == (base[name].dtype, base[name].shape)
        assert expert.spec(name) == TensorSpec(tuple(value.shape), value.dtype)
        if name in expert.changed:
            a, b = (tensors[f"{PREFIX}{name.removesuffix('.weight')}.lora_{part}.weight"].to(work) for part in "AB")
            assert torch.equal(value, (base[name].to(work) + b @ a * 3.0).to(dtype))
            left, right = expert.factors(name)
            assert left.dtype == right.dtype == work
            torch.testing.assert_close(left @ right, 3.0 * b @ a)
        else:
            assert value is base[name]
            assert expert.factors(name) is None


def test_scale_of_patterns_and_rank_stabilised(tmp_path):
    tensors = factors("encoder.0.q", 7, 5) | factors("encoder.1.q", 7, 5, rank=4) | factors("encoder.0.v", 5, 5, rank=1)
    patterns = {"rank_pattern": {r"1\.q": 4, "v": 1}, "alpha_pattern": {"^encoder.0.v": 5.0, "q$": 0.5}}
    for stabilised in (False, True):
        expert = read_adapter(write_adapter(tmp_path, tensors, use_rslora=stabilised, **patterns), base_state())
        for name, alpha, rank in (("encoder.0.q", 0.5, 2), ("encoder.1.q", 0.5, 4), ("encoder.0.v", 5.0, 1)):
            left, _ = expert.factors(f"{name}.weight")
            scale = alpha / (rank**0.5 if stabilised else rank)
            assert torch.equal(left, tensors[f"{PREFIX}{name}.lora_B.weight"] * scale)


def test_the_first_matching_pattern_counts(tmp_path):
    # As in PEFT: a pattern has to match the end of the name from a dot on, "q" is not the end of "encoder.0.eq".
    base = base_state() | {"encoder.0.eq.weight": draw(3, 7, 5)}
    tensors = factors("encoder.0.q", 7, 5) | factors("encoder.0.eq", 7, 5)
    expert = read_adapter(write_adapter(tmp_path, tensors, alpha_pattern={"q": 8, "0.q": 80, "e": 800}), base)
    assert torch.equal(expert.factors(Q)[0], tensors[Q_B] * 4)
    assert torch.equal(expert.factors("encoder.0.eq.weight")[0], tensors[f"{PREFIX}encoder.0.eq.lora_B.weight"] * 3)


def test_weights_stored_as_in_out(tmp_path):
    base = {"c_attn.weight": draw(1, 5, 15), "c_proj.weight": draw(2, 5, 5)}
    tensors = factors("c_attn", 15, 5) | factors("c_proj", 5, 5, seed=50)
    expert = read_adapter(write_adapter(tmp_path, tensors, fan_in_fan_out=True), base)
    for name in base:
        a, b = (tensors[f"{PREFIX}{name.removesuffix('.weight')}.lora_{part}.weight"] for part in "AB")
        assert torch.equal(expert[name], base[name] + (b @ a).T * 3.0)
        left, right = expert.factors(name)
        assert (left.shape, right.shape) == ((5, 2), (2, base[name].shape[1]))
        torch.testing.assert_close(left @ right, expert[name] - base[name])


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_square_weight_is_stored_as_its_namesakes_are(tmp_path, configured, transposed):
    shape = (12, 4) if transposed else (4, 12)
    base = {"h.0.attn.c_proj.weight": draw(1, 4, 4), "h.0.attn.c_proj.bias": draw(2, 4)}
    base |= {"h.0.mlp.c_proj.weight": draw(3, *shape), "h.0.mlp.c_proj.bias": draw(4, 4)}
    tensors = factors("h.0.attn.c_proj", 4, 4)
    expert = read_adapter(write_adapter(tmp_path, tensors, fan_in_fan_out=configured), base)
    delta = 3.0 * tensors[f"{PREFIX}h.0.attn.c_proj.lora_B.weight"] @ tensors[f"{PREFIX}h.0.attn.c_proj.lora_A.weight"]
    torch.testing.assert_close(
        expert["h.0.attn.c_proj.weight"] - base["h.0.attn.c_proj.weight"], delta.T if transposed else delta
    )


def test_embedding(tmp_path):
    a, b = draw(1, 2, 9), draw(2, 5, 2)
    key = f"{PREFIX}embed.lora_embedding_"
    base = base_state()
    expert = read_adapter(write_adapter(tmp_path, {key + "A": a, key + "B": b}), base)
    assert torch.equal(expert["embed.weight"], base["embed.weight"] + (b @ a).T * 3.0)
    left, right = expert.factors("embed.weight")
    torch.testing.assert_close(left @ right, (b @ a).T * 3.0)


@pytest.mark.parametrize("kernel", [(2, 2), (1, 1), (1, 3)])
def test_convolution(tmp_path, kernel):
    a, b, base = draw(1, 2, 3, *kernel), draw(2, 5, 2, 1, 1), {"conv.weight": draw(3, 5, 3, *kernel)}
    tensors = {f"{PREFIX}conv.lora_A.weight": a, f"{PREFIX}conv.lora_B.weight": b}
    expert = read_adapter(write_adapter(tmp_path, tensors), base)
    delta = 3.0 * torch.einsum("or,rchw->ochw", b[:, :, 0, 0].double(), a.double())
    torch.testing.assert_close(expert["conv.weight"], (base["conv.weight"] + delta).float())
    assert expert.factors("conv.weight") is None


def test_fully_trained_tensors_replace_or_are_warned_of(tmp_path):
    norm, bias, shift = draw(1, 5, dtype=torch.float64), draw(2, 7), draw(3, 7)
    whole = {
        f"{PREFIX}encoder.0.norm.weight": norm,
        f"{PREFIX}encoder.0.q.base_layer.bias": bias,
        f"{PREFIX}encoder.1.q.lora_B.bias": shift,
        f"{PREFIX}embed.base_layer.weight": draw(4, 9, 5),
        f"{PREFIX}embed.lora_embedding_A": draw(5, 2, 9),
        f"{PREFIX}embed.lora_embedding_B": draw(6, 5, 2),
        f"{PREFIX}classifier.weight": draw(7, 3, 5),
        f"{PREFIX}score.modules_to_save.bias": draw(8, 3),
    }
    base = base_state(torch.bfloat16)
    before = snapshot(base)
    expert, _, said = read_saying(write_adapter(tmp_path, linear_tensors() | whole, modules_to_save=["classifier"]), base)
    assert len(said) == 1
    assert "'classifier', 'score'" in said[0]
    assert torch.equal(expert["encoder.0.norm.weight"], norm.bfloat16())
    assert torch.equal(expert["encoder.0.q.bias"], bias.bfloat16())
    assert torch.equal(expert["encoder.1.q.bias"], (base["encoder.1.q.bias"].float() + shift * 3.0).bfloat16())
    embed = whole[f"{PREFIX}embed.lora_embedding_B"] @ whole[f"{PREFIX}embed.lora_embedding_A"]
    replaced = whole[f"{PREFIX}embed.base_layer.weight"].bfloat16().float()
    assert torch.equal(expert["embed.weight"], (replaced + embed.T * 3.0).bfloat16())
    assert expert.factors("embed.weight") is None  # its task vector is more than the product
    assert expert.factors("encoder.0.norm.weight") is None
    dict(expert)["encoder.0.norm.weight"].zero_()
    assert torch.equal(expert["encoder.0.norm.weight"], norm.bfloat16())
    assert same_bits(base, before)


# ---------------------------------------------------------------- names and storage


@pytest.mark.filterwarnings("ignore:.*are taken for:fusionbench_lite.MergeWarning")
@pytest.mark.parametrize("ours", ["", "vision_model.", "model.vision_model."])
@pytest.mark.parametrize("theirs", ["", "vision_model."])
def test_keys_that_differ_by_a_prefix(tmp_path, ours, theirs):
    base = base_state()
    tensors = {key.replace(PREFIX, PREFIX + theirs): value for key, value in linear_tensors().items()}
    expected = dict(read_adapter(write_adapter(tmp_path / "plain"), base))
    expert = read_adapter(write_adapter(tmp_path / "other", tensors), {ours + name: value for name, value in base.items()})
    assert same_bits({name.removeprefix(ours): value for name, value in expert.items()}, expected)


def test_keys_without_the_prefix_of_peft(tmp_path):
    tensors = {key.removeprefix(PREFIX): value for key, value in linear_tensors().items()}
    expected = dict(read_adapter(write_adapter(tmp_path / "plain"), base_state()))
    assert same_bits(dict(read_adapter(write_adapter(tmp_path / "other", tensors), base_state())), expected)


def test_tied_tensors_get_the_same_factors(tmp_path):
    base = base_state()
    base["decoder.embed.weight"] = base["embed.weight"]
    tensors = {f"{PREFIX}embed.lora_embedding_A": draw(1, 2, 9), f"{PREFIX}embed.lora_embedding_B": draw(2, 5, 2)}
    expert = read_adapter(write_adapter(tmp_path, tensors), base)
    assert not torch.equal(expert["embed.weight"], base["embed.weight"])
    assert torch.equal(expert["embed.weight"], expert["decoder.embed.weight"])
    with pytest.raises(fbl.MergeError, match="both change 'embed.weight'"):
        read_adapter(write_adapter(tmp_path, tensors | factors("decoder.embed", 9, 5)), base)


def test_weights_behind_a_file_and_no_mapping_that_stays(tmp_path):
    from safetensors.torch import save_file

    save_file(base_state(), tmp_path / "base.safetensors")
    expert = read_adapter(write_adapter(tmp_path / "adapter"), SafetensorsWeights(tmp_path / "base.safetensors"))
    values = dict(expert)
    assert same_bits(values, dict(read_adapter(tmp_path / "adapter", dict(SafetensorsWeights(tmp_path / "base.safetensors")))))
    kept = [expert.factors(name) for name in sorted(expert.changed)]
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert "adapter_model.safetensors" not in maps.read_text()
    assert len(kept) == 4
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(fbl.MergeError, match="adapter_model.safetensors cannot be read"):
        expert[Q]
