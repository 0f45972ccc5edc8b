"""A hub with small random experts of every family and a few images, and the command line on it, in one process."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusionbench_lite.models import clip
from fusionbench_lite.tables.records import Record
from tests.support import vision_data, vision_files
from tests.support.lines import recorded, refusal
from tests.support.mirror import Mirror

SMALL = clip.ClipSize(image=224, patch=56, width=48, layers=2, heads=3, output=24, text_width=32, text_layers=1, text_heads=2)
"""Few tokens and a narrow encoder; images, prompts and vocabulary are of full size."""
TASKS = {"mnist": (40, 30), "dtd": (94, 47), "svhn": (30, 40), "stl10": (30, 20)}
"""Training and test images by task; stl10 is none of Task Arithmetic's eight."""
STANDARD = tuple(task for task in TASKS if task != "stl10")


def fill(mirror: Mirror, size: clip.ClipSize, model: str = "vit_b32", sizes: Mapping[str, tuple[int, int]] = TASKS) -> None:
    """Put base models, experts of every family and the images of the tasks on the mirror."""
    tasks = tuple(sizes)
    models, standard = mirror.root / "models", tuple(task for task in tasks if task in STANDARD)
    vision_files.write_timm(models, model, size)
    vision_files.write_openai(models, model, size)
    vision_files.write_ta(models / "SphereLab/vision_models_in_FDA", model, standard, size)
    vision_files.write_tall(models / "nik-dim/tall_masks", model, tasks, size)
    vision_files.write_fusionbench(models, model, tasks, size)
    for task in tasks:
        train, test = sizes[task]
        vision_data.write_hub_task(mirror.root / "datasets", task, sizes={"train": train, "test": test})


@dataclasses.dataclass
class Suite:
    """A mirror, and folders of this test for cache, results and small tables."""

    mirror: Mirror
    folder: Path
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=lambda: TASKS)

    def __post_init__(self) -> None:
        self.manifests = vision_files.write_manifests(self.folder / "manifests")
        self.tasks_file = vision_data.small_tasks(self.folder / "tasks.yaml", self.sizes)
        self.cache, self.results = self.folder / "cache", self.folder / "results"

    def line(self, line: str) -> list[str]:
        """The arguments of a command on this suite."""
        given = [
            "model=vit_b32", "tasks=[mnist,dtd]", f"checkpoints.manifest={self.manifests}", f"data.tasks_file={self.tasks_file}",
            f"cache_dir={self.cache}", f"results_dir={self.results}", "device=cpu",
        ]
        own = shlex.split(line)
        keys = {one.partition("=")[0] for one in own}
        keys |= {"tasks"} & {f"{key}s" for key in keys}  # finetune's task=
        return [*(one for one in given if one.partition("=")[0] not in keys), *own]

    def run(self, line: str) -> Record:
        """Run `python -m fusionbench_lite` in this process and return the record that the line made."""
        return recorded(self.line(line))

    def again(self, line: str) -> Record:
        """Run a line whose record exists, and return that."""
        return recorded(self.line(line), "found in")

    def refused(self, line: str) -> str:
        """Run a line that is refused, and return the one line that says why."""
        return refusal(self.line(line))


@functools.cache
def _filled(base: Path) -> Path:
    """What the hub of `small` holds, below `base`: made once a process, because it takes longer than most tests."""
    root = base / "filled"
    fill(SimpleNamespace(root=root), SMALL)  # type: ignore[arg-type]
    return root


@pytest.fixture
def small(
    mirror: Mirror, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Suite]:
    """The suite with vit_b32 of a small size; a test may change any file of its hub."""
    from fusionbench_lite.running import loading

    monkeypatch.setitem(clip.SIZES, "vit_b32", SMALL)
    shutil.copytree(_filled(tmp_path_factory.getbasetemp()), mirror.root, dirs_exist_ok=True)
    yield Suite(mirror, tmp_path)
    loading._latest.clear()
