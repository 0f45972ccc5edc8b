"""Examples as a model reads them: tokenised once, into the cache."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.data.text.examples import Examples
from fusionbench_lite.data.text.protocols import Protocol
from fusionbench_lite.data.text.tokenizing import Tokenizer
from fusionbench_lite.data.text.tokens import Row, Tokens
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file

log = logging.getLogger(__name__)
Report = Callable[[str, int, int], None]
_ANSWER = 32
"""Tokens that an answer may have; published ones have at most six."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Encoded:
    """Token ids, and how many of the texts were cut."""

    tokens: Tokens
    cut: int


def texts_of(entry: Description, protocol: Protocol, given: Examples) -> dict[str, list[str]]:
    """Return the texts that a model reads, one or two lists of them by column.

    A template is filled in where the model generates its answer, and where there are more columns than a pair of texts.
    """
    if protocol.style == "prompt" or len(entry.text) > 2:
        if entry.template is None:
            why = "the model generates its answers" if protocol.style == "prompt" else f"text names {len(entry.text)} columns"
            raise InputError(
                f"task {entry.name!r} has no template, and {why}: give one in {entry.name}.json, as "
                f'"Is this positive or negative: {{{entry.text[0]}}}"'
            )
        columns = [given.columns[name] for name in entry.columns]
        filled = (dict(zip(entry.columns, row, strict=True)) for row in zip(*columns, strict=True))
        return {"text": [entry.template.format_map(row) for row in filled]}
    return {name: list(given.columns[name]) for name in entry.text}


def longest_of(tokenizer: Tokenizer, protocol: Protocol) -> int:
    """Return how many tokens of a text are read: the protocol's number, or the model's where that is smaller."""
    return min(protocol.longest, tokenizer.longest or protocol.longest)


def encode(
    entry: Description, given: Examples, tokenizer: Tokenizer, protocol: Protocol, cache: Path, report: Report | None = None
) -> Encoded:
    """Return the token ids of examples, from the cache where it holds them; a damaged file there is made again.

    Raises InputError for a text without tokens, and for one that is longer than the model where the protocol truncates later.
    """
    texts = list(texts_of(entry, protocol, given).values())
    first, second = texts[0], texts[1] if len(texts) > 1 else None
    longest = longest_of(tokenizer, protocol)
    path = cache / "text" / f"{entry.name}-{_key(tokenizer, longest, texts)[:16]}.npz"
    found = _kept(path) if path.exists() else None
    if found is None:
        done = None if report is None else functools.partial(_tell, report, entry.name, len(first))
        rows, cut = tokenizer.encode_all(first, second, longest, done)
        _refuse(entry, given, rows)
        found = rows, cut
        _keep(path, rows, cut)
    rows, cut = found
    if longest < protocol.longest and protocol.beyond == "refuse" and cut.any():
        _too_long(given, tokenizer, protocol, first, second, int(cut.argmax()))
    return Encoded(tokens=Tokens(rows, tokenizer.pad), cut=int(cut.sum()))


def encode_answers(entry: Description, labels: NDArray[np.float64], tokenizer: Tokenizer) -> tuple[Tokens, NDArray[np.str_]]:
    """Return the answers of labels as ids and as the text that is compared: decoded again, without special tokens.

    Raises InputError where the tokenizer cannot tell the answers of two classes apart.
    """
    answers = [entry.answer(label) for label in labels.tolist()]
    distinct = list(dict.fromkeys(answers))
    ids = dict(zip(distinct, tokenizer.encode(distinct, None, _ANSWER), strict=True)) if distinct else {}
    decoded = dict(zip(distinct, tokenizer.decode(ids.values()), strict=True))
    meant: dict[str, str] = {}
    for answer, text in decoded.items():
        if meant.setdefault(text, answer) != answer:
            raise InputError(
                f"task {entry.name!r}: the tokenizer in {tokenizer.folder} makes {text!r} of the answers {meant[text]!r} and "
                f"{answer!r}: give words that it tells apart"
            )
    texts = np.array([decoded[answer] for answer in answers], dtype=np.str_)
    return Tokens([ids[answer] for answer in answers], tokenizer.pad), texts


def _tell(report: Report, task: str, total: int, done: int) -> None:
    report(f"tokenising {task}", done, total)


def _refuse(entry: Description, given: Examples, rows: Sequence[Row]) -> None:
    empty = next((number for number, row in enumerate(rows) if not len(row)), None)
    if empty is not None:
        raise InputError(f"{given.where}: example {empty + 1} of task {entry.name!r} has no token: drop empty texts")


def _too_long(
    given: Examples, tokenizer: Tokenizer, protocol: Protocol, first: Sequence[str], second: Sequence[str] | None, number: int
) -> None:
    length = tokenizer.length(first[number], None if second is None else second[number])
    raise InputError(
        f"{given.where}: example {number + 1} has {length} tokens, the model takes {tokenizer.longest}, and protocol "
        f"{protocol.name} truncates at {protocol.longest} only: choose data.protocol=plain, which truncates at the model's length"
    )


def _key(tokenizer: Tokenizer, longest: int, texts: Sequence[Sequence[str]]) -> str:
    """Return a hash of all that decides the ids: the tokenizer, the length, and the texts, in which the template is filled in."""
    versions = [version(library) for library in ("tokenizers", "transformers")]
    digest = hashlib.sha256(repr((tokenizer.fingerprint, versions, longest, [len(column) for column in texts])).encode())
    for text in itertools.chain.from_iterable(texts):
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _keep(path: Path, rows: Sequence[Row], cut: NDArray[np.bool_]) -> None:
    ids = np.concatenate([*rows, np.empty(0, np.int32)]).astype(np.int32)
    lengths = np.array([len(row) for row in rows], np.int64)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, ids=ids, lengths=lengths, cut=cut, sha256=np.array(_sha256(ids, lengths, cut)))


def _kept(path: Path) -> tuple[list[Row], NDArray[np.bool_]] | None:
    """Return what `_keep` wrote, None where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids, lengths, cut, expected = (archive[name] for name in ("ids", "lengths", "cut", "sha256"))
        if _sha256(ids, lengths, cut) == str(expected):
            return np.split(ids, np.cumsum(lengths)[:-1]), cut
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        pass
    log.warning("%s is damaged: tokenising again", path)
    return None


def _sha256(*arrays: NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
