"""The zoo of the small language models: what it holds, that it is built once, and mended to the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite.data.text import Reading, TextTask, Tokenizer, load, protocol
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.language import small, zoo
from fusionbench_lite.models import language_shapes
from fusionbench_lite.paths import file_sha256
from fusionbench_lite.suites import Wanted, kind_of

TASKS = ("number", "topic")
STEPS = {"pretrain_steps": 3, "finetune_steps": 2, "pretrain_batch": 4, "finetune_batch": 4}


class Report:
    """What was said to be trained."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.said.add(what)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def data_of(model: str, cache: Path, tasks: tuple[str, ...] = TASKS) -> Mapping[str, TextTask]:
    reading = Reading(tokenizer=Tokenizer(zoo.tokenizer_folder(model, cache)), protocol=protocol(None, model), cache=cache)
    return {task: load(task, reading) for task in tasks}


def built(model: str, cache: Path, tasks: tuple[str, ...] = TASKS, seed: int = 0) -> tuple[Path, set[str]]:
    report = Report()
    recipe = small.recipe_of(model, STEPS)
    return zoo.load_or_build(model, data_of(model, cache, tasks), cache, seed, recipe, report), report.said


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("model", small.KINDS)
def test_it_is_built_once_and_is_what_own_experts_are(cache: Path, model: str):
    folder, said = built(model, cache)
    assert said == {"pretraining", "fine-tuning number", "fine-tuning topic"}
    name = "adapter_model" if model == "text_mini_seq2seq" else "model"
    assert set(hashes(folder)) == {"pretrained/model.safetensors", *(f"{task}/{name}.safetensors" for task in TASKS)}
    again, said = built(model, cache, tuple(reversed(TASKS)))
    assert (again, said) == (folder, set())
    assert built(model, cache, seed=1)[0] != folder


@pytest.mark.parametrize("broken", ["pretrained/model.safetensors", "topic/model.safetensors", "topic/config.json"])
def test_what_is_damaged_is_trained_again_to_the_same_bits(cache: Path, broken: str):
    folder, _ = built("text_mini_encoder", cache)
    before = hashes(folder)
    (folder / broken).write_bytes(b"damaged")
    _, said = built("text_mini_encoder", cache)
    assert said == {"pretraining" if broken.startswith("pretrained") else "fine-tuning topic"}
    assert hashes(folder) == before


def test_a_manifest_that_is_no_json_is_made_again(cache: Path):
    folder, _ = built("text_mini_decoder", cache)
    before = hashes(folder)
    (folder / "manifest.json").write_text("{")
    built("text_mini_decoder", cache)
    assert hashes(folder) == before
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) >= set(before)


def test_heads_are_frozen_and_turned(cache: Path):
    folder, _ = built("text_mini_decoder", cache)
    recipe = small.recipe_of("text_mini_decoder", STEPS)
    stored = load_file(folder / "topic" / "model.safetensors")["score.weight"]
    heads = (small.head("gpt2", 4, recipe, 0, turned=turned, task="topic") for turned in (True, False))
    wanted, pretraining = (head["score.weight"] for head in heads)
    assert torch.equal(stored, wanted)
    cosines = torch.nn.functional.cosine_similarity(wanted, pretraining)
    assert torch.allclose(cosines, torch.full((4,), math.cos(math.radians(recipe.tilt))), atol=1e-5)
    assert torch.allclose(wanted.norm(dim=1), torch.full((4,), recipe.head_scale), atol=1e-5)
    assert "score.weight" not in load_file(folder / "pretrained" / "model.safetensors")


def test_words_of_answers_alone_are_turned(cache: Path):
    folder, _ = built("text_mini_seq2seq", cache)
    data = data_of("text_mini_seq2seq", cache)
    rows = load_file(folder / "pretrained" / "model.safetensors")["lm_head.weight"]
    plain = small.rows(len(rows), small.recipe_of("text_mini_seq2seq", STEPS), 0, turned=False, what="words")
    moved = {int(number) for number in (rows != plain).any(1).nonzero()}
    answers = {int(row[0]) for entry in data.values() for row in (entry.train_targets.rows() if entry.train_targets else ())}
    assert moved == answers
    assert len(answers) == 6


@pytest.mark.parametrize("model", small.KINDS)
def test_the_suite_loads_from_a_run(cache: Path, model: str):
    wanted = Wanted(model=model, tasks=TASKS, family="auto", cache=cache, recipe=tuple(sorted(STEPS.items())), limit=12)
    kind = kind_of(model)
    suite = kind.load(kind.check(wanted), lambda *_: None)
    assert suite.family == "embedded"
    assert set(suite.experts) == set(TASKS)
    result = suite.evaluate(suite.encoder(suite.pretrained))
    assert [len(result[task].predictions) for task in TASKS] == [12, 12]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ("sst2",)}, "knows the words of drawn tasks alone"), ({"data_dir": Path("texts")}, "not the texts of texts"),
        ({"family": "gpt2"}, "has no experts of text_mini_decoder"),
    ],
)
def test_texts_without_words_are_refused(cache: Path, changes: dict[str, object], said: str):
    given = {"model": "text_mini_decoder", "tasks": TASKS, "family": "auto", "cache": cache} | changes
    with pytest.raises(InputError, match=said):
        kind_of("text_mini_decoder").check(Wanted(**given))


def test_a_recipe_is_checked():
    with pytest.raises(InputError, match=r"checkpoints\.recipe\..*tilt"):
        small.recipe_of("text_mini_encoder", {"tild": 3})
    with pytest.raises(InputError, match="tilt"):
        small.recipe_of("text_mini_encoder", {"tilt": 120})


@pytest.mark.parametrize("model", small.KINDS)
def test_plans_know_their_sizes(model: str):
    assert language_shapes.SIZES[model] == language_shapes.size_of(small.config(model))
