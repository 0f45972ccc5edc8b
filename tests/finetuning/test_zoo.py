"""Experts: the same bits from the same seed, damaged files trained again, one process at a time."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time

import numpy as np
import pytest
import torch

from fusionbench_lite import models
from fusionbench_lite.data import TaskData
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning import embedded, zoo
from fusionbench_lite.finetuning.embedded import FILES, Course, Recipe, recipe_of, scaled
from fusionbench_lite.models.heads import ZeroShotHead, random_embeddings

RECIPE = dataclasses.replace(
    embedded.DRAWN, pretrain_steps=2, pretrain_batch=2, finetune_steps=2, finetune_batch=4, multitask_steps=2,
    multitask_batch=2,
)


def _task(name: str) -> TaskData:
    rng = np.random.default_rng(len(name))
    images = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(20, dtype=np.int64) % 4
    return TaskData(
        name=name, classes=tuple("abcd"), train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8]
    )


DATA = {name: _task(name) for name in ("one", "three", "eleven")}


def _build(cache, data=DATA, seed=0, recipe=RECIPE, report=lambda *_: None):
    return zoo.load_or_build("vit_mini", data, cache, seed, recipe, report)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    torch.set_num_threads(1)
    return _build(tmp_path_factory.mktemp("built"))


def test_same_seed_same_bits_whatever_the_order(built, tmp_path):
    again = _build(tmp_path, dict(reversed(DATA.items())))
    assert again.files == built.files
    assert again.path.name == built.path.name
    assert list(again.experts) == list(reversed(DATA))


def test_other_seed_and_recipe_are_other_zoos(built, tmp_path):
    for other in (_build(tmp_path, seed=1), _build(tmp_path, recipe=dataclasses.replace(RECIPE, finetune_lr=1e-5))):
        assert other.path.name != built.path.name
        assert other.files["individual-one.safetensors"] != built.files["individual-one.safetensors"]


def test_caller_random_numbers_and_threads_stay(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    _build(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", ["individual-three.safetensors", "pretrained.safetensors", "heads.safetensors"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_only_the_damaged_file_is_trained_again(built, tmp_path, caplog, name, harm):
    first = _build(tmp_path)
    path = first.path / name
    times = {file.name: file.stat().st_mtime_ns for file in first.path.glob("*.safetensors")}
    content = bytearray(path.read_bytes())
    if harm == "truncate":
        path.write_bytes(content[:-100])
    elif harm == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    second = _build(tmp_path)
    assert second.files == built.files
    assert name in caplog.text
    changed = {file.name for file in first.path.glob("*.safetensors") if file.stat().st_mtime_ns != times[file.name]}
    assert changed == {name}


def test_an_interrupted_build_keeps_what_is_finished(built, tmp_path):
    def interrupt(description, done, total):
        if "individual three" in description:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path, report=interrupt)
    seen: list[str] = []
    second = _build(tmp_path, report=lambda description, *_: seen.append(description))
    assert second.files == built.files
    assert not any("pretrained" in line or "eleven" in line for line in seen)
    assert any("three" in line for line in seen)


def _build_in_process(cache, queue):
    torch.set_num_threads(1)
    trained: list[str] = []

    def report(description, *_):
        trained.append(description)
        time.sleep(0.02)

    queue.put((_build(cache, report=report).files, len(trained)))


@pytest.mark.slow
def test_two_processes_take_turns(built, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_build_in_process, args=(tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert [files for files, _ in results] == [built.files] * 2
    assert sorted(bool(reports) for _, reports in results) == [False, True]


def test_manifest_names_recipe_and_hashes(built):
    manifest = json.loads((built.path / "manifest.json").read_text())
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == built.files
    assert manifest["recipe"]["finetune_steps"] == 2
    assert set(manifest["data"]) == set(DATA)


def test_own_files(built, tmp_path):
    own = zoo.load_from(built.path, ["three", "one"], 20.0)
    assert list(own.experts) == ["three", "one"]
    with pytest.raises(InputError, match=r"individual-four\.safetensors is missing"):
        zoo.load_from(built.path, ["four"], 20.0)
    with pytest.raises(InputError, match="is not a directory"):
        zoo.load_from(tmp_path / "nowhere", ["one"], 20.0)
    (tmp_path / "pretrained.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="is no readable safetensors file"):
        zoo.load_from(tmp_path, ["one"], 20.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune_step": 3}, "unknown key 'checkpoints.recipe.finetune_step': did you mean 'finetune_steps'"),
        ({"finetune_steps": -1}, "must be an integer of at least 0, got -1"),
        ({"finetune_steps": 1.5}, "checkpoints.recipe.finetune_steps must be an integer of at least 0, got 1.5"),
        ({"finetune_lr": "fast"}, "must be a finite number in [0, inf), got 'fast'"),
        ({"finetune_batch": 0}, "must be an integer of at least 1, got 0"),
        ({"shares": "square"}, "checkpoints.recipe.shares must be one of equal, sqrt"),
        ({"mirror": "one"}, "checkpoints.recipe.mirror must be a list of names, got 'one'"),
        ({"mirror": ["one", "one"]}, "must be a list of names (one is there twice)"),
        ({"mirror": ["on"]}, "checkpoints.recipe.mirror=on is none of the tasks: did you mean 'one'"),
    ],
)
def test_recipe_refuses(changes, message):
    with pytest.raises(InputError) as caught:
        recipe_of(["one"], files=False, changes=changes)
    assert message in str(caught.value)


def test_training_learns_and_stops_at_a_loss_that_is_not_finite():
    torch.manual_seed(0)
    model = models.build("vit_mini")
    heads = {"one": ZeroShotHead(random_embeddings(4, 64, 0), 20.0)}
    data = {"one": DATA["one"]}
    losses = []

    def loss() -> float:
        from fusionbench_lite.data import normalise

        with torch.no_grad():
            logits = heads["one"](model(normalise(torch.from_numpy(data["one"].train_images))))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(data["one"].train_labels)))

    losses.append(loss())
    embedded.train(model, heads, data, RECIPE, Course("test", 12, 16, 1e-3, 20), 0, lambda *_: None)
    losses.append(loss())
    assert losses[1] < losses[0]
    with torch.no_grad():
        model.conv1.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="training test: the loss is nan at step 1"):
        embedded.train(model, heads, data, RECIPE, Course("test", 2, 4, 1e-3, 20), 0, lambda *_: None)


def test_the_key_knows_later_fields_only_where_they_are_set():
    """Experts that are in users' caches stay there."""
    assert set(Recipe().known_by()) == {
        "pretrain_steps", "pretrain_batch", "pretrain_lr", "ambiguity", "finetune_steps", "finetune_batch", "finetune_lr",
        "multitask_steps", "multitask_batch", "multitask_lr", "weight_decay", "warmup", "head_scale", "shift",
    }
    given = {"shares": "sqrt", "mirror": ("one",)}
    assert dataclasses.replace(Recipe(), **given).known_by() == Recipe().known_by() | given


def test_sizes_follow_the_square_root_of_what_a_task_has():
    counts = {"a": 900, "b": 100, "c": 1}
    data = {name: dataclasses.replace(DATA["one"], train_labels=np.zeros(count, int)) for name, count in counts.items()}
    assert embedded._sizes(data, 41, "sqrt") == {"a": 90, "b": 30, "c": 3}
    assert embedded._sizes(data, 1, "sqrt")["c"] == 1
    assert embedded._sizes(data, 41, "equal") == dict.fromkeys(data, 41)


def test_the_loss_weighs_images_alike():
    losses = [torch.tensor(1.0), torch.tensor(4.0)]
    assert embedded._mean(losses, [3, 1]).item() == pytest.approx(1.75)
    assert torch.equal(embedded._mean(losses, [2, 2]), torch.stack(losses).mean())


def test_half_of_the_images_are_mirrored_after_they_were_moved():
    images = np.arange(64 * 2 * 3 * 3, dtype=np.uint8).reshape(64, 2, 3, 3)
    data = dataclasses.replace(DATA["one"], train_images=images, train_labels=np.arange(64) % 4)
    plain, labels = embedded._batch(data, 64, 0, False, np.random.default_rng(0))
    turned, same = embedded._batch(data, 64, 0, True, np.random.default_rng(0))
    flipped = [not torch.equal(a, b) for a, b in zip(plain, turned, strict=True)]
    assert torch.equal(labels, same)
    assert 16 < sum(flipped) < 48
    for is_flipped, a, b in zip(flipped, plain, turned, strict=True):
        assert torch.equal(a.flip(-1) if is_flipped else a, b)


def test_matrices_alone_decay_and_a_fresh_model_is_scaled():
    model, plain = models.build("vit_mini"), models.build("vit_mini")
    plain.load_state_dict(model.state_dict())
    decaying, others = embedded._parameters(model, FILES)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decaying["weight_decay"] == FILES.weight_decay
    assert others["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in decaying["params"])
    still = {names[id(parameter)] for parameter in others["params"]}
    assert {"positional_embedding", "class_embedding", "ln_pre.weight", "transformer.resblocks.0.mlp.c_fc.bias"} <= still
    assert len(decaying["params"]) + len(others["params"]) == len(names)
    scaled(model, FILES)
    factors = {
        name: (parameter.norm() / before.norm()).item()
        for (name, parameter), before in zip(model.named_parameters(), plain.parameters(), strict=True) if before.norm() > 0
    }
    changed = {name: factor for name, factor in factors.items() if factor != pytest.approx(1)}
    assert changed.pop("positional_embedding") == pytest.approx(6)
    assert changed.pop("class_embedding") == pytest.approx(0.2)
    assert len(changed) == 8
    assert {round(factor, 5) for factor in changed.values()} == {0.3}


def test_ambiguous_targets_are_distributions_over_pairs():
    targets = embedded.ambiguous_targets(10, 0.6, 0, "digits")
    assert torch.equal(targets, targets.T)
    assert torch.allclose(targets.sum(1), torch.ones(10))
    assert int((targets.diagonal() == 0.5).sum()) == 6
    assert torch.equal(embedded.ambiguous_targets(10, 0.0, 0, "digits"), torch.eye(10))


def test_head_is_a_scaled_cosine():
    head = ZeroShotHead(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), 20.0)
    assert torch.allclose(head(torch.tensor([[2.0, 0.0]])), torch.tensor([[20.0, 0.0]]))
    assert not list(head.parameters())


def test_vit_mini_has_open_clip_names():
    names = set(models.build("vit_mini").state_dict())
    assert {"conv1.weight", "proj", "transformer.resblocks.3.attn.in_proj_weight", "ln_post.bias"} <= names
    with pytest.raises(InputError, match="unknown model 'vit_min': did you mean 'vit_mini'"):
        models.build("vit_min")
    assert models.feature_width("vit_mini") == 64
