"""Fine-tuning against a plain loop, its recipes and its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.streams import Stream
from fusionbench_lite.data import TaskData
from fusionbench_lite.finetuning.callbacks import Status
from fusionbench_lite.finetuning.recipes import FinetuneSettings
from fusionbench_lite.finetuning.step_images import Epochs, Pool, StepImages
from fusionbench_lite.models import clip
from tests.support.finetuning_job import HELD_OUT, IMAGES, SIZE, TASKS, head, pretrained, quick, task_data, train

CPU = torch.device("cpu")


def entry_of(folder: Path) -> dict[str, Any]:
    """What the manifest says of the expert of dtd."""
    entry: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["files"]["individual-dtd.safetensors"]
    return entry


def epoch_rows(task: str, batch: int, step: int) -> np.ndarray:
    stream = Stream(kind="epoch", size=IMAGES - HELD_OUT, batch_size=batch, batches=1, seed=0, task=task)
    return np.arange(HELD_OUT, IMAGES)[stream.indices(step)]


def normal(images: torch.Tensor) -> torch.Tensor:
    """CLIP's inputs in float64."""
    return ((images.double() / 255 - torch.tensor(clip.MEAN)) / torch.tensor(clip.STD)).permute(0, 3, 1, 2)


def plain(
    tasks: list[str], steps: int, optimizer: str, batch: int, warmup: int, clip_at: float | None, frozen: str | None, cosine: bool,
    dtype: torch.dtype,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train with PyTorch alone, on images that are not cropped; the rate is 1e-3."""
    model = clip.build(SIZE, "packed").to(dtype)
    model.load_state_dict(pretrained())
    parameters = [tensor for name, tensor in model.named_parameters() if name != frozen]
    made = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optimizer]
    descent = made(parameters, lr=1.0, weight_decay=0.1)
    losses = []
    for step in range(steps):
        decayed = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) if cosine else 1.0
        descent.param_groups[0]["lr"] = 1e-3 * ((step + 1) / warmup if step < warmup else decayed)
        descent.zero_grad()
        total = 0.0
        for task in tasks:
            data, rows = task_data(task), epoch_rows(task, batch, step)
            features = model(normal(torch.from_numpy(data.train_images[rows])).to(dtype))
            logits = 100 * features / features.norm(dim=-1, keepdim=True) @ head(task).weight.to(dtype).T
            total = total + torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.train_labels[rows]))
        total.backward()
        if clip_at is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_at)
        descent.step()
        losses.append(total.item())
    return model.state_dict(), losses


CASES = {
    "adamw": (["dtd"], quick("ta", crop=None, steps=10), ("adamw", 12, 4, 1.0, None, True)),
    "fusionbench": (["dtd"], quick("fusionbench", steps=10, warmup=0, weight_decay=0.1), ("adam", 12, 0, None, "proj", False)),
    "joint": ([*TASKS], quick("joint", crop=None, steps=10, batch=6), ("adamw", 6, 4, 1.0, None, True)),
}


def learned(name: str) -> slice | list[int]:
    """The rows of a tensor without the bias of the keys.

    A constant added to all keys changes no attention: its gradient is rounding, which Adam makes a step of any size.
    """
    return slice(None) if "in_proj_bias" not in name else [*range(SIZE.width), *range(2 * SIZE.width, 3 * SIZE.width)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_a_plain_loop(tmp_path, case):
    tasks, how, rest = case
    path = train(tmp_path, ",".join(tasks), how, **in_float64(tasks), normalise=normal)
    expected, losses = plain(tasks, 10, *rest, torch.float64)
    found, frozen = load_file(path), rest[4]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name][learned(name)], tensor[learned(name)], rtol=0, atol=1e-9, msg=name)
        assert torch.equal(found[name], pretrained()[name].double()) == (name == frozen), name
    history = np.genfromtxt(next(tmp_path.glob("history-*.csv")), delimiter=",", names=True)
    np.testing.assert_allclose(sum(history[f"loss{task}"] for task in tasks), losses, rtol=1e-6)


def test_equals_a_plain_loop_in_float32(tmp_path):
    tasks, how, rest = CASES["adamw"]
    found = load_file(train(tmp_path, "dtd", how))
    expected, _ = plain(tasks, 10, *rest, torch.float32)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name][learned(name)], tensor[learned(name)], rtol=0, atol=1e-6, msg=name)


def in_float64(tasks: list[str]) -> dict[str, object]:
    return {
        "pretrained": {name: tensor.double() for name, tensor in pretrained().items()},
        "model": clip.build(SIZE, "packed").double(), "heads": {task: head(task).double() for task in tasks},
    }


def test_the_projection_of_the_separate_layout_is_frozen(tmp_path):
    torch.manual_seed(1)
    model = clip.build(SIZE, "separate")
    how = quick("fusionbench", steps=4, warmup=0)
    path = train(tmp_path, how=how, model=model, pretrained=model.state_dict(), layout="separate")
    found, base = load_file(path), model.state_dict()
    kept = {name for name in base if torch.equal(found[name], base[name])}
    assert kept == {"visual_projection.weight"}
    assert json.loads((tmp_path / "manifest.json").read_text())["layout"] == "separate"


def test_joint_training_is_traditional_mtl(tmp_path):
    how = quick("joint", steps=8, batch=6)
    path = train(tmp_path, "dtd,svhn", how)
    data = {task: task_data(task) for task in TASKS}
    pools = {task: Pool(entry, np.arange(HELD_OUT, IMAGES), 6) for task, entry in data.items()}
    batches = StepImages(pools, how.crop, 0, clip.normalise, CPU)
    given = {task: [(b[task].inputs, b[task].labels) for (b,) in map(batches, range(8))] for task in TASKS}
    adapted = fbl.adapt(
        "traditional_mtl", clip.build(SIZE, "packed"), pretrained(), dict.fromkeys(TASKS, pretrained()),
        {task: head(task) for task in TASKS}, given, 8, lr=1e-3, warmup=4,
    )
    found = load_file(path)
    assert all(torch.equal(tensor, found[name]) for name, tensor in adapted.state_dict().items())


def test_accuracy_rises_and_nothing_given_changes(tmp_path):
    model, base, frozen = clip.build(SIZE, "packed"), pretrained(), head("dtd")
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in base.items()}
    rows, seen = frozen.weight.clone(), []
    train(tmp_path, model=model, heads={"dtd": frozen}, report=seen.append)
    entry = entry_of(tmp_path)
    assert entry["zero_shot"]["dtd"] <= 0.6
    assert entry["accuracy"]["dtd"] >= 0.95
    assert [*entry["accuracies"]] == ["0", "10", "20", "23"]
    assert (entry["images"], entry["held_out"]) == ({"dtd": 70}, {"dtd": 20})
    assert torch.equal(frozen.weight, rows)
    assert torch.equal(load_file(tmp_path / "heads.safetensors")["dtd"], rows)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in base.items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in load_file(tmp_path / "pretrained.safetensors").items())
    assert model.training
    assert [status.step for status in seen] == list(range(1, 24))
    assert seen[-1].loss < seen[0].loss
    assert str(Status(
        name="dtd", step=2, steps=23, loss=1.5, images_per_second=900.4
    )) == "dtd: step 2/23, loss 1.5000, 900 images/s"


def test_held_out_images_are_never_trained_on(tmp_path):
    """Other images there give the same expert; the accuracy on them differs."""
    first = train(tmp_path / "one")
    data = task_data("dtd")
    spoilt = data.train_images.copy()
    spoilt[:HELD_OUT] = 255 - spoilt[:HELD_OUT]
    other = TaskData(
        name="dtd", classes=data.classes, train_images=spoilt, train_labels=data.train_labels, test_images=data.test_images,
        test_labels=data.test_labels,
    )
    second = train(tmp_path / "two", data={"dtd": other})
    assert first.read_bytes() == second.read_bytes()
    assert entry_of(tmp_path / "one")["accuracy"] != entry_of(tmp_path / "two")["accuracy"]


def test_the_papers_tenth_is_held_out_where_the_recipe_says_so(tmp_path):
    kept, held = torch.utils.data.random_split(range(IMAGES), [81, 9], generator=torch.Generator().manual_seed(0))
    train(tmp_path / "default", validation=None)
    assert entry_of(tmp_path / "default")["held_out"] == {"dtd": 9}
    given = train(tmp_path / "given", validation={"dtd": np.array(held.indices)})
    assert given.read_bytes() == (tmp_path / "default" / given.name).read_bytes()
    train(tmp_path / "none", how=quick("fusionbench", steps=2), validation=None)
    assert entry_of(tmp_path / "none")["images"] == {"dtd": IMAGES}
    assert entry_of(tmp_path / "none")["accuracy"] == {}
    assert len(kept) == entry_of(tmp_path / "default")["images"]["dtd"]


def test_bf16(tmp_path):
    found, exact, mixed = {}, {}, {}
    for precision, folder in (("bf16", tmp_path), ("fp32", tmp_path / "fp32")):
        model, mixed[precision] = clip.build(SIZE, "packed"), []
        model.register_forward_pre_hook(lambda *_, seen=mixed[precision]: seen.append(torch.is_autocast_enabled("cpu")))
        path = train(folder, model=model, settings=FinetuneSettings(precision=precision))
        (found if precision == "bf16" else exact).update(load_file(path))
    assert mixed["bf16"] == [False, *[True] * (len(mixed["bf16"]) - 1)]  # the first looks at one image, to check the input
    assert not any(mixed["fp32"])
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert not all(torch.equal(tensor.bfloat16().float(), tensor) for tensor in found.values())  # weights are not rounded
    assert not torch.equal(found["proj"], exact["proj"])
    assert entry_of(tmp_path)["accuracy"]["dtd"] >= 0.95
    losses = [np.genfromtxt(p / "history-dtd.csv", delimiter=",", names=True)["lossdtd"] for p in (tmp_path, tmp_path / "fp32")]
    np.testing.assert_allclose(losses[0][:5], losses[1][:5], rtol=0.05)
    (batch,) = StepImages({"dtd": Pool(task_data("dtd"), np.arange(HELD_OUT, IMAGES), 12)}, (0.9, 1.0), 0, clip.normalise, CPU)(0)
    model = clip.build(SIZE, "packed").eval()
    model.load_state_dict(pretrained())
    with torch.autocast("cpu", torch.bfloat16):
        features = model(batch["dtd"].inputs).float()
    logits = head("dtd")(features)  # outside of mixed precision, in which they are off by 0.3
    first = torch.nn.functional.cross_entropy(logits, batch["dtd"].labels)
    assert losses[0][0] == pytest.approx(first.item(), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 7])
@pytest.mark.parametrize("tasks", ["dtd", "dtd,svhn"])
def test_chunks_change_rounding_alone(tmp_path, tasks, chunk):
    """In float64, where rounding does not grow in Adam's division by small gradients."""

    def run(name: str, chunk: int | None) -> dict[str, torch.Tensor]:
        how = quick("joint" if "," in tasks else "ta", steps=5, batch=6)
        path = train(tmp_path / name, tasks, how, FinetuneSettings(chunk=chunk), **in_float64(tasks.split(",")), normalise=normal)
        return load_file(path)

    whole, parts = run("whole", None), run("parts", chunk)
    losses = [np.genfromtxt(next((tmp_path / name).glob("*.csv")), delimiter=",", skip_header=1) for name in ("whole", "parts")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6, atol=1e-9)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-9, msg=name)
        assert tensor.dtype == torch.float64


def test_weights_in_half_precision_are_trained_in_float32(tmp_path):
    halves = {name: tensor.half() for name, tensor in pretrained().items()}
    path = train(tmp_path / "half", how=quick(lr=1e-5, steps=3), pretrained=halves)
    full = train(tmp_path / "full", how=quick(lr=1e-5, steps=3), pretrained={name: t.float() for name, t in halves.items()})
    exact = load_file(full)
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, exact[name].half()), name


def test_epochs_are_the_engines_streams():
    epochs, stream = Epochs(23, 5, 3, "dtd"), Stream(kind="epoch", size=23, batch_size=5, batches=1, seed=3, task="dtd")
    for step in (0, 1, 4, 5, 9, 2, 14):
        assert np.array_equal(epochs.rows(step), stream.indices(step))
    assert len(epochs.rows(4)) == 3
    assert sorted(np.concatenate([epochs.rows(step) for step in range(5)])) == list(range(23))
    assert len(Epochs(3, 5, 0, "dtd").rows(7)) == 3
