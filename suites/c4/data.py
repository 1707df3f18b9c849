"""From a data plan to batches and to what is evaluated, for a finite source in memory and for the hub's stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from results.schema import DataFacts, DataPlan
from suites.c4 import documents, tokens
from suites.c4.evaluate import Evaluated, unigram
from suites.c4.sequences import Sequences, batches, lay_out
from suites.generated import NOTICE
from suites.generated import text as generated
from suites.suite import HELD_OUT, Batch, Runtime

CHUNK = 256
BOUND = "the floor is a lower bound: a packed sequence may begin inside a document"


@dataclass(frozen=True)
class Prepared:
    """What a run trains on and is evaluated on.

    Attributes:
        batches: (micro-batch size, seed, start) -> endless micro-batches.
    """

    batches: Callable[[int, int, int], Iterator[Batch]]
    evaluated: Evaluated
    facts: DataFacts
    tokenizer: tokens.Tokenizer


def tokenizer_of(name: str, source: str, runtime: Runtime) -> tokens.Tokenizer:
    """Return the tokenizer that a setting or a plan names.

    Raises:
        ValueError: unknown or unreachable; one that does not go with the data.
    """
    if (name == tokens.MICRO) != (source == "micro"):
        fitting = tokens.MICRO if source == "micro" else f"{tokens.BPE}N, {', '.join(tokens.PINNED)} or a file"
        raise ValueError(f"tokenizer {name!r}: does not go with source {source!r} (allowed: {fitting})")
    if name == tokens.MICRO:
        return tokens.micro()
    if name.startswith(tokens.BPE):
        return _trained(name, source, runtime.data_dir)
    if runtime.tokenizer is not None:
        return tokens.local(runtime.tokenizer)
    if name.startswith((".", "/", "~")) or Path(name).exists():
        raise ValueError(f"tokenizer {name!r}: a file or folder is given with --tokenizer, and must be there")
    return tokens.from_hub(name, runtime.offline)


def _trained(name: str, source: str, data_dir: Path | None) -> tokens.Tokenizer:
    size = name.removeprefix(tokens.BPE)
    if not size.isdecimal():
        raise ValueError(f"tokenizer {name!r}: must be {tokens.BPE}N with N entries, such as {tokens.BPE}4096")
    if source == "hub":
        raise ValueError(f"tokenizer {name!r}: is trained on a folder of documents, given with --data-dir")

    def texts() -> Sequence[str]:
        return documents.load(source, data_dir, None, False).train

    return tokens.trained(int(size), texts, documents.directory_digest(data_dir))


def prepare(plan: DataPlan, vocabulary: int, runtime: Runtime) -> Prepared:
    """Return the data of a plan.

    Raises:
        ValueError: it cannot be had, or is not what the plan says; a token beyond `vocabulary`.
    """
    assert plan.tokenizer is not None
    tokenizer = tokenizer_of(plan.tokenizer, plan.source, runtime)
    check_vocabulary(tokenizer, plan.tokenizer, vocabulary)
    if plan.tokenizer_digest is not None and plan.tokenizer_digest != tokenizer.digest:
        raise ValueError(f"tokenizer {plan.tokenizer!r}: it changed since the plan was made; plan again")
    if plan.source == "hub":
        return _streamed(plan, tokenizer, runtime.offline)
    if plan.source == "directory" and plan.digest != documents.directory_digest(runtime.data_dir):
        raise ValueError(f"data folder {runtime.data_dir}: it changed since the plan was made; plan again")
    train, evaluated, dropped, official = finite(plan, tokenizer, runtime.data_dir)
    facts = _facts(len(train), evaluated, tokenizer, official, dropped)
    if plan.source == "micro":
        bound = [] if plan.layout == "padded" else [BOUND]
        facts = facts.model_copy(update={"notes": [NOTICE, *facts.notes, *bound]})
    facts = facts.model_copy(update={"constant_scores": unigram(train, evaluated, vocabulary)})
    return Prepared(lambda size, seed, start: batches(train, size, seed, start), evaluated, facts, tokenizer)


def check_vocabulary(tokenizer: tokens.Tokenizer, name: str, vocabulary: int) -> None:
    """Raise ValueError unless the model's embedding has exactly the tokenizer's entries."""
    if tokenizer.size != vocabulary:
        raise ValueError(
            f"vocabulary {vocabulary}: tokenizer {name} has {tokenizer.size} entries, and the model's embedding must "
            f"have as many (nearest allowed value: {tokenizer.size})"
        )


def check_held_out(plan: DataPlan) -> None:
    """Raise ValueError where documents of the hub's stream are to be held out."""
    if plan.held_out and plan.source == "hub":
        raise ValueError(
            "held-out documents: of the hub's stream there are none; tune on a folder given with --data-dir"
        )


@lru_cache(maxsize=2)
def finite(
    plan: DataPlan, tokenizer: tokens.Tokenizer, data_dir: Path | None
) -> tuple[Sequences, Evaluated, int, bool]:
    """Return train sequences, what is evaluated, dropped train documents, and whether the splits are official."""
    assert plan.layout is not None
    corpus = documents.load(plan.source, data_dir, plan.train_rows, plan.held_out)
    train = lay_out(tokenizer.encode(corpus.train), plan.layout, plan.max_length, tokenizer.end)
    order = np.random.RandomState(documents.VALIDATION_SEED).permutation(len(corpus.evaluated))
    evaluated = evaluate_on([corpus.evaluated[index] for index in order], plan, tokenizer)
    return train, evaluated, corpus.dropped, corpus.official


def evaluate_on(texts: Sequence[str], plan: DataPlan, tokenizer: tokens.Tokenizer) -> Evaluated:
    """Return the texts laid out, up to the plan's budget, with the bytes and the floor of what is predicted.

    The floor conditions each word on its whole document so far. Padded sequences show the model exactly that; packed
    ones that begin inside a document show less, and the floor is then a lower bound.
    """
    assert plan.layout is not None
    layout, length = plan.layout, plan.max_length
    sequences = lay_out(tokenizer.encode(texts), layout, length, tokenizer.end).first(plan.eval_tokens)
    covered = lay_out(tokenizer.covered_bytes(texts), layout, length, 0)
    split = HELD_OUT if plan.held_out else "validation"
    floor = None
    if plan.source == "micro":
        source = generated.source()
        surprisals = [np.array([*source.surprisals(text.split()), 0.0]) for text in texts]
        laid = lay_out(surprisals, layout, length, 0)
        floor = float(laid.ids[: len(sequences), 1:].sum()) / int(sequences.predicted.sum())
    return Evaluated(split, sequences, int(covered.ids[: len(sequences), 1:].sum()), floor)


def _facts(
    train_rows: int, evaluated: Evaluated, tokenizer: tokens.Tokenizer, official: bool, dropped: int | None
) -> DataFacts:
    split = evaluated.split
    notes = [
        f"tokenizer of {tokenizer.size:,} entries, sha256 {tokenizer.digest[:12]}",
        f"{evaluated.tokens:,} predicted tokens of {split}, which cover {evaluated.covered_bytes:,} bytes of text",
    ]
    notes += [f"{dropped:,} train documents left out, since their text stands in validation"] if dropped else []
    floor = {} if evaluated.floor_nats is None else {split: evaluated.floor_nats}
    return DataFacts(
        train_rows=train_rows,
        eval_rows={split: len(evaluated.sequences)},
        official=official,
        notes=notes,
        dropped_rows=dropped,
        eval_tokens={split: evaluated.tokens},
        eval_bytes={split: evaluated.covered_bytes},
        floor_nats=floor,
    )


def _streamed(plan: DataPlan, tokenizer: tokens.Tokenizer, offline: bool) -> Prepared:
    """The hub's stream, padded: a sequence is a document, so that a position is found without tokenising anything."""
    check_held_out(plan)
    evaluated, known = _hub_evaluated(plan, tokenizer, offline)

    def keep(text: str) -> bool:
        return documents.content_hash(text) not in known

    def stream(size: int, seed: int, start: int) -> Iterator[Batch]:
        skip = start * size
        texts = islice(_endless_train(offline, seed, keep), skip, None)
        while True:
            encoded = tokenizer.encode(list(islice(texts, size)))
            yield lay_out(encoded, "padded", plan.max_length, tokenizer.end).batch(np.arange(size))

    facts = _facts(documents.OFFICIAL_ROWS["train"], evaluated, tokenizer, True, None)
    return Prepared(stream, evaluated, facts, tokenizer)


def _endless_train(offline: bool, seed: int, keep: Callable[[str], bool]) -> Iterator[str]:
    epoch = 0
    while True:
        yield from documents.hub_train(offline, seed, epoch, keep)
        epoch += 1


def _hub_evaluated(plan: DataPlan, tokenizer: tokens.Tokenizer, offline: bool) -> tuple[Evaluated, set[bytes]]:
    """Return what is evaluated, the first documents up to the budget, and the hashes of their texts."""
    texts: list[str] = []
    predicted = 0
    for chunk in _chunks(documents.hub_validation(offline)):
        texts += chunk
        predicted += sum(min(len(ids), plan.max_length) - 1 for ids in tokenizer.encode(chunk))
        if plan.eval_tokens is not None and predicted >= plan.eval_tokens:
            break
    evaluated = evaluate_on(texts, plan, tokenizer)
    return evaluated, {documents.content_hash(text) for text in texts}


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(texts, CHUNK)):
        yield chunk
