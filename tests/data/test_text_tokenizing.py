"""Tokenizers of published layouts: what they put around texts, where they cut, how they pad, and which are not the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusionbench_lite.data.text.tokenizing import Tokenizer
from fusionbench_lite.errors import InputError
from tests.support import text_files

FIRST = ["a very funny film", "the acting is flat and the jokes are old " * 3, "no"]
SECOND = ["she gave", "him", "the plot moves " * 9]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    made = {kind: text_files.byte_level(root / kind, kind) for kind in ("gpt2", "roberta")}
    return {**made, "t5": text_files.t5(root / "t5")}


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: Tokenizer(folder) for kind, folder in folders.items()}


def test_padding_and_length_are_the_model_s(tokenizers: dict[str, Tokenizer]):
    """GPT-2 pads with its only special token; RoBERTa's 66 positions begin after the id of padding; T5 has no positions."""
    assert {kind: (one.pad, one.longest) for kind, one in tokenizers.items()} == {
        "gpt2": (0, 64), "roberta": (1, 64), "t5": (0, 512)
    }
    assert Tokenizer(tokenizers["gpt2"].folder, pad=7).pad == 7


@pytest.mark.parametrize(
    ("kind", "before", "between", "after"), [("gpt2", [], [], []), ("roberta", [0], [2, 2], [2]), ("t5", [], [1], [1])]
)
def test_texts_and_pairs_have_the_special_tokens_of_their_kind(
    tokenizers: dict[str, Tokenizer], kind: str, before: list[int], between: list[int], after: list[int]
):
    one, special = tokenizers[kind], {*before, *between, *after}
    first, second = ([ids.tolist() for ids in one.encode(texts, None, 200)] for texts in (FIRST, SECOND))
    bare, others = ([[token for token in ids if token not in special] for ids in column] for column in (first, second))
    assert first == [before + ids + after for ids in bare]
    pairs = [ids.tolist() for ids in one.encode(FIRST, SECOND, 200)]
    assert pairs == [before + ids + between + more + after for ids, more in zip(bare, others, strict=True)]


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "t5"])
@pytest.mark.parametrize("second", [None, SECOND], ids=["texts", "pairs"])
def test_what_is_cut_is_counted(tokenizers: dict[str, Tokenizer], kind: str, second: list[str] | None):
    """The longer text of a pair loses its end, and the special tokens stay."""
    one = tokenizers[kind]
    uncut = one.encode(FIRST, second, 500)
    rows, cut = one.encode_all(FIRST, second, 12)
    lengths = [one.length(*(texts[at] for texts in (FIRST, second) if texts is not None)) for at in range(3)]
    assert lengths == [len(row) for row in uncut]
    assert cut.tolist() == [length > 12 for length in lengths]
    assert cut.any()
    assert not cut.all()
    for row, whole, is_cut in zip(rows, uncut, cut, strict=True):
        assert len(row) == min(len(whole), 12)
        if not is_cut:
            assert row.tolist() == whole.tolist()
        if kind != "gpt2":
            assert row[-1] == whole[-1]


def test_what_is_cut_is_counted_for_a_tokenizer_that_keeps_no_encodings(tokenizers: dict[str, Tokenizer]):
    """Those that are written in Python return ids alone."""
    from transformers import BatchEncoding

    for second in (None, SECOND):
        rows, cut = tokenizers["roberta"].encode_all(FIRST, second, 12)
        plain = BatchEncoding({"input_ids": [row.tolist() for row in rows]})
        texts = [FIRST] if second is None else [FIRST, second]
        assert tokenizers["roberta"]._cut(plain, texts, 12) == cut.tolist()


def test_a_text_comes_back_without_special_tokens(tokenizers: dict[str, Tokenizer]):
    answers = ["unacceptable", "yes", "5.0"]
    ids = tokenizers["t5"].encode(answers, None, 32)
    padded = np.zeros((3, 8), np.int64)  # as a model generates: it starts with the padding, and pads after the end
    for at, row in enumerate(ids):
        padded[at, 1 : 1 + min(len(row), 7)] = row[:7]
    assert tokenizers["t5"].decode(ids) == answers
    assert tokenizers["t5"].decode(padded[1:2]) == ["yes"]


def test_the_same_files_are_the_same_tokenizer_whatever_was_asked_of_it(folders: dict[str, Path], tmp_path: Path):
    fresh, used = Tokenizer(folders["roberta"]), Tokenizer(shutil.copytree(folders["roberta"], tmp_path / "copy"))
    used.encode(FIRST, SECOND, 7)
    assert used.fingerprint == fresh.fingerprint
    assert used.difference(fresh) is None
    assert Tokenizer(folders["roberta"], pad=9).fingerprint != fresh.fingerprint


def test_tokenizers_that_differ_say_in_what(folders: dict[str, Path], tokenizers: dict[str, Tokenizer], tmp_path: Path):
    assert "tokens" in (tokenizers["gpt2"].difference(tokenizers["t5"]) or "")
    other = shutil.copytree(folders["gpt2"], tmp_path / "swapped")
    vocabulary = json.loads((other / "vocab.json").read_text())
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "vocab.json").write_text(json.dumps(vocabulary))
    assert "token 'a' is" in (tokenizers["gpt2"].difference(Tokenizer(other)) or "")
    fewer = shutil.copytree(folders["gpt2"], tmp_path / "fewer_merges")
    merges = (fewer / "merges.txt").read_text().splitlines()
    (fewer / "merges.txt").write_text("\n".join(merges[:10]))
    assert "the same text becomes" in (tokenizers["gpt2"].difference(Tokenizer(fewer)) or "")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    folder = text_files.byte_level(tmp_path / "small", "gpt2", vocab_size=100)
    with pytest.raises(InputError, match=r"gives id \d+, the model has 100 .*: take the tokenizer"):
        Tokenizer(folder).encode(FIRST, None, 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "vocab.json").unlink(), "holds no tokenizer: put the files there"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "holds no tokenizer that transformers reads"),
        (lambda folder: (folder / "config.json").write_text("["), "is not readable JSON"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(folders: dict[str, Path], tmp_path: Path, change, said: str):
    folder = shutil.copytree(folders["gpt2"], tmp_path / "damaged")
    change(folder)
    with pytest.raises(InputError, match=said) as refused:
        Tokenizer(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_side_that_is_cut_is_of_the_fingerprint(folders: dict[str, Path], tmp_path: Path):
    left = shutil.copytree(folders["gpt2"], tmp_path / "left")
    (left / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "left"}))
    one, other = Tokenizer(folders["gpt2"]), Tokenizer(left)
    assert one.encode(FIRST, None, 3)[1].tolist() != other.encode(FIRST, None, 3)[1].tolist()
    assert one.fingerprint != other.fingerprint
