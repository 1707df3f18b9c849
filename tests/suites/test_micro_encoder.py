from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import pytest
import torch
import transformers

from suites.generated import encoder_path, lexicon, pairs, tasks, tokenizer
from suites.generated.discourse import KINDS, MIXES, Document, document
from suites.generated.language import Dice
from suites.generated.pretrain import (
    IGNORED,
    Recipe,
    Round,
    block,
    config,
    encode,
    mask,
    objective,
    pretrain,
    rate,
    write,
)

TINY = Recipe(
    rounds=(
        Round(16, 1e-3, 4, "broad", 0.7, 0.05, quiet_steps=8, asked_when_quiet=0.0),
        Round(8, 1e-3, 2, "comparing", 0.9, 0.0),
    ),
    batch=8,
    hidden=16,
    heads=2,
    layers=1,
    intermediate=32,
)


@pytest.fixture(scope="module")
def shipped() -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(encoder_path(), local_files_only=True)


def test_pair_format_is_robertas(shipped: transformers.PreTrainedTokenizerBase) -> None:
    coded = shipped("the dog runs .", "the cat sleeps .")
    shown = shipped.convert_ids_to_tokens(coded["input_ids"])
    assert shown == "<s> the dog runs . </s> </s> the cat sleeps . </s>".split()
    assert set(coded) == {"input_ids", "attention_mask"}
    assert shipped.pad_token_id == 1


@pytest.mark.parametrize("task", tasks.TASKS)
def test_no_unknown_word_and_nothing_cut(task: str, shipped: transformers.PreTrainedTokenizerBase) -> None:
    for data in tasks.load(task).values():
        coded = shipped(*(list(data[column]) for column in tasks.TABLE[task].columns))["input_ids"]
        assert max(len(ids) for ids in coded) <= 48
        assert all(tokenizer.UNK not in ids for ids in coded)


def test_encoder_loads_as_classifier_and_is_small() -> None:
    folder = encoder_path()
    weights = folder / "model.safetensors"
    assert weights.stat().st_size < 3_000_000
    record = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["weights_sha256"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, local_files_only=True)
    assert model.config.num_labels == 3
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    names = {name.rsplit(".", 1)[-1] for name, _ in model.roberta.encoder.layer[0].attention.self.named_children()}
    assert {"query", "key", "value"} <= names


def _fill(model: transformers.RobertaForMaskedLM, rows: list[tuple[list[str], list[str], int]]) -> list[int]:
    """The word that the model puts where the second sentence has a gap."""
    words = tokenizer.vocabulary()
    found = []
    for first, second, gap in rows:
        ids = [words[word] for word in first] + [tokenizer.EOS, tokenizer.EOS] + [words[word] for word in second]
        at = 3 + len(first) + gap
        inputs = torch.tensor([[tokenizer.BOS, *ids, tokenizer.EOS]])
        inputs[0, at] = tokenizer.MASK
        with torch.no_grad():
            found.append(int(model(input_ids=inputs).logits[0, at].argmax()))
    return found


def test_encoder_fills_a_gap_from_the_other_sentence() -> None:
    """A noun masked in a paraphrase is found, up to synonyms, although dozens would fit the sentence alone."""
    model = transformers.RobertaForMaskedLM.from_pretrained(encoder_path(), local_files_only=True).eval()
    concept = {word: noun.key for noun in lexicon.NOUNS.values() for form in noun.forms for word in form}
    names = list(tokenizer.vocabulary())
    dice = Dice("gap")
    rows = []
    while len(rows) < 60:
        first, second = (text.split() for text in pairs.paraphrase(True, "village", dice))
        gaps = [index for index, word in enumerate(second) if word in concept]
        if gaps:
            rows.append((first, second, dice.pick(gaps)))
    right = [
        concept.get(names[word]) == concept[second[gap]]
        for word, (_, second, gap) in zip(_fill(model, rows), rows, strict=True)
    ]
    assert sum(right) / len(right) > 0.8


def test_block_depends_on_seed_and_index_alone() -> None:
    words = tokenizer.vocabulary()
    assert block(TINY, 1, words) == block(TINY, 1, words)
    assert block(TINY, 1, words) != block(TINY, 0, words)
    assert block(TINY, 1, words) != block(dataclasses.replace(TINY, seed=2), 1, words)


def test_connective_is_the_target_at_the_head_and_never_shown() -> None:
    words = tokenizer.vocabulary()
    item = Document("the dog runs .", "the dog moves .", "so")
    ids, asked = encode(item, words, True)
    assert asked == words["so"]
    assert words["so"] not in ids
    assert encode(item, words, False) == (ids, None)
    inputs, _, targets = mask([(ids, asked), (ids, None)], (0.0, 0.0), len(words), torch.Generator().manual_seed(0))
    assert inputs[0].tolist() == ids
    assert targets[0].tolist() == [words["so"]] + [IGNORED] * (len(ids) - 1)
    assert set(targets[1].tolist()) == {IGNORED}


def test_mask_shares_and_targets() -> None:
    words = tokenizer.vocabulary()
    dice = Dice("mask test")
    coded = [encode(document(dice, "broad"), words, row % 2 == 0) for row in range(400)]
    inputs, attention, targets = mask(coded, (0.2, 0.0), len(words), torch.Generator().manual_seed(0))
    clean = torch.full_like(inputs, tokenizer.PAD)
    for row, (ids, _) in enumerate(coded):
        clean[row, : len(ids)] = torch.tensor(ids)
    chosen = targets != IGNORED
    chosen[:, 0] = False
    assert torch.equal(targets[chosen], clean[chosen])
    assert torch.equal(inputs[~chosen], clean[~chosen])
    assert torch.equal(attention == 0, clean == tokenizer.PAD)
    silent = torch.tensor([asked is None for _, asked in coded])
    assert not chosen[~silent].any()
    assert chosen[silent][clean[silent] >= len(tokenizer.SPECIAL)].float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert (inputs[chosen] == tokenizer.MASK).float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert (inputs[chosen] == clean[chosen]).float().mean().item() == pytest.approx(0.15, abs=0.04)


def test_objective_adds_words_and_connectives() -> None:
    words = tokenizer.vocabulary()
    torch.manual_seed(0)
    model = transformers.RobertaForMaskedLM(config(TINY)).eval()
    dice = Dice("objective")
    coded = [encode(document(dice, "broad"), words, row % 2 == 0) for row in range(32)]
    inputs, attention, targets = mask(coded, (0.2, 0.0), len(words), torch.Generator().manual_seed(0))
    logits = model(input_ids=inputs, attention_mask=attention).logits
    inner = targets.clone()
    inner[:, 0] = IGNORED
    at_words = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inner.flatten())
    at_head = torch.nn.functional.cross_entropy(logits[:, 0], targets[:, 0])
    torch.testing.assert_close(objective(model, inputs, attention, targets), at_words + at_head)
    torch.testing.assert_close(objective(model, inputs, attention, inner), at_words)


def test_rate_warms_up_and_ends_near_zero() -> None:
    part = Round(1000, 1.0, 100, "broad", 0.5, 0.0)
    assert rate(part, 0) == pytest.approx(0.01)
    assert rate(part, 99) == pytest.approx(1.0)
    assert rate(part, 550) == pytest.approx(0.5)
    assert rate(part, 999) < 2e-3


def test_rounds_follow_each_other_and_set_the_share_of_asked_connectives() -> None:
    assert [TINY.at(step)[1] for step in (0, 15, 16, 23)] == [0, 15, 0, 7]
    words = tokenizer.vocabulary()
    shares = []
    for index in range(3):
        coded = [pair for batch in block(TINY, index, words) for pair in batch]
        shares.append(sum(asked is not None for _, asked in coded) / len(coded))
    assert shares[0] == 0
    assert 0.4 < shares[1] < shares[2] <= 1


def test_every_kind_of_document_has_the_connectives_it_says() -> None:
    dice = Dice("kinds")
    assert {name for mix in MIXES.values() for name in mix} == set(KINDS)
    for name, make in KINDS.items():
        seen = {make(dice.chance(0.5), "shore", dice).connective for _ in range(60)}
        assert len(seen) == (1 if name == "plain" else 3 if name in ("similar", "inference") else 2)


@pytest.mark.parametrize("stop_at", [0, 3])
def test_a_stopped_run_goes_on_to_the_same_weights(
    stop_at: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import suites.generated.pretrain as module

    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 8)
    whole, curve = pretrain(TINY, tmp_path / "whole")
    real = module.rate

    def stopping(part: Round, step: int) -> float:
        if part.mix == "comparing" and step == stop_at:
            raise KeyboardInterrupt
        return real(part, step)

    monkeypatch.setattr(module, "rate", stopping)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "cut")
    monkeypatch.setattr(module, "rate", real)
    resumed, _ = pretrain(TINY, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(dataclasses.replace(TINY, seed=5), tmp_path / "cut")
    write(resumed, tmp_path / "out", TINY, curve, 1.0)
    again = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), resumed.parameters(), strict=True))


def test_shipped_configuration_is_the_recipes() -> None:
    stored = transformers.AutoConfig.from_pretrained(encoder_path(), local_files_only=True)
    made = config(Recipe())
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(stored, key) == getattr(made, key)
    assert stored.vocab_size == len(tokenizer.vocabulary())
