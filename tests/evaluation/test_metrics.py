"""Metrics against slow formulas, scikit-learn and scipy; their laws; and that tables can use them without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import intervals, measures, metrics
from fusionbench_lite.evaluation.measures import Measure
from fusionbench_lite.evaluation.results import TaskResult, average, shared

WHOLE_SET = ("matthews", "f1", "spearman")
WORDS = np.array(["yes", "no", "maybe"])


@st.composite
def judged(draw, name: str, least: int = 2, most: int = 60):
    """Predictions and labels of a metric, with ties and repeated examples."""
    size = draw(st.integers(least, most))
    highest = {"f1": 1, "spearman": 6}.get(name, 2)
    numbers = st.lists(st.integers(0, highest), min_size=size, max_size=size)
    predictions, labels = np.array(draw(numbers)), np.array(draw(numbers))
    if metrics.get(name).kind == metrics.TEXT:
        return WORDS[predictions], WORDS[labels]
    return predictions, labels


def any_metric(*names: str):
    return st.sampled_from(names or tuple(metrics.METRICS)).flatmap(lambda name: st.tuples(st.just(name), judged(name)))


def slow_matthews(predictions, labels):
    """Correlation of the indicators of classes, summed over classes (Gorodkin 2004, eq. 5)."""
    classes = sorted({*predictions.tolist(), *labels.tolist()})
    x, y = ([[float(value == c) for c in classes] for value in values] for values in (predictions, labels))

    def covariance(first, second):
        total = 0.0
        for k in range(len(classes)):
            mean_a, mean_b = sum(row[k] for row in first) / len(first), sum(row[k] for row in second) / len(second)
            total += sum((a[k] - mean_a) * (b[k] - mean_b) for a, b in zip(first, second, strict=True))
        return total

    below = covariance(x, x) * covariance(y, y)
    return covariance(x, y) / below**0.5 if below > 1e-12 else 0.0


def slow_spearman(predictions, labels):
    """Pearson's correlation of mean ranks, each counted over all pairs."""

    def ranks(values):
        below = [sum(other < value for other in values) for value in values]
        equal = [sum(other == value for other in values) for value in values]
        return np.array(below) + (np.array(equal) + 1) / 2

    a, b = ranks(predictions), ranks(labels)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std()))


def slow_f1(predictions, labels):
    hit = sum(p == t == 1 for p, t in zip(predictions, labels, strict=True))
    if not hit:
        return 0.0
    precision, recall = hit / sum(p == 1 for p in predictions), hit / sum(t == 1 for t in labels)
    return 2 * precision * recall / (precision + recall)


SLOW = {
    "accuracy": lambda p, t: sum(a == b for a, b in zip(p, t, strict=True)) / len(p),
    "exact_match": lambda p, t: sum(str(a) == str(b) for a, b in zip(p, t, strict=True)) / len(p),
    "matthews": slow_matthews, "f1": slow_f1, "spearman": slow_spearman,
}


def test_every_metric_has_an_oracle():
    assert set(SLOW) == set(metrics.METRICS)
    assert all(name == metric.measure.name for name, metric in metrics.METRICS.items())


@given(any_metric())
def test_values_equal_the_slow_formulas(case):
    name, (predictions, labels) = case
    assert TaskResult(predictions, labels, name).value == pytest.approx(SLOW[name](predictions, labels), abs=1e-12)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(any_metric(*WHOLE_SET))
def test_values_equal_the_libraries(case):
    name, (predictions, labels) = case
    if name == "matthews":
        expected = matthews_corrcoef(labels, predictions)
    elif name == "f1":
        expected = f1_score(labels, predictions, zero_division=0)
    else:
        assume(np.ptp(predictions) and np.ptp(labels))
        expected = spearmanr(predictions, labels).statistic
    assert TaskResult(predictions, labels, name).value == pytest.approx(expected, abs=1e-12)


@given(any_metric(*WHOLE_SET), st.integers(0, 2**32 - 1))
def test_counts_stand_for_repeated_examples(case, seed):
    """What the bootstrap computes from counts is the value of the resample written out."""
    name, (predictions, labels) = case
    metric = metrics.get(name)
    predictions, labels = metric.array(predictions), metric.array(labels)
    counts = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=3)
    found = metric.weighted(predictions, labels, counts.astype(np.float64))
    for value, often in zip(found, counts, strict=True):
        assert value == pytest.approx(metric.value(np.repeat(predictions, often), np.repeat(labels, often)), abs=1e-9)
    assert metric.check(predictions, labels) == pytest.approx(metric.value(predictions, labels), abs=1e-12)


@settings(max_examples=30)
@given(any_metric(), st.integers(0, 2**32 - 1))
def test_the_order_of_examples_changes_nothing(case, seed):
    name, (predictions, labels) = case
    order = np.random.default_rng(seed).permutation(len(labels))
    one, other = TaskResult(predictions, labels, name), TaskResult(predictions[order], labels[order], name)
    assert one.value == pytest.approx(other.value, abs=1e-12)
    assert one.interval == pytest.approx(other.interval, abs=1e-12)


@settings(max_examples=30)
@given(any_metric())
def test_the_interval_holds_the_value_and_comes_again(case):
    name, (predictions, labels) = case
    result = TaskResult(predictions, labels, name)
    low, high = result.interval
    assert low <= result.value <= high
    assert -1 - 1e-12 <= low <= high <= 1 + 1e-12
    assert TaskResult(predictions, labels, name).interval == (low, high)


@given(any_metric())
def test_perfect_predictions_have_the_best_value(case):
    name, (_, labels) = case
    assume(len(set(labels.tolist())) > 1)
    result = TaskResult(labels, labels, name)
    assert result.value == pytest.approx(1, abs=1e-12)
    assert result.interval[1] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "matthews"])
@given(st.data())
def test_names_of_classes_do_not_matter(name, data):
    predictions, labels = data.draw(judged(name))
    renamed = np.array([7, 3, 11])
    assert TaskResult(renamed[predictions], renamed[labels], name).value == pytest.approx(
        TaskResult(predictions, labels, name).value, abs=1e-12
    )


@given(judged("spearman"))
def test_spearman_sees_ranks_alone(case):
    predictions, labels = case
    value = TaskResult(predictions, labels, "spearman").value
    assert TaskResult(np.exp(predictions), labels**3, "spearman").value == pytest.approx(value, abs=1e-12)
    assert TaskResult(-predictions, labels, "spearman").value == pytest.approx(-value, abs=1e-12)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_more_examples_narrow_the_interval(name):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 1600)
    predictions = np.where(generator.random(1600) < 0.8, labels, 1 - labels)
    if metrics.get(name).kind == metrics.TEXT:
        predictions, labels = WORDS[predictions], WORDS[labels]
    widths = []
    for size in (100, 400, 1600):
        low, high = TaskResult(predictions[:size], labels[:size], name).interval
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
    assert widths[0] / widths[2] == pytest.approx(4, rel=0.25)  # one over the square root of sixteen


@pytest.mark.parametrize("name", ["matthews", "spearman"])
def test_intervals_cover(name):
    """Nineteen of twenty intervals hold the value of the distribution that the examples come from."""
    generator = np.random.default_rng(1)

    def sample(size):
        if name == "spearman":
            labels = generator.normal(size=size)
            return labels + generator.normal(size=size), labels
        labels = (generator.random(size) < 0.7).astype(int)
        return np.where(generator.random(size) < 0.8, labels, 1 - labels), labels

    truth = metrics.get(name).value(*sample(400_000))
    intervals_of = [TaskResult(*sample(100), name).interval for _ in range(150)]
    # 150 intervals of 95 %: four standard deviations of their count are 0.07, and 100 examples cost the bootstrap a little.
    assert 0.88 <= np.mean([low <= truth <= high for low, high in intervals_of]) <= 0.99


def test_the_bootstrap_resamples_examples():
    """The spread of resampled values is that of resamples drawn one by one, within the noise of 2,000 of them."""
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 80)
    predictions = np.where(generator.random(80) < 0.75, labels, 1 - labels)
    rows = generator.integers(0, 80, (3000, 80))
    expected = np.quantile([slow_binary(predictions[one], labels[one]) for one in rows], [0.025, 0.975])
    assert TaskResult(predictions, labels, "matthews").interval == pytest.approx(tuple(expected), abs=0.03)


def slow_binary(predictions, labels):
    return np.corrcoef(predictions, labels)[0, 1]


def test_chunks_do_not_change_the_draws(monkeypatch):
    generator = np.random.default_rng(3)
    labels, predictions = generator.normal(size=50), generator.normal(size=50)
    whole = TaskResult(predictions, labels, "spearman").interval
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 50 * 7)
    assert TaskResult(predictions, labels, "spearman").interval == pytest.approx(whole, abs=1e-12)


def test_differences_are_paired():
    """On the same draws a method differs from itself by nothing, and swapping turns the sign."""
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 200)
    a, b = (np.where(generator.random(200) < part, labels, generator.integers(0, 3, 200)) for part in (0.8, 0.5))
    metric = metrics.get("matthews")
    assert not metric.differences([(a, a), (b, b)], labels, "x").any()
    draws = metric.differences([(a, b)], labels, "x")
    assert draws.shape == (intervals.RESAMPLES,)
    assert draws.mean() == pytest.approx(metric.value(a, labels) - metric.value(b, labels), abs=0.02)
    both = metric.differences([(a, b), (a, b)], labels, "x")
    assert both.mean() == pytest.approx(draws.mean(), abs=0.01)
    with pytest.raises(InputError, match="example by example"):
        metrics.get("accuracy").differences([(a, b)], labels, "x")


def test_degenerate_sets_have_defined_values():
    ones, mixed = np.ones(6, int), np.array([0, 1, 0, 1, 1, 0])
    for predictions, labels in ((ones, mixed), (mixed, ones), (ones, ones)):
        for name in ("matthews", "spearman"):
            result = TaskResult(predictions, labels, name)
            assert (result.value, result.interval) == (0.0, (0.0, 0.0))
    assert TaskResult(0 * ones, 0 * ones, "f1").value == 0.0
    assert TaskResult([1], [1], "matthews").interval == (0.0, 0.0)


def test_accuracy_is_the_mean_of_correctness_to_the_last_bit():
    generator = np.random.default_rng(5)
    for size in range(1, 400, 7):
        labels, predictions = generator.integers(0, 3, (2, size))
        result = TaskResult(predictions, labels)
        correct = predictions == labels
        assert result.value == float(correct.mean()) == int(correct.sum()) / size
        assert result.interval == intervals.wilson(int(correct.sum()), size)
        assert np.array_equal(result.correct, correct)


def test_lists_and_strings_will_do():
    result = TaskResult(metric="exact_match", predictions=["yes", "no", "No"], labels=["yes", "yes", "no"])
    assert result.correct.tolist() == [True, False, False]
    assert result.value == pytest.approx(1 / 3)
    assert result.interval == intervals.wilson(1, 3)
    assert TaskResult([0.5, 1, 2], [1, 2, 3], "spearman").correct is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([0], [0], "mathews"), "unknown metric 'mathews': did you mean 'matthews'?"),
        (([0, 1], [0]), "2 predictions for 1 labels"),
        (([], []), "at least one"),
        ((["a"], ["a"]), "accuracy needs predictions that are classes"),
        (([0.5], [1]), "accuracy needs predictions that are classes"),
        (([1], [1], "exact_match"), "exact match needs predictions that are text"),
        (([0.1, float("nan")], [1, 2], "spearman"), "finite predictions, 1 of 2 are not"),
        (([[0], [1]], [0, 1]), "of shape (2, 1)"),
    ],
)
def test_bad_input_is_refused_in_one_line(given, message):
    with pytest.raises(InputError) as caught:
        TaskResult(*given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_averages_need_one_unit_and_direction(monkeypatch):
    accuracy, matthews = TaskResult([0, 1], [0, 1]), TaskResult([0, 1, 1], [0, 1, 0], "matthews")
    assert average({"a": accuracy, "b": matthews}) == pytest.approx((1 + matthews.value) / 2)
    assert shared({"a": accuracy, "b": accuracy}) == measures.ACCURACY
    assert shared({"a": accuracy, "b": matthews}) == Measure("score", "score")
    worse = metrics.Metric(Measure("error", "error rate", direction=measures.LOWER))
    monkeypatch.setitem(metrics.METRICS, "error", worse)
    assert average({"a": accuracy, "b": TaskResult([0], [0], "error")}) is None


def test_a_measure_says_how_it_is_read():
    loss = Measure("loss", "loss", "nats", measures.LOWER)
    assert (loss.scale, loss.decimals, loss.axis, loss.phrase) == (
        1, 3, " (nats), lower is better", "loss in nats (lower is better)"
    )
    assert (measures.ACCURACY.scale, measures.ACCURACY.axis, measures.ACCURACY.phrase) == (100, " (%)", "accuracy in percent")
    assert measures.measure_of({"metric": "accuracy"}) == measures.ACCURACY
    assert measures.measure_of({"metric": "loss", "label": "loss", "unit": "nats", "direction": "lower"}) == loss


def test_tables_need_neither_torch_nor_scikit_learn():
    code = (
        "import sys; from fusionbench_lite.evaluation import metrics, results;"
        "r = results.TaskResult([0, 1, 1], [0, 1, 0], 'matthews'); metrics.get('matthews').check(r.predictions, r.labels);"
        "print([name for name in ('torch', 'sklearn', 'scipy', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
