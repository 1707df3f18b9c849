"""LLaMA sizes of C4 pre-training that GaLore (arXiv 2403.03507) and the GradNormLoRP release share; two tiny ones."""

from __future__ import annotations

from typing import NamedTuple

from transformers import LlamaConfig

from baselines.registry import checked_name

INIT_STD, NORM_EPS = 0.02, 1e-6


class LlamaSize(NamedTuple):
    """Sizes of one model.

    Attributes:
        positions: the longest sequence it is meant for.
        rank: GaLore's (its Table 2), None where the sources give none.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    positions: int = 1024
    rank: int | None = None


TINY: dict[str, LlamaSize] = {"0.1m": LlamaSize(48, 128, 2, 4), "0.4m": LlamaSize(96, 256, 3, 4)}
SIZES: dict[str, LlamaSize] = {
    "9m": LlamaSize(128, 352, 4, 4),
    "20m": LlamaSize(256, 688, 4, 4),
    "35m": LlamaSize(384, 1024, 6, 8),
    "60m": LlamaSize(512, 1376, 8, 8, rank=128),
    "130m": LlamaSize(768, 2048, 12, 12, rank=256),
    "350m": LlamaSize(1024, 2736, 24, 16, rank=256),
    "1b": LlamaSize(2048, 5461, 24, 32, rank=512),
    "3b": LlamaSize(2560, 6848, 32, 32),
    "7b": LlamaSize(4096, 11008, 32, 32, positions=2048, rank=1024),
}
ALL = TINY | SIZES


def llama_config(name: str, vocabulary: int = 32_000, positions: int | None = None) -> LlamaConfig:
    """Return the configuration of one size: untied head, SiLU, RMSNorm, no bias; `positions` None: the size's own.

    Raises:
        ValueError: unknown size; the text names the nearest.
    """
    size = ALL[checked_name(name, ALL, "model size")]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=positions or size.positions,
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
