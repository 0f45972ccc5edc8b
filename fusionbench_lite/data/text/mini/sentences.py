"""Tasks about one sentence: sentiment, acceptability, topic, tense and number."""

from __future__ import annotations

from fusionbench_lite.data.text.mini import lexicon
from fusionbench_lite.data.text.mini.drawing import Choices
from fusionbench_lite.data.text.mini.lexicon import Verb, plural, sentence

Columns = dict[str, str]
PAST, PRESENT, FUTURE = range(3)


def sentiment(draw: Choices, label: int) -> Columns:
    """A judgement: the last of two clauses after "but", the main one after "although"; "not" turns an adjective round."""
    good = bool(label)
    form = draw.one(("plain", "but", "although"))
    main = _judgement(draw, good)
    other = _judgement(draw, not good)
    words = {"plain": main, "but": f"{other} but {main}", "although": f"although {other}, {main}"}[form]
    return {"sentence": sentence(words)}


def _judgement(draw: Choices, good: bool) -> str:
    negated = draw.chance(0.4)
    adjective = draw.one(lexicon.GOOD if good != negated else lexicon.BAD)
    degree = f"{draw.one(lexicon.DEGREES)} " if draw.chance(0.4) else ""
    return f"the {draw.one(lexicon.JUDGED)} was {'not ' if negated else ''}{degree}{adjective}"


def acceptability(draw: Choices, label: int) -> Columns:
    """A clause with a place, right or with one mistake: agreement of verb or determiner, or the order of two words."""
    many = draw.chance(0.5)
    mistake = None if label else draw.one(("verb", "verb", "determiner", "adjective", "noun"))
    noun, verb = draw.one(lexicon.PEOPLE), draw.one(lexicon.INTRANSITIVE)
    singular, several = ("this", "that", "every"), ("these", "those", "many")
    determiner = draw.one(several if many != (mistake == "determiner") else singular)
    adjective, head = draw.one(lexicon.SIZES), plural(noun) if many else noun
    subject = [determiner, adjective, head]
    if mistake == "adjective":
        subject = [determiner, head, adjective]
    if mistake == "noun":
        subject = [head, determiner, adjective]
    place = draw.one(lexicon.PLACES)
    where = f"{draw.one(lexicon.NEAR)} the {plural(place) if draw.chance(0.5) else place}"
    action = verb.base if many != (mistake == "verb") else verb.third
    order = [*subject, where, action] if draw.chance(0.5) else [*subject, action, where]
    return {"sentence": sentence(" ".join(order))}


def topic(draw: Choices, label: int) -> Columns:
    """Three nouns, two of them of the topic."""
    topics = list(lexicon.TOPICS)
    own = draw.some(lexicon.TOPICS[topics[label]], 2)
    foreign = draw.one(lexicon.TOPICS[draw.other(topics, topics[label])])
    one, two, three = draw.some([*own, foreign], 3)
    who, verb = draw.one(lexicon.PEOPLE), draw.one(("mentioned", "described", "remembered", "enjoyed"))
    words = draw.one((
        f"the {who} {verb} the {one}, the {two} and the {three}", f"after the {one} the {who} {verb} the {two} and the {three}",
    ))
    return {"sentence": sentence(words)}


def tense(draw: Choices, label: int) -> Columns:
    """A main clause in one of three tenses, with a relative clause in any."""
    verb, aside = draw.some(lexicon.INTRANSITIVE, 2)
    who = f"the {draw.one(lexicon.PEOPLE)}"
    if draw.chance(0.7):
        who += f" who {in_tense(draw, aside, draw.one((PAST, PRESENT, FUTURE)))}"
    where = f" {draw.one(lexicon.NEAR)} the {draw.one(lexicon.PLACES)}"
    return {"sentence": sentence(f"{who} {in_tense(draw, verb, label)}{where}")}


def in_tense(draw: Choices, verb: Verb, when: int) -> str:
    """Return a verb of a singular subject in a tense, simple or compound."""
    return draw.one({
        PAST: (verb.past, f"was {verb.progressive}", f"had {verb.participle}"),
        PRESENT: (verb.third, f"is {verb.progressive}", verb.third),
        FUTURE: (f"will {verb.base}", f"is going to {verb.base}", f"will {verb.base}"),
    }[when])


def number(draw: Choices, label: int) -> Columns:
    """Whether the subject is one or many: the verb, in the past, does not say so, and other nouns may differ."""
    noun = draw.one(lexicon.PEOPLE)
    subject = f"the {draw.one(lexicon.SIZES)} {plural(noun)}" if label else f"the {draw.one(lexicon.SIZES)} {noun}"
    places = [plural(place) if draw.chance(0.5) else place for place in draw.some(lexicon.PLACES, 2)]
    before, after = (f"{draw.one(lexicon.NEAR)} the {place}" for place in places)
    verb = draw.one(lexicon.INTRANSITIVE).past
    words = draw.one((f"{before} {subject} {verb}", f"{subject} {before} {verb}", f"{before} {subject} {verb} {after}"))
    return {"sentence": sentence(words)}
