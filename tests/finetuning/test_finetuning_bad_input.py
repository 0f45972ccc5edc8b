"""Fine-tuning refuses what does not fit, in one line, before anything is written; failures on the way leave no expert."""

from __future__ import annotations

import dataclasses
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusionbench_lite.data import TaskData
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.finetuning import zoo
from fusionbench_lite.finetuning.callbacks import Status
from fusionbench_lite.finetuning.recipes import FinetuneSettings, recipe
from fusionbench_lite.models import clip
from fusionbench_lite.models.heads import ZeroShotHead
from tests.support.finetuning_job import IMAGES, head, pretrained, quick, task_data, train


def test_a_folder_of_another_base_is_refused(tmp_path):
    train(tmp_path)
    other = {name: tensor + 1e-6 for name, tensor in pretrained().items()}
    with pytest.raises(InputError, match=r"pretrained.safetensors is another base model .*choose another folder"):
        train(tmp_path, "svhn", pretrained=other)
    with pytest.raises(InputError, match="holds models of model 'tiny', not 'vit_b32'"):
        train(tmp_path, "svhn", model_name="vit_b32")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match="is another base model"):
        train(tmp_path, "svhn", pretrained=other)
    with pytest.raises(InputError, match="another head of task 'dtd'"):
        train(tmp_path, heads={"dtd": head("svhn")})
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_folder_that_the_user_began(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    save_file(pretrained(), tmp_path / "pretrained.safetensors")
    train(tmp_path)
    zoo.load_from(tmp_path, ["dtd"], 100.0)
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(InputError, match=r"manifest.json cannot be read"):
        train(tmp_path, "svhn")
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "pretrained.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"pretrained.safetensors is no readable safetensors file"):
        train(tmp_path, "svhn")


def without_images() -> TaskData:
    data = task_data("dtd")
    return TaskData(
        name="dtd", classes=data.classes, train_images=data.train_images[:0], train_labels=data.train_labels[:0],
        test_images=data.test_images, test_labels=data.test_labels,
    )


def mislabelled(label: int) -> TaskData:
    data = task_data("dtd")
    return TaskData(
        name="dtd", classes=data.classes, train_images=data.train_images, train_labels=data.train_labels * 0 + label,
        test_images=data.test_images, test_labels=data.test_labels,
    )


def lacking(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in pretrained().items() if key != name}


BAD = {
    "no training images": ({"data": {"dtd": without_images()}}, "task 'dtd' has no training images"),
    "no data": ({"data": {}}, "needs a task"),
    "a label too large": ({"data": {"dtd": mislabelled(4)}}, "labels from 4 to 4 do not fit 4 classes"),
    "a negative label": ({"data": {"dtd": mislabelled(-1)}}, "labels from -1 to -1"),
    "a wide head": ({"heads": {"dtd": head("dtd", 20)}}, "head of task 'dtd' is 20 wide, the model's features 16"),
    "a head of more classes": ({"heads": {"dtd": head("dtd", classes=6)}}, "has 6 classes, the data 4"),
    "no head": ({"heads": {"dt": head("dtd")}}, "task 'dtd' has no head: did you mean 'dt'"),
    "a head that learns": ({"heads": {"dtd": torch.nn.Linear(16, 4)}}, "must be a frozen ZeroShotHead, got Linear"),
    "images of another size": ({"data": {"dtd": task_data("dtd", size=48)}}, r"cannot read images of \(48, 48, 3\)"),
    "all held out": ({"validation": {"dtd": np.arange(IMAGES)}}, "all 90 training images are held out"),
    "held out of nowhere": ({"validation": {"dtd": np.array([90])}}, "validation rows 90 to 90 do not fit its 90"),
    "weights that lack": ({"pretrained": lacking("proj")}, "lack 'proj'"),
    "weights of another model": ({"pretrained": {"a": torch.zeros(2)}}, "no tensor of the pretrained weights"),
    "heads of two scales": (
        {"tasks": "dtd,svhn", "heads": {"dtd": head("dtd"), "svhn": ZeroShotHead(head("svhn").weight, 20.0)}},
        "heads of tasks 'dtd' and 'svhn' have scales 100.0 and 20.0",
    ),
    "a recipe of no steps": ({"how": dataclasses.replace(quick(), steps=0)}, "recipe 'ta' gives dtd 0 steps"),
    "two experts at once": ({"tasks": "dtd,svhn", "how": quick("ta")}, "recipe 'ta' trains one expert, 2 tasks are given"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        train(tmp_path / "folder", **arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("folder/*"))


def test_bad_recipes_and_settings(tmp_path, monkeypatch):
    for call, message in {
        (lambda: recipe("tal"), "unknown recipe 'tal' of fine-tuning: did you mean 'tall'"),
        (lambda: recipe("ta", steps=0), "recipe 'ta' of fine-tuning: steps must be an integer of at least 1, got 0"),
        (lambda: recipe("ta", batch=True), "batch must be an integer of at least 1, got True"),
        (lambda: recipe("ta", rate=1), "recipe 'ta' of fine-tuning: unknown key 'rate': did you mean"),
        (lambda: recipe("ta", lr=float("nan")), r"lr must be a finite number in \(0, inf\), got nan"),
        (lambda: recipe("ta", crop=(0.9, 1.1)), r"crop must be two numbers \[a, b\], 0 < a <= b <= 1 or null, got \(0.9, 1.1\)"),
        (lambda: recipe("ta", optimizer="sgd"), "must be one of adamw, adam, got 'sgd'"),
        (lambda: train(tmp_path, how="joined"), "did you mean 'joint'"),
        (lambda: FinetuneSettings(precision="bf61"), r"precision must be one of fp32, bf16 \(did you mean 'bf16'\?\), got 'bf61'"),
        (lambda: FinetuneSettings(checkpoint_every=0), "fine-tuning: checkpoint_every must be an integer of at least 1, got 0"),
    }:
        with pytest.raises(InputError, match=message):
            call()
    assert recipe("ta", crop=None, clip=None, held_out=False).crop is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process, 2 were started"):
        train(tmp_path)


def test_a_loss_that_is_not_finite_names_the_step(tmp_path):
    calls = []

    def normalise(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return clip.normalise(images) * (float("nan") if len(calls) == 9 else 1)

    with pytest.raises(MergeError, match=r"task 'dtd': the loss is nan at step 7") as error:
        # after two looks: one image, the held-out ones
        train(tmp_path, settings=FinetuneSettings(checkpoint_every=2), normalise=normalise)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "individual-dtd.safetensors").exists()
    assert load_checkpoint(tmp_path) == 6
    assert train(tmp_path, settings=FinetuneSettings(checkpoint_every=2)).exists()


def load_checkpoint(folder) -> int:
    (path,) = folder.glob(".*.ckpt")
    return len(torch.load(path, weights_only=True)["adaptation"]["history"]["losses"])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        train(tmp_path / "file")


def test_interrupted_by_hand(tmp_path):
    def report(status: Status) -> None:
        if status.step == 9:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            train(tmp_path, report=report)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further interrupts
    assert not (tmp_path / "individual-dtd.safetensors").exists()
    assert load_checkpoint(tmp_path) == 8
