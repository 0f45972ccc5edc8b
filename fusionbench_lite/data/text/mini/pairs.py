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
    """Whether a sentence answers a question: who, what, where or when; where it does not, another part or deed is told of."""
    verb, who = draw.one(lexicon.TRADING), f"the {draw.one(lexicon.PEOPLE)}"
    what = article(f"{draw.one(lexicon.COLOURS)} {draw.one(lexicon.THINGS)}")
    where, when = f"at the {draw.one(lexicon.PLACES)}", f"on {draw.one(lexicon.DAYS)}"
    asked = draw.one(("who", "what", "where", "when"))
    question = {
        "who": f"who {verb.past} {what}", "what": f"what did {who} {verb.base}", "where": f"where did {who} {verb.base} {what}",
        "when": f"when did {who} {verb.base} {what}",
    }[asked]
    told = asked
    if not label:
        if draw.chance(0.25):
            verb = draw.other(lexicon.TRADING, verb)
        else:
            told = draw.other(("where", "when") if asked in ("where", "when") else ("who", "what"), asked)
    place = {"where": where, "when": when}.get(told) or draw.one((where, when))
    words = f"{who} {verb.past} {what} {place}"
    if told != asked:
        words = {"who": f"{who} {verb.past} {place}", "what": f"{what} was {verb.participle} {place}"}.get(told, words)
    return {"question": sentence(question, "?"), "sentence": sentence(words)}
