"""Tiny networks of three architectures, made from their configurations alone, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

# 1,024 x 4 values of a projected factor are 4,096, the fewest that bitsandbytes keeps at 8 bits.
HIDDEN, INNER, VOCABULARY = 64, 1024, 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "initializer_range": 0.05,
}
DEVICE: ContextVar[str] = ContextVar("device", default="cpu")
LANGUAGE_MODELS = ("llama-lm", "llama-tied", "llama-one")


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make networks and batches on a device inside the context."""
    token = DEVICE.set(str(device))
    try:
        yield
    finally:
        DEVICE.reset(token)


def make_network(name: str) -> nn.Module:
    """Return a fresh network, always the same one, in training mode: a key of `BUILDERS`."""
    torch.manual_seed(11)
    return BUILDERS[name]().train().to(DEVICE.get())


def make_batch(name: str) -> dict[str, Tensor]:
    """Return a fixed batch of 12 x 10 tokens with labels: classes, or the tokens themselves for a language model.

    More rows than the projection rank: where only one token a row is read, the gradient has no more than that many
    singular vectors, and a basis of more would not be unique.
    """
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, VOCABULARY, (12, 10), generator=generator)
    classes = torch.arange(12) % 3
    labels = tokens if name in LANGUAGE_MODELS else classes
    return {"input_ids": tokens.to(DEVICE.get()), "labels": labels.to(DEVICE.get())}


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    # Four layers have 24 targets: from 20 on, peft matches them by shortened names.
    return BertForSequenceClassification(BertConfig(**{**SIZES, "num_hidden_layers": 4}))


def _roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**SIZES))


def _llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, **changes})


def _llama() -> nn.Module:
    from transformers import LlamaForSequenceClassification

    return LlamaForSequenceClassification(_llama_config())


def _llama_lm(**changes: Any) -> nn.Module:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(_llama_config(**changes))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "bert": _bert,
    "roberta": _roberta,
    "llama": _llama,
    "llama-lm": _llama_lm,
    "llama-tied": lambda: _llama_lm(tie_word_embeddings=True),
    "llama-one": lambda: _llama_lm(num_hidden_layers=1),
}
