"""A hub with tiny language models under the published names and a few texts of GLUE, and the command line on it, in one process."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusionbench_lite.tables.records import Record
from tests.support import language_files, text_files
from tests.support.lines import recorded, refusal
from tests.support.mirror import Mirror

TRAIN, TEST = 8, 12
"""Texts of each task."""


@dataclasses.dataclass
class TextSuite:
    """A mirror, and folders of this test for cache and results."""

    mirror: Mirror
    folder: Path

    def __post_init__(self) -> None:
        self.cache, self.results = self.folder / "cache", self.folder / "results"

    @property
    def models(self) -> Path:
        """Where the repositories are that the hub serves."""
        return self.mirror.root / "models"

    def line(self, line: str) -> list[str]:
        """The arguments of a command on this suite."""
        return [*shlex.split(line), f"cache_dir={self.cache}", f"results_dir={self.results}", "device=cpu"]

    def run(self, line: str, where: str = "recorded in") -> Record:
        """Run `python -m fusionbench_lite` in this process and return the record that the line made."""
        return recorded(self.line(line), where)

    def refused(self, line: str) -> str:
        """Run a line that is refused, and return the one line that says why."""
        return refusal(self.line(line))


@functools.cache
def _filled(base: Path) -> Path:
    """What the hub holds, below `base`: made once a process."""
    root = base / "texts"
    for write in (language_files.gpt2, language_files.roberta, language_files.flan_t5):
        write(root / "models")
    for task in language_files.GLUE8:
        splits = {"validation_matched": 0, "validation_mismatched": 40} if task == "mnli" else {"validation": 0}
        for split, start in {"train": 100, **splits}.items():
            file = root / f"datasets/nyu-mll/glue/{task}/{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text_files.parquet(language_files.rows(task, TRAIN if split == "train" else TEST, start)))
    return root


@pytest.fixture
def texts(mirror: Mirror, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextSuite]:
    """The suite; a test may change any file of its hub."""
    from fusionbench_lite.running import loading

    shutil.copytree(_filled(tmp_path_factory.getbasetemp()), mirror.root, dirs_exist_ok=True)
    yield TextSuite(mirror, tmp_path)
    loading._latest.clear()
