"""Token ids of unequal length: padded when rows are read, hashed by content."""

from __future__ import annotations

import numpy as np
import pytest

from fusionbench_lite.data.text.tokens import Labels, Tokens

ROWS = [np.array(row, np.int32) for row in ([5, 6, 7], [8], [9, 10], [], [11, 12, 13, 14])]
PAD = 3


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(ROWS, PAD)


@pytest.mark.parametrize(
    "rows", [slice(0, 2), slice(None), slice(4, 0, -2), np.array([2, 0, 2]), np.array([True, False, True, False, False]), [1, 2]]
)
def test_rows_are_padded_on_the_right_to_the_longest_of_them(tokens: Tokens, rows):
    chosen = [ROWS[at] for at in np.arange(len(ROWS))[rows]]
    longest = max(map(len, chosen))
    read = tokens[rows]
    assert list(read) == ["input_ids", "attention_mask"]
    assert read["input_ids"].tolist() == [[*row, *[PAD] * (longest - len(row))] for row in chosen]
    assert read["attention_mask"].tolist() == [[1] * len(row) + [0] * (longest - len(row)) for row in chosen]
    assert {array.dtype for array in read.values()} == {np.dtype(np.int64)}


def test_it_is_a_mapping_of_whole_arrays(tokens: Tokens):
    assert list(tokens) == ["input_ids", "attention_mask"]
    assert tokens["attention_mask"].sum(1).tolist() == tokens.lengths.tolist() == [3, 1, 2, 0, 4]
    assert len(tokens) == 5
    assert tokens.shape == (5, 4)
    assert [row.tolist() for row in tokens.rows()] == [row.tolist() for row in ROWS]


def test_a_fingerprint_is_of_ids_lengths_and_padding(tokens: Tokens):
    others = [
        Tokens(ROWS, PAD + 1), Tokens(ROWS[:-1], PAD), Tokens([*ROWS[:3], ROWS[4], ROWS[3]], PAD),
        Tokens([np.array([5, 6], np.int32), np.array([7, 8], np.int32), *ROWS[2:]], PAD),
    ]
    assert tokens.fingerprint == Tokens(list(ROWS), PAD).fingerprint
    assert len({tokens.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_no_texts_are_no_rows():
    empty = Tokens([], PAD)
    assert len(empty) == 0
    assert empty.shape == (0, 0)
    assert empty[:]["input_ids"].shape == (0, 0)


def test_deferred_tokens_and_labels_are_read_once_and_not_for_their_fingerprint():
    asked = []

    def rows():
        asked.append("rows")
        return Tokens(ROWS, PAD)

    def labels():
        asked.append("labels")
        return np.arange(5)

    deferred, later = Tokens.deferred(rows, PAD, lambda: "files"), Labels(labels, np.int64)
    assert deferred.fingerprint == "files"
    assert asked == []
    for _ in range(2):
        assert deferred[np.array([4])]["input_ids"].tolist() == [[11, 12, 13, 14]]
        assert later[1:3].tolist() == [1, 2]
        assert np.asarray(later).tolist() == list(range(5))
        assert (len(later), later.shape, later.dtype) == (5, (5,), np.dtype(np.int64))
    assert asked == ["rows", "labels"]
