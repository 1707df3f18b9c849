"""Sentence pairs with a label, as texts: paraphrase, question match, graded similarity, entailment, answer."""

from __future__ import annotations

import dataclasses

from suites.generated import lexicon
from suites.generated.language import Clause, Dice, ask, clause, say, text
from suites.generated.relations import can_swap, entailment, graded, near_miss, opposite, other_phrase, other_verb

replace = dataclasses.replace


def _spoken(item: Clause, dice: Dice) -> str:
    return text(say(item, dice, dice.chance(0.12), dice.chance(0.12)), ".")


def paraphrase(same: bool, genre: str, dice: Dice) -> tuple[str, str]:
    """Two sentences that say the same in other words (synonyms, voice, order), or differ in one or two parts."""
    item = clause(dice, genre, "definite", 0.3, 0.5, 0.1)
    second = item
    for _ in range(0 if same else 1 + dice.below(2)):
        # a second change may undo the first: then the first alone stands
        changed = near_miss(second, genre, dice)
        second = changed if changed != item else second
    return _spoken(item, dice), _spoken(second, dice)


def _slots(item: Clause) -> list[str]:
    slots = ["whether"]
    if item.subject.noun.kind in lexicon.ANIMATE and item.subject.determiner:
        slots.append("subject")
    if item.object is not None:
        slots += ["object", "whether"]
    if item.place is not None:
        slots.append("place")
    return slots


def questions(same: bool, genre: str, dice: Dice) -> tuple[str, str]:
    """Two questions that ask the same in other words, or ask something else with nearly the same words."""
    item = clause(dice, genre, "definite", 0.3, 0.5, 0.0)
    slot = dice.pick(_slots(item))
    first = text(ask(item, slot, dice))
    if same:
        return first, text(ask(item, slot, dice))
    others = sorted({*_slots(item)} - {slot})
    if others and dice.chance(0.35):
        return first, text(ask(item, dice.pick(others), dice))
    if slot == "subject":
        second = replace(item, verb=opposite(item.verb, dice) if dice.chance(0.4) else other_verb(item.verb, dice))
        if item.object is not None and dice.chance(0.5):
            second = replace(item, object=other_phrase(item.object, genre, dice, item.subject))
    elif slot == "whether" and can_swap(item) and dice.chance(0.5):
        assert item.object is not None
        second = replace(item, subject=item.object, object=item.subject)
    elif dice.chance(0.5):
        second = replace(item, subject=other_phrase(item.subject, genre, dice, item.object))
    else:
        second = replace(item, verb=opposite(item.verb, dice) if dice.chance(0.5) else other_verb(item.verb, dice))
    return first, text(ask(second, slot, dice))


def similarity(genre: str, dice: Dice) -> tuple[str, str, float]:
    """Two sentences that differ in up to five parts, and a similarity in [0, 5] by 0.2, with a rater's spread."""
    item = clause(dice, genre, "definite", 0.5, 0.6, 0.0)
    second, lost = graded(item, genre, dice.below(6), dice)
    spread = sum(dice.uniform() for _ in range(4)) - 2.0
    score = round(min(5.0, max(0.0, 5.0 - lost + spread * 0.8)) * 5) / 5
    return _spoken(item, dice), _spoken(second, dice), score


def inference(label: int, genre: str, dice: Dice) -> tuple[str, str]:
    """Premise and hypothesis; 0 entailment, 1 neutral, 2 contradiction."""
    premise, hypothesis = entailment(label, genre, dice)
    return text(say(premise, dice), "."), text(say(hypothesis, dice), ".")


def recognition(entailed: bool, genre: str, dice: Dice) -> tuple[str, str]:
    """A longer text and a sentence that follows from it or does not (neutral and contradiction alike)."""
    premise, hypothesis = entailment(0 if entailed else 1 + dice.below(2), genre, dice)
    extra = replace(clause(dice, genre, "bare", 0.2, 0.3, 0.1), adverb=None)
    first, second = (premise, extra) if dice.chance(0.5) else (extra, premise)
    return text([*say(first, dice), "and", *say(second, dice)], "."), text(say(hypothesis, dice), ".")


def answering(answered: bool, genre: str, dice: Dice) -> tuple[str, str]:
    """A question and a sentence that answers it, or lacks the answer while it shares most of the words."""
    item = clause(dice, genre, "definite", 0.3, 0.9, 0.0)
    slot = dice.pick([s for s in _slots(item) if s != "whether"] or ["place"])
    if slot == "place" and item.place is None:
        item = replace(item, place=(dice.pick(lexicon.PREPOSITIONS), dice.pick(lexicon.PLACES[genre])))
    # a question about another slot shows the place: leave it out half of the time, so that it is not a sign of its own
    asked = item if slot == "place" or dice.chance(0.5) else replace(item, place=None)
    question = text(ask(asked, slot, dice))
    if answered:
        return question, _spoken(item, dice)
    miss = _unanswered(item, slot, genre, dice)
    if dice.chance(0.4):
        # the sentence is about something else altogether
        verb = other_verb(miss.verb, dice)
        if slot == "subject" and miss.object is not None:
            miss = replace(miss, verb=verb, object=other_phrase(miss.object, genre, dice, miss.subject))
        else:
            miss = replace(miss, verb=verb, subject=other_phrase(miss.subject, genre, dice, miss.object))
    return question, _spoken(miss, dice)


def _unanswered(item: Clause, slot: str, genre: str, dice: Dice) -> Clause:
    way = dice.uniform()
    if slot == "place" and way < 0.4:
        return replace(item, place=None, adverb=dice.pick(lexicon.ADVERBS))
    if slot == "subject" and way < 0.25:
        # `who` answered by an animal, or `which animal` by a person
        kind = "animal" if item.subject.noun.kind == "person" else "person"
        return replace(
            item, subject=replace(item.subject, noun=dice.pick(lexicon.NOUNS_OF[genre, kind]), adjective=None)
        )
    if way < 0.55 and can_swap(item):
        assert item.object is not None
        return replace(item, subject=item.object, object=item.subject)
    if way < 0.8 or (slot == "subject" and item.object is None):
        return replace(item, verb=opposite(item.verb, dice) if dice.chance(0.5) else other_verb(item.verb, dice))
    if slot == "subject":
        assert item.object is not None
        return replace(item, object=other_phrase(item.object, genre, dice, item.subject))
    return replace(item, subject=other_phrase(item.subject, genre, dice, item.object))
