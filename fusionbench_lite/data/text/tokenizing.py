"""A model's tokenizer, read from its folder, and what has to be known of it to use it well."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError

if TYPE_CHECKING:
    from fusionbench_lite.data.text.tokens import Row

FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("vocab.txt",))
"""Each of these makes a tokenizer, beside the small files that say of which kind it is."""
_UNLIMITED = 10**9
"""transformers says 10^30 where a tokenizer knows no limit."""
_CHUNK = 4096


class Tokenizer:
    """The tokenizer of a local folder.

    `pad` is its id for padding: the one that is given, else the tokenizer's or the configuration's, else that of unknown words
    (GPT-2 has none of its own: its experts were trained with <|endoftext|>, which is that), else that of the end. `longest` is how
    many tokens the model takes, None where it knows no limit. `vocabulary` is how many ids the model has, None where no
    configuration says so.
    """

    def __init__(self, folder: Path, *, pad: int | None = None) -> None:
        if not any(all((folder / file).is_file() for file in files) for files in FILES):
            wanted = ", ".join(" with ".join(files) for files in FILES)
            raise InputError(f"{folder} holds no tokenizer: put the files there that the model was published with ({wanted})")
        self.folder = folder
        self._config = _json(folder / "config.json")
        self._own = _opened(folder)
        self.pad = self._padding(pad)
        self.longest = self._limit()
        vocabulary = self._config.get("vocab_size")
        self.vocabulary = vocabulary if isinstance(vocabulary, int) else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which ids a text gets, and of the padding."""
        backend = getattr(self._own, "backend_tokenizer", None)
        if backend is None:
            rules: Any = sorted(self._own.get_vocab().items()), type(self._own).__name__
        else:
            rules = json.loads(backend.to_str())
            rules |= {"truncation": None, "padding": None}  # what the last call asked for
        about = [rules, self.pad, self._own.all_special_tokens]
        if self._own.truncation_side != "right":  # the usual one is left out, so that it changes no fingerprint
            about.append(self._own.truncation_side)
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def encode(self, first: Sequence[str], second: Sequence[str] | None, longest: int) -> list[Row]:
        """Return the ids of texts, or of pairs of texts, cut to `longest` tokens from the end of the longer one.

        Special tokens are those that the tokenizer puts around texts. Raises InputError for ids that the model does not have.
        """
        return self.encode_all(first, second, longest)[0]

    def encode_all(
        self, first: Sequence[str], second: Sequence[str] | None, longest: int, done: Callable[[int], None] | None = None
    ) -> tuple[list[Row], NDArray[np.bool_]]:
        """As `encode`, and which of the texts were cut, bool [N]. `done` is called with the number of texts so far."""
        rows: list[Row] = []
        cut: list[bool] = []
        for start in range(0, len(first), _CHUNK):  # a hundred thousand encodings at once take gigabytes
            part = slice(start, start + _CHUNK)
            texts = [list(first[part])] + ([] if second is None else [list(second[part])])
            encoded = self._own(*texts, truncation=True, max_length=longest, padding=False, return_attention_mask=False)
            rows += [np.array(ids, np.int32) for ids in encoded["input_ids"]]
            cut += self._cut(encoded, texts, longest)
            if done is not None:
                done(len(rows))
        highest = max((int(row.max(initial=0)) for row in rows), default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            raise InputError(
                f"the tokenizer in {self.folder} gives id {highest}, the model has {self.vocabulary} (vocab_size of config.json): "
                "take the tokenizer that the model was trained with"
            )
        return rows, np.array(cut, np.bool_)

    def length(self, first: str, second: str | None = None) -> int:
        """Return how many tokens a text or a pair has, uncut."""
        texts = (first,) if second is None else (first, second)
        return len(self._own(*texts, truncation=False, verbose=False)["input_ids"])

    def decode(self, ids: Any) -> list[str]:
        """Return the texts of ids [N, L] or of N rows of ids, without special tokens."""
        rows = [np.asarray(row).tolist() for row in ids]
        return [str(text) for text in self._own.batch_decode(rows, skip_special_tokens=True)]

    def difference(self, other: Tokenizer) -> str | None:
        """Say in which way another tokenizer reads texts differently; None where it gives the same ids."""
        if self.fingerprint == other.fingerprint:
            return None
        mine, its = self._own.get_vocab(), other._own.get_vocab()
        if len(mine) != len(its):
            return f"{len(mine):,} and {len(its):,} tokens"
        moved = next((token for token in sorted(mine) if mine[token] != its.get(token)), None)
        if moved is not None:
            return f"token {moved!r} is {mine[moved]} and {its.get(moved, 'not there')}"
        for second in (None, [_PROBE[::-1]]):
            ids, others = (one.encode([_PROBE], second, _CHUNK)[0].tolist() for one in (self, other))
            if ids != others:
                return f"the same text becomes {ids[:8]} ... and {others[:8]} ..."
        return None

    def _cut(self, encoded: Any, texts: list[list[str]], longest: int) -> list[bool]:
        if encoded.encodings is not None:
            return [bool(encoding.overflowing) for encoding in encoded.encodings]
        return [
            len(ids) >= longest and self.length(*(column[row] for column in texts)) > longest
            for row, ids in enumerate(encoded["input_ids"])
        ]

    def _padding(self, given: int | None) -> int:
        own = self._own
        known = given, own.pad_token_id, self._config.get("pad_token_id"), own.unk_token_id, own.eos_token_id
        pad = next((number for number in known if number is not None), None)
        if pad is None:
            raise InputError(f"the tokenizer in {self.folder} has no token for padding: name a pad_token in tokenizer_config.json")
        return int(pad)

    def _limit(self) -> int | None:
        limits = []
        if self._own.model_max_length < _UNLIMITED:
            limits.append(int(self._own.model_max_length))
        positions = self._config.get("n_positions", self._config.get("max_position_embeddings"))
        kind = self._config.get("model_type")
        if isinstance(positions, int) and kind != "t5":  # its positions are relative: n_positions is a relic
            # RoBERTa counts positions from the one after the padding's id.
            limits.append(positions - (self._config.get("pad_token_id", 1) + 1 if kind == "roberta" else 0))
        return min(limits, default=None)


_PROBE = "The café's 3rd test — it isn't simple: x_1 = 2.50?"


def _opened(folder: Path) -> Any:
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which may import torchvision)

    try:
        import transformers
    except ImportError as error:
        raise InputError("language models need transformers: pip install 'fusionbench_lite[language]'") from error
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a damaged file makes transformers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder} holds no tokenizer that transformers reads ({reason}): fetch its files again") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}): fetch it again") from error
    return content if isinstance(content, dict) else {}
