"""The text the encoder is pre-trained on: sentences, and pairs of sentences joined by a connective.

A connective (`so`, `but`, `also`, `yes`, `no`, `right`, `wrong`, `bravo`, `alas`) says how two sentences go together or
how a sentence strikes its reader. Several relations share one, as in real text. It tells a good deal about what the
tasks ask, so the encoder has seen hints of every task: one more reason why a score says nothing outside this language.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from suites.generated import lexicon, pairs, sentences
from suites.generated.language import Dice


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One or two sentences, and the connective that could introduce the document (None: there is none)."""

    first: str
    second: str | None
    connective: str | None


# (whether the relation holds, genre, dice) -> document; kinds with more than two relations draw their own
Maker = Callable[[bool, str, Dice], Document]


def _plain(_: bool, genre: str, dice: Dice) -> Document:
    return Document(sentences.plain(genre, dice), None, None)


def _review(liked: bool, _: str, dice: Dice) -> Document:
    return Document(sentences.review(liked, dice), None, "bravo" if liked else "alas")


def _acceptability(right: bool, genre: str, dice: Dice) -> Document:
    return Document(sentences.acceptability(right, genre, dice), None, "right" if right else "wrong")


def _similar(_: bool, genre: str, dice: Dice) -> Document:
    first, second, score = pairs.similarity(genre, dice)
    return Document(first, second, "so" if score > 3.6 else "also" if score > 1.8 else "but")


def _reference(_: bool, genre: str, dice: Dice) -> Document:
    item, right = sentences.reference(genre, dice), dice.chance(0.5)
    return Document(item.sentence, sentences.resolved(item, right), "yes" if right else "no")


def _inference(_: bool, genre: str, dice: Dice) -> Document:
    label = dice.below(3)
    return Document(*pairs.inference(label, genre, dice), ("so", "also", "but")[label])


def _paired(make: Callable[[bool, str, Dice], tuple[str, str]], yes: str, no: str) -> Maker:
    def maker(holds: bool, genre: str, dice: Dice) -> Document:
        return Document(*make(holds, genre, dice), yes if holds else no)

    return maker


KINDS: dict[str, Maker] = {
    "plain": _plain,
    "review": _review,
    "acceptability": _acceptability,
    "paraphrase": _paired(pairs.paraphrase, "so", "but"),
    "questions": _paired(pairs.questions, "so", "but"),
    "similar": _similar,
    "reference": _reference,
    "answering": _paired(pairs.answering, "yes", "no"),
    "recognition": _paired(pairs.recognition, "so", "but"),
    "inference": _inference,
}
# How often a kind is drawn is how often it is named.
MIXES: dict[str, tuple[str, ...]] = {
    "broad": (
        "plain", "review", "acceptability", "acceptability", "paraphrase", "questions", "similar", "reference",
        "answering", "recognition", "inference", "inference", "reference",
    ),
    "comparing": (
        "plain", "review", "acceptability", "acceptability", "recognition", "inference", "inference",
        *("paraphrase", "similar", "answering") * 4, *("questions", "reference") * 3,
    ),
}  # fmt: skip


def document(dice: Dice, mix: str) -> Document:
    """A random document of either genre, of a kind drawn from the mix."""
    genre, kind = dice.pick(lexicon.GENRES), dice.pick(MIXES[mix])
    return KINDS[kind](dice.chance(0.5), genre, dice)
