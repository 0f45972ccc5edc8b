"""One text task: found, read, tokenised, with what a reader of its results has to know."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.arrays import TaskData
from fusionbench_lite.data.text import descriptions, drawn, glue, notes, own, stock
from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.data.text.encoding import Report, encode, encode_answers, longest_of, texts_of
from fusionbench_lite.data.text.examples import Examples, as_labels
from fusionbench_lite.data.text.protocols import Protocol
from fusionbench_lite.data.text.tokenizing import Tokenizer
from fusionbench_lite.data.text.tokens import Labels, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How tasks are read. `limit`: so many test examples of each task, evenly spaced; `seed` is that of drawn tasks."""

    tokenizer: Tokenizer
    protocol: Protocol
    cache: Path
    data_dir: Path | None = None
    limit: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TextTask(TaskData):
    """A task whose inputs are `Tokens`, labels class numbers int64 [N] or scores float64 [N].

    Scores have one class, "score". Where a model generates its answers, `words` are those of the classes (None for scores),
    `train_targets` the ids of the right answers and `test_targets` the texts of them, str [N]. `texts` are the test texts as the
    model reads them, [N] Python strings by column, for people: the width of a numpy string is that of the longest.
    """

    words: tuple[str, ...] | None = None
    train_targets: Tokens | None = None
    test_targets: NDArray[np.str_] | None = None
    texts: Mapping[str, NDArray[np.object_]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def test_sha256(self) -> str:
        """SHA-256 of names, classes, answers, metric, and the tokens and labels of the test split: what a result is of."""
        about = self.name, self.classes, self.words, self.metric, fingerprint(self.test_images), self.test_labels.tolist()
        return hashlib.sha256(repr(about).encode()).hexdigest()

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the same of both splits; a training split that waits is known by its files, labels included."""
        labels = self.train_labels.tolist() if isinstance(self.train_labels, np.ndarray) else None
        return hashlib.sha256(repr((self.test_sha256, fingerprint(self.train_images), labels)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """A task where it was found. `train` returns None where there is no training split; `stands_for` is its fingerprint, where
    that is known without reading it."""

    entry: Description
    test: Callable[[], Examples]
    train: Callable[[], Examples | None]
    stands_for: Callable[[], str] | None = None
    published: int | None = None


def fingerprint(tokens: Any) -> str:
    """Return what stands for the content of tokens."""
    return str(tokens.fingerprint)


def load(name: str, reading: Reading, progress: Report | None = None) -> TextTask:
    """Return a task: files of `data_dir` come first, then GLUE from the hub, then tasks that are drawn by code.

    The training split of GLUE is fetched and tokenised when it is first read; that of files and drawn tasks is read here, to
    compare it with the test split. Raises InputError for an unknown task, and for anything missing or not as it should be.
    """
    source = _found(name, reading, progress)
    entry, protocol = source.entry, reading.protocol
    whole = source.test()
    test = whole.rows(_spaced(len(whole), reading.limit))
    encoded = encode(entry, test, reading.tokenizer, protocol, reading.cache, progress)
    train_tokens, train_labels, targets, train = _train(source, reading, progress)
    answers = encode_answers(entry, test.labels, reading.tokenizer)[1] if protocol.style == "prompt" else None
    is_score = entry.classes is None
    labels = test.labels if answers is None or not is_score else np.array([float(entry.answer(one)) for one in test.labels])
    metric = protocol.metric(name, entry.metric)
    return TextTask(
        name=name, classes=entry.classes or ("score",), train_images=train_tokens,  # type: ignore[arg-type]
        train_labels=train_labels, test_images=encoded.tokens, test_labels=labels, metric=metric, files=test.files,  # type: ignore[arg-type]
        source=test.where, words=(entry.words or entry.classes) if protocol.style == "prompt" else None,
        train_targets=targets, test_targets=answers,
        texts={column: np.array(texts, dtype=np.object_) for column, texts in texts_of(entry, protocol, test).items()},
        caveats=notes.of(
            entry, protocol, whole, train, cut=encoded.cut, tested=len(test), published=source.published, metric=metric,
        ),
    )


def _train(
    source: _Source, reading: Reading, progress: Report | None
) -> tuple[Tokens, Any, Tokens | None, Examples | None]:
    """Return tokens, labels and answers of the training split, and its examples where they were read."""
    entry, tokenizer, prompted = source.entry, reading.tokenizer, reading.protocol.style == "prompt"

    def read(found: Examples | None) -> tuple[Tokens, NDArray[Any], Tokens]:
        none = Tokens((), tokenizer.pad)
        if found is None:
            return none, as_labels(entry, ()), none
        tokens = encode(entry, found, tokenizer, reading.protocol, reading.cache, progress).tokens
        return tokens, found.labels, encode_answers(entry, found.labels, tokenizer)[0] if prompted else none

    if source.stands_for is None:
        found = source.train()
        tokens, labels, answers = read(found)
        return tokens, labels, answers if prompted else None, found

    @functools.cache
    def opened() -> tuple[Tokens, NDArray[Any], Tokens]:
        return read(source.train())  # the texts themselves are not kept: those of MNLI take more than all the tokens

    def known(what: str) -> Callable[[], str]:
        longest = longest_of(tokenizer, reading.protocol)
        about = what, dataclasses.astuple(entry), reading.protocol.style, longest, tokenizer.fingerprint
        given = source.stands_for or str
        return lambda: hashlib.sha256(repr((about, given())).encode()).hexdigest()

    deferred = Tokens.deferred(lambda: opened()[0], tokenizer.pad, known("texts"))
    targets = Tokens.deferred(lambda: opened()[2], tokenizer.pad, known("answers")) if prompted else None
    return deferred, Labels(lambda: opened()[1], np.float64 if entry.classes is None else np.int64), targets, None


def _found(name: str, reading: Reading, progress: Report | None) -> _Source:
    folder = reading.data_dir
    if folder is not None and own.reads(name, folder):
        entry, train = own.description(name, folder), own.train_file(name, folder)
        test = own.test_file(name, folder)
        return _Source(
            entry=entry, test=lambda: own.split(entry, test), train=lambda: None if train is None else own.split(entry, train),
        )
    if name in descriptions.glue_names():
        return _of_glue(descriptions.glue(name), reading, progress)
    if name in drawn.names():
        entry = drawn.description(name)
        return _Source(
            entry=entry, test=lambda: drawn.split(entry, "test", reading.seed),
            train=lambda: drawn.split(entry, "train", reading.seed),
        )
    raise stock.unknown(name, folder)


def _of_glue(entry: Description, reading: Reading, progress: Report | None) -> _Source:
    split = reading.protocol.splits.get(entry.name, glue.TEST)

    def stands_for() -> str:
        listed = [(file.path, file.size, file.sha256) for file in glue.entries(entry.name, glue.TRAIN, reading.cache)]
        return hashlib.sha256(repr((glue.REPO, listed)).encode()).hexdigest()

    return _Source(
        entry=entry, test=lambda: glue.split(entry, split, reading.cache, progress),
        train=lambda: glue.split(entry, glue.TRAIN, reading.cache, progress), stands_for=stands_for,
        published=entry.rows.get(split),
    )


def _spaced(size: int, limit: int | None) -> NDArray[np.int64]:
    """Return `limit` evenly spaced rows of `size`, all without a limit: splits that are sorted by class keep their classes."""
    count = size if limit is None else min(limit, size)
    return np.arange(count, dtype=np.int64) * size // max(count, 1)
