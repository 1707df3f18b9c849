from __future__ import annotations

import collections
import math
import subprocess
import sys

import datasets
import pytest

from suites.generated import lexicon, sentences, tasks
from suites.generated.language import Clause, Dice, Phrase, ask, clause, say, text
from suites.generated.relations import CONTRADICTION, ENTAILMENT, can_swap, near_miss, opposite

# Fixed by the generator: a change here changes every micro score, and belongs in the changelog.
DIGESTS: dict[str, str] = {
    "cola": "27d1fb8eaf46106f24ff0fb895d3b0c64e2ba47e1cb54a6277ddf78a3f2c7ba1",
    "sst2": "0b15a4a65d5ae8604c4de7d684232629a5da85c440ae779c36b62a7f1f84f102",
    "mrpc": "782140d9a301b57be8bafe20588920ab1c2606c4174b10c0f75f22bc807e41fc",
    "stsb": "a208c36b04263863a0069be9e5972133a47459b38a7fab5d2a9bda732f63822e",
    "qqp": "33df4f3999ea6c6768a291aaeae87284e978a410b4538195a527fde36917c67e",
    "mnli": "b4eb229c82b8ff8e8061f7aa34a22e76bd51c519616616deb3784979938144fd",
    "qnli": "6f96a52e94c1dba313d7071d0fad8e286c10e1c040689f3d5ce3f53552a07bd1",
    "rte": "a4d1bbb775976744c9d15d30edd0c91288532643ba4376d8286a4b4d100e0d89",
    "wnli": "e4c4f66c9245c82da015ae4014471b1077784617e3a118d12d9f897c4e39db1d",
}

GLUE_COLUMNS = {
    "cola": ["sentence", "label", "idx"],
    "sst2": ["sentence", "label", "idx"],
    "mrpc": ["sentence1", "sentence2", "label", "idx"],
    "stsb": ["sentence1", "sentence2", "label", "idx"],
    "qqp": ["question1", "question2", "label", "idx"],
    "mnli": ["premise", "hypothesis", "label", "idx"],
    "qnli": ["question", "sentence", "label", "idx"],
    "rte": ["sentence1", "sentence2", "label", "idx"],
    "wnli": ["sentence1", "sentence2", "label", "idx"],
}
GLUE_LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}
LAST_LABEL_SHARE = {
    "cola": 0.7,
    "sst2": 0.5,
    "mrpc": 0.68,
    "qqp": 0.37,
    "mnli": 1 / 3,
    "qnli": 0.5,
    "rte": 0.5,
    "wnli": 0.5,
}


def _texts(task: str, data: datasets.Dataset) -> list[tuple[str, ...]]:
    return list(zip(*(data[column] for column in tasks.TABLE[task].columns), strict=True))


@pytest.mark.parametrize("task", GLUE_COLUMNS)
def test_columns_labels_and_splits_are_those_of_glue(task: str) -> None:
    splits = tasks.load(task)
    dev = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(splits) == ["train", *dev]
    for data in splits.values():
        assert data.column_names == GLUE_COLUMNS[task]
        if task == "stsb":
            assert data.features["label"].dtype == "float32"
            assert min(data["label"]) >= 0
            assert max(data["label"]) <= 5
        else:
            assert data.features["label"].names == GLUE_LABELS[task]


@pytest.mark.parametrize("task", sorted(LAST_LABEL_SHARE))
def test_label_balance(task: str) -> None:
    for data in tasks.load(task).values():
        last = max(data["label"])
        share = collections.Counter(data["label"])[last] / len(data)
        assert share == pytest.approx(LAST_LABEL_SHARE[task], abs=0.04)


def test_similarity_scores_spread_over_the_range() -> None:
    bins = collections.Counter(min(4, math.floor(score)) for score in tasks.load("stsb")["train"]["label"])
    assert all(bins[index] > 200 for index in range(5))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_no_text_twice_and_every_word_known(task: str) -> None:
    rows = [row for data in tasks.load(task).values() for row in _texts(task, data)]
    assert len(set(rows)) == len(rows)
    assert {word for row in rows for cell in row for word in cell.split()} <= set(lexicon.words())


@pytest.mark.parametrize("task", DIGESTS)
def test_digest_is_the_recorded_one(task: str) -> None:
    assert tasks.digest(task) == DIGESTS[task]


def test_digest_does_not_depend_on_hash_seed_or_process() -> None:
    command = "from suites.generated import tasks; print(tasks.digest('wnli'))"
    path = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run([sys.executable, "-c", command], env=path, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == DIGESTS["wnli"]


def test_unknown_task_names_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'mnl' is unknown; known: cola, .*; nearest: mnli"):
        tasks.load("mnl")


def test_mismatched_genre_has_words_that_train_lacks() -> None:
    splits = tasks.load("mnli")
    words = {
        name: {w for row in _texts("mnli", data) for cell in row for w in cell.split()} for name, data in splits.items()
    }
    assert not words["validation_matched"] - words["train"]
    fresh = words["validation_mismatched"] - words["train"]
    shore = {w for n in lexicon.NOUNS.values() if n.genre == "shore" for form in n.forms for w in form}
    assert len(fresh & shore) > 30


def _bag_accuracy(task: str, split: str) -> float:
    """Naive Bayes over words (marked by column): what a reader without order or comparison can reach."""
    splits = tasks.load(task)

    def bag(row: tuple[str, ...]) -> set[str]:
        return {f"{column}:{word}" for column, cell in enumerate(row) for word in cell.split()}

    counts: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    totals: collections.Counter[int] = collections.Counter()
    for row, label in zip(_texts(task, splits["train"]), splits["train"]["label"], strict=True):
        counts[label].update(bag(row))
        totals[label] += 1

    def score(row: tuple[str, ...], label: int) -> float:
        terms = (math.log((counts[label][word] + 1) / (totals[label] + 2)) for word in bag(row))
        return math.log(totals[label]) + sum(terms)

    rows = list(zip(_texts(task, splits[split]), splits[split]["label"], strict=True))
    return sum(max(totals, key=lambda y: score(row, y)) == label for row, label in rows) / len(rows)


@pytest.mark.parametrize("task", sorted(LAST_LABEL_SHARE))
def test_a_bag_of_words_does_not_solve_it(task: str) -> None:
    split = "validation_matched" if task == "mnli" else "validation"
    assert _bag_accuracy(task, split) < 0.8


def test_agreement_and_article() -> None:
    dog, love = lexicon.NOUNS["goat"], lexicon.VERBS["run"]
    dice = Dice("agreement")
    one = {text(say(Clause(Phrase(dog, "a", False), love), dice)) for _ in range(20)}
    two = {text(say(Clause(Phrase(dog, "two", True), love, negated=True), dice)) for _ in range(20)}
    assert one == {"a goat runs", "a goat sprints"}
    assert two == {"two goats do not run", "two goats do not sprint"}
    assert text(["a", "owl", "sees", "a", "dog"]) == "an owl sees a dog"


def test_passive_and_question_keep_the_roles() -> None:
    item = Clause(
        Phrase(lexicon.NOUNS["cat"], "the", False), lexicon.VERBS["wash"], Phrase(lexicon.NOUNS["pear"], "the", True),
        ("near", "mill"),
    )  # fmt: skip
    dice = Dice("passive")
    assert "the pears are washed by the cat near the mill" in {text(say(item, dice, passive=True)) for _ in range(20)}
    assert "what does the cat wash near the mill ?" in {text(ask(item, "object", dice)) for _ in range(20)}
    assert "which animal washes the pears near the mill ?" in {text(ask(item, "subject", dice)) for _ in range(20)}


def test_near_miss_changes_exactly_one_part_or_swaps_the_roles() -> None:
    dice = Dice("near miss")
    for _ in range(300):
        item = clause(dice, "village", "definite", 0.4, 0.6)
        other = near_miss(item, "village", dice)
        parts = [
            p
            for p in ("subject", "verb", "object", "place", "adverb", "negated")
            if getattr(item, p) != getattr(other, p)
        ]
        swapped = can_swap(item) and (other.subject, other.object) == (item.object, item.subject)
        assert swapped or len(parts) == 1


def test_opposites_are_mutual_and_never_the_word_itself() -> None:
    dice = Dice("opposites")
    for verb in lexicon.VERBS.values():
        assert opposite(verb, dice) != verb
        if verb.opposite is not None:
            assert lexicon.VERBS[verb.opposite].opposite == verb.key
    for adjective in lexicon.ADJECTIVES.values():
        if adjective.opposite is not None:
            assert lexicon.ADJECTIVES[adjective.opposite].opposite == adjective.key


def test_inference_labels_on_rows_that_can_be_read_off() -> None:
    """Texts that differ by an inserted negation alone contradict; `no <kind>` entails `no <member>`."""
    data = tasks.load("mnli")["train"]
    negated, narrowed = [], []
    members = {f[0]: n.kind for n in lexicon.NOUNS.values() for f in n.forms}
    for premise, hypothesis, label in zip(data["premise"], data["hypothesis"], data["label"], strict=True):
        first, second = premise.split(), hypothesis.split()
        if "not" in first and "not" not in second and len(second) == len(first) - 2 and first[0] not in ("no", "every"):
            negated.append(label)
        if first[0] == second[0] == "no" and first[1] in ("person", "animal", "beast") and second[1] in members:
            narrowed.append(label)
    assert len(negated) > 30
    assert len(narrowed) > 20
    assert negated.count(CONTRADICTION) / len(negated) > 0.9
    assert narrowed.count(ENTAILMENT) / len(narrowed) > 0.9


def test_pronoun_agrees_with_its_referent() -> None:
    dice = Dice("pronouns")
    for _ in range(300):
        item = sentences.reference("village", dice)
        words = item.sentence.split()
        pronoun = words[words.index("because") + 1]
        if pronoun != "it":
            assert item.referent[0] in lexicon.NAMES[pronoun]
        assert item.referent != item.other


def test_dice_are_fair_and_repeat() -> None:
    first, second = Dice("a", 1), Dice("a", 1)
    rolls = [first.below(6) for _ in range(6000)]
    assert rolls == [second.below(6) for _ in range(6000)]
    assert all(880 < count < 1120 for count in collections.Counter(rolls).values())
    assert sorted(first.shuffled(range(10))) == list(range(10))
    assert rolls[:8] != [Dice("a", 2).below(6) for _ in range(8)]
