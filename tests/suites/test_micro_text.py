"""The generated text source: one derivation a text, an entropy by formula that its samples agree with."""

from __future__ import annotations

import math
import statistics

import pytest

from suites.generated import text
from suites.generated.language import Dice
from suites.generated.text import START, Source, source

LN2 = math.log(2)


def test_every_rule_opens_with_a_word_that_no_other_rule_of_its_symbol_opens_with() -> None:
    # So the next word alone tells the rule, from left to right: a text has one derivation.
    rules = source().rules
    for symbol, alternatives in rules.items():
        opened = [parts[0] for _, parts in alternatives]
        assert not set(opened) & set(rules), symbol
        assert len(set(opened)) == len(opened), symbol
        assert math.fsum(p for p, _ in alternatives) == pytest.approx(1.0), symbol
        assert all(p > 0 for p, _ in alternatives), symbol


def test_every_symbol_is_reached_and_documents_end() -> None:
    rules = source().rules
    reached, waiting = set(), [START]
    while waiting:
        symbol = waiting.pop()
        if symbol in rules and symbol not in reached:
            reached.add(symbol)
            waiting += [part for _, parts in rules[symbol] for part in parts]
    assert reached == set(rules)
    assert all(text.document("train", index).split()[-1] == text.STOP for index in range(50))


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_formulas_on_a_source_solved_by_hand(share: float) -> None:
    # "b" n times, then "a": a geometric number of words.
    made = Source({"S": ((share, ("a",)), (1 - share, ("b", "S")))}, start="S")
    choice = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert made.document_entropy == pytest.approx(choice / share)
    assert made.document_words == pytest.approx(1 / share)
    assert made.document_bytes == pytest.approx(2 / share - 1)
    assert made.entropy_per_word == pytest.approx(choice)
    assert made.entropy_per_byte == pytest.approx(choice / share / LN2 / (2 / share - 1))
    assert made.surprisals(["b", "b", "a"]) == pytest.approx([-math.log(1 - share)] * 2 + [-math.log(share)])


def test_samples_agree_with_the_formulas_within_their_standard_error() -> None:
    made = source()
    documents = [text.document("entropy", index).split() for index in range(4000)]
    for values, expected in (
        ([math.fsum(made.surprisals(words)) for words in documents], made.document_entropy),
        ([float(len(words)) for words in documents], made.document_words),
        ([float(len(" ".join(words))) for words in documents], made.document_bytes),
    ):
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert error < 0.03 * expected
        assert abs(statistics.fmean(values) - expected) < 2.5 * error


def test_the_next_word_has_probabilities_that_add_up_to_one() -> None:
    made = source()
    words = made.sample(Dice("prefix"))
    for end in range(min(len(words), 40)):
        total = 0.0
        for word in made.words:
            try:
                total += math.exp(-made.surprisals([*words[:end], word])[-1])
            except ValueError:
                continue
        assert total == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wrong", "place"),
    [("", 3), ("thinks", 2), (text.STOP, 2)],
)
def test_words_that_no_document_holds_are_named(wrong: str, place: int) -> None:
    words = text.document("train", 0).split()
    words[place - 1] = wrong
    with pytest.raises(ValueError, match=rf"word {place}, {wrong!r}: no document goes on like this"):
        source().surprisals(words)
    with pytest.raises(ValueError, match="allowed: the end"):
        source().surprisals([*text.document("train", 0).split(), "this"])


def test_a_verb_agrees_over_a_relative_clause_and_brackets_close_in_kind() -> None:
    made = source()
    topic, one = made.rules[START][0][1][0], made.rules["Noun/0/one"][0][1][0]
    acting = {number: made.rules[f"Relative/0/{number}"][0][1][0] for number in text.NUMBERS}
    begun = [topic, "this", one, text.THAT, acting["one"]]
    assert made.surprisals([*begun, acting["one"]])[-1] > 0
    with pytest.raises(ValueError, match="word 6"):
        made.surprisals([*begun, acting["many"]])
    quoted = [topic, "this", one, "says", "(", "these", f"{one}i", acting["many"]]
    assert made.surprisals([*quoted, ")"])[-1] == 0.0
    with pytest.raises(ValueError, match="word 9"):
        made.surprisals([*quoted, "]"])


def test_documents_are_a_function_of_split_and_index() -> None:
    first = text.document("train", 7)
    assert first == text.document("train", 7)
    assert first != text.document("train", 8)
    assert first != text.document("validation", 7)
    assert first.split()[0].endswith(":")
    assert len(source().digest) == 64
