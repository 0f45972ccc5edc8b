"""Modules that an adapter brings whole: merged where the pretrained model has them, else never without a word."""

from __future__ import annotations

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import read_adapter
from tests.support.lora_files import PREFIX, base_state, draw, factors, linear_tensors, read_saying, write_adapter


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ({"score.weight": (3, 5)}, ["score"]),
        ({"classifier.weight": (3, 5), "classifier.bias": (3,)}, ["classifier", "score"]),
        ({"classifier.0.weight": (5, 5), "classifier.2.weight": (3, 5)}, ["classifier"]),
        ({"classifier.dense.weight": (5, 5), "classifier.out_proj.weight": (3, 5)}, ["classifier"]),
        ({"lm_head.weight": (11, 5)}, ["lm_head"]),  # no embedding of this shape: not tied
    ],
)
def test_a_head_that_the_model_has_no_place_for(tmp_path, head, named):
    whole = {PREFIX + name: draw(1, *shape) for name, shape in head.items()}
    _, values, said = read_saying(write_adapter(tmp_path, linear_tensors() | whole, modules_to_save=named), base_state())
    assert not torch.equal(values["encoder.0.q.weight"], base_state()["encoder.0.q.weight"])
    assert len(said) == 1
    assert all(repr(name.rpartition(".")[0]) in said[0] for name in head)
    assert "no such module" in said[0]


def test_a_merge_passes_the_warning_on(tmp_path):
    folder = write_adapter(tmp_path, linear_tensors() | {f"{PREFIX}score.weight": draw(1, 3, 5)}, modules_to_save=["score"])
    with pytest.warns(fbl.MergeWarning, match="'score' was trained whole"):
        fbl.merge("weight_averaging", base_state(), {"a": folder})


@pytest.mark.parametrize(
    ("name", "saved"),
    [("encoder.2.norm.weight", ["norm"]), ("encoder.final_norm.weight", ["final_norm"]), ("embed.extra.weight", ["embed"]),
     ("layers.3.classifier.weight", ["classifier"]), ("conv.bias", [])],
)  # fmt: skip
def test_a_part_of_another_model(tmp_path, name, saved):
    folder = write_adapter(tmp_path, linear_tensors() | {PREFIX + name: draw(1, 5)}, modules_to_save=saved)
    with pytest.raises(fbl.MergeError, match="lacks.*trained on") as caught:
        read_adapter(folder, base_state())
    assert repr(name) in str(caught.value)
    assert str(folder) in str(caught.value)


def test_named_but_not_in_the_file(tmp_path):
    saved = ["norm", "score"]
    _, values, said = read_saying(write_adapter(tmp_path, modules_to_save=saved), base_state())
    assert torch.equal(values["encoder.0.norm.weight"], base_state()["encoder.0.norm.weight"])
    assert len(said) == 1
    assert "'norm', 'score'" in said[0]
    assert "holds no tensor" in said[0]
    # peft lists both heads that classifiers may have.
    base = base_state() | {"classifier.weight": draw(1, 3, 5)}
    tensors = linear_tensors() | {f"{PREFIX}classifier.weight": draw(2, 3, 5)}
    assert read_saying(write_adapter(tmp_path, tensors, modules_to_save=["classifier", "score"]), base)[2] == []
    assert "'embed'" in read_saying(write_adapter(tmp_path, tensors, modules_to_save=["classifier", "embed"]), base)[2][0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_stored_quantised(tmp_path, dtype):
    tensors = linear_tensors() | {f"{PREFIX}encoder.0.norm.weight": torch.ones(5).to(dtype)}
    with pytest.raises(fbl.MergeError, match=r"norm.weight' has dtype (I8|U8|F8_E4M3), .*float32.*quantised"):
        read_adapter(write_adapter(tmp_path, tensors), base_state())


def test_beyond_the_range_of_the_model(tmp_path):
    tensors = linear_tensors() | {f"{PREFIX}encoder.0.norm.weight": torch.full((5,), 1e5)}
    folder = write_adapter(tmp_path, tensors)
    expert = read_adapter(folder, base_state(torch.float16))
    with pytest.raises(fbl.MergeError, match="norm.weight' has 100000, beyond 65504, the largest torch.float16.*bfloat16"):
        expert["encoder.0.norm.weight"]
    for dtype in (torch.bfloat16, torch.float32):  # the advice
        assert bool(torch.isfinite(read_adapter(folder, base_state(dtype))["encoder.0.norm.weight"]).all())


def test_buffers_of_a_module(tmp_path):
    base = base_state() | {
        "bn.weight": draw(1, 5), "bn.running_mean": draw(2, 5), "bn.num_batches_tracked": torch.tensor(3),
    }  # fmt: skip
    whole = {f"{PREFIX}bn.weight": draw(3, 5), f"{PREFIX}bn.running_mean": draw(4, 5)}
    whole[f"{PREFIX}bn.num_batches_tracked"] = torch.tensor(7)
    _, values, said = read_saying(write_adapter(tmp_path, linear_tensors() | whole, modules_to_save=["bn"]), base)
    assert said == []
    assert all(torch.equal(values[name.removeprefix(PREFIX)], value) for name, value in whole.items())


def test_keys_of_a_live_model(tmp_path):
    expected = read_saying(write_adapter(tmp_path / "saved"), base_state())[1]
    norm = {"base_layer.weight": draw(1, 5), "modules_to_save.mine.weight": draw(2, 5), "original_module.weight": draw(3, 5)}
    tensors = {key.replace("weight", "mine.weight"): value for key, value in linear_tensors().items()}
    tensors |= {f"{PREFIX}encoder.0.norm.{name}": value for name, value in list(norm.items())[1:]}
    tensors[f"{PREFIX}embed.lora_embedding_A.mine"] = draw(4, 2, 9)
    tensors[f"{PREFIX}embed.lora_embedding_B.mine"] = draw(5, 5, 2)
    tensors[f"{PREFIX}encoder.1.q.lora_B.mine.bias"] = draw(6, 7)
    _, values, said = read_saying(write_adapter(tmp_path / "live", tensors, modules_to_save=["norm"]), base_state())
    assert said == []
    assert torch.equal(values["encoder.0.norm.weight"], norm["modules_to_save.mine.weight"])
    assert torch.equal(values["encoder.1.q.bias"], base_state()["encoder.1.q.bias"] + 3.0 * draw(6, 7))
    assert torch.equal(values["embed.weight"], base_state()["embed.weight"] + (draw(5, 5, 2) @ draw(4, 2, 9)).T * 3.0)
    assert all(torch.equal(values[name], expected[name]) for name in expected if "norm" not in name and "embed" not in name
               and "bias" not in name)  # fmt: skip


def test_two_adapters_of_a_live_model(tmp_path):
    tensors = {}
    for name in ("first", "second"):
        tensors |= {key.replace("weight", f"{name}.weight"): value for key, value in factors("encoder.0.q", 7, 5).items()}
    with pytest.raises(fbl.MergeError, match="two tensors of one name"):
        read_adapter(write_adapter(tmp_path / "one", tensors), base_state())
    tensors = {}
    for name, module in (("first", "encoder.0.q"), ("second", "encoder.1.q")):
        tensors |= {key.replace("weight", f"{name}.weight"): value for key, value in factors(module, 7, 5).items()}
    with pytest.raises(fbl.MergeError, match=r"first.*second.*two adapters.*selected_adapters"):
        read_adapter(write_adapter(tmp_path / "two", tensors), base_state())
