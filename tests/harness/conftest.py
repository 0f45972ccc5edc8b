"""Models and tasks of the tests of lm-evaluation-harness; those that ask for it are skipped where it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_llama import write_model

MEAN = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
SUMS = [{"question": f"{a}+{b}"} for a in range(4) for b in range(3)]
WRITTEN = {
    "output_type": "generate_until", "test_split": "test", "doc_to_text": "{{question}}=", "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}, "metric_list": MEAN,
}
"""A task whose answer is written."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The harness, with a cache of data sets of the tests' own."""
    pytest.importorskip("lm_eval")
    import datasets

    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model."""
    return write_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with other weights."""
    return write_model(tmp_path_factory.mktemp("other"), seed=1)
