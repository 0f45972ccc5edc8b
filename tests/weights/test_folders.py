"""What a path of weights is, sentence by sentence, and that the model read is whole and one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.weights.stored.folders import describe
from fusionbench_lite.weights.stored.indexes import INDEX
from tests.support.helpers import same_bits
from tests.support.lora_files import write_adapter
from tests.support.stored_models import expert_read, fault, indexed, model, one, reads, shards

Make = Callable[[Path], object]


def both(folder: Path, other: str = "consolidated.safetensors") -> None:
    one(folder / "model.safetensors")
    one(folder / other, model(1))


# ---------------------------------------------------------------- the sentence

WHOLE = "F is a model in one file, model.safetensors, 6 tensors"
SENTENCES: dict[str, tuple[Make, str]] = {
    "one file": (lambda f: one(f / "model.safetensors"), WHOLE),
    "one tensor": (lambda f: one(f / "model.safetensors", {"a": torch.zeros(1)}), WHOLE.replace("6 tensors", "1 tensor")),
    "another name": (lambda f: one(f / "consolidated.safetensors"), WHOLE.replace("model.saf", "consolidated.saf")),
    "shards with an index": (indexed, "F is a model in 3 shards with an index, 6 tensors"),
    "shards": (shards, "F is a model in 3 shards without an index, 6 tensors"),
    "an adapter": (write_adapter, "F is a LoRA adapter"),
    "a second form": (both, f"{WHOLE}; not read: consolidated.safetensors"),
    "optimizer state": (lambda f: both(f, "optimizer.safetensors"), f"{WHOLE}; not read: optimizer.safetensors"),
    "a variant": (lambda f: both(f, "model.fp16.safetensors"), f"{WHOLE}; not read: model.fp16.safetensors"),
    "an index and one file": (
        lambda f: (indexed(f), one(f / "model.safetensors", model(1))),
        "F is a model in 3 shards with an index, 6 tensors; not read: model.safetensors",
    ),
    "a quantised model": (
        lambda f: one(f / "model.safetensors", {"w": torch.zeros(2, 2, dtype=torch.int8), "w_scale": torch.ones(2)}),
        "F is a model in one file, model.safetensors, 2 tensors, stored quantised ('w': I8 values beside 'w_scale')",
    ),
    "nothing": (
        lambda f: f.mkdir(),
        "F holds no .safetensors file (it is empty): give the folder of the weights, or convert other formats first",
    ),
    "a missing shard": (
        lambda f: shards(f, keep=(1, 3)), "F lacks model-00002-of-00003.safetensors (2 of 3 parts are there): fetch it",
    ),
    "checkpoints": (
        lambda f: (one(f / "checkpoint-1000/model.safetensors"), one(f / "checkpoint-500/model.safetensors")),
        "F holds no .safetensors file itself: give one of F/checkpoint-500 or F/checkpoint-1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SENTENCES)
def test_sentences(tmp_path, case):
    make, expected = SENTENCES[case]
    make(tmp_path / "F")
    assert describe(tmp_path / "F").sentence.replace(str(tmp_path / "F"), "F") == expected


def test_what_is_said_of_a_file(tmp_path):
    path = one(tmp_path / "expert.safetensors")
    found = reads(path)
    assert (found.kind, found.folder, found.files, found.index) == ("model", tmp_path, (path,), None)
    assert found.sentence == f"{path} is a model in one file, expert.safetensors, 6 tensors"
    assert found.warning is None
    other = one(tmp_path / "other.safetensors", model(1))  # beside it, and not asked for
    assert reads(path).ignored == ()
    assert reads(other, 1).files == (other,)


# ---------------------------------------------------------------- missing shards


@pytest.mark.parametrize("keep", [(1, 3), (1,), (2, 3)])
@pytest.mark.parametrize("who", ["pretrained", "expert 'a'", "both"])
def test_a_missing_shard_without_an_index(tmp_path, keep, who):
    whole, part = shards(tmp_path / "whole"), shards(tmp_path / "part", keep=keep)
    base, expert = (whole if who == "expert 'a'" else part), (whole if who == "pretrained" else part)
    gone = f"model-{min({1, 2, 3} - set(keep)):05d}-of-00003.safetensors"
    for call in (
        lambda: fbl.merge("weight_averaging", base, {"a": expert}),
        lambda: fbl.merge_files("task_arithmetic", base, {"a": expert}, tmp_path / "out"),
    ):
        with pytest.raises(fbl.MergeError, match=f"{'pretrained' if who == 'both' else who}: .*part lacks {gone}") as caught:
            call()
        assert "fetch" in str(caught.value)
    assert not (tmp_path / "out").exists()
    shards(part)  # fetched
    reads(part)


@pytest.mark.parametrize(
    "name",
    ["model-{}-of-3.safetensors", "model_{:02d}_of_03.safetensors", "w.{:05d}-of-00003.fp16.safetensors", "{}of3.safetensors"],
)
def test_other_ways_to_number_shards(tmp_path, name):
    reads(shards(tmp_path / "whole", name=name))
    assert f"lacks {name.format(3)}" in fault(shards(tmp_path / "part", name=name, keep=(1, 2)))


def test_shards_that_are_counted_from_nought(tmp_path):
    state = model()
    for number in range(3):
        one(tmp_path / "m" / f"model-{number:05d}-of-00003.safetensors", dict(list(state.items())[2 * number : 2 * number + 2]))
    reads(tmp_path / "m")
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors" in fault(tmp_path / "m")


def test_many_missing_shards_are_counted(tmp_path):
    one(tmp_path / "m" / "model-00003-of-00010.safetensors")
    text = fault(tmp_path / "m")
    assert "lacks model-00001-of-00010.safetensors, model-00002-of-00010.safetensors and 7 more (1 of 10 parts" in text


# ---------------------------------------------------------------- one form of several


@pytest.mark.parametrize("other", [f"{name}.safetensors" for name in ("consolidated", "optimizer", "model.fp16", "ema")])
def test_a_second_form_is_named_and_not_read(tmp_path, other):
    both(tmp_path / "m", other)
    with pytest.warns(MergeWarning, match=f"expert 'a': .*m is read as a model in one file, model.safetensors; not read: {other}"):
        assert same_bits(expert_read(tmp_path / "m"), model())
    assert reads(tmp_path / "m").ignored == (other,)
    (tmp_path / "alone").mkdir()
    (tmp_path / "m" / other).rename(tmp_path / "alone" / other)  # as the warning says
    assert reads(tmp_path / "m").warning is None
    if not other.startswith("optimizer"):
        reads(tmp_path / "alone", 1)


def test_an_index_comes_first(tmp_path):
    indexed(tmp_path / "m")
    for other in ("model.safetensors", "consolidated.safetensors", "model-00001-of-00002.safetensors"):
        one(tmp_path / "m" / other, model(1))
    found = reads(tmp_path / "m")
    assert found.index == tmp_path / "m" / INDEX
    assert set(found.ignored) == {"model.safetensors", "consolidated.safetensors", "model-00001-of-00002.safetensors"}
    with pytest.warns(MergeWarning, match="3 shards with an index"):
        expert_read(tmp_path / "m")


def test_a_broken_index_is_not_passed_over(tmp_path):
    indexed(tmp_path / "m")
    one(tmp_path / "m" / "model.safetensors", model(1))
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    text = fault(tmp_path / "m")
    assert "lists 'model-00002-of-00003.safetensors', which is missing" in text
    reads(re.search(r"or give (\S+) alone", text)[1], 1)


def test_leftovers_of_shards_beside_the_whole(tmp_path):
    shards(tmp_path / "m", model(1), keep=(1, 3))
    one(tmp_path / "m" / "model.safetensors")
    assert reads(tmp_path / "m").ignored == ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model-ema", "unet"])
def test_variants_of_a_name_come_after_it(tmp_path, stem):
    one(tmp_path / "m" / f"{stem}.safetensors")
    for seed, variant in enumerate(("fp16", "non_ema"), 1):
        one(tmp_path / "m" / f"{stem}.{variant}.safetensors", model(seed))
    assert reads(tmp_path / "m").ignored == (f"{stem}.fp16.safetensors", f"{stem}.non_ema.safetensors")


@pytest.mark.parametrize("names", [("a", "b"), ("model.fp16", "model.bf16"), ("consolidated", "ema")])
def test_two_equally_good_forms(tmp_path, names):
    for seed, name in enumerate(names):
        one(tmp_path / "m" / f"{name}.safetensors", model(seed))
    text = fault(tmp_path / "m")
    ways = re.search(r"give (\S+) or (\S+);", text)
    assert "holds two models" in text
    assert {Path(way).stem for way in ways.groups()} == set(names)
    for way in ways.groups():
        reads(way, names.index(Path(way).stem))


def test_parts_without_numbers_are_not_joined_until_they_have_some(tmp_path):
    state = model()
    for number, name in enumerate(("first", "second")):
        one(tmp_path / "m" / f"{name}.safetensors", dict(list(state.items())[3 * number : 3 * number + 3]))
    assert "called model-00001-of-00002.safetensors and so on" in fault(tmp_path / "m")
    for number, name in enumerate(("first", "second"), 1):
        (tmp_path / "m" / f"{name}.safetensors").rename(tmp_path / "m" / f"model-{number:05d}-of-00002.safetensors")
    reads(tmp_path / "m")


def test_two_whole_sets_of_shards(tmp_path):
    shards(tmp_path / "m")
    shards(tmp_path / "m", model(1), name="model-{:05d}-of-00003.fp16.safetensors")
    reads(tmp_path / "m")  # the hub's own name comes first
    one(tmp_path / "m" / "model.safetensors", model(1))
    text = fault(tmp_path / "m")
    assert "holds two models, model-00001-of-00003.safetensors to model-00003-of-00003.safetensors and model.safetensors" in text
    assert "keep one of them in the folder" in text
    (tmp_path / "m" / "model.safetensors").unlink()
    reads(tmp_path / "m")


def test_files_that_are_no_weights(tmp_path):
    folder = one(tmp_path / "m" / "model.safetensors").parent
    (folder / "._model.safetensors").write_bytes(b"\x00\x05\x16\x07" * 9)  # a Mac's second file
    (folder / ".model.safetensors.swp").write_bytes(b"x")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "old.safetensors").mkdir()
    (folder / "config.json").write_text("{}")
    assert reads(folder).ignored == ()
