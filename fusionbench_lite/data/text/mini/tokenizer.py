"""A tokenizer of whole words for the drawn tasks, made by code and stored as transformers reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionbench_lite.data.text.mini import DRAWINGS, lexicon

_SMALL = """
    a although an and after at because but by did described every enjoyed going had is it many mentioned no not on remembered some
    that the these this those to was when where who why will . , ? :
"""
SPECIAL = {
    "roberta": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gpt2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "llama": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}
"""The special tokens of each kind of model; in this order they are the first of its vocabulary."""
_AROUND = {
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"), "gpt2": ("$A", "$A $B"), "t5": ("$A </s>", "$A $B </s>"),
    "llama": ("$A </s>", "$A $B </s>"),
}
LONGEST = 64
"""Tokens that the small models take; drawn texts have at most half of it."""


def vocabulary(kind: str) -> dict[str, int]:
    """Return the ids of all words, special tokens first; words of one letter size, as the tokenizer reads texts."""
    special = dict.fromkeys(SPECIAL[kind].values())
    return {token: number for number, token in enumerate((*special, *sorted(set(_words()))))}


def write(kind: str, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of a kind of model, "roberta", "gpt2", "t5" or "llama"."""
    ids, special = vocabulary(kind), SPECIAL[kind]
    single, pair = _AROUND[kind]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    around = {piece for piece in pair.split() if not piece.startswith("$")}
    rules: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": {"type": "Lowercase"},
        "added_tokens": [{"id": ids[token], "content": token, **plain} for token in dict.fromkeys(special.values())],
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": _pieces(single), "pair": _pieces(pair),
            "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in sorted(around)},
        },
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": special["unk_token"]},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, **special}
    (folder / "tokenizer.json").write_text(json.dumps(rules, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _pieces(template: str) -> list[dict[str, Any]]:
    return [
        {"Sequence": {"id": piece[1:], "type_id": 0}} if piece.startswith("$") else {"SpecialToken": {"id": piece, "type_id": 0}}
        for piece in template.split()
    ]


def _words() -> Iterator[str]:
    """Yield every word that a drawn example, a template or an answer may hold."""
    yield from _SMALL.split()
    for verbs in (lexicon.TRANSITIVE, lexicon.INTRANSITIVE, lexicon.TRADING):
        for verb in verbs:
            yield from (*verb, *(lexicon.synonym(verb) or ()))
    for nouns in (lexicon.PEOPLE, lexicon.THINGS, lexicon.PLACES, lexicon.JUDGED, *lexicon.TOPICS.values()):
        yield from (*nouns, *map(lexicon.plural, nouns))
    others = lexicon.DAYS, lexicon.SIZES, lexicon.COLOURS, lexicon.REASONS, lexicon.NEAR, lexicon.GOOD, lexicon.BAD, lexicon.DEGREES
    for words in others:
        yield from words
    yield from lexicon.SYNONYMS.values()
    for top, kinds in lexicon.KINDS.items():
        yield top
        for kind, special in kinds.items():
            yield from (kind, *special)
    for name, drawing in DRAWINGS.items():
        yield from (name, *drawing.words)
