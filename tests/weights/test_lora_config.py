"""What the configuration of an adapter says beside its tensors: patterns, targets, encodings, defaults, shards."""

from __future__ import annotations

import json
import re
import types
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import read_adapter
from tests.support.helpers import same_bits, snapshot
from tests.support.lora_files import PREFIX, base_state, factors, linear_tensors, read_saying, write_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def peft() -> types.ModuleType:
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before peft, whose import leads to torchvision's)

    return pytest.importorskip("peft")


def net() -> nn.Module:
    torch.manual_seed(1)
    blocks = [nn.ModuleDict({name: nn.Linear(6, 6, bias=False) for name in ("q_proj", "k_proj")}) for _ in range(2)]
    model = nn.ModuleDict({"layers": nn.ModuleList(blocks), "q_proj": nn.Linear(6, 6)})
    model.forward = lambda x: x
    return model


# ---------------------------------------------------------------- patterns


PATTERNS = [
    {"alpha_pattern": {"^q_proj": 100}},
    {"alpha_pattern": {"layers.0.q_proj": 64, "q_proj": 16}},
    {"alpha_pattern": {"q_proj": 16, "layers.0.q_proj": 64}},
    {"alpha_pattern": {"model.layers.0.q_proj": 64}},
    {"alpha_pattern": {r"layers\.\d+\.q_proj": 3}, "rank_pattern": {".*k_proj": 4}},
    {"rank_pattern": {"qproj": 4}},
    {"alpha_pattern": {"layers.0": 9}, "use_rslora": True},
    {"rank_pattern": {"q_proj": 4, "layers.1.q_proj": 4}, "alpha_pattern": {"(q|k)_proj": 2}, "use_rslora": True},
    {"rank_pattern": {"k_proj": 3, "layers.0.k_proj": 3}, "exclude_modules": ["layers.1.q_proj"]},
    {"alpha_pattern": {"layers.1.q_proj": 3}, "layers_to_transform": [0], "layers_pattern": "layers"},
    {"alpha_pattern": {"proj": 3}, "bias": "lora_only"},
]  # fmt: skip


@pytest.mark.parametrize("config", PATTERNS)
def test_patterns_as_peft_loads_them(peft, tmp_path, config):
    given = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"], "init_lora_weights": False, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(net(), peft.LoraConfig(**given)).save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(net(), tmp_path)
    theirs = {
        (match[1], entry) for warning in caught
        if (match := re.search(r"following (\w+) keys did not match .*: \[(.*)\]", str(warning.message)))
        for entry in re.findall(r"'([^']*)'", match[2])
    }  # fmt: skip
    _, values, said = read_saying(tmp_path, net().state_dict())
    for name, want in snapshot(loaded.merge_and_unload().state_dict()).items():
        torch.testing.assert_close(values[name], want)
    idle = [line for line in said if "of its" in line]
    ours = {(line.split(": ")[1].split()[0], entry) for line in idle for entry in re.findall(r"has '([^']*)'", line)}
    assert ours == theirs
    torn = [line for line in said if "peft sorts" in line]
    assert len(torn) == (config.get("alpha_pattern") == {"layers.0.q_proj": 64, "q_proj": 16})
    assert len(said) == len(idle) + len(torn)


def test_entries_that_disagree(tmp_path):
    folder = write_adapter(tmp_path, alpha_pattern={"0.q": 4, "q": 8, "v": 6, "(v|w)": 6})
    expert, _, said = read_saying(folder, base_state())
    assert torch.equal(expert.factors("encoder.0.q.weight")[0], linear_tensors()[f"{PREFIX}encoder.0.q.lora_B.weight"] * 2)
    assert len(said) == 1
    for part in ("alpha_pattern", "'0.q' (4) and 'q' (8)", "'encoder.0.q'", "4 is taken"):
        assert part in said[0]
    write_adapter(tmp_path, alpha_pattern={"0.q": 4, "1.q": 8})  # what it advises
    assert read_saying(folder, base_state())[2] == []


def test_the_stored_rank_tells_which_entry_counted(tmp_path):
    # As trained with {"q": 4, "0.q": 2}: peft sorts the entries when it saves, and then cannot load its own file.
    tensors = factors("encoder.0.q", 7, 5, rank=4) | factors("encoder.1.q", 7, 5, rank=4)
    expert, _, said = read_saying(write_adapter(tmp_path, tensors, rank_pattern={"0.q": 2, "q": 4}), base_state())
    assert torch.equal(expert.factors("encoder.0.q.weight")[0], tensors[f"{PREFIX}encoder.0.q.lora_B.weight"] * 1.5)
    assert len(said) == 1
    assert "4 is taken" in said[0]


@pytest.mark.parametrize("table", ["rank_pattern", "alpha_pattern"])
def test_many_idle_entries_are_one_line(tmp_path, table):
    names = {f"absent_{number}": 2 for number in range(9)}
    _, _, said = read_saying(write_adapter(tmp_path, **{table: names}), base_state())
    assert len(said) == 1
    for part in (table, "'absent_0'", "'absent_4' and 4 more", "none of its 4 modules", "'encoder.0.q'"):
        assert part in said[0]


def test_the_rank_that_the_message_names(tmp_path):
    with pytest.raises(fbl.MergeError, match=re.escape('set r to 2, or add "encoder.0.q": 2 to rank_pattern')):
        read_adapter(write_adapter(tmp_path, factors("encoder.0.q", 7, 5), r=4), base_state())
    for fix in ({"r": 2}, {"r": 4, "rank_pattern": {"encoder.0.q": 2}}, {"rank_pattern": {"q": 3, "encoder.0.q": 2}}):
        assert read_adapter(write_adapter(tmp_path, factors("encoder.0.q", 7, 5), **fix), base_state()).changed


# ---------------------------------------------------------------- targets


def test_factors_that_the_configuration_does_not_name(peft, tmp_path):
    given = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"], "init_lora_weights": False}
    peft.get_peft_model(net(), peft.LoraConfig(**given)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, count in (
        ({"target_modules": ["q_proj"]}, 2), ({"target_modules": r"layers\.0\..*"}, 3), ({"exclude_modules": ["k_proj"]}, 2),
        ({"exclude_modules": r"layers\.\d\.k.*"}, 2), ({"layers_to_transform": [1]}, 4),
        ({"layers_to_transform": 0, "layers_pattern": "layers"}, 2),
        ({"target_modules": ["k_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, 4),
    ):  # fmt: skip
        path.write_text(json.dumps(config | change))
        _, _, said = read_saying(tmp_path, net().state_dict())
        loaded = peft.PeftModel.from_pretrained(net(), tmp_path)
        assert sum(hasattr(module, "lora_A") for module in loaded.modules()) == 5 - count
        assert len(said) == 1
        assert f"({count} of 5 modules)" in said[0]
        assert "peft ignores" in said[0]


def test_named_modules_without_factors(tmp_path):
    # A file that lost a part: peft warns of missing adapter keys.
    _, values, said = read_saying(write_adapter(tmp_path, target_modules=["q", "v", "conv", "norm", "absent"]), base_state())
    assert len(said) == 1
    assert "names 'conv' (1 such modules)" in said[0]
    assert torch.equal(values["conv.weight"], base_state()["conv.weight"])
    for fix in (["q", "v"], "all-linear", None):
        assert read_saying(write_adapter(tmp_path, target_modules=fix), base_state())[2] == []


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_of_the_configuration(tmp_path, encoding):
    path = write_adapter(tmp_path) / "adapter_config.json"
    path.write_text(path.read_text(), encoding=encoding)
    assert len(read_adapter(tmp_path, base_state()).changed) == 4


@pytest.mark.parametrize("key", ["lora_alpha", "r"])
def test_a_default_is_not_guessed_and_the_advice_works(tmp_path, key):
    with pytest.raises(fbl.MergeError, match=f"{key} is not in adapter_config.json: add "):
        read_adapter(write_adapter(tmp_path, **{key: ...}), base_state())
    assert read_adapter(write_adapter(tmp_path, **{key: 8 if key == "lora_alpha" else 2}), base_state()).changed


def test_modules_to_save_that_is_no_list(tmp_path):
    with pytest.raises(fbl.MergeError, match="modules_to_save in adapter_config.json is 'head': it must be a list"):
        read_adapter(write_adapter(tmp_path, modules_to_save="head"), base_state())


def sharded(folder: Path, count: int = 3) -> list[Path]:
    """Write the adapter of `write_adapter` in several files."""
    tensors = load_file(write_adapter(folder) / WEIGHTS)
    (folder / WEIGHTS).unlink()
    paths = [folder / f"adapter_model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        save_file({key: tensors[key] for key in sorted(tensors)[number::count]}, path)
    return paths


def test_shards(tmp_path):
    expected = dict(read_adapter(write_adapter(tmp_path / "one"), base_state()))
    paths = sharded(tmp_path / "many")
    assert same_bits(dict(read_adapter(tmp_path / "many", base_state())), expected)
    save_file(load_file(paths[0]), paths[2])
    with pytest.raises(fbl.MergeError, match="adapter_model-00001-of-00003.*adapter_model-00003-of-00003.*both hold"):
        read_adapter(tmp_path / "many", base_state())
    for number, path in enumerate(paths):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(fbl.MergeError, match=f"adapter_model-0000{number + 1}-of-00003.safetensors is missing"):
            read_adapter(tmp_path / "many", base_state())
        path.write_bytes(content)
