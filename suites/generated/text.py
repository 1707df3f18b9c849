"""A generated text source whose entropy is known exactly: documents of a probabilistic grammar over an own vocabulary.

Every rule begins with a word, and the alternatives of a symbol begin with different words. So the words alone say, from
left to right, which rule was used: each text has one derivation (the grammar is unambiguous), the probability of a
text is the product of its rules' probabilities, and the probability of the next word given a document's beginning is
that of the one rule that it opens.

    H = h + M H   =>   H = (I - M)^-1 h        h: entropy of a symbol's choice, M[a, b]: expected number of b in a

What there is to learn: a document opens with its topic, which decides all its content words; verbs agree in number
with a subject that a relative clause or a quotation may separate from them; a pronoun agrees with the subject of the
clause before; brackets close in the order and kind they were opened in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, product

import numpy as np
import numpy.typing as npt

from suites.generated.language import Dice

Rule = tuple[float, tuple[str, ...]]
Rules = dict[str, tuple[Rule, ...]]

START = "Document"
TOPICS, NOUNS, VERBS, ADJECTIVES, DEPTH = 6, 6, 3, 3, 2
NUMBERS = ("one", "many")
DETERMINERS = {"one": ("this", "every"), "many": ("these", "most")}
PRONOUN = {"one": "it", "many": "they"}
REPORTING = {"one": ("says", "thinks"), "many": ("say", "think")}
BRACKETS = (("(", ")"), ("[", "]"))
JOINING, THAT, STOP = (";", "and", "but"), "that", "."
STOP_SHARE, PRONOUN_SHARE, MODIFIED_SHARE, RELATIVE_SHARE, QUOTED_SHARE, OBJECT_SHARE = 0.05, 0.25, 0.3, 0.2, 0.12, 0.5
ONSETS, VOWELS, CODAS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "t", "v"), ("a", "e", "i", "o"), ("l", "n")


@dataclass(frozen=True)
class Source:
    """A grammar with its probabilities: a symbol is a key of `rules`, everything else is a word."""

    rules: Rules
    start: str = START

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words, in alphabetical order."""
        used = {part for rules in self.rules.values() for _, parts in rules for part in parts}
        return tuple(sorted(used - set(self.rules)))

    @cached_property
    def _drawn(self) -> dict[str, tuple[tuple[float, ...], tuple[tuple[str, ...], ...]]]:
        return {
            symbol: (tuple(accumulate(p for p, _ in rules)), tuple(parts for _, parts in rules))
            for symbol, rules in self.rules.items()
        }

    @cached_property
    def _opened(self) -> dict[str, dict[str, tuple[float, tuple[str, ...]]]]:
        return {
            symbol: {parts[0]: (-math.log(p), parts[1:]) for p, parts in rules} for symbol, rules in self.rules.items()
        }

    def sample(self, dice: Dice) -> list[str]:
        """One document's words."""
        words, waiting = [], [self.start]
        drawn, uniform = self._drawn, dice.uniform
        while waiting:
            symbol = waiting.pop()
            if symbol not in drawn:
                words.append(symbol)
                continue
            bounds, choices = drawn[symbol]
            at, last = uniform(), len(bounds) - 1
            chosen = next((i for i, bound in enumerate(bounds) if at < bound), last)
            waiting.extend(reversed(choices[chosen]))
        return words

    def surprisals(self, words: Sequence[str]) -> list[float]:
        """Return -log p of each word given the ones before it in its document, in nats; also of a cut-off document.

        Raises:
            ValueError: the words are not the beginning of a document; names the word and its place.
        """
        waiting, found = [self.start], []
        for place, word in enumerate(words):
            symbol = waiting.pop() if waiting else None
            if symbol is not None and symbol in self._opened and word in self._opened[symbol]:
                surprisal, rest = self._opened[symbol][word]
                waiting.extend(reversed(rest))
            elif symbol == word:
                surprisal = 0.0
            else:
                expected = "the end" if symbol is None else sorted(self._opened.get(symbol, (symbol,)))[0]
                raise ValueError(f"word {place + 1}, {word!r}: no document goes on like this; allowed: {expected}, ...")
            found.append(surprisal)
        return found

    def _expected(self, own: npt.NDArray[np.float64]) -> float:
        """Return the total of `own` (a value for each use of a symbol) over a document, in expectation."""
        place = {symbol: index for index, symbol in enumerate(self.rules)}
        uses = np.zeros((len(place), len(place)))
        for symbol, rules in self.rules.items():
            for p, parts in rules:
                for part in parts:
                    if part in place:
                        uses[place[symbol], place[part]] += p
        return float(np.linalg.solve(np.eye(len(place)) - uses, own)[place[self.start]])

    @cached_property
    def document_entropy(self) -> float:
        """Entropy of a document, in nats: by formula from the rule probabilities."""
        return self._expected(np.array([-sum(p * math.log(p) for p, _ in rules) for rules in self.rules.values()]))

    @cached_property
    def document_words(self) -> float:
        """Expected words of a document."""
        own = [sum(p * sum(part not in self.rules for part in parts) for p, parts in rules) for rules in self._values]
        return self._expected(np.array(own))

    @cached_property
    def document_bytes(self) -> float:
        """Expected bytes of a document's text: its words, joined by a space."""
        own = [
            sum(p * sum(len(part.encode()) + 1 for part in parts if part not in self.rules) for p, parts in rules)
            for rules in self._values
        ]
        return self._expected(np.array(own)) - 1

    @property
    def _values(self) -> list[tuple[Rule, ...]]:
        return list(self.rules.values())

    @property
    def entropy_per_word(self) -> float:
        """Nats per word: a document's entropy over its expected words."""
        return self.document_entropy / self.document_words

    @property
    def entropy_per_byte(self) -> float:
        """Bits per byte of text."""
        return self.document_entropy / math.log(2) / self.document_bytes

    @cached_property
    def digest(self) -> str:
        """sha256 that names the source: its rules, and a few documents, so that a changed generator shows."""
        sample = [document("digest", index, self) for index in range(16)]
        return hashlib.sha256(json.dumps([self.rules, sample], sort_keys=True).encode()).hexdigest()


def document(split: str, index: int, origin: Source | None = None) -> str:
    """Return one document's text: the same for a split and index on every machine."""
    return " ".join((origin or source()).sample(Dice("c4", split, index)))


@cache
def source() -> Source:
    """Return the source of the micro profile."""
    rules: Rules = {START: tuple((1 / TOPICS, (f"{_name(0, topic)}:", f"Body/{topic}")) for topic in range(TOPICS))}
    for topic in range(TOPICS):
        rules |= _topic_rules(str(topic), topic)
    return Source(rules)


def _topic_rules(k: str, topic: int) -> Rules:
    rules: Rules = {f"Body/{k}": _clause(k, 0, 1.0, "End")}
    for depth in range(1, DEPTH + 1):
        rules[f"Clause/{k}/{depth}"] = _clause(k, depth, 1.0, None)
    for number in NUMBERS:
        spoken = ((PRONOUN_SHARE, (PRONOUN[number], f"Verb/{k}/{number}/0", f"End/{k}/{number}")),)
        rules[f"Next/{k}/{number}"] = (*spoken, *_clause(k, 0, 1 - PRONOUN_SHARE, "End"))
        going_on = ((1 - STOP_SHARE) * share for share in (0.5, 0.3, 0.2))
        joined = tuple((p, (word, f"Next/{k}/{number}")) for p, word in zip(going_on, JOINING, strict=True))
        rules[f"End/{k}/{number}"] = (*joined, (STOP_SHARE, (STOP,)))
        rules |= _number_rules(k, topic, number)
    nominal = [(d, n) for n in NUMBERS for d in DETERMINERS[n]]
    rules[f"Object/{k}"] = tuple((1 / len(nominal), (d, f"Nominal/{k}/{n}")) for d, n in nominal)
    return rules


def _number_rules(k: str, topic: int, number: str) -> Rules:
    nouns = tuple((p, (_form(_name(1, topic, i), number),)) for i, p in enumerate(_falling(NOUNS)))
    adjectives = enumerate(_falling(ADJECTIVES))
    modified = tuple((MODIFIED_SHARE * p, (_name(2, topic, i), f"Noun/{k}/{number}")) for i, p in adjectives)
    verbs = list(enumerate(_falling(VERBS)))
    acting = tuple(((1 - OBJECT_SHARE) * p, (_inflected(_name(3, topic, i), number),)) for i, p in verbs)
    taking = tuple((OBJECT_SHARE * p, (_inflected(_name(4, topic, i), number), f"Object/{k}")) for i, p in verbs)
    plain = (*acting, *taking)
    rules: Rules = {
        f"Noun/{k}/{number}": nouns,
        f"Nominal/{k}/{number}": (*modified, *_scaled(nouns, 1 - MODIFIED_SHARE)),
        f"Relative/{k}/{number}": plain,
    }
    for depth in range(DEPTH + 1):
        verb = plain
        if depth < DEPTH:
            quoting = tuple((QUOTED_SHARE / 2, (word, f"Quote/{k}/{depth + 1}")) for word in REPORTING[number])
            verb = (*_scaled(plain, 1 - QUOTED_SHARE), *quoting)
            rules[f"Quote/{k}/{depth + 1}"] = tuple(
                (0.5, (opening, f"Clause/{k}/{depth + 1}", closing)) for opening, closing in BRACKETS
            )
        rules[f"Verb/{k}/{number}/{depth}"] = verb
        relative = (RELATIVE_SHARE, (THAT, f"Relative/{k}/{number}", f"Verb/{k}/{number}/{depth}"))
        rules[f"Predicate/{k}/{number}/{depth}"] = (relative, *_scaled(verb, 1 - RELATIVE_SHARE))
    return rules


def _clause(k: str, depth: int, share: float, then: str | None) -> tuple[Rule, ...]:
    """Return the rules of a clause from its determiner on, which tells the subject's number."""
    return tuple(
        (
            share / 4,
            (
                word,
                f"Nominal/{k}/{number}",
                f"Predicate/{k}/{number}/{depth}",
                *((f"{then}/{k}/{number}",) if then else ()),
            ),
        )
        for number in NUMBERS
        for word in DETERMINERS[number]
    )


def _scaled(rules: tuple[Rule, ...], share: float) -> tuple[Rule, ...]:
    return tuple((share * p, parts) for p, parts in rules)


def _falling(count: int) -> list[float]:
    """Probabilities that fall as 1, 1/2, 1/3, ..."""
    total = math.fsum(1 / (index + 1) for index in range(count))
    return [1 / (index + 1) / total for index in range(count)]


@cache
def _stems() -> tuple[str, ...]:
    """Return invented stems of two syllables, all different, in an order that hides how they were made."""
    syllables = [onset + vowel for onset, vowel in product(ONSETS, VOWELS)]
    stems = [first + second + coda for first, second, coda in product(syllables, syllables, CODAS)]
    return tuple(Dice("c4", "stems").shuffled(stems))


def _name(kind: int, topic: int, index: int = 0) -> str:
    """Return the stem of a content word: kind 0 topic, 1 noun, 2 adjective, 3 verb alone, 4 verb with an object."""
    return _stems()[(kind * TOPICS + topic) * NOUNS + index]


def _form(noun: str, number: str) -> str:
    return noun if number == "one" else f"{noun}i"


def _inflected(verb: str, number: str) -> str:
    return f"{verb}es" if number == "one" else f"{verb}em"
