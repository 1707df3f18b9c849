"""LLaMA networks from their sizes alone: those that GaLore's and the method's releases share, and two tiny ones."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.registry import checked_name
from results.schema import ModelPlan

INIT_STD, NORM_EPS = 0.02, 1e-6


@dataclass(frozen=True)
class Size:
    """Shape of a network; `positions` is the longest sequence it is meant for."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    positions: int = 1024


SIZES: dict[str, Size] = {
    "0.1m": Size(48, 128, 2, 4),
    "0.4m": Size(96, 256, 3, 4),
    "9m": Size(128, 352, 4, 4),
    "20m": Size(256, 688, 4, 4),
    "35m": Size(384, 1024, 6, 8),
    "60m": Size(512, 1376, 8, 8),
    "130m": Size(768, 2048, 12, 12),
    "350m": Size(1024, 2736, 24, 16),
    "1b": Size(2048, 5461, 24, 32),
    "3b": Size(2560, 6848, 32, 32),
    "7b": Size(4096, 11008, 32, 32, 2048),
}


def plan(name: str, vocabulary: int, max_length: int) -> ModelPlan:
    """Return the network of a size with `vocabulary` embeddings; the digest is that of the numbers that define it.

    Raises:
        ValueError: unknown size, or a sequence longer than it is meant for.
    """
    size = SIZES[checked_name(name, SIZES, "model size")]
    if max_length > size.positions:
        raise ValueError(
            f"max_length {max_length}: model {name} has {size.positions} positions (nearest allowed value)"
        )
    text = ",".join(map(str, ("llama", vocabulary, *astuple(size), INIT_STD, NORM_EPS)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ModelPlan(name=name, source="config", digest=digest, vocabulary=vocabulary)


def config(model: ModelPlan) -> LlamaConfig:
    """Return the library's configuration: SiLU, RMSNorm, no bias, a head of its own (untied)."""
    size = SIZES[checked_name(model.name, SIZES, "model size")]
    assert model.vocabulary is not None
    return LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.positions,
        hidden_act="silu",
        rms_norm_eps=NORM_EPS,
        initializer_range=INIT_STD,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def network(model: ModelPlan, seed: int | None = None) -> nn.Module:
    """Return the network in fp32 on whatever device or mode is active, its weights drawn from `seed` if given."""
    if seed is not None:
        torch.manual_seed(seed)
    made = LlamaForCausalLM(config(model)).float()
    assert isinstance(made, nn.Module)
    return made.train()
