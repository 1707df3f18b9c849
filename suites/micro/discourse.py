"""The text the encoder is pre-trained on: sentences, and pairs of sentences joined by a connective.

A connective (`so`, `but`, `also`, `yes`, `no`, `right`, `wrong`, `bravo`, `alas`) says how two sentences go together or
how a sentence strikes its reader. Several relations share one, as in real text. It tells a good deal about what the
tasks ask, so the encoder has seen hints of every task: one more reason why a score says nothing outside this language.
"""

from __future__ import annotations

import dataclasses

from suites.micro import lexicon, pairs, sentences
from suites.micro.language import Dice


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One or two sentences, and the connective that could introduce the document (None: there is none)."""

    first: str
    second: str | None
    connective: str | None


def _similar(genre: str, dice: Dice) -> Document:
    first, second, score = pairs.similarity(genre, dice)
    return Document(first, second, "so" if score > 3.6 else "also" if score > 1.8 else "but")


def _reference(genre: str, dice: Dice) -> Document:
    item, right = sentences.reference(genre, dice), dice.chance(0.5)
    return Document(item.sentence, sentences.resolved(item, right), "yes" if right else "no")


def document(dice: Dice) -> Document:
    """A random document of either genre."""
    genre, kind = dice.pick(lexicon.GENRES), dice.below(13)
    right = dice.chance(0.5)
    if kind == 0:
        return Document(sentences.plain(genre, dice), None, None)
    if kind == 1:
        return Document(sentences.review(right, dice), None, "bravo" if right else "alas")
    if kind in (2, 3):
        return Document(sentences.acceptability(right, genre, dice), None, "right" if right else "wrong")
    if kind == 4:
        return Document(*pairs.paraphrase(right, genre, dice), "so" if right else "but")
    if kind == 5:
        return Document(*pairs.questions(right, genre, dice), "so" if right else "but")
    if kind == 6:
        return _similar(genre, dice)
    if kind in (7, 12):
        return _reference(genre, dice)
    if kind == 8:
        return Document(*pairs.answering(right, genre, dice), "yes" if right else "no")
    if kind == 9:
        return Document(*pairs.recognition(right, genre, dice), "so" if right else "but")
    label = dice.below(3)
    return Document(*pairs.inference(label, genre, dice), ("so", "also", "but")[label])
