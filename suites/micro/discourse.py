"""The text the encoder is pre-trained on: sentences, and pairs of sentences joined by a connective.

A connective (`so`, `but`, `also`, `yes`, `no`, `right`, `wrong`, `bravo`, `alas`) says how two sentences go together or
how a sentence strikes its reader. Several relations share one, as in real text. It tells a good deal about what the
tasks ask, so the encoder has seen hints of every task: one more reason why a score says nothing outside this language.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from suites.micro import lexicon, pairs, sentences
from suites.micro.language import Dice


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One or two sentences, and the connective that could introduce the document (None: there is none)."""

    first: str
    second: str | None
    connective: str | None


Maker = Callable[[str, Dice], Document]


def _similar(genre: str, dice: Dice) -> Document:
    first, second, score = pairs.similarity(genre, dice)
    return Document(first, second, "so" if score > 3.6 else "also" if score > 1.8 else "but")


def _reference(genre: str, dice: Dice) -> Document:
    item, right = sentences.reference(genre, dice), dice.chance(0.5)
    return Document(item.sentence, sentences.resolved(item, right), "yes" if right else "no")


def _inference(genre: str, dice: Dice) -> Document:
    label = dice.below(3)
    return Document(*pairs.inference(label, genre, dice), ("so", "also", "but")[label])


def _plain(genre: str, dice: Dice) -> Document:
    return Document(sentences.plain(genre, dice), None, None)


def _review(genre: str, dice: Dice) -> Document:
    liked = dice.chance(0.5)
    return Document(sentences.review(liked, dice), None, "bravo" if liked else "alas")


def _acceptability(genre: str, dice: Dice) -> Document:
    right = dice.chance(0.5)
    return Document(sentences.acceptability(right, genre, dice), None, "right" if right else "wrong")


def _paired(make: Callable[[bool, str, Dice], tuple[str, str]], yes: str, no: str) -> Maker:
    def maker(genre: str, dice: Dice) -> Document:
        holds = dice.chance(0.5)
        return Document(*make(holds, genre, dice), yes if holds else no)

    return maker


# Pairs that must be compared word by word take the most practice, so they make up most of the text.
KINDS: dict[str, tuple[int, Maker]] = {
    "plain": (1, _plain),
    "review": (1, _review),
    "acceptability": (2, _acceptability),
    "paraphrase": (4, _paired(pairs.paraphrase, "so", "but")),
    "questions": (3, _paired(pairs.questions, "so", "but")),
    "similar": (3, _similar),
    "reference": (3, _reference),
    "answering": (3, _paired(pairs.answering, "yes", "no")),
    "recognition": (1, _paired(pairs.recognition, "so", "but")),
    "inference": (2, _inference),
}
_DRAW = tuple(maker for share, maker in KINDS.values() for _ in range(share))


def document(dice: Dice) -> Document:
    """A random document of either genre."""
    genre = dice.pick(lexicon.GENRES)
    return dice.pick(_DRAW)(genre, dice)
