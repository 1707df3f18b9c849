"""The whole matrix: every method, width of the state, per-layer and checkpointing, at roberta-base and every LLaMA."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from baselines.registry import methods
from results.memory_schema import Cell, Precision, Setting, read_cells, write_cells
from suites.llama import SIZES
from suites.memory.lab import Lab
from suites.memory.networks import Network, find_network

MODELS: tuple[str, ...] = ("roberta-base", *SIZES)
WIDTHS = (32, 8)
# The released scripts' micro-batch of the 7B run on one card, and the sequence length of all C4 runs; for the encoder
# batch and length of the GLUE protocol.
BATCH = 16
SEQUENCE = {True: 256, False: 512}
PRECISION: dict[bool, Precision] = {True: "bf16", False: "fp32"}

Said = Callable[[Cell, int, int], None]


def settings_of(network: Network, method: str) -> Iterator[Setting]:
    """Yield the settings of one network and method."""
    for state_bits, per_layer, checkpointing in itertools.product(WIDTHS, (False, True), (False, True)):
        yield Setting(
            model=network.name,
            method=method,
            rank=network.rank,
            batch=BATCH,
            sequence=SEQUENCE[network.language_model],
            precision=PRECISION[network.language_model],
            state_bits=state_bits,  # type: ignore[arg-type]
            per_layer=per_layer,
            checkpointing=checkpointing,
        )


def run_matrix(models: Iterable[str], names: Iterable[str], out: Path, said: Said) -> list[Path]:
    """Make every cell that is missing below `out`, saving each as it is finished; return the files.

    Raises:
        ValueError: an unknown model or method.
        StoreError: a file that holds no cells, or a folder that cannot be written.
    """
    networks = [find_network(name) for name in models]
    chosen = list(names) or list(methods())
    total = sum(1 for network in networks for method in chosen for _ in settings_of(network, method))
    done = 0
    for network in networks:
        path = out / f"{network.name}.json"
        cells = read_cells(path)
        known = {cell.setting for cell in cells}
        for method in chosen:
            lab = Lab(network, method, network.rank, PRECISION[network.language_model], WIDTHS)
            for setting in settings_of(network, method):
                done += 1
                if setting not in known:
                    cells.append(lab.cell(setting))
                    write_cells(path, cells)
                    said(cells[-1], done, total)
    return [out / f"{network.name}.json" for network in networks]
