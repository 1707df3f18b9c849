"""The grammar of the generated language: seeded choice, noun phrases, clauses and their renderings."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

from suites.generated import lexicon
from suites.generated.lexicon import Adjective, Noun, Verb

T = TypeVar("T")
NAME_NOUNS = {p: tuple(Noun(n, "person", "any", ((n, n),)) for n in names) for p, names in lexicon.NAMES.items()}
ALL_NAMES = NAME_NOUNS["he"] + NAME_NOUNS["she"]


class Dice:
    """Seeded choices that are the same on every machine and Python version.

    Only `random.Random.random` is used, the one method whose sequence Python promises to keep for a seed.
    """

    def __init__(self, *key: object) -> None:
        text = "/".join(str(part) for part in key)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        self.uniform = random.Random(seed).random

    def below(self, bound: int) -> int:
        """An integer in [0, bound)."""
        return int(self.uniform() * bound)

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`."""
        return choices[int(self.uniform() * len(choices))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def other(self, choices: Sequence[T], than: T) -> T:
        """One of `choices` that is not `than`; there must be one."""
        left = [choice for choice in choices if choice != than]
        assert left, f"no choice but {than!r}"
        return self.pick(left)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order (Fisher-Yates)."""
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            swap = self.below(last + 1)
            out[last], out[swap] = out[swap], out[last]
        return out


@dataclasses.dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase; `determiner` is empty for a name."""

    noun: Noun
    determiner: str
    plural: bool
    adjective: Adjective | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Clause:
    """What a sentence says, apart from the words chosen for it."""

    subject: Phrase
    verb: Verb
    object: Phrase | None = None
    place: tuple[str, str] | None = None
    adverb: str | None = None
    negated: bool = False


def phrase(dice: Dice, genre: str, kinds: Sequence[str], determiners: str = "any", modified: float = 0.4) -> Phrase:
    """A random noun phrase of one of the kinds.

    Determiners: "any", "definite" (`the`, or a name) or "bare" (`the`, `a` or a number, no name).
    """
    kind = dice.pick(kinds)
    if kind == "person" and determiners != "bare" and dice.chance(0.25):
        return Phrase(dice.pick(ALL_NAMES), "", False)
    plural = dice.chance(0.4)
    if determiners == "definite":
        determiner = "the"
    elif determiners == "bare":
        determiner = dice.pick(("the", "two", "three", "four") if plural else ("the", "the", "a"))
    else:
        determiner = dice.pick(lexicon.PLURAL_DETERMINERS if plural else lexicon.SINGULAR_DETERMINERS)
    adjective = dice.pick(lexicon.ADJECTIVES_OF[kind]) if dice.chance(modified) else None
    return Phrase(dice.pick(lexicon.NOUNS_OF[genre, kind]), determiner, plural, adjective)


def clause(
    dice: Dice, genre: str, determiners: str = "any", modified: float = 0.4, placed: float = 0.4, negated: float = 0.15
) -> Clause:
    """A random clause; the probabilities are those of an adjective per phrase, a place, and a negation."""
    verb = dice.pick(lexicon.TRANSITIVE) if dice.chance(0.75) else dice.pick(lexicon.INTRANSITIVE)
    subject = phrase(dice, genre, lexicon.ANIMATE, determiners, modified)
    patient = None
    if verb.objects:
        patient = phrase(dice, genre, verb.objects, determiners, modified)
        while patient.noun == subject.noun:
            patient = phrase(dice, genre, verb.objects, determiners, modified)
    place = (dice.pick(lexicon.PREPOSITIONS), dice.pick(lexicon.PLACES[genre])) if dice.chance(placed) else None
    adverb = dice.pick(lexicon.ADVERBS) if dice.chance(0.2) else None
    return Clause(subject, verb, patient, place, adverb, dice.chance(negated))


def word(forms: Sequence[T], dice: Dice) -> T:
    """One of the forms of a concept; the first is the common one."""
    return forms[0] if len(forms) == 1 or dice.chance(0.7) else forms[1]


def say_phrase(item: Phrase, dice: Dice) -> list[str]:
    """The words of a noun phrase, with synonyms at random."""
    words = [item.determiner] if item.determiner else []
    if item.adjective is not None:
        words.append(word(item.adjective.forms, dice))
    words.append(word(item.noun.forms, dice)[1 if item.plural else 0])
    return words


def _tail(item: Clause, dice: Dice) -> list[str]:
    words = [item.place[0], "the", word(item.place[1].split(), dice)] if item.place else []
    return words + [item.adverb] if item.adverb else words


def say_predicate(item: Clause, dice: Dice) -> list[str]:
    """Verb, object, place and adverb in the active voice."""
    form = word(item.verb.forms, dice)
    plural = item.subject.plural
    if item.negated:
        verb = ["do" if plural else "does", "not", form[0]]
    else:
        verb = [form[0] if plural else form[1]]
    patient = say_phrase(item.object, dice) if item.object else []
    return verb + patient + _tail(item, dice)


def say(item: Clause, dice: Dice, passive: bool = False, fronted: bool = False) -> list[str]:
    """The words of a clause with synonyms at random; `fronted` puts its place first."""
    if fronted and item.place is not None:
        rest = dataclasses.replace(item, place=None)
        return [item.place[0], "the", word(item.place[1].split(), dice), ",", *say(rest, dice, passive)]
    if passive and item.object is not None:
        be = ["are" if item.object.plural else "is"] + (["not"] if item.negated else [])
        agent = ["by", *say_phrase(item.subject, dice)]
        return [*say_phrase(item.object, dice), *be, word(item.verb.forms, dice)[2], *agent, *_tail(item, dice)]
    return say_phrase(item.subject, dice) + say_predicate(item, dice)


def ask(item: Clause, slot: str, dice: Dice) -> list[str]:
    """A question about one slot of a clause: "subject", "object", "place" or "whether"."""
    bare = dataclasses.replace(item, negated=False, adverb=None)
    if slot == "subject":
        who = ["who"] if item.subject.noun.kind == "person" else ["which", "animal"]
        single = dataclasses.replace(bare, subject=dataclasses.replace(item.subject, plural=False))
        return [*who, *say_predicate(single, dice), "?"]
    auxiliary = "do" if item.subject.plural else "does"
    subject, base = say_phrase(item.subject, dice), word(item.verb.forms, dice)[0]
    patient = say_phrase(item.object, dice) if item.object else []
    if slot == "object":
        assert item.object is not None
        what = ["who"] if item.object.noun.kind == "person" else ["what"]
        return [*what, auxiliary, *subject, base, *_tail(bare, dice), "?"]
    if slot == "place":
        return ["where", auxiliary, *subject, base, *patient, "?"]
    assert slot == "whether", slot
    return [auxiliary, *subject, base, *patient, *_tail(bare, dice), "?"]


def text(words: Sequence[str], end: str = "") -> str:
    """Words joined to a sentence, with `a` before a vowel turned into `an`."""
    out = list(words) + ([end] if end else [])
    for index in range(len(out) - 1):
        if out[index] == "a" and out[index + 1][0] in "aeiou":
            out[index] = "an"
    return " ".join(out)
