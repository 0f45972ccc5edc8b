"""Evaluation of language models: values against answers that transformers gives by itself, records, the harness' names of sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionbench_lite.evaluation.intervals import wilson
from fusionbench_lite.harness import running, sets
from fusionbench_lite.harness.running import Settings
from fusionbench_lite.harness.scores import Score
from tests.harness.conftest import SUMS, WRITTEN
from tests.support.tiny_llama import write_task

COMMAND = "fusionbench_lite.evaluate_llm"
pytestmark = pytest.mark.usefixtures("harness")
RIGHT = 7


def loaded(folder: Path) -> tuple[Any, Any]:
    import transformers

    return transformers.LlamaForCausalLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def answers(folder: Path, prompts: list[str], tokens: int = 4) -> list[str]:
    """What a model writes after each prompt, up to a line's end, one prompt at a time."""
    model, words = loaded(folder)
    said = []
    for prompt in prompts:
        ids = words(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0, ids["input_ids"].shape[1] :]
        said.append(words.decode(out, skip_special_tokens=True).partition("\n")[0])
    return said


@pytest.fixture(scope="module")
def tasks(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`written`: 7 of 12 answers are the model's own; `chosen`: one of three digits."""
    folder = tmp_path_factory.mktemp("tasks")
    said = answers(llama, [f"{row['question']}=" for row in SUMS])
    rows = [{**row, "answer": text if n < RIGHT else f"not {text}"} for n, (row, text) in enumerate(zip(SUMS, said, strict=True))]
    write_task(folder, "written", {"test": rows}, **WRITTEN)
    picked = [{**row, "answer": str(n % 3)} for n, row in enumerate(SUMS)]
    choice = {"output_type": "multiple_choice", "doc_to_choice": ["0", "1", "2"], "target_delimiter": ""}
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    shared = {name: WRITTEN[name] for name in ("test_split", "doc_to_text", "doc_to_target")}
    write_task(folder, "chosen", {"test": picked}, **shared, **choice, metric_list=metrics)
    return folder


@pytest.fixture(scope="module")
def record(harness, llama, tasks, module_command) -> tuple[dict[str, Any], Path, Any]:
    command, folder = module_command
    line = [str(llama), "tasks=written,chosen", f"task_dir={tasks}", "device=cpu"]
    done = command(*line, module=COMMAND)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "results/llm").iterdir()
    return json.loads(path.read_text()), path, lambda *more: command(*line, *more, module=COMMAND)


def test_a_written_answer_counts_when_it_is_the_models_own(record):
    written = record[0]["sets"]["written"]
    assert written["value"] == pytest.approx(RIGHT / len(SUMS), abs=1e-15)
    assert written["scores"] == [1.0] * RIGHT + [0.0] * (len(SUMS) - RIGHT)
    assert written["interval"] == list(wilson(RIGHT, len(SUMS)))
    p = RIGHT / len(SUMS)
    assert written["stderr"] == pytest.approx((p * (1 - p) / (len(SUMS) - 1)) ** 0.5)
    assert (written["examples"], written["metric"], written["shots"]) == (len(SUMS), "exact_match", 0)


def test_a_choice_is_that_of_the_largest_probability(llama, record):
    model, words = loaded(llama)
    right = []
    for n, row in enumerate(SUMS):
        logits = model(**words(f"{row['question']}=", return_tensors="pt")).logits[0, -1]
        right.append(float(logits[words.convert_tokens_to_ids(["0", "1", "2"])].argmax() == n % 3))
    chosen = record[0]["sets"]["chosen"]
    assert chosen["scores"] == right
    assert 0 < chosen["value"] < 1
    assert chosen["value"] == pytest.approx(np.mean(right))
    assert chosen["others"]["acc_norm,none"]["value"] == pytest.approx(chosen["value"])  # answers of one length


def test_the_record_says_what_was_evaluated(llama, tasks, record):
    import lm_eval

    from fusionbench_lite.paths import file_sha256

    content = record[0]
    assert content["model"]["class"] == "LlamaForCausalLM"
    assert content["model"]["files"]["model.safetensors"] == file_sha256(llama / "model.safetensors")
    assert content["versions"]["lm_eval"] == lm_eval.__version__
    assert content["task_files"]["written.yaml"] == file_sha256(tasks / "written.yaml")
    assert not content["trial"]


def test_a_second_call_reads_the_record(record, monkeypatch):
    _, path, again = record
    before = path.read_bytes()
    monkeypatch.setattr(running, "run", lambda *_: pytest.fail("evaluated again"))
    done = again()
    assert done.returncode == 0, done.stderr
    assert f"record: results/llm/{path.name}" in done.stdout
    assert path.read_bytes() == before


def test_another_model_a_limit_and_a_changed_task_are_other_records(llama, other_llama, tasks, tmp_path, command):
    def key(model: Path, *more: str) -> str:
        done = command(str(model), "tasks=written", f"task_dir={tasks}", *more, module=COMMAND)
        assert done.returncode == 0, done.stderr
        return done.stdout.rpartition("/")[2].strip()

    keys = {key(llama), key(other_llama), key(llama, "limit=3"), key(llama, "batch=1", "overwrite=true")}
    assert len(keys) == 3
    with (tasks / "written.test.jsonl").open("a") as file:
        file.write("\n")
    assert key(llama) not in keys
    trial = [one for path in (tmp_path / "results/llm").iterdir() if (one := json.loads(path.read_text()))["trial"]]
    assert [one["sets"]["written"]["examples"] for one in trial] == [3]


def test_results_do_not_depend_on_the_batch(llama, tasks):
    wanted = sets.asked("written,chosen")
    one, many = (running.run(llama, wanted, Settings(batch=batch, device="cpu"), tasks)[0] for batch in (1, 5))
    assert one == many


class CodeEval:
    """In place of Hugging Face's code_eval, which is downloaded: runs `reference` after `prediction` here."""

    def compute(self, references: list[str], predictions: list[list[str]], k: list[int]) -> tuple[dict[str, float], None]:
        passed = [self._passes(f"{said[0]}\n{test}") for said, test in zip(predictions, references, strict=True)]
        return {"pass@1": float(np.mean(passed))}, None

    @staticmethod
    def _passes(program: str) -> bool:
        try:
            exec(program, {})
        except Exception:
            return False
        return True


def copies(folder: Path) -> None:
    """The four sets of Table 10 with two examples each, read through the harness' own YAML files."""
    import lm_eval

    root = Path(lm_eval.__file__).parent / "tasks"
    short = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 3, "do_sample": False}}
    sums = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(6)]
    write_task(folder, "gsm8k", {"train": sums, "test": sums[:2]}, include=str(root / "gsm8k/gsm8k.yaml"), **short)
    math = [{"problem": f"{n} + 1", "solution": rf"It is $\boxed{{{n + 1}}}$."} for n in range(2)]
    for path in sorted((root / "hendrycks_math").glob("hendrycks_math_*.yaml")):
        write_task(folder, path.stem, {"train": math, "test": math}, include=str(path), **short)
    # continued by any three characters, this program is right: they are in a comment
    check = "def check(f):\n    assert f() == 0\n"
    code = [{"prompt": f"def f():\n    return {n}\n# ", "test": check, "entry_point": "f"} for n in range(2)]
    write_task(folder, "humaneval", {"test": code}, include=str(root / "humaneval/humaneval.yaml"), **short)
    asserts = [f"assert f() == {n}" for n in range(3)]
    text = [{"text": "Write f.", "code": "", "test_list": asserts}] * 2
    write_task(folder, "mbpp", {"test": text}, include=str(root / "mbpp/mbpp.yaml"), **short)


def test_the_sets_are_what_the_harness_calls_them(llama, tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda name: CodeEval())
    copies(tmp_path)
    wanted = sets.asked("gsm8k,math,humaneval,mbpp")
    scores, about = running.run(llama, wanted, Settings(unsafe_code=True, device="cpu"), tmp_path)
    assert about["class"] == "LlamaForCausalLM"
    assert {name: (score.metric, score.filter, score.shots) for name, score in scores.items()} == {
        "gsm8k": ("exact_match", "flexible-extract", 5), "math": ("exact_match", "none", 0),
        "humaneval": ("pass@1", "create_test", 0), "mbpp": ("pass_at_1", "none", 3),
    }
    assert {name: score.examples for name, score in scores.items()} == {"gsm8k": 2, "math": 14, "humaneval": 2, "mbpp": 2}
    assert scores["humaneval"].scores == (1.0, 0.0)
    assert scores["humaneval"].value == 0.5
    assert "exact_match,strict-match" in scores["gsm8k"].others


def test_a_mean_that_is_not_that_of_the_examples_has_the_harness_interval(llama, tmp_path):
    said = answers(llama, [f"{row['question']}=" for row in SUMS])
    rows = [{**row, "answer": text} for row, text in zip(SUMS, said, strict=True)]
    write_task(tmp_path, "right", {"test": rows[:4]}, **WRITTEN)
    write_task(tmp_path, "wrong", {"test": [{**row, "answer": "?"} for row in rows[4:]]}, **WRITTEN)
    metrics = [{"metric": "exact_match", "weight_by_size": False}]
    group = {"group": "halves", "task": ["right", "wrong"], "aggregate_metric_list": metrics}
    (tmp_path / "halves.yaml").write_text(json.dumps(group))
    score = running.run(llama, sets.asked("halves"), Settings(device="cpu"), tmp_path)[0]["halves"]
    assert score.value == 0.5  # 4 of 12 are right
    assert (score.scores, score.interval_by, score.examples) == (None, "normal", 12)


def test_worked_examples_are_drawn_by_the_seed(llama, tmp_path):
    rows = [{**row, "answer": "1"} for row in SUMS]
    write_task(tmp_path, "shown", {"train": rows, "test": rows[:2]}, fewshot_split="train", training_split="train", **WRITTEN)

    def run(seed: int) -> Score:
        return running.run(llama, sets.asked("shown"), Settings(shots=2, seed=seed, device="cpu"), tmp_path)[0]["shown"]

    first, other = run(0), run(1)
    assert first == run(0)
    assert first.shots == 2
    assert first.prompts != other.prompts
    assert first.data == other.data




def test_a_chat_template_is_put_around_prompts(llama, tmp_path):
    """Around a prompt whose template is the prompt itself, the model reads and answers the same; else it reads another text."""
    rows = [{**row, "answer": "1"} for row in SUMS[:3]]
    write_task(tmp_path / "tasks", "sums", {"test": rows}, **WRITTEN)

    def run(template: str | None) -> Score:
        folder = llama
        if template is not None:
            folder = shutil.copytree(llama, tmp_path / f"chat{len(template)}")
            (folder / "chat_template.jinja").write_text(template)
        settings = Settings(chat_template=template is not None, device="cpu")
        return running.run(folder, sets.asked("sums"), settings, tmp_path / "tasks")[0]["sums"]

    plain, same, other = run(None), run("{{ messages[-1].content }}"), run("USER: {{ messages[-1].content }} ASSISTANT:")
    assert same == plain
    assert other.prompts != plain.prompts
    assert other.data == plain.data


def test_a_merged_model_is_evaluated_relative_to_its_expert(llama, other_llama, tasks, tmp_path, command):
    """From folders to a score: both experts are one model, so that merging gives it back, and all of its score."""
    line = ["method=weight_averaging", f"base={llama}", f"experts={{a: {other_llama}, b: {other_llama}}}", "out=merged"]
    done = command(*line, module="fusionbench_lite.merge_files")
    assert done.returncode == 0, done.stderr
    shared = ["tasks=chosen", f"task_dir={tasks}", "device=cpu"]
    assert command(str(other_llama), *shared, "out=expert.json", module=COMMAND).returncode == 0
    done = command("merged", *shared, "individual.chosen=expert.json", "out=merged.json", module=COMMAND)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "merged.json").read_text())
    expert = json.loads((tmp_path / "expert.json").read_text())
    assert found["relative"]["sets"]["chosen"]["value"] == 100.0
    assert found["relative"]["sets"]["chosen"]["source"] == expert["key"]
    assert found["sets"]["chosen"]["scores"] == expert["sets"]["chosen"]["scores"]
    assert found["model"]["files"]["tokenizer.json"] == expert["model"]["files"]["tokenizer.json"]
    assert "100.0" in done.stdout
