"""Single sentences with a property: acceptable or not, liked or not, and a pronoun with what it stands for."""

from __future__ import annotations

import dataclasses

from suites.generated import lexicon
from suites.generated.language import (
    NAME_NOUNS,
    Clause,
    Dice,
    Phrase,
    clause,
    phrase,
    say,
    say_phrase,
    say_predicate,
    text,
)

replace = dataclasses.replace
_NUMBERED = {
    False: ("this", "that", "a", "every"),
    True: ("these", "those", "two", "three", "four", "all"),
}


def _attracted(item: Clause, genre: str, dice: Dice) -> list[str]:
    """Words between subject and verb that hold a noun of the other number: `near the dogs`, `that sees the dogs`."""
    between = phrase(dice, genre, lexicon.KINDS, "bare", 0.2)
    between = Phrase(between.noun, "the", not item.subject.plural, between.adjective)
    if dice.chance(0.5):
        return [dice.pick(lexicon.PREPOSITIONS[:2]), *say_phrase(between, dice)]
    verb = lexicon.VERBS[dice.pick(("see", "love", "hate", "ignore"))]
    form = dice.pick(verb.forms)
    return ["that", form[0] if item.subject.plural else form[1], *say_phrase(between, dice)]


def _reflexive(genre: str, right: bool, dice: Dice) -> str:
    """`mary helps herself`, or with a reflexive of another person or number."""
    verb = lexicon.VERBS[dice.pick(("help", "praise", "see", "love", "hate", "blame"))]
    person = dice.pick(("he", "she", "they"))
    if person == "they":
        subject = Phrase(dice.pick(lexicon.NOUNS_OF[genre, "person"]), dice.pick(("the", "two", "these")), True)
    else:
        subject = Phrase(dice.pick(NAME_NOUNS[person]), "", False)
    shown = person if right else dice.other(("he", "she", "they"), person)
    place = (dice.pick(lexicon.PREPOSITIONS), dice.pick(lexicon.PLACES[genre])) if dice.chance(0.5) else None
    words = say_phrase(subject, dice)
    predicate = say_predicate(Clause(subject, verb, None, place, None, dice.chance(0.3)), dice)
    cut = 3 if predicate[0] in ("do", "does") else 1
    return text([*words, *predicate[:cut], lexicon.REFLEXIVES[shown], *predicate[cut:]], ".")


def _wrong_determiner(item: Phrase, dice: Dice) -> list[str]:
    return [dice.pick(_NUMBERED[not item.plural]), *say_phrase(replace(item, determiner=""), dice)]


def _swap_neighbours(words: list[str], dice: Dice) -> list[str]:
    """The words with one determiner moved behind its noun, or one word moved to the front of the verb phrase."""
    places = [i for i, word in enumerate(words[:-1]) if word in ("the", "a", "these", "those", "this", "two", "three")]
    at = dice.pick(places) if places else 0
    return words[:at] + [words[at + 1], words[at]] + words[at + 2 :]


def _drop_needed(words: list[str], verb: list[str], dice: Dice) -> list[str]:
    """The words without their verb, or with one determiner said twice."""
    if dice.chance(0.5):
        return [word for word in words if word not in verb]
    places = [i for i, word in enumerate(words) if word in ("the", "a", "these", "those", "two", "every")]
    at = dice.pick(places) if places else 0
    return words[:at] + [words[at]] + words[at:]


def acceptability(right: bool, genre: str, dice: Dice) -> str:
    """A sentence that keeps the grammar, or breaks it in one place.

    The breaks: verb or auxiliary agreement (often across a noun of the other number), determiner and number, verb form
    after `not`, word order, a missing verb or doubled determiner, a reflexive of the wrong person.
    """
    if dice.chance(0.15):
        return _reflexive(genre, right, dice)
    item = clause(dice, genre, modified=0.3, placed=0.3, negated=0.25)
    subject = say_phrase(item.subject, dice)
    between = _attracted(item, genre, dice) if item.subject.determiner and dice.chance(0.5) else []
    if right:
        return text([*subject, *between, *say_predicate(item, dice)], ".")
    way = dice.pick(("agreement", "agreement", "agreement", "determiner", "form", "order", "missing"))
    if way == "determiner" and item.subject.determiner:
        subject = _wrong_determiner(item.subject, dice)
        return text([*subject, *between, *say_predicate(item, dice)], ".")
    if way == "form":
        negated = replace(item, negated=True)
        words = say_predicate(negated, dice)
        form = next(forms for forms in item.verb.forms if forms[0] == words[2])
        return text([*subject, *between, *words[:2], form[1], *words[3:]], ".")
    if way == "order":
        return text(_swap_neighbours([*subject, *between, *say_predicate(item, dice)], dice), ".")
    if way == "missing":
        verb = [word for forms in item.verb.forms for word in forms]
        return text([*subject, *between, *_drop_needed(say_predicate(item, dice), verb, dice)], ".")
    wrong = replace(item, subject=replace(item.subject, plural=not item.subject.plural))
    return text([*subject, *between, *say_predicate(wrong, dice)], ".")


def _opinion(liked: bool, dice: Dice) -> list[str]:
    """One clause of a review; about three in ten say it by negating or outweighing a word of the other polarity."""
    words = ["the", dice.pick(lexicon.REVIEWED), dice.pick(("is", "is", "seems", "looks"))]
    good, bad = (lexicon.POSITIVE, lexicon.NEGATIVE) if liked else (lexicon.NEGATIVE, lexicon.POSITIVE)
    if dice.chance(0.2):
        words[2] = "is"
        degree = [dice.pick(lexicon.INTENSIFIERS)] if dice.chance(0.3) else []
        return [*words, dice.pick(("not", "never", "hardly")), *degree, dice.pick(bad)]
    if dice.chance(0.1):
        return [*words, "more", dice.pick(good), "than", dice.pick(bad)]
    degree = [dice.pick(lexicon.INTENSIFIERS)] if dice.chance(0.5) else []
    return [*words, *degree, dice.pick(good)]


def review(liked: bool, dice: Dice) -> str:
    """A review whose main clause (the last after `but`, the one without `although`) carries the opinion."""
    main, way = _opinion(liked, dice), dice.uniform()
    if way < 0.35:
        return text(main, ".")
    side = _opinion(liked if way < 0.6 or dice.chance(0.25) else not liked, dice)
    if way < 0.6:
        return text([*main, "and", *side], ".")
    if way < 0.75:
        return text([*side, "but", *main], ".")
    if way < 0.9:
        return text(["although", *side, ",", *main], ".")
    return text([*main, "although", *side], ".")


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """A sentence with a pronoun, what is said of it, the candidate it stands for, and the other candidate."""

    sentence: str
    said: tuple[str, ...]
    referent: tuple[str, ...]
    other: tuple[str, ...]


def _fitting(dice: Dice) -> Reference:
    held, holder = ("the", dice.pick(lexicon.CONTAINED)), ("the", dice.pick(lexicon.CONTAINERS))
    big = dice.chance(0.5)
    said = ("is", "too", dice.pick(lexicon.TOO_BIG if big else lexicon.TOO_SMALL))
    sentence = text([*held, "does", "not", "fit", "into", *holder, "because", "it", *said], ".")
    return Reference(sentence, said, held if big else holder, holder if big else held)


def reference(genre: str, dice: Dice) -> Reference:
    """A sentence whose pronoun is settled by verb and trait, by what fits into what, or by gender."""
    if dice.chance(0.3):
        return _fitting(dice)
    key, of_subject, of_object = dice.pick(lexicon.TRAITS)
    pronoun = dice.pick(("he", "she"))
    about_subject = dice.chance(0.5)
    said = (
        "is",
        *((dice.pick(lexicon.INTENSIFIERS),) if dice.chance(0.3) else ()),
        dice.pick(of_subject if about_subject else of_object),
    )
    referent = dice.pick(lexicon.NAMES[pronoun])
    other = dice.other(lexicon.NAMES[pronoun if dice.chance(0.5) else ("she" if pronoun == "he" else "he")], referent)
    first, second = (referent, other) if about_subject else (other, referent)
    verb = dice.pick(lexicon.VERBS[key].forms)[1]
    place = [dice.pick(lexicon.PREPOSITIONS), "the", dice.pick(dice.pick(lexicon.PLACES[genre]).split())]
    words = [first, verb, second, *(place if dice.chance(0.3) else []), "because", pronoun, *said]
    return Reference(text(words, "."), said, (referent,), (other,))


def resolved(item: Reference, right: bool) -> str:
    """What the pronoun's clause says with a candidate put in: the referent, or the other."""
    return text([*(item.referent if right else item.other), *item.said], ".")


def plain(genre: str, dice: Dice) -> str:
    """An ordinary sentence in a random voice and order."""
    item = clause(dice, genre)
    bare = item.subject.determiner not in ("no", "every", "all")
    return text(say(item, dice, bare and dice.chance(0.2), bare and dice.chance(0.2)), ".")
