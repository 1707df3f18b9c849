"""The LLaMA sizes of C4 pre-training that GaLore (arXiv 2403.03507) and the GradNormLoRP release share, as data."""

from __future__ import annotations

from typing import NamedTuple

from transformers import LlamaConfig

from baselines.registry import checked_name


class LlamaSize(NamedTuple):
    """Sizes of one model; `rank` is GaLore's (its Table 2), None where the sources give none."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    rank: int | None = None


SIZES: dict[str, LlamaSize] = {
    "9m": LlamaSize(128, 352, 4, 4),
    "20m": LlamaSize(256, 688, 4, 4),
    "35m": LlamaSize(384, 1024, 6, 8),
    "60m": LlamaSize(512, 1376, 8, 8, 128),
    "130m": LlamaSize(768, 2048, 12, 12, 256),
    "350m": LlamaSize(1024, 2736, 24, 16, 256),
    "1b": LlamaSize(2048, 5461, 24, 32, 512),
    "3b": LlamaSize(2560, 6848, 32, 32),
    "7b": LlamaSize(4096, 11008, 32, 32, 1024),
}


def llama_config(name: str, vocabulary: int = 32_000, positions: int = 2048) -> LlamaConfig:
    """Return the configuration of one size: untied head, SiLU, RMSNorm with 1e-6, init 0.02.

    Raises:
        ValueError: unknown size; the text names the nearest.
    """
    size = SIZES[checked_name(name, SIZES, "LLaMA size")]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=positions,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        tie_word_embeddings=False,
        use_cache=False,
    )
