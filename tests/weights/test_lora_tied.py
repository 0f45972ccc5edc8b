"""Adapters of models with a tied head against peft's merge_and_unload, in memory and from files, and what the messages advise."""

from __future__ import annotations

import copy
import json
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import read_adapter
from fusionbench_lite.weights.readers import SafetensorsWeights
from tests.support.helpers import State, rng, snapshot
from tests.support.lora_files import read_saying

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = {"modules_to_save": ["embed_tokens", "lm_head"]}
KEPT = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}


@pytest.fixture(scope="module")
def peft() -> types.ModuleType:
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before peft, whose import leads to torchvision's)

    return pytest.importorskip("peft")


def llama(tied: bool = True) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, tie_word_embeddings=tied))


def trained(peft: types.ModuleType, folder: Path, tied: bool = True, **config) -> nn.Module:
    """Train a q_proj and what `config` names, save the adapter, and return the live model."""
    given = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **config}
    model = peft.get_peft_model(llama(tied), peft.LoraConfig(**given))
    g = rng(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=g) * 0.5)
    model.save_pretrained(folder)
    return model.eval()


def folded(peft: types.ModuleType, folder: Path, tied: bool = True) -> State:
    return snapshot(peft.PeftModel.from_pretrained(llama(tied), folder).merge_and_unload().state_dict())


def stored(folder: Path, tied: bool = True) -> SafetensorsWeights:
    llama(tied).save_pretrained(folder)
    return SafetensorsWeights(folder / "model.safetensors")


def with_a_head(folder: Path) -> SafetensorsWeights:
    """The stored model after the advice: a copy of the embedding under the name of the head."""
    tensors = dict(stored(folder))
    save_file(tensors | {HEAD: tensors[EMBED].clone()}, folder / "model.safetensors")
    return SafetensorsWeights(folder / "model.safetensors")


def equal(values: State, expected: State) -> bool:
    """Equal to rounding under every name of the pretrained model."""
    return all(torch.allclose(value, expected[name], atol=1e-6, rtol=1e-5) for name, value in values.items())


CASES = [
    {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}, BOTH, KEPT,
    {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["q_proj", "lm_head"]},
]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", CASES)
def test_in_memory_as_peft_folds_it(peft, tmp_path, tied, config):
    trained(peft, tmp_path, tied, **config)
    _, values, said = read_saying(tmp_path, llama(tied).state_dict())
    assert equal(values, folded(peft, tmp_path, tied))
    # peft's merge changes both names of a tied tensor, where training changed one.
    both = tied and "modules_to_save" not in config
    assert len(said) == both
    assert all("tied" in line for line in said)


@pytest.mark.parametrize("config", CASES)
def test_a_file_of_an_untied_model_as_peft_folds_it(peft, tmp_path, config):
    trained(peft, tmp_path, False, **config)
    _, values, said = read_saying(tmp_path, stored(tmp_path / "base", tied=False))
    assert equal(values, folded(peft, tmp_path, False))
    assert set(values) == set(llama(False).state_dict())
    assert said == []


def test_a_file_without_the_tied_head_holds_what_stays_tied(peft, tmp_path):
    trained(peft, tmp_path, **KEPT)
    _, values, said = read_saying(tmp_path, stored(tmp_path / "base"))
    expected = folded(peft, tmp_path)
    assert torch.equal(expected[EMBED], expected[HEAD])
    assert equal(values, expected)
    assert said == []


@pytest.mark.parametrize("config", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_a_head_that_follows_its_embedding_is_warned_of(peft, tmp_path, config):
    live = trained(peft, tmp_path, **config)
    _, values, said = read_saying(tmp_path, stored(tmp_path / "base"))
    assert equal(values, folded(peft, tmp_path))
    assert len(said) == 1
    for part in (repr(EMBED), "stores no head", "copy", repr(HEAD)):
        assert part in said[0]
    # What it advises gives the model that was trained.
    _, values, _ = read_saying(tmp_path, with_a_head(tmp_path / "base"))
    assert torch.equal(values[HEAD], llama().state_dict()[HEAD])
    assert not torch.equal(values[HEAD], values[EMBED])
    assert_same_logits(values, live)


@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION"])
def test_no_head_no_warning(peft, tmp_path, task):
    trained(peft, tmp_path, modules_to_save=["embed_tokens"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": task, "auto_mapping": None}))
    assert read_saying(tmp_path, stored(tmp_path / "base"))[2] == []


def assert_same_logits(values: State, live: nn.Module) -> None:
    merged = llama(tied=False).eval()
    merged.load_state_dict(values)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, live(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [{"modules_to_save": ["lm_head"]}, BOTH, {"target_modules": ["q_proj", "lm_head"]},
     {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}],
)  # fmt: skip
def test_a_head_that_a_file_cannot_hold_is_refused_and_the_advice_works(peft, tmp_path, config):
    live = trained(peft, tmp_path, **config)
    with pytest.raises(fbl.MergeError) as caught:
        dict(read_adapter(tmp_path, stored(tmp_path / "base")))
    for part in (str(tmp_path), f"{HEAD!r}", f"tied to {EMBED!r}", "store a copy", "base_model.model.lm_head"):
        assert part in str(caught.value)
    _, values, said = read_saying(tmp_path, with_a_head(tmp_path / "base"))
    assert_same_logits(values, live)
    if "modules_to_save" in config:
        assert equal(values, folded(peft, tmp_path))
        assert said == []
    else:
        assert len(said) == 1
        assert "equal" in said[0]
        assert "merge_and_unload" in said[0]


def test_factors_say_that_a_head_is_stored_twice(peft, tmp_path):
    trained(peft, tmp_path, target_modules=["q_proj", "embed_tokens"])
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "base_layer" not in key}, path)
    expert = read_adapter(tmp_path, with_a_head(tmp_path / "base"))
    with pytest.warns(fbl.MergeWarning, match="equal, as those of a tied head"):
        expert.factors(EMBED)
    expert = read_adapter(tmp_path, {name: value.clone() for name, value in llama().state_dict().items()})
    with pytest.warns(fbl.MergeWarning, match="equal, as those of a tied head"):
        _ = expert[EMBED]


def test_factors_of_both_names_are_refused_with_their_tie(peft, tmp_path):
    trained(peft, tmp_path, target_modules=["q_proj", "embed_tokens", "lm_head"])
    with pytest.raises(fbl.MergeError, match=r"both change .*tied to 'lm_head.weight'.*save_pretrained") as caught:
        read_adapter(tmp_path, llama().state_dict())
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "config", [{"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, {"trainable_token_indices": [1, 2]}]
)
def test_what_is_refused_can_be_folded_by_peft(peft, tmp_path, config):
    trained(peft, tmp_path / "adapter", **config)
    base = stored(tmp_path / "base").path
    with pytest.raises(fbl.MergeError, match="merge_and_unload and give the folder that save_pretrained then writes"):
        read_adapter(tmp_path / "adapter", llama().state_dict())
    model = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter").merge_and_unload()
    model.save_pretrained(tmp_path / "folded")
    merged = fbl.merge("weight_averaging", base, {"a": tmp_path / "folded" / "model.safetensors"}).state_dict()
    assert equal(merged, snapshot(model.state_dict()))


@pytest.mark.parametrize("config", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["embed_tokens"]}])
def test_a_resized_vocabulary(peft, tmp_path, config):
    model = llama(tied=False)
    model.resize_token_embeddings(20)
    larger = copy.deepcopy(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"target_modules": ["q_proj"], "init_lora_weights": False, **config}))
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(fbl.MergeError, match=r"resize_token_embeddings\(20\)") as caught:
        read_adapter(tmp_path, stored(tmp_path / "base", tied=False))
    assert "(20, 8)" in str(caught.value)
    assert "(16, 8)" in str(caught.value)
    assert equal(dict(read_adapter(tmp_path, larger.state_dict())), snapshot(wrapped.merge_and_unload().state_dict()))


def test_base_weights_beside_factors_replace_every_tied_name(peft, tmp_path):
    # peft saves a targeted embedding with its base, and loads that into the tensor that the head shares.
    trained(peft, tmp_path, target_modules=["embed_tokens"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] += 1
    save_file(tensors, path)
    _, values, _ = read_saying(tmp_path, llama().state_dict())
    assert equal(values, folded(peft, tmp_path))
    assert torch.equal(values[EMBED], values[HEAD])


def test_embeddings_that_t5_shares(peft, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"vocab_size": 17, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 1, "num_heads": 3}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**shape))
    model.save_pretrained(tmp_path / "base")
    base = SafetensorsWeights(tmp_path / "base" / "model.safetensors")
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["shared", "q"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = snapshot(wrapped.merge_and_unload().state_dict())
    _, values, said = read_saying(tmp_path / "adapter", base)
    assert equal(values, expected)
    assert len(said) == 1
    assert "'shared.weight'" in said[0]
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q"], modules_to_save=["lm_head"]))
    wrapped.save_pretrained(tmp_path / "head")
    with pytest.raises(fbl.MergeError, match="'lm_head.weight', which is tied to 'shared.weight'"):
        read_adapter(tmp_path / "head", base)
