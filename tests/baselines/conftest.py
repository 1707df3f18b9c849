"""Tiny networks of three architectures, made from their configurations alone: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

# 1,024 x 4 values of a projected factor are 4,096, the fewest that bitsandbytes keeps at 8 bits.
HIDDEN, INNER, VOCABULARY = 64, 1024, 64
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "initializer_range": 0.05,
}


def _llama(tied: bool = False) -> LlamaConfig:
    return LlamaConfig(**ENCODER, num_key_value_heads=2, pad_token_id=0, tie_word_embeddings=tied)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    # Four layers have 24 targets: from 20 on, peft matches them by shortened names.
    "bert": lambda: BertForSequenceClassification(BertConfig(**{**ENCODER, "num_hidden_layers": 4})),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)),
    "llama": lambda: LlamaForSequenceClassification(_llama()),
    "llama-lm": lambda: LlamaForCausalLM(_llama()),
    "llama-tied": lambda: LlamaForCausalLM(_llama(tied=True)),
}


@pytest.fixture
def make_network() -> Callable[[str], nn.Module]:
    """Return name -> a fresh network, always the same one, in training mode."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(11)
        return BUILDERS[name]().train()

    return make


@pytest.fixture
def make_batch() -> Callable[[str], dict[str, Tensor]]:
    """Return name -> a fixed batch with labels: classes, or the tokens themselves for a language model."""

    def make(name: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        tokens = torch.randint(3, VOCABULARY, (6, 10), generator=generator)
        classes = torch.tensor([0, 1, 2, 0, 1, 2])
        return {"input_ids": tokens, "labels": tokens if name in ("llama-lm", "llama-tied") else classes}

    return make
