"""The whole matrix: every method, width of the state, per-layer and checkpointing, at roberta-base and every LLaMA."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from baselines.registry import default_methods, get_method
from results.catalogue import joined
from results.lab import MemoryCell, Precision, Setting, read_cell_file, write_cells
from suites.c4.sizes import SIZES
from suites.catalogue import catalogue
from suites.lab.lab import Lab, plain_config
from suites.lab.networks import Network, find_network
from suites.recompute import PARTS, Part, parts
from suites.run.processes import in_processes

MODELS: tuple[str, ...] = ("roberta-base", *SIZES)
WIDTHS: tuple[Literal[8, 32], ...] = (32, 8)
# The released scripts' micro-batch of the 7B run on one card, and the sequence length of all C4 runs; for the encoder
# batch and length of the GLUE protocol.
BATCH = 16
SEQUENCE = {True: 256, False: 512}
PRECISION: dict[bool, Precision] = {True: "bf16", False: "fp32"}

Said = Callable[[MemoryCell, int, int], None]


def rungs_of(network: Network) -> list[tuple[Part, ...]]:
    """Return what is made again in backward, one part more at a time, in the order of the ladder."""
    order: tuple[Part, ...] = ("loss", "norms", "mlp") if network.language_model else ("norms", "mlp")
    assert set(order) <= set(PARTS)
    return [parts(order[: count + 1]) for count in range(len(order))]


def settings_of(network: Network, method: str) -> Iterator[Setting]:
    """Yield the settings of one network and method, those of a variant together.

    Parts made again: all of them for every method and variant; one more at a time for the method of the ladder, after
    its other steps.
    """
    chosen, rungs = get_method(method), rungs_of(network)
    widths = widths_of(method)
    modes: list[tuple[Literal[8, 32], bool, bool, tuple[Part, ...]]]
    modes = [(*mode, ()) for mode in itertools.product(widths, (False, True), (False, True))]
    modes += [(bits, False, False, rungs[-1]) for bits in widths]
    ladder: list[tuple[Literal[8, 32], bool, bool, tuple[Part, ...]]]
    ladder = [*((8, True, False, rung) for rung in rungs), (8, True, True, rungs[-1])]
    for variant, config in chosen.variants.items():
        steps = ladder if chosen.bases and chosen.factors and not variant else []
        for state_bits, per_layer, checkpointing, again in [*modes, *steps]:
            yield Setting(
                model=network.name,
                method=method,
                rank=network.rank,
                batch=BATCH,
                sequence=SEQUENCE[network.language_model],
                precision=PRECISION[network.language_model],
                state_bits=state_bits,
                per_layer=per_layer,
                checkpointing=checkpointing,
                recompute=again,
                variant=variant,
                config=tuple(sorted({**plain_config(network, method), **config}.items())),
            )


def widths_of(method: str) -> tuple[Literal[8, 32], ...]:
    """Return the widths of the state that the matrix has of a method."""
    return tuple(width for width in WIDTHS if width in get_method(method).widths)


def run_matrix(models: Iterable[str], names: Iterable[str], out: Path, said: Said, workers: int = 1) -> list[Path]:
    """Make every cell that is missing below `out`, saving those of a model and method as they are finished.

    Args:
        said: told each new cell, how many of the matrix are there by then, and how many it has.
        workers: processes that share the work out by model and method; a trace takes one core.

    Returns:
        The files, one a model.

    Raises:
        ValueError: an unknown model or method, or no worker.
        StoreError: a file that holds no cells, or a folder that cannot be written.
    """
    if workers < 1:
        raise ValueError(f"workers {workers}: must be at least 1 (nearest allowed value: 1)")
    networks = [find_network(name) for name in models]
    chosen = [get_method(name).name for name in names] or default_methods()
    order = {network.name: [s for method in chosen for s in settings_of(network, method)] for network in networks}
    files = {name: read_cell_file(path) for name in order if (path := out / f"{name}.json").exists()}
    made = {name: {c.setting: c for c in files[name].cells} if name in files else {} for name in order}
    total = sum(len(settings) for settings in order.values())
    done = sum(1 for name, settings in order.items() for setting in settings if setting in made[name])
    shares = [
        (
            network.name,
            [s for s in settings_of(network, method) if s.variant == variant and s not in made[network.name]],
        )
        for network in networks
        for method in chosen
        for variant in get_method(method).variants
    ]
    for cells in in_processes(_cells, [share for share in shares if share[1]], workers, threads=1, copies=True):
        name = cells[0].setting.model
        made[name] |= {cell.setting: cell for cell in cells}
        rest = [cell for setting, cell in made[name].items() if setting not in order[name]]
        known = joined([files[name].catalogue if name in files else None, catalogue(chosen)])
        write_cells(out / f"{name}.json", [made[name][s] for s in order[name] if s in made[name]] + rest, known)
        for cell in cells:
            done += 1
            said(cell, done, total)
    return [out / f"{name}.json" for name in order]


def _cells(model: str, settings: Sequence[Setting]) -> list[MemoryCell]:
    """Make cells that differ in no more than a lab can answer."""
    first = settings[0]
    widths = widths_of(first.method)
    lab = Lab(find_network(model), first.method, first.rank, first.precision, widths, dict(first.config))
    return [lab.cell(setting) for setting in settings]
