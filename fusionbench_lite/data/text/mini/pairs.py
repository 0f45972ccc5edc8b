"""Tasks about two sentences: paraphrase, entailment and answers."""

from __future__ import annotations

from fusionbench_lite.data.text.mini import lexicon
from fusionbench_lite.data.text.mini.drawing import Choices
from fusionbench_lite.data.text.mini.lexicon import article, sentence, synonym

Columns = dict[str, str]


def paraphrase(draw: Choices, label: int) -> Columns:
    """Who did what to whom, twice: active, then active or passive and with synonyms; where it differs the roles do."""
    verb, (who, whom) = draw.one(lexicon.TRANSITIVE), draw.some(lexicon.PEOPLE[:4], 2)
    when, where = f"on {draw.one(lexicon.DAYS)}", f"at the {draw.one(lexicon.PLACES)}"
    said = (synonym(verb) if draw.chance(0.5) else None) or verb
    first = sentence(f"the {who} {verb.past} the {whom} {draw.one((when, where))}")
    if not label:
        who, whom = whom, who
    second = draw.one((f"the {who} {said.past} the {whom}", f"the {whom} was {said.participle} by the {who}"))
    return {"first": first, "second": sentence(f"{second} {draw.one((when, where))}")}


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
    """Whether a sentence answers a question: where, when or why; else it tells another of these, or of another deed."""
    verb, who = draw.one(lexicon.TRADING), f"the {draw.one(lexicon.PEOPLE)}"
    what = article(f"{draw.one(lexicon.COLOURS)} {draw.one(lexicon.THINGS)}")
    asked = draw.one(("where", "when", "why"))
    question, told = f"{asked} did {who} {verb.base} {what}", asked
    if not label and draw.chance(0.1):
        verb = draw.other(lexicon.TRADING, verb)
    elif not label:
        told = draw.other(("where", "when", "why"), asked)
    part = {
        "where": f"{draw.one(('at', *lexicon.NEAR))} the {draw.one(lexicon.PLACES)}", "when": f"on {draw.one(lexicon.DAYS)}",
        "why": f"because it was {draw.one(lexicon.REASONS)}",
    }[told]
    return {"question": sentence(question, "?"), "sentence": sentence(f"{who} {verb.past} {what} {part}")}
