"""A one-layer LLaMA of any width that learns the generated language, to take real gradients from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from suites.generated.discourse import document
from suites.generated.language import Dice
from suites.generated.pretrain import encode
from suites.generated.tokenizer import vocabulary

ROWS, LENGTH = 8, 64


def llama(hidden: int, inner: int, layers: int, heads: int, vocabulary_size: int) -> nn.Module:
    """Return a LLaMA language model with random weights, always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=1024,
            rms_norm_eps=1e-6,
        )
    )


def text_batches() -> Iterator[Tensor]:
    """Yield batches of running text in the generated language as token numbers, (ROWS, LENGTH), always the same."""
    words = vocabulary()
    stream: list[int] = []
    index = 0
    while True:
        while len(stream) < ROWS * LENGTH:
            stream += encode(document(Dice("bench", index), "broad"), words, ask=False)[0]
            index += 1
        yield torch.tensor(stream[: ROWS * LENGTH]).view(ROWS, LENGTH)
        stream = stream[ROWS * LENGTH :]


def captured_gradients(
    hidden: int, inner: int, names: tuple[str, ...], steps: tuple[int, int]
) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[float, float]]:
    """Train a one-layer LLaMA and return the named weights' gradients at two of its steps, and the loss there."""
    model = llama(hidden, inner, 1, max(1, hidden // 64), len(vocabulary()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    taken: dict[str, list[Tensor]] = {name: [] for name in names}
    losses = []
    for step, tokens in zip(range(max(steps) + 1), text_batches(), strict=False):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if step in steps:
            losses.append(float(loss.detach()))
            for name in names:
                grad = model.get_parameter(name).grad
                assert grad is not None
                taken[name].append(grad.clone())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {name: (old, new) for name, (old, new) in taken.items()}, (losses[0], losses[-1])
