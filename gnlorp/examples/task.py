"""What both examples train: a tiny BERT that tells which of two words is the more frequent one in a row of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
WORDS, LENGTH = (10, 11), 15


def tiny_bert(seed: int = 0) -> nn.Module:
    """Return a two-layer BERT classifier with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    config.num_labels = 2
    return BertForSequenceClassification(config)


class Rows(Dataset[dict[str, Tensor]]):
    """Generated rows: `input_ids` (LENGTH,), and the label 1 where the second word is the more frequent one."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(WORDS[0], WORDS[1] + 1, (count, LENGTH), generator=generator)
        self.labels = (self.tokens == WORDS[1]).sum(1).gt(LENGTH // 2).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


@torch.no_grad()
def accuracy(model: nn.Module, rows: Rows) -> float:
    """Return the share of rows that the model labels rightly."""
    device = next(model.parameters()).device
    model.eval()
    logits: Any = model(input_ids=rows.tokens.to(device)).logits
    return float((logits.argmax(1).cpu() == rows.labels).float().mean())
