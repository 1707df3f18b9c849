"""Word problems of the generated language: counting stories, questions about them, and answers worked out in steps.

Every number is one word, so that a small decoder can learn to add. A question's answer ends in `#### N`, as GSM8K's do;
a question with choices has one right one. All of it is a pure function of split and index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from suites.generated.language import Dice

LARGEST = 30
SPECIAL = ("<pad>", "</s>", "<unk>")
PAD, END, UNK = range(3)
NAMES = ("tom", "mia", "ben", "eva", "sam", "lea", "jan", "ida", "max", "zoe")
THINGS = ("apples", "coins", "books", "shells", "stamps", "cards", "pears", "stones")
GAINS = ("finds", "gets", "buys", "wins")
LOSSES = ("loses", "sells", "eats", "gives")
ROWS = {"train": 2000, "validation": 400}


class Problem(NamedTuple):
    """A question with the text of its answer; `choices` and `label` where there is something to choose from."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    label: int = 0


class Story(NamedTuple):
    """Somebody's things, and how they change."""

    name: str
    thing: str
    start: int
    changes: tuple[int, ...]

    @property
    def end(self) -> int:
        """What is left."""
        return self.start + sum(self.changes)

    def text(self, dice: Dice) -> str:
        """Return the story in words."""
        parts = [f"{self.name} has {self.start} {self.thing} ."]
        for change in self.changes:
            verb = dice.pick(GAINS if change > 0 else LOSSES)
            parts.append(f"{self.name} {verb} {abs(change)} {'more' if change > 0 else 'of them'} .")
        return " ".join(parts)

    def working(self) -> str:
        """Return the sums, one after the other."""
        parts, held = [], self.start
        for change in self.changes:
            sign = "+" if change > 0 else "-"
            parts.append(f"{held} {sign} {abs(change)} = {held + change}")
            held += change
        return " ; ".join(parts)


def story(dice: Dice, steps: int) -> Story:
    """Return a story of so many changes, no number of it below 0 or above `LARGEST`."""
    start = held = dice.below(LARGEST + 1)
    changes: list[int] = []
    for _ in range(steps):
        up = held == 0 or (held < LARGEST and dice.chance(0.5))
        change = 1 + dice.below(LARGEST - held) if up else -1 - dice.below(held)
        changes.append(change)
        held += change
    return Story(dice.pick(NAMES), dice.pick(THINGS), start, tuple(changes))


def answered(dice: Dice) -> Problem:
    """Return a problem of one or two sums with the working and the number."""
    told = story(dice, 1 + dice.below(2))
    question = f"{told.text(dice)} how many {told.thing} does {told.name} have now ?"
    return Problem(question, f"{told.working()} #### {told.end}")


def chosen(dice: Dice) -> Problem:
    """Return two people's things and who has more of them, or a story and what is left, with its choices."""
    if dice.chance(0.5):
        thing, (one, other) = dice.pick(THINGS), dice.shuffled(NAMES)[:2]
        few = dice.below(LARGEST)
        many = few + 1 + dice.below(LARGEST - few)
        counts = dice.shuffled((few, many))
        question = f"{one} has {counts[0]} {thing} . {other} has {counts[1]} {thing} . who has more {thing} ?"
        label = int(counts[1] > counts[0])
        return Problem(question, (one, other)[label], (one, other), label)
    told = story(dice, 1)
    right = told.end
    near = [number for number in range(max(0, right - 3), min(LARGEST, right + 3) + 1) if number != right]
    options = dice.shuffled([right, *dice.shuffled(near)[:3]])
    question = f"{told.text(dice)} how many {told.thing} does {told.name} have now ?"
    return Problem(question, str(right), tuple(map(str, options)), options.index(right))


KINDS: dict[str, Callable[[Dice], Problem]] = {"answer": answered, "choice": chosen}


@lru_cache(maxsize=8)
def rows(kind: str, split: str) -> tuple[Problem, ...]:
    """Return the problems of a split, no question of train among those of validation."""
    made = [KINDS[kind](Dice("micro problems", kind, split, index)) for index in range(ROWS[split])]
    if split == "train":
        known = {problem.question for problem in rows(kind, "validation")}
        made = [problem for problem in made if problem.question not in known]
    return tuple(made)


def digest(kind: str) -> str:
    """Return sha256 over all rows of a kind."""
    text = "\n".join(repr(problem) for split in ROWS for problem in rows(kind, split))
    return hashlib.sha256(text.encode()).hexdigest()


def statement(dice: Dice) -> str:
    """Return a text of pre-training: a story told to its end, a sum, or who has more; never a question."""
    fate = dice.below(4)
    if fate == 0:
        told = story(dice, 1 + dice.below(3))
        return told.working()
    if fate == 1:
        thing, (one, other) = dice.pick(THINGS), dice.shuffled(NAMES)[:2]
        a, b = dice.below(LARGEST + 1), dice.below(LARGEST + 1)
        more = f"{one} has more" if a > b else f"{other} has more" if b > a else "both have the same"
        return f"{one} has {a} {thing} . {other} has {b} {thing} . {more} ."
    told = story(dice, 1 + dice.below(2))
    working = f" {told.working()} ." if fate == 2 else ""
    return f"{told.text(dice)}{working} now {told.name} has {told.end} {told.thing} ."


PROMPT = ("question:", "answer:")


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Return every word there is, the special tokens first; the numbers in order."""
    fixed = (
        "has more of them . ? + - = ; #### how many does have now who both the same ",
        " ".join((*NAMES, *THINGS, *GAINS, *LOSSES, *PROMPT)),
    )
    plain = dict.fromkeys(" ".join(fixed).split())
    return (*SPECIAL, *map(str, range(LARGEST + 1)), *plain)
