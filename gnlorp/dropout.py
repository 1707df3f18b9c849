"""Dropout whose mask is a function of a seed: drawn in forward, drawn again in backward, never kept."""

from __future__ import annotations

import torch
from torch import Tensor

QUANTA = 1 << 16
"""Probabilities are whole multiples of 1 / QUANTA: 16 random bits an element."""


def quanta(probability: float) -> int:
    """Return the multiple that is really used: the nearest one, of a probability below 1 below 1."""
    return min(round(probability * QUANTA), QUANTA - 1)


def rounded(probability: float) -> float:
    """Return the probability that is really used, at most 1 / QUANTA from the one asked for."""
    return quanta(probability) / QUANTA


def draw_seed() -> int:
    """Return a seed from torch's global CPU generator, so that `torch.manual_seed` and checkpointing govern it."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def kept(x: Tensor, probability: float, seed: int, index: int) -> Tensor | None:
    """Return 1 / (1 - p) where an element of `x`, (t, I), is kept and 0 elsewhere; None without dropout.

    The same (seed, index) gives the same mask on a device; `index` counts the chunks of one input.

    Raises: RuntimeError where no generator can be seeded on the device.
    """
    if probability == 0:
        return None
    try:
        generator = torch.Generator(x.device)
    except RuntimeError as error:
        raise RuntimeError(
            f"dropout {probability}: no random generator can be seeded on device {x.device.type!r}; set dropout to 0"
        ) from error
    generator.manual_seed((seed + index) % (1 << 63))
    count = x.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device)
    bits.random_(-(1 << 63), None, generator=generator)
    threshold = quanta(probability) - QUANTA // 2
    keep = bits.view(torch.int16)[:count].view(x.shape) >= threshold
    return keep.to(x.dtype).mul_(1 / (1 - rounded(probability)))


def dropped(x: Tensor, probability: float, seed: int, index: int) -> Tensor:
    """Return `x` after dropout; x itself without any."""
    keep = kept(x, probability, seed, index)
    return x if keep is None else keep.mul_(x)
