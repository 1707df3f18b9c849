"""The examples learn their task and end as ordinary models."""

from __future__ import annotations

import pytest
import torch

from gnlorp import NormLowRankLinear

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def check(model, scores):
    before, after, merged = scores
    assert before < 0.7
    assert after > 0.95
    assert merged == after
    assert not any(isinstance(module, NormLowRankLinear) for module in model.modules())


def test_the_trainer_example(tmp_path):
    from gnlorp.examples.task import Rows, accuracy
    from gnlorp.examples.trainer import train

    model, scores = train(tmp_path)
    check(model, scores)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert accuracy(loaded, Rows(256, seed=1)) == scores[-1]
    tokens = Rows(4, seed=2).tokens
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, model.eval()(tokens).logits)


def test_the_accelerate_example():
    from gnlorp.examples.accelerated import train

    check(*train())
