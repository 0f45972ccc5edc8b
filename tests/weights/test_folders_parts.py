"""Parts of models, indexes and adapters that are given by their own paths, and the leftovers of adapters."""

from __future__ import annotations

import json
import re

import pytest
from safetensors.torch import load_file, save_file

import fusionbench_lite as fbl
from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.weights.stored.folders import describe
from fusionbench_lite.weights.stored.indexes import INDEX
from tests.support.helpers import same_bits
from tests.support.lora_files import base_state, write_adapter
from tests.support.stored_models import expert_read, fault, indexed, model, one, reads, shards, unnumbered

# ---------------------------------------------------------------- parts, indexes and adapters by their own paths


def test_one_shard_of_several(tmp_path):
    for folder in (shards(tmp_path / "a"), indexed(tmp_path / "b")):
        text = fault(folder / "model-00002-of-00003.safetensors")
        assert "is part 2 of 3 of a model" in text
        reads(re.search(r"give the folder (\S+)", text)[1])
    part = shards(tmp_path / "c", keep=(1, 3)) / "model-00001-of-00003.safetensors"
    assert "part 1 of 3 of a model, and" in fault(part)
    assert fault(part).endswith("where it is a whole model, call it by another name")
    assert "lacks model-00002-of-00003.safetensors" in fault(part)
    reads(one(tmp_path / "d" / "model-00001-of-00001.safetensors"))


def test_one_shard_where_the_folder_is_read_as_something_else(tmp_path):
    shards(tmp_path / "m", name="consolidated-{}-of-3.safetensors")
    one(tmp_path / "m" / "model.safetensors", model(1))
    assert "move the parts into a folder of their own" in fault(tmp_path / "m" / "consolidated-1-of-3.safetensors")
    for path in list((tmp_path / "m").glob("consolidated*")):
        (tmp_path / "own").mkdir(exist_ok=True)
        path.rename(tmp_path / "own" / path.name)
    reads(tmp_path / "own")


def test_one_file_of_an_index_without_numbers(tmp_path):
    places = unnumbered(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    text = fault(tmp_path / "one.safetensors")
    assert f"is one of the 2 files of a model that {INDEX} lists: give the folder" in text
    reads(tmp_path)


@pytest.mark.parametrize("name", [INDEX, "model.safetensors.index.fp16.json", "diffusion_pytorch_model.safetensors.index.json"])
def test_the_path_of_an_index(tmp_path, name):
    folder = shards(tmp_path / "m", index=name)
    found = reads(folder / name)
    assert (found.index, found.folder) == (folder / name, folder)
    assert reads(folder).index == folder / name
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "'model-00002-of-00003.safetensors', which is missing" in fault(folder / name)
    assert "'model-00002-of-00003.safetensors', which is missing" in fault(folder)


def test_configurations_are_no_weights(tmp_path):
    folder = one(tmp_path / "m" / "model.safetensors").parent
    (folder / "config.json").write_text("{}")
    text = fault(folder / "config.json")
    assert "is a configuration, not weights" in text
    reads(re.search(r"give its folder (\S+)", text)[1])


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "."])
def test_an_adapter_by_its_files(tmp_path, name):
    folder, base = write_adapter(tmp_path / "lora"), base_state()
    found = describe(folder / name)
    assert (found.kind, found.folder, found.files) == ("adapter", folder, (folder / "adapter_model.safetensors",))
    assert same_bits(expert_read(folder / name, base), expert_read(folder, base))
    assert not same_bits(expert_read(folder, base), base)


def test_an_adapter_is_no_pretrained_model(tmp_path):
    folder = write_adapter(tmp_path / "lora", base_model_name_or_path="org/base")
    for path in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(fbl.MergeError, match="pretrained: .*lora is a LoRA adapter, not a model: .*'org/base'"):
            fbl.merge("weight_averaging", path, {"a": base_state()})


def test_leftovers_of_adapters(tmp_path):
    folder, state = write_adapter(tmp_path / "m"), base_state()
    factors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    assert "there is no adapter_model.safetensors: copy it beside adapter_config.json" in describe(folder).sentence
    (folder / "checkpoint-7").mkdir()
    write_adapter(folder / "checkpoint-7")
    assert describe(folder).sentence.endswith(f"or give {folder / 'checkpoint-7'}")
    assert describe(folder / "checkpoint-7").kind == "adapter"
    save_file(state, folder / "model.safetensors")
    with pytest.warns(MergeWarning, match="read as a model in one file, model.safetensors; not read: adapter_config.json"):
        assert same_bits(expert_read(folder, state), state)
    save_file(factors, folder / "adapter_model.safetensors")
    with pytest.warns(MergeWarning, match="read as a LoRA adapter; not read: model.safetensors"):
        expert_read(folder, state)
    assert same_bits(expert_read(folder / "model.safetensors", state), state)  # what is given by its own path
    with pytest.warns(MergeWarning, match="pretrained: .* read as a model in one file"):
        found = fbl.merge("pretrained", folder, {"a": state}).state_dict()
    assert same_bits({name: found[name] for name in state}, state)
    (folder / "adapter_config.json").unlink()
    with pytest.warns(MergeWarning, match="not read: adapter_model.safetensors"):
        assert same_bits(expert_read(folder, state), state)


def test_factors_without_a_configuration(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_config.json").rename(tmp_path / "adapter_config.json")
    assert "without its adapter_config.json, which says rank and alpha: copy it there" in fault(folder)
    assert "no adapter_config.json is beside it" in fault(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").rename(folder / "pytorch_lora_weights.safetensors")
    assert "the factors of a LoRA adapter" in fault(folder)
    (tmp_path / "adapter_config.json").rename(folder / "adapter_config.json")
    assert "call it adapter_model.safetensors" in fault(folder / "pytorch_lora_weights.safetensors")
    (folder / "pytorch_lora_weights.safetensors").rename(folder / "adapter_model.safetensors")
    assert describe(folder).kind == "adapter"


def test_an_adapter_in_parts(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    whole = folder / "adapter_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    parts = [folder / f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, part in enumerate(parts):
        save_file(dict(list(tensors.items())[number::2]), part)
    found = describe(folder)
    assert (found.kind, found.files, found.sentence) == ("adapter", tuple(parts), f"{folder} is a LoRA adapter in 2 shards")
    assert f"is part 1 of 2 of a model: give the folder {folder}" in fault(parts[0])
    parts[1].rename(tmp_path / "away")
    assert "adapter_model-00002-of-00002.safetensors is missing, adapter_model-00001-of-00002.safetensors is there" in fault(folder)
    assert "and adapter" in fault(parts[0])


def test_a_pickled_adapter(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is a pickle" in fault(folder)
    assert "save_pretrained(..., safe_serialization=True)" in fault(folder)
