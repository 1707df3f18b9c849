"""Several runs on one GPU, where their predicted memory fits: which share of a GPU each run is given."""

from __future__ import annotations

import math
from collections.abc import Mapping

HUNDREDTHS = 100


def shares(needs: Mapping[str, int | None], gpus: int, gpu_bytes: int) -> dict[str, float]:
    """Return plan hash -> share of a GPU, in hundredths rounded up, of runs that need so many bytes.

    A whole one where runs do not outnumber GPUs, where a need is not known, or is more than there is: the run then
    says itself how it ends. Never less than what spreads the runs evenly: no GPU is crowded while another has room.

    Args:
        needs: bytes of a device that a run takes at most: its steps with a refresh, its evaluation, and the context.
        gpu_bytes: of the smallest GPU.
    """
    if len(needs) <= gpus:
        return dict.fromkeys(needs, 1.0)
    even = math.ceil(HUNDREDTHS / math.ceil(len(needs) / gpus))
    return {key: _share(need, gpu_bytes, even) for key, need in needs.items()}


def _share(need: int | None, gpu_bytes: int, least: int) -> float:
    if need is None:
        return 1.0
    # Whole numbers: a need of exactly a third must not become one more by rounding.
    wanted = -(-need * HUNDREDTHS // gpu_bytes)
    return min(HUNDREDTHS, max(wanted, least)) / HUNDREDTHS
