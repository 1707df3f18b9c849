"""How two sentences relate: paraphrase, near miss, graded similarity, entailment, answer."""

from __future__ import annotations

import dataclasses

from suites.generated import lexicon
from suites.generated.language import ALL_NAMES, Clause, Dice, Phrase, clause, phrase
from suites.generated.lexicon import Noun, Verb

replace = dataclasses.replace
ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2


def sibling(noun: Noun, genre: str, dice: Dice, avoid: Noun | None = None) -> Noun:
    """Another noun of the same kind and genre (a name for a name)."""
    pool = ALL_NAMES if noun in ALL_NAMES else lexicon.NOUNS_OF[genre, noun.kind]
    return dice.pick([other for other in pool if other not in (noun, avoid)])


def other_verb(verb: Verb, dice: Dice) -> Verb:
    """Another verb, neither opposite nor parent nor child, that takes the same objects."""
    pool = lexicon.TRANSITIVE if verb.objects else lexicon.INTRANSITIVE
    near = {verb.key, verb.opposite, verb.parent}
    fits = [v for v in pool if set(verb.objects) <= set(v.objects) and v.key not in near and v.parent != verb.key]
    return dice.pick(fits)


def opposite(verb: Verb, dice: Dice) -> Verb:
    """The opposite of a verb; for a kind of motion or rest, a kind of the opposite."""
    if verb.opposite is not None:
        return lexicon.VERBS[verb.opposite]
    assert verb.parent is not None
    return dice.pick(lexicon.CHILDREN["rest" if verb.parent == "move" else "move"])


def other_phrase(item: Phrase, genre: str, dice: Dice, avoid: Phrase | None = None) -> Phrase:
    """The phrase about another noun of its kind, the adjective kept."""
    return replace(item, noun=sibling(item.noun, genre, dice, avoid.noun if avoid else None))


def other_adjective(item: Phrase, dice: Dice) -> Phrase:
    """The phrase with the opposite adjective, or another colour."""
    assert item.adjective is not None
    if item.adjective.opposite is not None:
        return replace(item, adjective=lexicon.ADJECTIVES[item.adjective.opposite])
    return replace(item, adjective=lexicon.ADJECTIVES[dice.other(lexicon.COLOURS, item.adjective.key)])


def other_place(item: Clause, genre: str, dice: Dice) -> Clause:
    """The clause at another place."""
    assert item.place is not None
    return replace(item, place=(item.place[0], dice.other(lexicon.PLACES[genre], item.place[1])))


def can_swap(item: Clause) -> bool:
    """Whether subject and object may change places without breaking what the verb takes."""
    return (
        item.object is not None
        and item.object.noun.kind in lexicon.ANIMATE
        and item.subject.noun.kind in item.verb.objects
    )


def near_miss(item: Clause, genre: str, dice: Dice) -> Clause:
    """The clause with one part changed, so that it says something else with nearly the same words."""
    ways = ["verb", "opposite", "subject"]
    if can_swap(item):
        ways += ["swap", "swap", "swap"]
    if item.object is not None:
        ways.append("object")
    if item.place is not None:
        ways.append("place")
    if item.subject.adjective is not None:
        ways.append("adjective")
    way = dice.pick(ways)
    if way == "swap":
        assert item.object is not None
        return replace(item, subject=item.object, object=item.subject)
    if way == "verb":
        return replace(item, verb=other_verb(item.verb, dice))
    if way == "opposite":
        return replace(item, verb=opposite(item.verb, dice))
    if way == "object":
        assert item.object is not None
        return replace(item, object=other_phrase(item.object, genre, dice, item.subject))
    if way == "place":
        return other_place(item, genre, dice)
    if way == "adjective":
        return replace(item, subject=other_adjective(item.subject, dice))
    return replace(item, subject=other_phrase(item.subject, genre, dice, item.object))


def graded(item: Clause, genre: str, changes: int, dice: Dice) -> tuple[Clause, float]:
    """The clause with up to `changes` parts altered, and what those changes take off a similarity of 5."""
    out, lost = item, 0.0
    for part in dice.shuffled(("verb", "subject", "object", "place", "adjective"))[:changes]:
        if part == "verb":
            far = dice.chance(0.5)
            out = replace(out, verb=other_verb(item.verb, dice) if far else opposite(item.verb, dice))
            lost += 1.5 if far else 1.0
        elif part == "subject":
            out, lost = replace(out, subject=other_phrase(out.subject, genre, dice, out.object)), lost + 1.5
        elif part == "object" and out.object is not None:
            out, lost = replace(out, object=other_phrase(out.object, genre, dice, out.subject)), lost + 1.5
        elif part == "place" and out.place is not None:
            out, lost = other_place(out, genre, dice), lost + 1.0
        elif part == "adjective" and out.subject.adjective is not None:
            out, lost = replace(out, subject=other_adjective(out.subject, dice)), lost + 0.5
    return out, lost


def _up(item: Phrase) -> Phrase:
    """A phrase that follows from this one in an affirmative clause: any member of its kind."""
    kind = lexicon.HYPERNYMS[item.noun.kind]
    if item.plural:
        return Phrase(kind, item.determiner if item.determiner in lexicon.NUMBERS else "some", True)
    return Phrase(kind, "a", False)


def _general(item: Clause, dice: Dice, predicate_only: bool = False) -> Clause:
    """A clause that an affirmative `item` entails; `predicate_only` leaves the subject as it is."""
    ways = [] if predicate_only else ["subject"]
    if item.subject.adjective is not None and not predicate_only:
        ways += ["adjective", "adjective"]
    if item.place is not None:
        ways += ["place", "place"]
    if item.verb.parent is not None:
        ways += ["verb", "verb"]
    if item.object is not None:
        ways.append("object")
    way = dice.pick(ways)
    if way == "adjective":
        return replace(item, subject=replace(item.subject, adjective=None))
    if way == "place":
        return replace(item, place=None)
    if way == "verb":
        assert item.verb.parent is not None
        return replace(item, verb=lexicon.VERBS[item.verb.parent])
    if way == "object":
        assert item.object is not None
        return replace(item, object=_up(item.object))
    return replace(item, subject=_up(item.subject))


def _contrary(item: Clause, dice: Dice) -> Clause:
    """A clause that cannot hold together with `item`."""
    if dice.chance(0.3):
        return replace(item, negated=not item.negated)
    if item.subject.adjective is None and dice.chance(0.25) and item.subject.determiner:
        quantified = replace(item.subject, determiner="no", plural=False)
        return replace(item, subject=quantified)
    return replace(item, verb=opposite(item.verb, dice))


def _unsettled(item: Clause, genre: str, dice: Dice) -> Clause:
    """A clause about which an affirmative `item` says nothing."""
    ways = ["noun"]
    if item.place is not None:
        ways.append("place")
    if can_swap(item):
        ways.append("swap")
    if item.object is not None:
        ways.append("object")
    way = dice.pick(ways)
    if way == "place":
        return other_place(item, genre, dice)
    if way == "swap":
        assert item.object is not None
        return replace(item, subject=item.object, object=item.subject)
    if way == "object":
        assert item.object is not None
        return replace(item, object=other_phrase(item.object, genre, dice, item.subject))
    return replace(item, subject=other_phrase(item.subject, genre, dice, item.object))


def _quantified(label: int, genre: str, dice: Dice) -> tuple[Clause, Clause]:
    """A pair whose label follows from `every` or `no` and the direction of the hypernym."""
    specific = phrase(dice, genre, lexicon.ANIMATE, "bare", 0.0)
    base = clause(dice, genre, "bare", 0.2, 0.3, 0.0)
    while base.object is not None and base.object.noun == specific.noun:
        base = clause(dice, genre, "bare", 0.2, 0.3, 0.0)
    kind = lexicon.HYPERNYMS[specific.noun.kind]
    universal = dice.pick(("every", "no"))
    wide, narrow = Phrase(kind, universal, False), Phrase(specific.noun, universal, False)
    if label == ENTAILMENT:
        return replace(base, subject=wide), replace(base, subject=narrow)
    if label == NEUTRAL:
        return replace(base, subject=narrow), replace(base, subject=wide)
    witness = Phrase(specific.noun, dice.pick(("some", "two", "three", "the")), True)
    premise = wide if dice.chance(0.5) else narrow
    return replace(base, subject=premise), replace(base, subject=witness, negated=universal == "every")


def entailment(label: int, genre: str, dice: Dice) -> tuple[Clause, Clause]:
    """A premise and a hypothesis with this label (0 entailment, 1 neutral, 2 contradiction)."""
    if dice.chance(0.25):
        return _quantified(label, genre, dice)
    denied = dice.chance(0.2)
    premise = clause(dice, genre, "bare", 0.5, 1.0 if denied else 0.5, 0.0)
    if denied:
        # under negation the direction turns round: a general clause denied denies its special cases
        general = replace(_general(premise, dice, predicate_only=True), negated=True)
        special = replace(premise, negated=True)
        if label == CONTRADICTION:
            return special, replace(special, negated=False)
        return (general, special) if label == ENTAILMENT else (special, general)
    if label == ENTAILMENT:
        hypothesis = _general(premise, dice)
        return premise, _general(hypothesis, dice) if dice.chance(0.3) else hypothesis
    if label == NEUTRAL:
        if dice.chance(0.4):
            return _general(premise, dice), premise
        hypothesis = _unsettled(premise, genre, dice)
    else:
        hypothesis = _contrary(premise, dice)
    if hypothesis.place is not None and hypothesis.place == premise.place and dice.chance(0.5):
        hypothesis = replace(hypothesis, place=None)
    return premise, hypothesis
