"""Zero-shot heads from prompts against transformers' text model; heads as shipped; the order of a data set's classes."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import random
import re
import subprocess
import sys
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.models import clip, text_heads
from fusionbench_lite.models import prompts as prompts_module
from fusionbench_lite.models.text_heads import built, check_order, prompts, shipped
from tests.support.clip_models import TINY, fill, input_refused, separated_block
from tests.support.helpers import distance, rng

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


# ---------------------------------------------------------------- heads as shipped


def unit(count=5, width=8, seed=0):
    return nn.functional.normalize(torch.randn(count, width, generator=rng(seed)), dim=1)


def test_shipped_heads_that_are_right():
    head = unit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shipped(100 * head, head) == pytest.approx(100, abs=1e-3)
        assert shipped(head, head) == 100
        assert shipped(100 * head, classes=5) == pytest.approx(100, abs=1e-3)
        assert shipped(99.998 * head) == pytest.approx(99.998, abs=1e-3)  # exp(4.6052) is not quite 100
        assert shipped((100 * head).half(), head) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize(("change", "parts"), [
    (lambda w: w[:4], ["(4, 8)", "5"]), (lambda w: w[:, :6], ["(5, 6)", "(5, 8)"]), (lambda w: w[0], ["(8,)"]),
    (lambda w: w * torch.tensor([1.0, 1, 1.01, 1, 1])[:, None], ["norm 100 to 101"]), (lambda w: w / 3, ["33.3333"]),
    (lambda w: w * torch.inf, ["not finite"]), (lambda w: w * 0, ["norm 0 to 0"]),
])
def test_shipped_heads_that_are_wrong(change, parts):
    with input_refused("head_DTD.pt", *map(re.escape, parts)):
        shipped(change(100 * unit()), unit(), classes=5, what="head_DTD.pt")


def test_a_shipped_head_unlike_the_rebuilt_one_warns():
    with pytest.warns(MergeWarning, match=r"head_DTD.pt: row 0 .*0\.999"):
        shipped(100 * unit().roll(1, 0), unit(), what="head_DTD.pt")
    other = nn.functional.normalize(unit() + torch.tensor([0, 0, 0, 0.1, 0])[:, None] * unit(seed=1), dim=1)
    with pytest.warns(MergeWarning, match=r"row 3 .*cosine of 0\.99"):
        shipped(100 * other, unit())
    near = nn.functional.normalize(unit() + 0.001 * unit(seed=1), dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shipped(100 * near, unit())


# ---------------------------------------------------------------- the order of the classes


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variant", ["tall", "fusionbench"])
def test_the_prompts_own_names(task, variant):
    names = list(prompts(task, variant).classnames)
    if task == "fer2013" and variant == "tall":
        names = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    assert check_order(task, variant, names) == "checked"
    assert check_order(task, variant, [name.upper().replace(" ", "_").replace("-", "__") for name in names]) == "checked"
    assert check_order(task, variant, None) == "not comparable"
    assert check_order(task, variant, [chr(0x4E00 + number) for number in range(len(names))]) == "not comparable"
    with input_refused(task, f"label {len(names) - 2} ", re.escape(repr(names[-1])), "renumber"):
        check_order(task, variant, [*names[:-2], names[-1], names[-2]])
    with input_refused(task, str(len(names) + 1), str(len(names)), variant):
        check_order(task, variant, [*names, "more"])


@pytest.mark.parametrize("task", TASKS)
def test_any_other_order_is_refused(task):
    names = [spellings[0] for spellings in prompts_module.spellings(task, "fusionbench")]
    for seed in range(5):
        moved = names.copy()
        random.Random(seed).shuffle(moved)
        if moved != names:
            with input_refused(task, "renumber"):
                check_order(task, "fusionbench", moved)


def test_spellings_are_of_one_class_each():
    for task in TASKS:
        for variant in prompts_module.VARIANTS:
            spellings = prompts_module.spellings(task, variant)
            plain = [{prompts_module.plain(name) for name in known} for known in spellings]
            assert len(set().union(*plain)) == sum(map(len, plain)), task
    assert set(prompts_module._read("class_names.yaml")) <= set(TASKS)


def test_names_that_torchvision_gives():
    import fusionbench_lite.base.torchvision_ops  # noqa: F401

    # isort: split

    from torchvision import datasets

    for task, names in {
        "flowers102": datasets.Flowers102.classes, "mnist": datasets.MNIST.classes, "fashion_mnist": datasets.FashionMNIST.classes,
        "kmnist": datasets.KMNIST.classes,
    }.items():
        for variant in ("tall", "fusionbench"):
            assert check_order(task, variant, names) == "checked", task
    letters = datasets.EMNIST.classes_split_dict["letters"]
    with input_refused("27", "26"):
        check_order("emnist", "fusionbench", letters)
    assert check_order("emnist", "fusionbench", letters[1:]) == "checked"
    with input_refused("26", "10", "tall"):
        check_order("emnist", "tall", letters[1:])


KNOWN = {
    "eurosat": [
        "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential", "River",
        "SeaLake",
    ],
    "svhn": list("0123456789"),
    "stl10": ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "gtsrb": [f"{number:05d}" for number in range(43)],
    "flowers102": [str(number) for number in range(1, 103)],
    "stanford_cars": [str(number) for number in range(1, 197)],
    "oxford_iiit_pet": [name.replace(" ", "_") for name in prompts("oxford_iiit_pet", "tall").classnames],
    "sun397": [f"/{name[0]}/{name.replace(' ', '_')}" for name in prompts("sun397", "tall").classnames],
    "pcam": ["False", "True"],
    "fer2013": ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"],
}


@pytest.mark.parametrize("task", KNOWN)
@pytest.mark.parametrize("variant", ["tall", "fusionbench"])
def test_known_spellings(task, variant):
    assert check_order(task, variant, KNOWN[task]) == "checked"


@pytest.mark.parametrize("task", ["gtsrb", "flowers102", "stanford_cars", "dtd", "resisc45"])
def test_numbered_folders_sorted_as_text(task):
    """torchvision's ImageFolder numbers them 0, 1, 10, 11, ...: the label is not the number."""
    for start in (0, 1):
        names = [str(number) for number in range(start, TASKS[task] + start)]
        with input_refused(task, "label [12]", "'1[01]'", "label (9|10)", "renumber"):
            check_order(task, "tall", sorted(names))
        expected = {"gtsrb": 0, "flowers102": 1, "stanford_cars": 1}.get(task) == start
        assert check_order(task, "tall", names) == ("checked" if expected else "not comparable")
    assert check_order(task, "tall", [str(7 * number) for number in range(TASKS[task])]) == "not comparable"


def test_the_emotions_of_the_csv_file_are_in_another_order():
    original = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    for variant in ("tall", "fusionbench"):  # the tall heads' rows are permuted, the labels they were trained on are not
        with input_refused("fer2013", "label 4", "'sad'", "label 5", "'neutral'"):
            check_order("fer2013", variant, original)


def test_one_unknown_name_has_the_place_that_is_left():
    names = list(prompts("cifar10", "tall").classnames)
    names[1] = "vehicle"
    assert check_order("cifar10", "tall", names) == "checked"
    names[4] = "hart"
    assert check_order("cifar10", "tall", names) == "not comparable"
    names[7], names[8] = names[8], names[7]
    with input_refused("label 7", "'ship'", "label 8"):
        check_order("cifar10", "tall", names)


def test_zeros_before_numbers_and_classes_without_a_majority():
    assert check_order("mnist", "tall", [f"{number:03d}" for number in range(10)]) == "checked"
    with input_refused("mnist", "label 0", "'010'|'001'"):
        check_order("mnist", "tall", [f"{number + 1:03d}" for number in range(10)])
    assert check_order("rendered_sst2", "tall", ["bad", "positive"]) == "checked"
    assert check_order("rendered_sst2", "tall", ["bad", "good"]) == "not comparable"
    assert check_order("rendered_sst2", "tall", ["0", "1"]) == "not comparable"
    with input_refused("label 0", "'positive'"):
        check_order("rendered_sst2", "tall", ["positive", "bad"])
    with input_refused("label 0", "'True'", "label 1"):
        check_order("pcam", "tall", ["True", "False"])


def test_prompts_are_read_without_torch():
    code = (
        "import sys; from fusionbench_lite.models.text_heads import prompts, check_order;"
        "check_order('dtd', 'tall', prompts('dtd', 'tall').classnames); print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", "import json;" + code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
