"""Keys of an adapter under other names than the pretrained model's: one shift of prefixes for all of them, or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import read_adapter
from tests.support.helpers import State, same_bits
from tests.support.lora_files import PREFIX, base_state, draw, factors, linear_tensors, read_saying, write_adapter

SQUARE = (5, 5)


def under(prefix: str, tensors: State, only: str = "") -> State:
    """The tensors with a prefix between PEFT's and their own names."""
    return {key.replace(PREFIX + only, PREFIX + prefix + only): value for key, value in tensors.items()}


def plain(folder: Path) -> State:
    return read_saying(write_adapter(folder), base_state())[1]


def refuse(folder: Path, base: State, *parts: str) -> None:
    with pytest.raises(fbl.MergeError) as caught:
        read_adapter(folder, base)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message, f"{part!r} is not in {message!r}"


# ---------------------------------------------------------------- accepted


@pytest.mark.parametrize("prefix", ["model.", "module.", "transformer.", "base_model.model.", "module.model."])
def test_a_wrapper_is_dropped_or_added_without_a_word(tmp_path, prefix):
    expected = plain(tmp_path / "plain")
    base = {prefix + name: value for name, value in base_state().items()}
    _, values, said = read_saying(write_adapter(tmp_path / "added"), base)
    assert same_bits({name.removeprefix(prefix): value for name, value in values.items()}, expected)
    _, values, more = read_saying(write_adapter(tmp_path / "dropped", under(prefix, linear_tensors())), base_state())
    assert same_bits(values, expected)
    assert said == more == []


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_what_compiling_and_sharding_insert_is_no_part_of_a_name(tmp_path, wrapper):
    expected = plain(tmp_path / "plain")
    tensors = {key.replace("encoder.0.", f"encoder.0.{wrapper}."): value for key, value in linear_tensors().items()}
    _, values, said = read_saying(write_adapter(tmp_path / "block", tensors), base_state())
    assert same_bits(values, expected)
    tensors = {f"{wrapper}.{key}": value for key, value in linear_tensors().items()}
    assert same_bits(read_saying(write_adapter(tmp_path / "front", tensors), base_state())[1], expected)
    base = {name.replace("encoder.1.", f"encoder.1.{wrapper}."): value for name, value in base_state().items()}
    _, values, more = read_saying(write_adapter(tmp_path / "base"), base)
    assert same_bits({name.replace(f"{wrapper}.", ""): value for name, value in values.items()}, expected)
    assert said == more == []


@pytest.mark.parametrize("part", ["text_model.", "vision.", "decoder.", "student."])
def test_the_name_of_a_part_is_warned_of(tmp_path, part):
    expected = plain(tmp_path / "plain")
    _, values, said = read_saying(write_adapter(tmp_path / "dropped", under(part, linear_tensors())), base_state())
    assert same_bits(values, expected)
    assert len(said) == 1
    assert f"names '{part}*' are taken for '*'" in said[0]
    _, _, said = read_saying(write_adapter(tmp_path / "added"), {part + name: value for name, value in base_state().items()})
    assert len(said) == 1
    assert f"names '*' are taken for '{part}*'" in said[0]
    # What it advises: keys of the same names.
    same = {part + name: value for name, value in base_state().items()}
    assert read_saying(write_adapter(tmp_path / "same", under(part, linear_tensors())), same)[2] == []


def test_the_architecture_of_the_configuration_is_a_wrapper(tmp_path):
    library = {"base_model_class": "BertForSequenceClassification", "parent_library": "transformers.models.bert.modeling_bert"}
    folder = write_adapter(tmp_path, under("bert.", linear_tensors()), auto_mapping=library)
    assert read_saying(folder, base_state())[2] == []


def test_a_part_within_the_model(tmp_path):
    # The language model of a multimodal one: a name beside that part keeps its own.
    base = {f"model.{name}": value for name, value in base_state().items()} | {"lm_head.weight": draw(5, 9, 5)}
    tensors = under("model.language_model.", linear_tensors()) | {f"{PREFIX}lm_head.weight": draw(6, 9, 5)}
    _, values, said = read_saying(write_adapter(tmp_path / "dropped", tensors, modules_to_save=["lm_head"]), base)
    expected = plain(tmp_path / "plain")
    assert all(torch.equal(values[f"model.{name}"], value) for name, value in expected.items())
    assert torch.equal(values["lm_head.weight"], tensors[f"{PREFIX}lm_head.weight"])
    assert len(said) == 1
    assert "'model.language_model.*' are taken for 'model.*'" in said[0]
    whole = {name.replace("model.", "model.language_model."): value for name, value in base.items()}
    folder = write_adapter(tmp_path / "added", under("model.", linear_tensors()) | {f"{PREFIX}lm_head.weight": draw(6, 9, 5)})
    assert torch.equal(read_saying(folder, whole)[1]["lm_head.weight"], values["lm_head.weight"])


def test_names_of_any_script(tmp_path):
    base = {"блок.0.查询.weight": draw(1, 5, 5), "блок.0.ключ.weight": draw(2, 5, 5)}
    _, values, said = read_saying(write_adapter(tmp_path, factors("блок.0.查询", *SQUARE)), base)
    assert said == []
    assert not torch.equal(values["блок.0.查询.weight"], base["блок.0.查询.weight"])
    assert values["блок.0.ключ.weight"] is base["блок.0.ключ.weight"]


# ---------------------------------------------------------------- refused


def test_a_module_of_another_layer(tmp_path):
    base = {"proj.weight": draw(1, 5, 5), "norm.weight": draw(2, 5), "layers.0.fc.weight": draw(3, 5, 5)}
    refuse(write_adapter(tmp_path / "a", factors("encoder.layers.5.attn.proj", *SQUARE)), base, "encoder.layers.5.attn.proj")
    refuse(write_adapter(tmp_path / "b", factors("encoder.attn.proj", *SQUARE)), base, "'encoder.attn.proj.weight'", "lacks")
    refuse(write_adapter(tmp_path / "c", factors("0.layers.0.fc", *SQUARE)), base, "0.layers.0.fc", "lacks")
    refuse(write_adapter(tmp_path / "d", factors("norm.proj", *SQUARE)), base, "norm.proj", "lacks")
    whole = {f"{PREFIX}encoder.layers.5.norm.weight": draw(1, 5)}
    tensors = factors("layers.0.fc", *SQUARE)
    refuse(write_adapter(tmp_path / "e", tensors | whole, modules_to_save=["norm"]), base, "encoder.layers.5.norm.weight", "lacks")
    refuse(write_adapter(tmp_path / "f", tensors | whole, bias="all"), base, "encoder.layers.5.norm.weight", "lacks")


def test_a_base_module_deep_inside(tmp_path):
    base = {"encoder.layers.5.attn.proj.weight": draw(1, 5, 5)}
    refuse(write_adapter(tmp_path, factors("proj", *SQUARE)), base, "'proj.weight'", "'encoder.layers.5.attn.proj.weight'")


def test_a_deeper_model(tmp_path):
    tensors = linear_tensors() | factors("encoder.2.q", 7, 5)
    refuse(write_adapter(tmp_path / "same", tensors), base_state(), "'encoder.2.q.weight'", "lacks", "trained on")
    refuse(write_adapter(tmp_path / "other", under("model.", tensors)), base_state(), "'encoder.2.q.weight'", "lacks")


def test_names_that_a_library_changes_on_loading(tmp_path):
    """The file of a ViT, LLaVA or Qwen2-VL has other names than the loaded model, whose names the adapter has."""
    loaded = base_state()
    stored = {name.replace("encoder.", "blocks.layer."): value for name, value in loaded.items()}
    folder = write_adapter(tmp_path, linear_tensors())
    refuse(folder, stored, "'encoder.0.q.weight'", "give the loaded model's state_dict()")
    read_saying(folder, loaded)  # the advice works


def test_two_shifts_are_none(tmp_path):
    tensors = under("model.", factors("encoder.0.q", 7, 5)) | factors("encoder.1.q", 7, 5)
    refuse(write_adapter(tmp_path, tensors), base_state(), "model.encoder.0.q.lora_A.weight", "lacks")


@pytest.mark.parametrize(("part", "marks"), [("text_model", "patch_embed.proj.weight"), ("visual", "embed_tokens.weight")])
def test_a_part_of_the_other_kind(tmp_path, part, marks):
    base = base_state() | {marks: draw(1, 3, 3)}
    refuse(write_adapter(tmp_path, under(f"{part}.", linear_tensors())), base, f"'{part}.*'", "trained on")


def test_two_tensors_for_one(tmp_path):
    one, other = draw(1, 5), draw(2, 5)
    tensors = linear_tensors()
    keys = (f"{PREFIX}encoder.0.norm.weight", f"{PREFIX}encoder.0.norm.base_layer.weight")
    refuse(write_adapter(tmp_path / "whole", tensors | dict(zip(keys, (one, other), strict=True))), base_state(), *keys)
    keys = (f"{PREFIX}encoder.0.norm.weight", "encoder.0.norm.weight")
    refuse(write_adapter(tmp_path / "peft", tensors | dict(zip(keys, (one, other), strict=True))), base_state(), *keys)
    key = f"{PREFIX}encoder.0.q.weight"
    refuse(write_adapter(tmp_path / "both", tensors | {key: draw(1, 7, 5)}), base_state(), key, "two changes of one tensor")
    first, second = "encoder.0.q.lora_A.weight", f"{PREFIX}encoder.0._orig_mod.q.lora_A.weight"
    folder = write_adapter(tmp_path / "factors", tensors | {second: draw(3, 2, 5)})
    refuse(folder, base_state(), first, second, "one name")


def test_a_norm_beside_the_part_is_not_the_norm_of_the_part(tmp_path):
    base = base_state() | {"norm.weight": draw(1, 5)}
    tensors = under("vision.", linear_tensors()) | {f"{PREFIX}norm.weight": draw(2, 5)}
    _, values, said = read_saying(write_adapter(tmp_path, tensors, modules_to_save=["norm"]), base)
    assert values["norm.weight"] is base["norm.weight"]
    assert any("'norm' was trained whole" in line for line in said)
