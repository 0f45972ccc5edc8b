"""The words of the drawn text tasks: nouns by kind, verbs with their forms, adjectives by what they say."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """Forms of a verb, in the order that dictionaries have: sing, sings, sang, sung, singing."""

    base: str
    third: str
    past: str
    participle: str
    progressive: str


def _verbs(text: str) -> tuple[Verb, ...]:
    return tuple(Verb(*line.split()) for line in text.strip().splitlines())


TRANSITIVE = _verbs("""
help helps helped helped helping
praise praises praised praised praising
follow follows followed followed following
call calls called called calling
watch watches watched watched watching
thank thanks thanked thanked thanking
find finds found found finding
teach teaches taught taught teaching
see sees saw seen seeing
choose chooses chose chosen choosing
catch catches caught caught catching
know knows knew known knowing
""")
INTRANSITIVE = _verbs("""
sing sings sang sung singing
sleep sleeps slept slept sleeping
run runs ran run running
swim swims swam swum swimming
speak speaks spoke spoken speaking
write writes wrote written writing
work works worked worked working
laugh laughs laughed laughed laughing
wait waits waited waited waiting
travel travels travelled travelled travelling
dance dances danced danced dancing
rest rests rested rested resting
""")
TRADING = _verbs("""
buy buys bought bought buying
sell sells sold sold selling
take takes took taken taking
bring brings brought brought bringing
lose loses lost lost losing
paint paints painted painted painting
repair repairs repaired repaired repairing
hide hides hid hidden hiding
""")
"""What people do with things."""

PEOPLE = (
    "baker", "farmer", "doctor", "teacher", "singer", "pilot", "lawyer", "painter", "driver", "student", "king", "soldier",
    "writer", "poet", "sailor", "judge",
)
THINGS = ("car", "lamp", "chair", "clock", "ring", "boat", "mirror", "table", "basket", "piano", "map", "coat")
PLACES = ("market", "harbour", "station", "school", "garden", "castle", "bridge", "river", "village", "library")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SIZES = ("small", "tall", "old", "young", "quiet", "clever", "poor", "famous")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
REASONS = ("cheap", "heavy", "broken", "useful", "rare", "pretty")
NEAR = ("near", "behind", "beside", "above")

KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "animal": {
        "dog": ("poodle", "beagle", "terrier", "spaniel"), "bird": ("robin", "sparrow", "eagle", "owl"),
        "fish": ("trout", "salmon", "carp", "pike"),
    },
    "plant": {
        "flower": ("rose", "tulip", "lily", "daisy"), "tree": ("oak", "pine", "birch", "maple"),
        "herb": ("basil", "thyme", "parsley", "sage"),
    },
}
"""Which words are more general than which."""

TOPICS: dict[str, tuple[str, ...]] = {
    "sports": ("match", "goal", "referee", "stadium", "coach", "league", "medal", "racket", "tournament", "penalty"),
    "food": ("soup", "bread", "cheese", "recipe", "kitchen", "sauce", "dinner", "pepper", "oven", "dessert"),
    "music": ("song", "violin", "concert", "melody", "choir", "guitar", "rhythm", "album", "orchestra", "trumpet"),
    "travel": ("flight", "hotel", "passport", "beach", "luggage", "airport", "ticket", "island", "tour", "suitcase"),
}

JUDGED = ("film", "story", "acting", "music", "meal", "service", "room", "book", "ending", "show", "hotel", "play")
GOOD = (
    "wonderful", "great", "lovely", "brilliant", "charming", "delightful", "excellent", "pleasant", "superb", "funny", "moving",
    "fresh",
)
BAD = (
    "dreadful", "dull", "boring", "awful", "terrible", "poor", "weak", "unpleasant", "horrible", "tedious", "clumsy", "stale",
)
DEGREES = ("very", "really", "quite", "rather", "truly")

SYNONYMS: dict[str, str] = {
    "small": "little", "clever": "smart", "quiet": "silent", "famous": "renowned", "old": "elderly", "young": "youthful",
    "help": "assist", "praise": "commend", "follow": "pursue", "watch": "observe", "call": "phone", "choose": "select",
}
"""Words that mean the same; those of verbs are regular."""


def synonym(verb: Verb) -> Verb | None:
    """Return the verb that means the same, where there is one."""
    other = SYNONYMS.get(verb.base)
    if other is None:
        return None
    stem = other.removesuffix("e")
    return Verb(other, f"{other}s", f"{stem}ed", f"{stem}ed", f"{stem}ing")


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    if noun in ("fish", "trout", "salmon", "carp", "pike"):
        return noun
    if noun.endswith(("ch", "x", "s")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def article(words: str) -> str:
    """Return words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentence(words: str, end: str = ".") -> str:
    """Return words as a sentence: a capital at the beginning, a mark at the end."""
    return f"{words[0].upper()}{words[1:]}{end}"
