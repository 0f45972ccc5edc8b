"""Methods on texts through the runner: runs that stop and go on, what is known of inputs of unequal lengths, and statistics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite.adaptation.engine.procedure import Examples
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.methods.api import merge
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running import adapting, method_inputs
from fusionbench_lite.running.adapting import Feed, procedure_of
from fusionbench_lite.running.known import known
from fusionbench_lite.running.loading import load
from fusionbench_lite.running.run import execute
from tests.support.helpers import distance, refused
from tests.support.mirror import mirror  # noqa: F401  (a fixture)
from tests.support.text_suite import TextSuite
from tests.support.text_suite import texts as texts

COMMON = "method.adaptation.steps=6 method.adaptation.batch_size=3 method.adaptation.eval_every=4 trainer.checkpoint_every=2"
META = "method=metamerging method.adapter_steps=3 method.rank=3"
RUNS = {
    "dropout": "model=gpt2 tasks=[sst2,mrpc] method=adamerging_layerwise preset=fusionbench",
    "masks": "model=roberta tasks=[sst2,mrpc,qnli] method=adarank",
    "positions": f"model=gpt2 tasks=[sst2,mrpc] {META} method.length=null",
    "padded positions": f"model=gpt2 tasks=[sst2,mrpc] {META} method.length=64 method.split=test method.updates=sum",
    "known features": "model=roberta tasks=[sst2,mrpc] method=surgery method.rank=3 +method.adaptation.held_out=3",
    "first token": "model=flan_t5_base tasks=[sst2,stsb] method=adamerging_taskwise preset=fusionbench",
}


class Stopped(Exception):
    """The run is abandoned."""


def made(texts: TextSuite, line: str, results: str):
    texts.results = texts.folder / results
    with Progress() as progress:
        record, _ = execute(plan_of(texts.line(line)), progress)
    assert record is not None
    return record


SLOW = ("masks", "padded positions", "known features", "first token")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RUNS])
def test_stopped_and_started_again(texts: TextSuite, name: str, monkeypatch: pytest.MonkeyPatch):
    line = f"{RUNS[name]} {COMMON}"
    undisturbed = made(texts, line, "undisturbed")
    read = Feed.batches_of

    def stopping(self, step, tasks):
        if step == 5:  # four steps are saved, and an evaluation was made
            raise Stopped
        return read(self, step, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(adapting.Feed, "batches_of", stopping)
        with pytest.raises(Stopped):
            made(texts, line, "stopped")
    assert list((texts.folder / "stopped/partial").glob("*/last.ckpt"))
    again = made(texts, line, "stopped")
    assert again.key == undisturbed.key
    assert again.data["selections"] == undisturbed.data["selections"]
    files = [record.path / "learned.safetensors" for record in (undisturbed, again)]
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    losses = [np.genfromtxt(record.path / "history.csv", delimiter=",", names=True)["loss"] for record in (undisturbed, again)]
    assert np.array_equal(*losses, equal_nan=True)  # of the start there is none
    assert len(losses[0]) == 7
    assert len(set(losses[0][1:])) == 6


def test_settings_that_came_later_are_in_the_key_where_they_are_used(texts: TextSuite):
    from fusionbench_lite.running import recording

    def settings(line: str) -> dict:
        plan = plan_of(texts.line(line))
        with Progress() as progress:
            return recording.identity(plan, load(plan, progress))["settings"]

    plain = "model=gpt2 tasks=[sst2] method=adamerging_layerwise"
    assert "dropout" not in settings(plain)
    assert settings(f"{plain} method.adaptation.dropout=true")["dropout"] is True


def test_dropout_is_refused_where_steps_know_none(texts: TextSuite):
    said = texts.refused("model=gpt2 tasks=[sst2,mrpc] method=metamerging method.features=final method.adaptation.dropout=true")
    assert "the steps of method 'metamerging' know no dropout" in said


def feed_of(texts: TextSuite, line: str):
    plan = plan_of(texts.line(line))
    with Progress() as progress:
        suite = load(plan, progress)
    procedure = procedure_of(plan, suite)
    return plan, suite, procedure, Feed(plan, suite, procedure)


@pytest.mark.parametrize("length", ["null", "40"])
def test_what_experts_say_of_texts_does_not_depend_on_the_pass(texts: TextSuite, length: str):
    line = f"model=gpt2 tasks=[sst2,mrpc] {META} method.length={length} trainer.eval_batch=5 {COMMON}"
    _, suite, procedure, feed = feed_of(texts, line)
    batches = feed.batches_of(0, suite.tasks)
    assert len(batches) == 2
    for batch in batches:
        for task, examples in batch.items():
            assert isinstance(examples, Examples)
            assert isinstance(examples.inputs, dict)
            mask = examples.inputs["attention_mask"]
            want = procedure.precomputed(task, examples.inputs)
            assert want is not None
            assert examples.precomputed is not None
            assert want.shape == examples.precomputed.shape == (3, mask.shape[1] if length == "null" else 40, 16)
            assert distance(examples.precomputed, want) <= 1e-5
            assert int(mask.sum(1).min()) < mask.shape[1]
    # Adapters and coefficients learn from different training examples.
    for task, pool in feed.pools.items():
        inner, outer = ({*feed._part(task, procedure.part(role)).tolist()} for role in ("inner", "outer"))
        assert inner | outer == {*pool.tolist()}
        assert not inner & outer
        assert len(inner) == round(len(pool) * 2 / 3)


def test_a_row_per_place():
    """Values of examples of unequal lengths, computed in passes of any order, are those of each example, filled up with 0."""
    draw = np.random.default_rng(3)
    lengths = draw.integers(1, 9, 20)
    values = [torch.from_numpy(draw.normal(size=(size, 2, 3))) for size in lengths]
    wanted = np.array([3, 4, 8, 9, 11, 15, 19])

    def padded(rows):
        longest = max(len(values[row]) for row in rows)
        whole = torch.full((len(rows), longest, 2, 3), 7.0, dtype=torch.float64)  # what passes say of padding is not kept
        for place, row in enumerate(rows):
            whole[place, : len(values[row])] = values[row]
        return whole

    passes = [(some, padded(wanted[some])) for some in (np.array([5, 0, 2]), np.array([1]), np.array([6, 4, 3]))]
    look_up = known(wanted, values[0][None], iter(passes), lengths[wanted])
    for rows in ([15], [19, 3, 3, 8], [11, 9], wanted):
        found = look_up(np.array(rows))
        assert found.shape[1] == max(lengths[rows])
        for place, row in enumerate(rows):
            assert torch.equal(found[place, : lengths[row]], values[row])
            assert not bool(found[place, lengths[row] :].any())
    flat = known(wanted, torch.zeros(1, 4), iter([(np.arange(7), torch.arange(28.0).view(7, 4))]))
    assert torch.equal(flat(np.array([19, 3])), torch.tensor([[24.0, 25, 26, 27], [0, 1, 2, 3]]))


def test_statistics_of_tokens_are_those_of_transformers(texts: TextSuite):
    """RegMean's Gram matrices and Fisher's squares of one expert, in batches of three, through its own class."""
    statistics = "method.statistics.examples=7 method.statistics.batch_size=3"
    for method in ("regmean", "fisher_merging"):
        line = f"model=gpt2 tasks=[mrpc,sst2] method={method} {statistics}"
        plan = plan_of(texts.line(line))
        with Progress() as progress:
            suite = load(plan, progress)
        (found,) = method_inputs.inputs(plan, suite).values()
        rows = method_inputs.chosen("mrpc", 8, "shuffled", 7, 0)
        full = _full(texts, "gpt2_mrpc")
        batches = [suite.inputs("mrpc", "train", rows[start : start + 3]) for start in (0, 3, 6)]
        assert any(int(batch["attention_mask"].min()) == 0 for batch in batches)
        if method == "regmean":
            _check_gram(full, batches, found["mrpc"])
            assert plan.values["off_diagonal"] == 0.6
        else:
            _check_fisher(full, batches, found["mrpc"])


def _full(texts: TextSuite, name: str):
    from transformers import GPT2ForSequenceClassification

    return GPT2ForSequenceClassification.from_pretrained(texts.models / "tanganke" / name, pad_token_id=0).double().eval()


def _check_gram(full, batches, found) -> None:
    total, count = torch.zeros(16, 16, dtype=torch.float64), 0
    for batch in batches:
        with torch.no_grad():
            states = full.transformer(**batch, output_hidden_states=True).hidden_states[1]
            rows = full.transformer.h[1].ln_1(states).reshape(-1, 16)
        total += rows.T @ rows
        count += len(rows)
    assert distance(found["transformer.h.1.attn.c_attn.weight"], total / count) <= 1e-5
    assert len(found) == 8


def _check_fisher(full, batches, found) -> None:
    named = dict(full.transformer.named_parameters(prefix="transformer"))
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for batch in batches:
        log_p = torch.log_softmax(full(**batch).logits, -1)
        gradients = torch.autograd.grad((log_p.exp().sqrt().detach() * log_p).sum(), list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            total[name] += gradient.square() / 7
    for name, value in total.items():
        assert distance(found[name], value) <= 1e-4 * max(1.0, float(value.max())), name


def test_low_rank_updates_are_told_from_noise(texts: TextSuite):
    """doGe and TSV-M on adapters: the number of components is the adapters' own, so that nothing warns; as released they warn."""
    for method, released in (("doge_ta", "preset=released"), ("tsv_m", "method.rank=fixed")):
        plan = plan_of(texts.line(f"model=flan_t5_base tasks=[sst2,stsb] method={method} limit=1"))
        with Progress() as progress:
            suite = load(plan, progress)
        fixed = plan_of(texts.line(f"model=flan_t5_base tasks=[sst2,stsb] method={method} {released}"))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            merge(method, suite.pretrained, suite.experts, **plan.values)
            assert not [one for one in said if "rounding noise" in str(one.message)]
            merge(method, suite.pretrained, suite.experts, **fixed.values)
            assert [one for one in said if "rounding noise" in str(one.message)]


def test_too_few_texts_for_statistics_is_one_line(texts: TextSuite):
    assert "examples=256, but task 'sst2' has 8 training examples" in texts.refused("model=gpt2 tasks=[sst2,mrpc] method=regmean")
    with refused("length"):
        made(texts, f"model=gpt2 tasks=[sst2,mrpc] {META} {COMMON}", "refused")  # 512 of 64 positions
