"""What a user can do wrong, and what a stranger can put into files: every refusal is one line that names the thing and the fix."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from fusionbench_lite import doctor, finetune
from fusionbench_lite.__main__ import main
from fusionbench_lite.checkpoints.locating import in_listing
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip, prompts
from fusionbench_lite.running import loading
from tests.support import vision_data, vision_files
from tests.support.lines import called
from tests.support.mirror import Mirror, mirror  # noqa: F401  (a fixture)
from tests.support.vision_data import encoded, picture, write_parquet
from tests.support.vision_suite import SMALL, Suite, fill

FDA, BASE32 = "models/SphereLab/vision_models_in_FDA", "ViT-B-32"
DTD = "datasets/tanganke/dtd/data"
SIZES = {"mnist": (20, 10), "dtd": (94, 47)}
CLASSES = list(prompts.prompts("dtd", "tall").classnames)
RUN, STATISTICS = "method=pretrained", "method=regmean method.statistics.examples=16"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub holds, made once."""
    root = tmp_path_factory.mktemp("filled")
    fill(SimpleNamespace(root=root), SMALL, sizes=SIZES)  # type: ignore[arg-type]
    return root


@pytest.fixture
def small(mirror: Mirror, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Suite]:  # noqa: F811
    """The suite with vit_b32 of a small size, on a hub of its own."""
    monkeypatch.setitem(clip.SIZES, "vit_b32", SMALL)
    shutil.copytree(filled, mirror.root)
    yield Suite(mirror, tmp_path, SIZES)
    loading._latest.clear()


class Canary:
    """Unpickled, it would write the file `CANARY`."""

    def __reduce__(self):
        return os.system, (f"touch {os.environ['CANARY']}",)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    return tmp_path / "canary"


def images(count: int = 47) -> list[bytes]:
    return [encoded(picture(row % 47, row)) for row in range(count)]


def leftovers(suite: Suite) -> list[Path]:
    """Files that are not whole: temporary ones and parts of downloads."""
    found = [path for root in (suite.cache, suite.results) for path in root.rglob("*") if path.is_file()]
    return [path for path in found if path.name.endswith(".tmp") or ".partial" in path.parts]


# ---------------------------------------------------------------------- checkpoints


def test_an_expert_of_another_family_is_named_with_the_family_to_choose(small: Suite):
    tower = small.mirror.root / "models/tanganke/clip-vit-base-patch32_mnist/model.safetensors"
    expert = small.mirror.root / FDA / BASE32 / "MNIST/finetuned.pt"
    shutil.copy(tower, expert)
    said = small.refused(f"{RUN} checkpoints=ta")
    assert "'mnist'" in said
    assert "checkpoints=fusionbench" in said
    assert not leftovers(small)


def test_an_expert_of_another_backbone_is_named_with_both(small: Suite):
    other = dataclasses.replace(SMALL, patch=28, layers=3)
    vision_files.write_ta(small.mirror.root / FDA, "vit_b32", ("mnist",), other)
    said = small.refused(f"{RUN} checkpoints=ta")
    assert "'mnist'" in said
    assert "patch 28" in said
    assert "patch 56" in said


@pytest.mark.parametrize("through", ["hub", "folder"])
@pytest.mark.parametrize("file", ["MNIST/finetuned.pt", "head_MNIST.pt"])
def test_a_pickle_that_would_run_code_is_refused_with_what_it_asks_for(
    small: Suite, canary: Path, through: str, file: str
):
    folder = small.mirror.root / FDA
    torch.save({"weight": torch.zeros(2, 2), "more": Canary()}, folder / BASE32 / file)
    given = f" checkpoints.dir={folder}" if through == "folder" else ""
    said = small.refused(f"{RUN} checkpoints=ta{given}")
    assert "posix.system" in said
    assert not canary.exists()
    assert not any("mnist" in path.name for path in (small.cache / "checkpoints").rglob("*-MNIST-*.safetensors"))


@pytest.mark.parametrize("path", ["../../../../MNIST/finetuned.pt", "/MNIST/finetuned.pt", "x/../MNIST/finetuned.pt"])
def test_a_listing_that_leads_out_of_the_cache_is_refused(
    small: Suite, path: str, monkeypatch: pytest.MonkeyPatch
):
    files = Mirror.files

    def listed(served: Mirror, kind: str, repo: str):
        found = files(served, kind, repo)
        if found and repo == "SphereLab/vision_models_in_FDA":
            some = found.pop(f"{BASE32}/MNIST/finetuned.pt")
            found[path] = dataclasses.replace(some, path=path)
        return found

    monkeypatch.setattr(Mirror, "files", listed)
    said = small.refused(f"{RUN} checkpoints=ta")
    assert repr(path) in said
    assert not list(small.folder.rglob("cache/**/finetuned.pt"))


def test_of_two_files_that_may_be_an_expert_none_is_guessed():
    pattern = "ViT-B-32/MNIST/finetuned.pt"
    assert in_listing([f"Archive/{pattern}", pattern], pattern, "expert") == pattern
    assert in_listing([f"Archive/{pattern}", pattern.upper()], pattern, "expert") == pattern.upper()
    assert in_listing([f"Archive/{pattern}", "ViT-L-14/MNIST/finetuned.pt"], pattern, "expert") == f"Archive/{pattern}"
    with pytest.raises(InputError, match="Archive/.* or New/.*manifest"):
        in_listing([f"Archive/{pattern}", f"New/{pattern}"], pattern, "expert")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["places"], [], "names no place of experts of 'vit_b32': add it under places"),
        (["places", 0, "expert"], "", "expert of a place is a text"),
        (["places", 0, "repo"], None, "repo of a place is a text"),
        (["places", 0, "repo"], "../../x", "'../../x' is no name of a model repository"),
        (["places", 0, "expert"], "../../{task}.pt", "'../../MNIST.pt' is no path inside model"),
        (["places", 0, "expert"], "{task.__class__.__mro__}", "holds {task.__class__.__mro__}"),
        (["places", 1, "models"], "vit_b32", "models are a list of texts, not 'vit_b32'"),
        (["bases", "vit_b32", "files"], [], "files of the base timm/vit_base_patch32_clip_224.openai are none"),
        (["bases", "vit_b32", "files"], "model.bin", "files are a list of texts, not 'model.bin'"),
        (["bases", "vit_b32", "files"], ["../../../etc/passwd"], "'../../../etc/passwd' is no path inside model"),
        (["bases"], {}, "names no base of 'vit_b32': add it under bases"),
    ],
)
@pytest.mark.parametrize("entry", [main, doctor.main])
def test_manifests_with_odd_content_are_refused(small: Suite, entry, path: list, value: object, said: str):
    manifest = small.manifests / "ta.yaml"
    content = yaml.safe_load(manifest.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    manifest.write_text(yaml.safe_dump(content))
    status, output = called(entry, small.line(f"{RUN} checkpoints=ta"))
    assert status == 2, output
    assert said in output
    assert len(output.splitlines()) == 1


# ---------------------------------------------------------------------- images


def folder_of(small: Suite) -> Path:
    return vision_data.write_folder(small.folder / "my data ü", "dtd", CLASSES, {"train": 2, "test": 1})


def given(small: Suite) -> str:
    return f"""'data_dir="{small.folder / 'my data ü'}"'"""


def test_names_in_another_order_are_refused(small: Suite):
    test = small.mirror.root / DTD / "test-00000-of-00001.parquet"
    write_parquet(test, images(), [row % 47 for row in range(47)], [CLASSES[1], CLASSES[0], *CLASSES[2:]])
    said = small.refused(RUN)
    assert "dtd: label 0" in said
    assert "'blotchy'" in said
    assert "'banded'" in said


def test_a_folder_without_one_class_is_refused_by_its_name(small: Suite):
    folder = folder_of(small)
    shutil.rmtree(folder / "train" / CLASSES[7])
    small.run(f"{RUN} {given(small)}")
    assert f"'{CLASSES[7]}' of task 'dtd' is missing in {folder / 'train'}" in small.refused(f"{STATISTICS} {given(small)}")
    loading._latest.clear()
    shutil.rmtree(folder / "test" / CLASSES[5])
    assert f"'{CLASSES[5]}' of task 'dtd' is missing in {folder / 'test'}" in small.refused(f"{RUN} {given(small)}")


def test_an_archive_without_one_class_is_refused_by_its_name(small: Suite):
    vision_data.write_npz(small.folder / "my data ü", "dtd", [*CLASSES[:4], *CLASSES[5:]], {"train": 94, "test": 47})
    said = small.refused(f"{RUN} {given(small)}")
    assert "46 classes" in said
    assert f"add '{CLASSES[4]}'" in said


def test_a_link_to_another_folder_does_not_count_its_images(small: Suite):
    folder = folder_of(small)
    link = folder / "test" / CLASSES[3] / "loop"
    for target in ("..", folder / "train" / CLASSES[3]):  # images of other classes, or training images
        link.symlink_to(target)
        said = small.refused(f"{RUN} {given(small)}")
        assert str(link) in said
        assert "remove it" in said
        link.unlink()
    assert small.run(f"{RUN} {given(small)}").data["selections"]["last"]["per_task"]["dtd"]["examples"] == 47


def test_a_pipe_among_the_images_is_refused_and_not_waited_for(small: Suite):
    pipe = folder_of(small) / "test" / CLASSES[3] / "pipe.png"
    os.mkfifo(pipe)
    assert f"{pipe} is no regular file" in small.refused(f"{RUN} {given(small)}")


def test_training_images_that_cannot_be_decoded_are_counted_named_and_left_out_where_allowed(small: Suite):
    content = images(94)
    content[3] = content[50] = b"no image"
    write_parquet(small.mirror.root / DTD / "train-00000-of-00001.parquet", content, [row % 47 for row in range(94)], None)
    small.run(RUN)
    status, said = called(finetune.main, small.line("task=dtd finetune.steps=2 finetune.batch=94"))
    assert status == 2
    line = next(one for one in said.splitlines() if one.startswith("fusionbench_lite: "))
    for part in ("'dtd'", "at least 2 of 94 images", "tanganke/dtd, split train", "row 3", "row 50", "skip_corrupt=2"):
        assert part in line
    line = "method=regmean method.statistics.examples=92 tasks=[dtd]"
    assert "skip_corrupt=2" in small.refused(f"{line} data.skip_corrupt=1")
    small.run(f"{line} data.skip_corrupt=2")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("test-00000-of-99999999999.parquet", "another version of split 'test'"),
        ("test-00001-of-00002.parquet", "another version of split 'test'"),
        ("test-00000-of-00001-0123456789abcdef.parquet", "another version of split 'test'"),
    ],
)
def test_files_of_two_versions_of_a_split_are_not_mixed(small: Suite, file: str, said: str):
    test = small.mirror.root / DTD / "test-00000-of-00001.parquet"
    shutil.copy(test, test.with_name(file))
    refusal = small.refused(RUN)
    assert said in refusal
    assert file in refusal


def test_a_file_that_claims_to_be_one_of_countless_ones_costs_nothing(small: Suite):
    test = small.mirror.root / DTD / "test-00000-of-00001.parquet"
    test.rename(test.with_name("test-00000-of-99999999999.parquet"))
    assert "file 2 of 99999999999 of split 'test' is missing" in small.refused(RUN)


def test_labels_beyond_the_integers_are_refused(small: Suite):
    rows = [{"bytes": content, "path": "x"} for content in images()]
    table = pa.table({"image": rows, "label": pa.array([2**63] * 47, pa.uint64())})
    pq.write_table(table, small.mirror.root / DTD / "test-00000-of-00001.parquet")
    said = small.refused(RUN)
    assert "test-00000-of-00001.parquet" in said
    assert "64 bits" in said


@pytest.mark.parametrize("content", ["[]", "{", '{"images": 1e400}', '{"images": -5}', "null"])
def test_the_doctor_takes_odd_notes_in_the_cache_for_absent_images(small: Suite, content: str):
    small.run(RUN)
    for about in (small.cache / "images").rglob("about.json"):
        about.write_text(content)
    status, said = called(doctor.main, small.line(RUN))
    assert status == 0, said
    assert "decoded test images" in said
    assert "Everything is here" not in said


@pytest.mark.parametrize("key", ["cache_dir", "results_dir"])
def test_the_doctor_refuses_a_file_in_the_place_of_a_folder(small: Suite, key: str):
    file = small.folder / "file"
    file.write_text("")
    status, said = called(doctor.main, small.line(f"{RUN} {key}={file}/below"))
    assert status == 2, said
    assert f"{file} is no folder" in said
