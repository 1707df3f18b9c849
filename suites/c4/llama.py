"""LLaMA networks of the pre-training suite, from their sizes alone."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from transformers import LlamaForCausalLM

from baselines.registry import checked_name
from results.schema import ModelPlan
from suites.c4.sizes import ALL, INIT_STD, NORM_EPS, llama_config


def plan(name: str, vocabulary: int, max_length: int) -> ModelPlan:
    """Return the network of a size with `vocabulary` embeddings; the digest is that of the numbers that define it.

    Raises:
        ValueError: unknown size, or a sequence longer than it is meant for.
    """
    size = ALL[checked_name(name, ALL, "model size")]
    if max_length > size.positions:
        raise ValueError(
            f"max_length {max_length}: model {name} has {size.positions} positions (nearest allowed value)"
        )
    numbers = (size.hidden, size.intermediate, size.layers, size.heads, size.positions)
    text = ",".join(map(str, ("llama", vocabulary, *numbers, INIT_STD, NORM_EPS)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ModelPlan(name=name, source="config", digest=digest, vocabulary=vocabulary)


def network(model: ModelPlan, seed: int | None = None) -> nn.Module:
    """Return the network in fp32 on whatever device or mode is active, its weights drawn from `seed` if given."""
    if seed is not None:
        torch.manual_seed(seed)
    assert model.vocabulary is not None
    made = LlamaForCausalLM(llama_config(model.name, model.vocabulary)).float()
    assert isinstance(made, nn.Module)
    return made.train()
