"""Tasks about two sentences: paraphrase, entailment and answers."""

from __future__ import annotations

from fusionbench_lite.data.text.mini import lexicon
from fusionbench_lite.data.text.mini.drawing import Choices
from fusionbench_lite.data.text.mini.lexicon import Verb, article, sentence, synonym

Columns = dict[str, str]


def paraphrase(draw: Choices, label: int) -> Columns:
    """Who did what to whom, twice: active or passive, with synonyms, and where it differs the roles or one word do."""
    verb = draw.one(lexicon.TRANSITIVE)
    who, whom = (f"the {draw.one(lexicon.SIZES)} {noun}" for noun in draw.some(lexicon.PEOPLE, 2))
    first = _told(draw, verb, who, whom)
    difference = None if label else draw.one(("roles", "roles", "verb", "person"))
    if difference == "roles":
        who, whom = whom, who
    if difference == "verb":
        verb = draw.other(lexicon.TRANSITIVE, verb)
    if difference == "person":
        *before, noun = whom.split()
        whom = " ".join([*before, draw.one([person for person in lexicon.PEOPLE if person not in (noun, who.split()[-1])])])
    alike = synonym(verb) if draw.chance(0.5) else None
    return {"first": first, "second": _told(draw, alike or verb, _said_otherwise(draw, who), _said_otherwise(draw, whom))}


def _told(draw: Choices, verb: Verb, who: str, whom: str) -> str:
    return sentence(draw.one((f"{who} {verb.past} {whom}", f"{whom} was {verb.participle} by {who}")))


def _said_otherwise(draw: Choices, words: str) -> str:
    determiner, adjective, noun = words.split()
    return f"{determiner} {lexicon.SYNONYMS.get(adjective, adjective) if draw.chance(0.5) else adjective} {noun}"


def entailment(draw: Choices, label: int) -> Columns:
    """Whether a statement of some, every or no such thing follows from another: of more general or more special words."""
    while True:
        general, special = _general_and_special(draw)
        one, two = (general, special) if draw.chance(0.5) else (special, general)
        quantifier, predicate = draw.one(("some", "every", "no")), draw.one(lexicon.COLOURS)
        other = draw.other(lexicon.COLOURS, predicate) if draw.chance(0.15) else predicate
        upwards = two == general
        follows = other == predicate and (upwards if quantifier == "some" else not upwards)
        if follows == bool(label):
            premise, hypothesis = f"{quantifier} {one} is {predicate}", f"{quantifier} {two} is {other}"
            return {"premise": sentence(premise), "hypothesis": sentence(hypothesis)}


def _general_and_special(draw: Choices) -> tuple[str, str]:
    """Return two noun phrases, the second of which has a part of what the first has."""
    kinds = lexicon.KINDS[draw.one(tuple(lexicon.KINDS))]
    kind = draw.one(tuple(kinds))
    top = next(name for name, below in lexicon.KINDS.items() if kind in below)
    general, special = draw.one(((top, kind), (top, draw.one(kinds[kind])), (kind, draw.one(kinds[kind]))))
    size = draw.one(lexicon.SIZES)
    return draw.one((
        (general, special), (general, f"{size} {special}"), (special, f"{size} {special}"),
        (f"{size} {general}", f"{size} {special}"),
    ))


def answer(draw: Choices, label: int) -> Columns:
    """Whether a sentence answers a question: who, what, where or when, about the same people, deeds and things."""
    verb, (who, other) = draw.one(lexicon.TRADING), draw.some(lexicon.PEOPLE, 2)
    what = article(f"{draw.one(lexicon.COLOURS)} {draw.one(lexicon.THINGS)}")
    where, when = f"at the {draw.one(lexicon.PLACES)}", f"on {draw.one(lexicon.DAYS)}"
    asked = draw.one(("who", "what", "where", "when"))
    question = {
        "who": f"who {verb.past} {what}", "what": f"what did the {who} {verb.base}",
        "where": f"where did the {who} {verb.base} {what}", "when": f"when did the {who} {verb.base} {what}",
    }[asked]
    told = {"where": where, "when": when}.get(asked) or draw.one((where, when))
    if not label:
        wrong = draw.one(("verb", "kind" if asked in ("where", "when") else "thing" if asked == "who" else "person"))
        if wrong == "verb":
            verb = draw.other(lexicon.TRADING, verb)
        if wrong == "kind":
            told = when if asked == "where" else where
        if wrong == "person":
            who = other
        if wrong == "thing":
            noun = draw.other(lexicon.THINGS, what.split()[-1])
            what = " ".join([*what.split()[:-1], noun])
    return {"question": sentence(question, "?"), "sentence": sentence(f"the {who} {verb.past} {what} {told}")}
