"""Zero-shot heads from prompts against transformers' text model; heads as shipped; the order of a data set's classes."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusionbench_lite.models import clip, text_heads
from fusionbench_lite.models.text_heads import built, prompts
from tests.support.clip_models import TINY, fill, input_refused, separated_block
from tests.support.helpers import distance

TASKS = {
    "sun397": 397, "stanford_cars": 196, "resisc45": 45, "eurosat": 10, "svhn": 10, "gtsrb": 43, "mnist": 10, "dtd": 47,
    "stl10": 10, "oxford_iiit_pet": 37, "flowers102": 102, "cifar100": 100, "pcam": 2, "fer2013": 7, "cifar10": 10,
    "food101": 101, "fashion_mnist": 10, "rendered_sst2": 2, "emnist": 10, "kmnist": 10,
}
NAMES, TEMPLATES = ("cat", "T-shirt/top", "['sad', 'depressed']", "お"), ("a photo of a {c}.", "{c}, no {c}!", "so: “{c}”")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in fill(clip.build_text(TINY), 7).state_dict().items()}, path)
    return path


def transformers_head(weights, classnames, templates, size=TINY):
    """The head by transformers' text model, one prompt after another, at the full length of 77 tokens."""
    import open_clip
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=size.vocabulary, hidden_size=size.text_width, intermediate_size=4 * size.text_width,
        projection_dim=size.output, num_hidden_layers=size.text_layers, num_attention_heads=size.text_heads,
        max_position_embeddings=size.context, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407, pad_token_id=0,
    )
    model, state = transformers.CLIPTextModelWithProjection(config).eval(), {}
    top = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight", "ln_final.bias": "final_layer_norm.bias",
    }
    for name, tensor in load_file(weights).items():
        if name in top:
            state[f"text_model.{top[name]}"] = tensor
        elif name == "text_projection":
            state["text_projection.weight"] = tensor.T
        elif name != "logit_scale":
            state |= {f"text_model.{key}": value for key, value in separated_block(name, tensor).items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    rows = []
    for name in classnames:
        each = []
        for template in templates:
            tokens = open_clip.tokenize([template.replace("{c}", name)])
            feature = model(input_ids=tokens).text_embeds[0].detach().double()
            each.append(feature / feature.norm())
        mean = torch.stack(each).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("task", TASKS)
def test_prompts_of_every_task(task):
    tall, other = prompts(task, "tall"), prompts(task, "fusionbench")
    assert len(tall.classnames) == TASKS[task]
    assert len(other.classnames) == (26 if task == "emnist" else TASKS[task])
    for found in (tall, other):
        assert all("{c}" in template for template in found.templates)
        assert len(set(found.classnames)) == len(found.classnames)


def test_prompts_of_the_variants():
    assert prompts("cifar100", "tall").classnames[26] == "crab"
    assert prompts("cifar100", "fusionbench").classnames[26] == "cra"
    assert prompts("fer2013", "tall").classnames[4] == "['sad', 'depressed']"
    assert "label order" in prompts("fer2013", "tall").note
    assert prompts("kmnist", "fusionbench").classnames[0] == "お"
    assert prompts("dtd", "tall") == prompts("dtd", "fusionbench")
    with input_refused("'sun379'", "'sun397'"):
        prompts("sun379", "tall")
    with input_refused("variant 'fusion'", "'fusionbench'"):
        prompts("dtd", "fusion")


def test_no_prompt_is_longer_than_the_models_context():
    for task in TASKS:
        for variant in ("tall", "fusionbench"):
            found = prompts(task, variant)
            names, templates = (sorted(texts, key=len)[-6:] for texts in (found.classnames, found.templates))
            texts = [template.replace("{c}", name) for name in names for template in templates]
            assert int((text_heads._tokens(texts, TINY) != 0).sum(1).max()) < 60


# ---------------------------------------------------------------- heads that are built


def test_head_is_transformers(weights, tmp_path):
    head = built(TINY, weights, NAMES, TEMPLATES, tmp_path)
    want = transformers_head(weights, NAMES, TEMPLATES)
    assert head.shape == (4, TINY.output)
    assert head.dtype == torch.float32
    assert float((head.double() - want).abs().max()) < 1e-5
    torch.testing.assert_close(head.norm(dim=1), torch.ones(4))
    assert float((head @ head.T).fill_diagonal_(0).abs().max()) < 0.999  # the classes differ


def test_head_of_a_real_task_is_transformers(weights, tmp_path):
    found = prompts("fashion_mnist", "fusionbench")
    head = built(TINY, weights, found.classnames, found.templates, tmp_path, batch=7)
    assert float((head.double() - transformers_head(weights, found.classnames, found.templates)).abs().max()) < 1e-5


def test_exact_gelu_or_another_mean_would_not_pass(weights, tmp_path, monkeypatch):
    want = transformers_head(weights, NAMES, TEMPLATES)
    import open_clip.transformer

    monkeypatch.setattr(open_clip.transformer, "QuickGELU", nn.GELU)
    assert float((built(TINY, weights, NAMES, TEMPLATES, tmp_path).double() - want).abs().max()) > 1e-4
    monkeypatch.undo()
    monkeypatch.setattr(nn.functional, "normalize", lambda x, dim: x / x.norm(dim=dim, keepdim=True) if x.shape[0] == 4 else x)
    assert float((built(TINY, weights, NAMES, TEMPLATES, tmp_path / "b").double() - want).abs().max()) > 1e-4


def test_every_part_counts_and_nothing_else(weights, tmp_path):
    head = built(TINY, weights, NAMES, TEMPLATES, tmp_path)
    assert torch.equal(head, built(TINY, weights, NAMES, TEMPLATES, tmp_path / "again"))
    assert distance(built(TINY, weights, NAMES, TEMPLATES, tmp_path / "small", batch=1), head) < 1e-6
    order = [2, 0, 3, 1]
    assert distance(built(TINY, weights, [NAMES[i] for i in order], TEMPLATES[::-1], tmp_path), head[order]) < 1e-6
    assert distance(built(TINY, weights, NAMES, TEMPLATES[:2], tmp_path), head) > 1e-3
    state = torch.get_rng_state()
    with torch.inference_mode():
        other = built(TINY, weights, NAMES, TEMPLATES, tmp_path / "inference")
    assert not other.is_inference()
    assert torch.equal(other, head)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_weights_are_computed_in_float32(weights, tmp_path):
    half = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, half)
    head = built(TINY, half, NAMES, TEMPLATES, tmp_path)
    assert float((head.double() - transformers_head(half, NAMES, TEMPLATES)).abs().max()) < 1e-5


def entries(cache):
    return sorted((cache / "heads").glob("*.safetensors"))


def test_a_head_is_built_once_for_its_weights_size_and_prompts(weights, tmp_path, monkeypatch):
    head = built(TINY, weights, NAMES, TEMPLATES, tmp_path)
    changed = load_file(weights)
    changed["ln_final.bias"] = changed["ln_final.bias"] + 1
    other = tmp_path / "other.safetensors"
    save_file(changed, other)
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(weights.read_bytes())
    built(TINY, weights, NAMES[::-1], TEMPLATES, tmp_path)
    built(TINY, weights, NAMES, TEMPLATES[:1], tmp_path)
    assert not torch.equal(built(TINY, other, NAMES, TEMPLATES, tmp_path), head)
    assert len(entries(tmp_path)) == 4
    monkeypatch.setattr(text_heads, "_tower", lambda *_: pytest.fail("built again"))
    assert torch.equal(built(TINY, weights, NAMES, TEMPLATES, tmp_path), head)
    assert torch.equal(built(TINY, copied, list(NAMES), list(TEMPLATES), tmp_path), head)  # what counts is the content
    time.sleep(0.01)
    copied.write_bytes(other.read_bytes())
    assert not torch.equal(built(TINY, copied, NAMES, TEMPLATES, tmp_path), head)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_entry_is_built_again(weights, tmp_path, caplog, damage):
    head = built(TINY, weights, NAMES, TEMPLATES, tmp_path)
    (path,) = entries(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "other":
        save_file({"weight": torch.zeros_like(head)}, path)
    else:
        content[-3] ^= 16
        path.write_bytes({"cut": content[:-40], "bit": content, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(built(TINY, weights, NAMES, TEMPLATES, tmp_path), head)
    assert "damaged" in caplog.text
    assert torch.equal(load_file(path)["weight"], head)


def _build(arguments):
    return built(*arguments).tolist()


@pytest.mark.slow
def test_two_processes_that_need_the_same_head(weights, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, other = pool.map(_build, [(TINY, weights, NAMES, TEMPLATES, tmp_path)] * 2)
    assert one == other == built(TINY, weights, NAMES, TEMPLATES, tmp_path).tolist()
    assert len(entries(tmp_path)) == 1
    assert not list((tmp_path / "heads").glob("*.tmp"))


def test_names_are_put_in_literally(weights, tmp_path, monkeypatch):
    seen = []
    tokens = text_heads._tokens
    monkeypatch.setattr(text_heads, "_tokens", lambda texts, size: seen.extend(texts) or tokens(texts, size))
    built(TINY, weights, ["{0} [x] %s {d}", "\\1"], ["a {c} {e}: {c}", '"{c}"'], tmp_path)
    assert seen == ["a {0} [x] %s {d} {e}: {0} [x] %s {d}", '"{0} [x] %s {d}"', "a \\1 {e}: \\1", '"\\1"']


def test_bad_input_of_built(weights, tmp_path):
    with input_refused("class names and templates", "0 and 1"):
        built(TINY, weights, [], ["{c}"], tmp_path)
    with input_refused(r"'a photo of a \{\}\.'", r"\{c\}"):
        built(TINY, weights, ["cat"], ["a photo of a {}."], tmp_path)
    with input_refused("more than 77 tokens", "a cat and a cat"):
        built(TINY, weights, ["a cat and " * 30], ["{c}"], tmp_path)
    with input_refused("gone.safetensors", "convert"):
        built(TINY, tmp_path / "gone.safetensors", ["cat"], ["{c}"], tmp_path)
    with input_refused("text_projection|positional_embedding", r"\(77, 16\)|\(16, 8\)"):
        built(dataclasses.replace(TINY, text_width=32), weights, ["cat"], ["{c}"], tmp_path)
    with input_refused("lack 'transformer.resblocks.2.ln_1.weight'"):
        built(dataclasses.replace(TINY, text_layers=3), weights, ["cat"], ["{c}"], tmp_path)
    with input_refused("'transformer.resblocks.1.*not of the text side"):
        built(dataclasses.replace(TINY, text_layers=1), weights, ["cat"], ["{c}"], tmp_path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:1000])
    with input_refused("cannot read", "broken.safetensors"):
        built(TINY, broken, ["cat"], ["{c}"], tmp_path)
    state = load_file(weights)
    state["ln_final.bias"] = state["ln_final.bias"] * torch.nan
    save_file(state, broken)
    with input_refused("not finite", "broken.safetensors"):
        built(TINY, broken, ["cat"], ["{c}"], tmp_path)
    assert not entries(tmp_path)


def test_exactly_77_tokens_fit(weights, tmp_path):
    assert built(TINY, weights, ["cat " * 75], ["{c}"], tmp_path).shape == (1, TINY.output)
    with input_refused("77 tokens"):
        built(TINY, weights, ["cat " * 76], ["{c}"], tmp_path)


def test_prompts_are_read_without_torch():
    code = (
        "import sys; from fusionbench_lite.models.text_heads import prompts, check_order;"
        "check_order('dtd', 'tall', prompts('dtd', 'tall').classnames); print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", "import json;" + code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
