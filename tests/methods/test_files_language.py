"""A merged folder is a language model that transformers loads: configuration and tokenizer beside it, vocabularies that differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusionbench_lite as fbl
import fusionbench_lite.base.torchvision_ops
from fusionbench_lite.methods.companions import MANIFEST
from tests.support.helpers import State

ROWS = {"model.embed_tokens.weight", "lm_head.weight"}
BESIDE = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def llama(folder: Path, seed: int, vocabulary: int = 32, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny Llama as transformers saves it, with a tokenizer made by code."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, max_position_embeddings=32,
    )
    saved = LlamaForCausalLM(config).to(dtype)
    saved.generation_config.max_new_tokens = 7
    saved.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> State:
    """The state dict that transformers has of a folder, after one forward pass and one generation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("w2 w3 w4", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[2, 3, 4]]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False) == "w5"
    assert torch.isfinite(model(input_ids=ids).logits).all()
    assert model.generate(ids, do_sample=False, pad_token_id=1).shape[1] <= 3 + 7
    return model.state_dict()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merged_llama_loads(tmp_path, tied, dtype):
    base = llama(tmp_path / "base", 0, tied=tied, dtype=dtype)
    experts = {name: llama(tmp_path / name, seed, tied=tied, dtype=dtype) for seed, name in enumerate("ab", start=1)}
    out = fbl.merge_files("task_arithmetic", base, experts, tmp_path / "out", shard_bytes=2000)
    assert {path.name for path in out.iterdir() if path.suffix != ".safetensors"} >= {*BESIDE, MANIFEST}
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    found = loaded(out)
    expected = fbl.merge("task_arithmetic", base, experts).state_dict()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == dtype for name, tensor in expected.items())
    assert (found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()) is tied


def test_an_earlier_model_is_replaced_unless_what_lies_beside_it_was_changed(tmp_path):
    base, experts = llama(tmp_path / "base", 0), {"a": llama(tmp_path / "a", 1)}
    for _ in range(2):
        out = fbl.merge_files("task_arithmetic", base, experts, tmp_path / "out")
    said = json.loads((out / MANIFEST).read_text())
    assert (said["method"], said["hyperparameters"]) == ("task_arithmetic", {"scaling": 0.3})
    assert said["experts"] == {"a": str(experts["a"])}
    (out / "config.json").write_text("{}")
    with pytest.raises(fbl.MergeError, match="out would be replaced, but holds 'config.json'"):
        fbl.merge_files("task_arithmetic", base, experts, out)


def test_a_model_per_task_has_what_it_needs_in_every_folder(tmp_path):
    base, experts = llama(tmp_path / "base", 0), {"a": llama(tmp_path / "a", 1), "b": llama(tmp_path / "b", 2)}
    out = fbl.merge_files("emr_merging", base, experts, tmp_path / "out")
    for task in experts:
        expected = fbl.merge("emr_merging", base, experts).state_dict(task)
        found = loaded(out / task)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    fbl.merge_files("emr_merging", base, experts, out)


def test_the_configuration_says_the_dtype_that_is_written(tmp_path):
    base, experts = llama(tmp_path / "base", 0, dtype=torch.bfloat16), {"a": llama(tmp_path / "a", 1, dtype=torch.bfloat16)}
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    out = fbl.merge_files("weight_averaging", base, experts, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    (base / "config.json").write_text("{")
    with pytest.raises(fbl.MergeError, match=r"pretrained model's config\.json"):
        fbl.merge_files("weight_averaging", base, experts, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------- vocabularies


def test_vocabularies_of_different_sizes_are_refused_with_both(tmp_path):
    base, experts = llama(tmp_path / "base", 0), {"a": llama(tmp_path / "a", 1), "b": llama(tmp_path / "b", 2, 33)}
    said = r"expert 'b': '\S+' has 33 rows, one per token, the pretrained model 32: resize=mean"
    with pytest.raises(fbl.MergeError, match=said) as caught:
        fbl.merge_files("task_arithmetic", base, experts, tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(fbl.InputError, match="resize must be one of mean, pad or null, got 'zero'"):
        fbl.merge_files("task_arithmetic", base, experts, tmp_path / "out", resize="zero")


@pytest.mark.parametrize("larger", ["expert", "base"])
@pytest.mark.parametrize("resize", ["mean", "pad"])
def test_smaller_vocabularies_get_rows(tmp_path, resize, larger):
    sizes = {"base": 34, "a": 34, "b": 32} if larger == "base" else {"base": 32, "a": 33, "b": 34}
    folders = {name: llama(tmp_path / name, seed, size) for seed, (name, size) in enumerate(sizes.items())}
    states = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    for state in states.values():
        for name in ROWS:
            rows = state[name].double()
            new = rows.mean(0).float() if resize == "mean" else torch.zeros(rows.shape[1])
            state[name] = torch.cat([state[name], new.expand(34 - len(rows), -1)])
    out = fbl.merge_files(
        "task_arithmetic", folders["base"], {"a": folders["a"], "b": folders["b"]}, tmp_path / "out", resize=resize,
    )
    expected = fbl.merge("task_arithmetic", states["base"], {"a": states["a"], "b": states["b"]}).state_dict()
    found = loaded(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 34
    assert len(json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]) == 34


def test_other_shapes_that_differ_are_not_resized(tmp_path):
    state = {"model.embed_tokens.weight": torch.zeros(4, 3), "other.weight": torch.zeros(4, 3)}
    for name, wrong in (("model.embed_tokens.weight", (5, 2)), ("other.weight", (5, 3))):
        save_file(state, tmp_path / "base.safetensors")
        save_file(state | {name: torch.zeros(wrong)}, tmp_path / "a.safetensors")
        with pytest.raises(fbl.MergeError, match="was it fine-tuned from another backbone"):
            fbl.merge_files(
                "task_arithmetic", tmp_path / "base.safetensors", {"a": tmp_path / "a.safetensors"}, tmp_path / "out", resize="mean"
            )
