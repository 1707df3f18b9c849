"""The lab's commands: `memory`, `memory-matrix` and `claims` of `python -m suites`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from results.lab import MemoryCell, Setting
    from suites.lab.lab import Lab

RUNS = Path("results") / "runs" / "memory"
FAMILY = "llama"


Updates = Annotated[
    str, typer.Option(help="with bf16: `nearest`, `stochastic`, `kahan` or `master` (`suites/run/rounding.py`)")
]
Again = Annotated[
    str, typer.Option("--recompute", help="made again in backward, exactly: some of norms,mlp,loss (comma-joined)")
]
Variant = Annotated[str, typer.Option(help="of the method, as the tables call it: `8-bit weights`, `4-bit weights`")]
Overhead = Annotated[
    str,
    typer.Option(
        help="taken off the limit for context and allocator; default: on `cuda` a low, an expected and a high estimate "
        "of both, else 1GiB"
    ),
]
Rules = Annotated[str, typer.Option(help="whose rules: `cpu` or `cuda`; default: cuda for --fits, else cpu")]

OneLineErrors = Callable[[], AbstractContextManager[None]]


def register(app: typer.Typer, console: Console, one_line_errors: OneLineErrors) -> None:
    """Add the lab's commands to the command line of the suites."""
    _register_memory(app, console, one_line_errors)
    _register_matrix(app, console, one_line_errors)
    _register_claims(app, console, one_line_errors)


def _register_memory(app: typer.Typer, console: Console, one_line_errors: OneLineErrors) -> None:
    @app.command()
    def memory(
        model: Annotated[
            str,
            typer.Argument(
                help="`roberta-base`, `bert-base`, `minilm`, `micro`, a LLaMA size (`60m` to `7b`), a folder with "
                "config.json, a hub name; with --fits also `llama`: the largest size that fits"
            ),
        ],
        method: Annotated[list[str] | None, typer.Argument(help="methods; default: all")] = None,
        rank: Annotated[int | None, typer.Option(help="rank of the comparison; default: the model's")] = None,
        batch: Annotated[int, typer.Option(help="sequences an optimizer step")] = 16,
        accumulation: Annotated[int, typer.Option(help="micro-batches an optimizer step")] = 1,
        sequence: Annotated[int, typer.Option(help="tokens a sequence")] = 256,
        precision: Annotated[str, typer.Option(help="`fp32`, `bf16` or `bf16-autocast`; default: bf16 for LLaMA")] = "",
        bf16_updates: Updates = "nearest",
        state_bits: Annotated[int, typer.Option(help="32, or 8 through bitsandbytes, counted by rule")] = 32,
        per_layer: Annotated[bool, typer.Option("--per-layer", help="update inside backward")] = False,
        checkpointing: Annotated[bool, typer.Option("--checkpointing", help="compute activations again")] = False,
        again: Again = "",
        variant: Variant = "",
        gpus: Annotated[int, typer.Option(help="processes that share a step: its micro-batches, with --shard all")] = 1,
        shard: Annotated[bool, typer.Option("--shard", help="weights, gradients and state sharded (FSDP2)")] = False,
        keep_trained_whole: Annotated[
            bool, typer.Option("--keep-trained-whole", help="with --shard: the frozen weights alone are sharded")
        ] = False,
        fits: Annotated[str, typer.Option(help="a limit such as 24GiB: print the largest batch that fits")] = "",
        overhead: Overhead = "",
        device: Rules = "",
        offline: Annotated[bool, typer.Option("--offline", help="never use the network")] = False,
    ) -> None:
        """Print the memory ledger of methods on a model: formula, count and peak, without weights or a GPU."""
        with one_line_errors():
            from suites.recompute import parts

            asked: dict[str, Any] = {
                "batch": batch, "accumulation": accumulation, "sequence": sequence, "state_bits": state_bits,
                "per_layer": per_layer, "checkpointing": checkpointing, "recompute": parts(again),
                "variant": variant, "bf16_updates": bf16_updates, **_shared(gpus, shard, keep_trained_whole),
            }  # fmt: skip
            names = _methods(method)
            asked["device"] = _device(device, "cuda" if fits else "cpu")
            if fits and asked["device"] == "cuda" and not overhead and model != FAMILY:
                _print_estimates(console, model, names, rank, precision, asked, fits, offline)
                return
            if fits:
                _print_fits(console, model, names, rank, precision, asked, fits, overhead or "1GiB", offline)
                return
            for name in names:
                lab, setting = _lab(model, name, rank, precision, asked, offline)
                _print_ledger(console, lab.cell(setting))


def _register_matrix(app: typer.Typer, console: Console, one_line_errors: OneLineErrors) -> None:
    @app.command("memory-matrix")
    def matrix(
        model: Annotated[str, typer.Option(help="comma-joined models; default: roberta-base and every LLaMA")] = "",
        method: Annotated[str, typer.Option(help="comma-joined methods; default: all")] = "",
        out: Annotated[Path, typer.Option(help="folder of the cells; a cell that is there is not made again")] = RUNS,
        workers: Annotated[int | None, typer.Option(help="traces at a time; default: one a core")] = None,
    ) -> None:
        """Make every cell of the matrix that is missing: methods, state widths, per-layer, checkpointing, models."""
        with one_line_errors():
            from suites.lab.matrix import MODELS, run_matrix
            from suites.measure.environment import usable_cpus
            from suites.options import split

            def said(cell: MemoryCell, done: int, total: int) -> None:
                setting = cell.setting
                words = f"{setting.model} {setting.method} {setting.state_bits} bit"
                words += " per-layer" if setting.per_layer else ""
                words += " checkpointing" if setting.checkpointing else ""
                words += f" recompute {','.join(setting.recompute)}" if setting.recompute else ""
                console.print(f"{done}/{total} {words}: {cell.peak.total_bytes / 2**30:.2f} GiB, {cell.seconds} s")

            names = split(method)
            _methods(names)
            at_once = usable_cpus() if workers is None else workers
            for path in run_matrix(split(model) or MODELS, names, out, said, at_once):
                console.print(str(path))


def _register_claims(app: typer.Typer, console: Console, one_line_errors: OneLineErrors) -> None:
    @app.command()
    def claims(
        out: Annotated[Path, typer.Option(help="file of the recomputed claims")] = RUNS / "claims.json",
        quick: Annotated[bool, typer.Option("--quick", help="formulas only: no traces")] = False,
    ) -> None:
        """Recompute every published memory claim under every convention that its source could mean."""
        with one_line_errors():
            from suites.lab.claims import lines_of, recompute, write_claims

            found = recompute(traces=not quick)
            for line in lines_of(found):
                console.print(line, markup=False)
            console.print(str(write_claims(out, found)))


def _shared(gpus: int, shard: bool, keep_trained_whole: bool) -> dict[str, Any]:
    from suites.run.distributed import Group, sharded_group

    if gpus < 1:
        raise ValueError(f"gpus {gpus}: must be at least 1 (nearest allowed value: 1)")
    return {"processes": gpus, "shard": sharded_group(Group(0, gpus), shard, keep_trained_whole).shard}


def _one_row(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked for with one row a process."""
    return {**asked, "batch": asked["processes"], "accumulation": asked["processes"]}


def _methods(names: list[str] | None) -> list[str]:
    from baselines.registry import default_methods, get_method

    return [get_method(name).name for name in names or default_methods()]


def _lab(
    model: str, method: str, rank: int | None, precision: str, asked: dict[str, Any], offline: bool
) -> tuple[Lab, Setting]:
    from baselines.registry import checked_name, get_method
    from results.lab import Setting
    from suites.lab.lab import Lab, plain_config
    from suites.lab.networks import find_network
    from suites.run.rounding import REST_BYTES

    network = find_network(model, offline)
    chosen: Any = checked_name(
        precision or ("bf16" if network.language_model else "fp32"), ("fp32", "bf16", "bf16-autocast"), "precision"
    )
    updates: Any = checked_name(asked["bf16_updates"], REST_BYTES, "bf16_updates")
    if updates != "nearest" and chosen != "bf16":
        raise ValueError(f"bf16_updates {updates!r} with precision {chosen!r}: no weight is in bf16 then")
    if asked["state_bits"] not in (8, 32):
        raise ValueError(f"state_bits {asked['state_bits']}: must be 32 or 8")
    rows, parts = asked["batch"], asked["accumulation"]
    for what in ("batch", "accumulation"):
        if asked[what] < 1:
            raise ValueError(f"{what} {asked[what]}: must be at least 1 (nearest allowed value: 1)")
    if rows % parts:
        near = min((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: abs(n - parts))
        raise ValueError(f"accumulation {parts}: must divide the batch of {rows} (nearest allowed value: {near})")
    gpus = asked["processes"]
    if parts % gpus:
        near = -(-parts // gpus) * gpus
        raise ValueError(
            f"accumulation {parts}: must be a multiple of the {gpus} GPUs, so that each gets as many micro-batches a "
            f"step (nearest allowed value: {near})"
        )
    variants = get_method(method).variants
    checked_name(asked["variant"], variants, f"variant of {method}")
    config = {**plain_config(network, method), **variants[asked["variant"]]}
    ranked = rank if rank is not None else network.rank
    options: Any = network, method, ranked, chosen, (asked["state_bits"],), config, asked["device"], updates
    if asked["shard"] is None:
        lab = Lab(*options)
    else:
        from suites.lab.share import ShardedLab

        lab = ShardedLab(gpus, asked["shard"], *options)
    setting = Setting(
        model=network.name,
        method=method,
        rank=lab.rank,
        precision=chosen,
        config=tuple(sorted(config.items())),
        **{**asked, "batch": rows // parts, "accumulation": parts // gpus},
    )
    network.batch(1, setting.sequence)
    return lab, setting


def _print_ledger(console: Console, cell: MemoryCell) -> None:
    from suites.measure.ledger import cell_ledger

    ledger = cell_ledger(cell)
    setting = cell.setting
    table = Table(title=_title(setting, cell.parameters), title_justify="left")
    for head in ("bytes", "formula", "count", "peak of a plain step"):
        table.add_column(head, justify="left" if head == "bytes" else "right")
    for line in ledger.lines:
        table.add_row(line.name, *(_number(value) for value in (line.formula_bytes, line.count_bytes, line.peak_bytes)))
    console.print(table)
    for gap in ledger.gaps:
        reasons = ", ".join(f"{reason} {part:+,}" for reason, part in gap.explained.items())
        rest = f"unexplained: {gap.unexplained_bytes:,} bytes" if gap.unexplained_bytes else "explained to the byte"
        console.print(
            f"  {gap.name}: {gap.gap_bytes:+,}" + (f" = {reasons}" if reasons else "") + f"; {rest}", markup=False
        )
    if cell.reserved_bytes is not None and cell.allocated_bytes is not None:
        console.print(
            f"  of a CUDA device, by its allocator's rules: allocated {_gib(cell.allocated_bytes)}, reserved "
            f"{_gib(cell.reserved_bytes)}; predicted, not measured",
            markup=False,
        )
    phases = ", ".join(f"{name} {peak.total_bytes / 2**30:.3f} GiB" for name, peak in ledger.phases.items())
    console.print(f"  peak by phase: {phases}")
    for rule, times in cell.by_rule.items():
        console.print(f"  by rule, {times} times: {rule}", markup=False)


def _device(name: str, default: str) -> str:
    from baselines.registry import checked_name

    return checked_name(name or default, ("cpu", "cuda"), "device")


def _print_estimates(
    console: Console, model: str, names: list[str], rank: int | None, precision: str, asked: dict[str, Any],
    fits: str, offline: bool,
) -> None:  # fmt: skip
    from suites.lab.fits import largest, parse_bytes
    from suites.measure.estimate import ESTIMATE_WORDS, ESTIMATES, Estimate, estimated

    limit = parse_bytes(fits, "limit")
    console.print(f"limit {fits} of a CUDA device, largest batch by estimate ({ESTIMATE_WORDS}).", markup=False)
    console.print("Peaks are of the whole step, one that refreshes bases included; no device was asked.")
    table = Table("method", *(f"{estimate}: batch, takes, the next one" for estimate in ESTIMATES))
    for name in names:
        lab, setting = _lab(model, name, rank, precision, _one_row(asked), offline)

        def peak(rows: int, estimate: Estimate, lab: Lab = lab, setting: Setting = setting) -> int:
            return estimated(lab.held(setting.model_copy(update={"batch": rows})), estimate)

        found = [largest(lambda rows, e=estimate, p=peak: p(rows, e), limit) for estimate in ESTIMATES]  # type: ignore[misc]
        cells = (
            f"{rows:,}, {_gib(now)}, {_gib(after)}" if rows else f"none fits, {_gib(after)}"
            for rows, now, after in found
        )
        table.add_row(name, *cells)
    console.print(table)


def _print_fits(
    console: Console, model: str, names: list[str], rank: int | None, precision: str, asked: dict[str, Any],
    fits: str, overhead: str, offline: bool,
) -> None:  # fmt: skip
    from suites.lab.fits import OVERHEAD_WORDS, largest, parse_bytes

    limit, taken = parse_bytes(fits, "limit"), parse_bytes(overhead, "overhead")
    if taken >= limit:
        raise ValueError(f"overhead {overhead!r}: must be below the limit of {fits}")
    family = model == FAMILY
    what = "largest LLaMA" if family else "largest batch"
    console.print(
        f"limit {fits} less {overhead} for context and allocator ({OVERHEAD_WORDS}; --overhead): tensors have"
    )
    console.print(f"{(limit - taken) / 2**30:.2f} GiB. Peaks are of the whole step, one that refreshes bases included.")
    table = Table("method", what, "its peak", "the next one's peak")
    for name in names:
        if family:
            table.add_row(name, *_largest_size(name, rank, precision, asked, limit - taken, offline))
            continue
        lab, setting = _lab(model, name, rank, precision, _one_row(asked), offline)

        def peak(rows: int, lab: Lab = lab, setting: Setting = setting) -> int:
            return lab.peak_bytes(setting.model_copy(update={"batch": rows}))

        rows, now, after = largest(peak, limit - taken)
        table.add_row(name, f"{rows:,}" if rows else "none fits", _gib(now or None), _gib(after))
    console.print(table)


def _largest_size(
    method: str, rank: int | None, precision: str, asked: dict[str, Any], limit: int, offline: bool
) -> tuple[str, str, str]:
    """Return (name, peak, peak of the next larger one), from the largest downwards."""
    from suites.c4.sizes import SIZES

    after: int | None = None
    for size in reversed(SIZES):
        lab, setting = _lab(size, method, rank, precision, asked, offline)
        peak = lab.peak_bytes(setting)
        if peak <= limit:
            return size, _gib(peak), _gib(after)
        after = peak
    return "none fits", "-", _gib(after)


def _title(setting: Setting, parameters: int) -> str:
    words = (
        f"{setting.method} on {setting.model} ({parameters:,} parameters), rank {setting.rank}, {setting.precision}, "
    )
    words += f"{setting.state_bits}-bit state, micro-batch {setting.batch} x {setting.sequence}"
    words += f", {setting.accumulation} micro-batches" if setting.accumulation > 1 else ""
    if setting.processes > 1:
        shared = "sharded" if setting.shard == "all" else "frozen weights sharded"
        how = shared if setting.shard else "a copy each"
        words += f", one of {setting.processes} processes ({how})"
    words += ", per-layer updates" if setting.per_layer else ""
    words += f", {setting.variant}" if setting.variant else ""
    words += f", recomputed: {', '.join(setting.recompute)}" if setting.recompute else ""
    words += ", checkpointing" if setting.checkpointing else ""
    return words + f", for {setting.device}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _gib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**30:.3f} GiB"
