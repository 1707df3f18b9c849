"""Every convention under which a published memory estimate could have been made, as arithmetic on numbers of values.

weights + state,  weights alone,  state alone;   2 or 4 bytes a value, 1 for 8-bit moments;   1e9 or 2^30 bytes a G
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from transformers import AutoModel

from baselines.method import Part
from baselines.registry import get_method
from baselines.shared import targets
from results.lab import PublishedMethod, published_methods
from suites.lab.networks import find_network

Rest = Literal["trained", "frozen", "trained, counted twice"]
BLOCK = 256


@dataclass(frozen=True)
class Values:
    """Numbers of values of one method on one model."""

    dense: int
    rest: int
    added: int
    moments: int
    bases: int
    replaces: bool = False


@dataclass(frozen=True)
class Convention:
    """How bytes are counted. `gibi` says whether a G is 2^30."""

    weight_bytes: int
    moment_bytes: int
    basis_bytes: int
    bases: bool
    rest: Rest
    gibi: bool
    maxima: bool = False
    added_bytes: int | None = None

    def weights(self, values: Values) -> int:
        """Return the bytes of all weights."""
        kept = values.rest if values.replaces else values.dense
        twice = values.rest if self.rest == "trained, counted twice" else 0
        return self.weight_bytes * (kept + twice) + (self.added_bytes or self.weight_bytes) * values.added

    def state(self, values: Values) -> float:
        """Return the bytes of the optimizer state."""
        moments = values.moments + (0 if self.rest == "frozen" else 2 * values.rest)
        bases = self.basis_bytes * values.bases if self.bases else 0
        return moments * (self.moment_bytes + (4 / BLOCK if self.maxima else 0)) + bases

    def seen(self, bases: bool, adapters: bool) -> Convention:
        """Return the convention as a method with or without bases, and with or without adapters, is counted by it."""
        found = self if bases and self.bases else replace(self, bases=False, basis_bytes=2)
        rest: Rest = "frozen" if found.rest == "frozen" else "trained"
        return found if adapters else replace(found, rest=rest, added_bytes=None)

    def words(self) -> str:
        """Return the convention in words."""
        kind = {1: "8 bit", 2: "bf16", 4: "fp32"}
        found = f"{kind[self.weight_bytes]} weights, {kind[self.moment_bytes]} moments"
        found += " with block maxima" if self.maxima else ""
        found += f", {kind[self.added_bytes]} adapters" if self.added_bytes else ""
        found += f", {kind[self.basis_bytes]} bases counted" if self.bases else ", bases not counted"
        return f"{found}, rest {self.rest}, {'GiB' if self.gibi else 'GB'}"


def conventions(state_bits: int | None, bases: bool, adapters: bool) -> Iterator[Convention]:
    """Yield every convention that makes a difference for a method with bases, or with adapters."""
    widths = (1,) if state_bits == 8 else (2, 4)
    rests: tuple[Rest, ...] = ("trained", "frozen", *(("trained, counted twice",) if adapters else ()))
    for weight, moment, counted, rest, gibi, maxima in itertools.product(
        (2, 4),
        widths,
        (True, False) if bases else (False,),
        rests,
        (False, True),
        (False, True) if state_bits == 8 else (False,),
    ):
        for basis in (2, 4) if counted else (2,):
            for added in (None, 4) if adapters and weight == 2 else (None,):
                yield Convention(weight, moment, basis, counted, rest, gibi, maxima, added)


@cache
def shapes_of(model: str) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Return the model's number of values (an encoder's with its pooler, without a head), and its target shapes."""
    network = find_network(model)
    with torch.device("meta"):
        built = network.model() if network.language_model else AutoModel.from_config(network.config)
    names = targets.match_layers(built, "attention+mlp")
    every = sum(parameter.numel() for parameter in built.parameters())
    return every, tuple(targets.shapes(built, names).values())


def values_of(method: str, model: str, rank: int, projection_rank: int | None = None) -> Values:
    """Return the numbers of values that a method holds: moments and bases of its own part, the rest left out.

    Where a method has both ranks, gradients are projected on the whole `rank` unless `projection_rank` is given.
    """
    every, shapes = shapes_of(model)
    rest = every - sum(rows * columns for rows, columns in shapes)
    parts = [
        part
        for shape, count in Counter(shapes).items()
        for part in parts_of(method, shape, rank, projection_rank) * count
    ]
    return Values(
        dense=every,
        rest=rest,
        added=sum(math.prod(part.shape) for part in parts if part.added and not part.buffer),
        moments=sum(part.moment_values for part in parts),
        bases=sum(part.basis_values for part in parts),
        replaces=_published(method).replaces,
    )


def parts_of(method: str, shape: tuple[int, int], rank: int, projection_rank: int | None = None) -> tuple[Part, ...]:
    """Return the tensors that stand for one weight under a method of the registry or of the published claims."""
    found = get_method(_published(method).counted_as)
    config = found.configure(rank)
    if "projection_rank" in type(config).model_fields:
        config = config.model_copy(update={"projection_rank": projection_rank or rank})
    return tuple(found.layer_parts(shape, config))


def _published(method: str) -> PublishedMethod:
    return published_methods().get(method) or PublishedMethod(counted_as=method)
