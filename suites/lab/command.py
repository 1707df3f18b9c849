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
    from suites.lab.asked import Asked

RUNS = Path("results") / "runs" / "memory"
MODEL_HELP = (
    "a name that needs no hub (`llama-3.1-8b`, `qwen3-4b`, `roberta-large`, ...; a wrong one lists all), a LLaMA size "
    "of C4 (`60m` to `7b`), a folder with config.json, a hub name; with --fits several, comma-joined, or `llama`: the "
    "largest of those sizes that fits"
)
STATE_HELP = (
    "32: moments in the weights' dtype (bf16 in bf16, but with --bf16-updates), or 8 through bitsandbytes, by rule"
)


Updates = Annotated[
    str, typer.Option(help="with bf16: `nearest`, `stochastic`, `kahan` or `master` (`suites/run/rounding.py`)")
]
Again = Annotated[
    str, typer.Option("--recompute", help="made again in backward, exactly: some of norms,mlp,loss (comma-joined)")
]
Variant = Annotated[str, typer.Option(help="of the method, as the tables call it: `8-bit weights`, `4-bit weights`")]
PRECISION_HELP = "`fp32`, `bf16` or `bf16-autocast`; default: bf16 for language models"
TARGETS_HELP = "`attention+mlp`, `attention`, `mlp`, or endings such as `q_proj,v_proj`"
BASE_HELP = "4: frozen weights as QLoRA keeps them (NF4 of bitsandbytes, or the method's own)"
Methods = Annotated[
    list[str] | None, typer.Argument(help="methods; default: a comparison's; `all`: every one but controls")
]
Whole = Annotated[bool, typer.Option("--keep-trained-whole", help="with --shard: the frozen weights alone are sharded")]
Train = Annotated[
    str,
    typer.Option(
        help="`fine-tuning`: a language model keeps embeddings and head, as most do; or `pre-training`; default: "
        "fine-tuning, but for C4's sizes"
    ),
]
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
        model: Annotated[str, typer.Argument(help=MODEL_HELP)],
        method: Methods = None,
        rank: Annotated[int | None, typer.Option(help="default: 8; to pre-train a quarter of the width")] = None,
        batch: Annotated[int | None, typer.Option(help="sequences a step; default: 16, with --fits 1")] = None,
        accumulation: Annotated[int, typer.Option(help="micro-batches an optimizer step")] = 1,
        sequence: Annotated[int, typer.Option("--sequence", "--length", help="tokens a sequence")] = 256,
        precision: Annotated[str, typer.Option(help=PRECISION_HELP)] = "",
        bf16_updates: Updates = "nearest",
        state_bits: Annotated[int, typer.Option(help=STATE_HELP)] = 32,
        per_layer: Annotated[bool, typer.Option("--per-layer", help="update inside backward")] = False,
        checkpointing: Annotated[bool, typer.Option("--checkpointing", help="compute activations again")] = False,
        again: Again = "",
        variant: Variant = "",
        gpus: Annotated[int, typer.Option(help="processes that share a step: its micro-batches, with --shard all")] = 1,
        shard: Annotated[bool, typer.Option("--shard", help="weights, gradients and state sharded (FSDP2)")] = False,
        keep_trained_whole: Whole = False,
        train: Train = "",
        targets: Annotated[str, typer.Option(help=TARGETS_HELP)] = "attention+mlp",
        base_bits: Annotated[int | None, typer.Option(help=BASE_HELP)] = None,
        fits: Annotated[str, typer.Option(help="a limit such as 24GiB: which methods fit, with which batch")] = "",
        as_json: Annotated[bool, typer.Option("--json", help="with --fits: the answer as JSON, in bytes")] = False,
        overhead: Overhead = "",
        device: Rules = "",
        offline: Annotated[bool, typer.Option("--offline", help="never use the network")] = False,
    ) -> None:
        """Print the memory ledger of methods on a model, or what fits: without weights, a GPU or, for names in the
        list, the hub.

        `memory llama-3.1-8b --fits 24GiB` answers for fine-tuning with adapters alone trained;
        `--train pre-training` for training from the start.
        """
        with one_line_errors():
            _before_torch(model.split(","), offline)
            from suites.lab.asked import Asked
            from suites.lab.fits_command import FAMILY, print_answers, print_estimates, print_fits
            from suites.recompute import parts

            rules = _device(device, "cuda" if fits else "cpu")
            whole = bool(fits) and rules == "cuda" and not overhead and model != FAMILY
            rest: dict[str, Any] = {
                "batch": (1 if whole else 16) if batch is None else batch, "accumulation": accumulation,
                "sequence": sequence, "state_bits": state_bits, "per_layer": per_layer, "checkpointing": checkpointing,
                "recompute": parts(again), "variant": variant, "bf16_updates": bf16_updates, "device": rules,
                **_shared(gpus, shard, keep_trained_whole),
            }  # fmt: skip
            asked = Asked(rank, precision, train, targets, base_bits, rest)
            if as_json and not (whole and gpus == 1):
                raise ValueError("--json: only with --fits, for one `cuda` device and without --overhead")
            if whole and gpus == 1:
                print_answers(console, model, _methods(method), asked, fits, offline, as_json)
            elif whole:
                print_estimates(console, model, _methods(method), asked, fits, offline)
            elif fits:
                print_fits(console, model, _methods(method), asked, fits, overhead or "1GiB", offline)
            else:
                _print_ledgers(console, model, _methods(method), asked, offline)


def _before_torch(models: list[str], offline: bool) -> None:
    """Ask for the hub where a model needs it, before the libraries' seconds."""
    from suites.lab.named import check_hub

    for each in models:
        check_hub(each.strip(), offline)


def _register_matrix(app: typer.Typer, console: Console, one_line_errors: OneLineErrors) -> None:
    @app.command("memory-matrix")
    def matrix(
        model: Annotated[str, typer.Option(help="comma-joined models; default: roberta-base and every LLaMA")] = "",
        method: Annotated[str, typer.Option(help="comma-joined methods; default: a comparison's; all: every one")] = "",
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

            at_once = usable_cpus() if workers is None else workers
            for path in run_matrix(split(model) or MODELS, _methods(split(method), controls=True), out, said, at_once):
                console.print(str(path))


def _register_claims(app: typer.Typer, console: Console, one_line_errors: OneLineErrors) -> None:
    @app.command()
    def claims(
        out: Annotated[Path, typer.Option(help="file of the recomputed claims")] = RUNS / "claims.json",
        quick: Annotated[bool, typer.Option("--quick", help="formulas only: no traces")] = False,
    ) -> None:
        """Recompute every published memory claim under every convention that its source could mean."""
        with one_line_errors():
            from results.lab import write_verdicts
            from suites.lab.claims import lines_of, recompute

            found = recompute(traces=not quick)
            for line in lines_of(found):
                console.print(line, markup=False)
            console.print(str(write_verdicts(out, found)))


def _shared(gpus: int, shard: bool, keep_trained_whole: bool) -> dict[str, Any]:
    from suites.run.distributed import Group, sharded_group

    if gpus < 1:
        raise ValueError(f"gpus {gpus}: must be at least 1 (nearest allowed value: 1)")
    return {"processes": gpus, "shard": sharded_group(Group(0, gpus), shard, keep_trained_whole).shard}


def _methods(names: list[str] | None, controls: bool = False) -> list[str]:
    from baselines.registry import default_methods, get_method, methods

    if names == ["all"]:
        return [name for name, each in methods().items() if controls or not each.control]
    return [get_method(name).name for name in names or default_methods()]


def _print_ledgers(console: Console, model: str, names: list[str], asked: Asked, offline: bool) -> None:
    """Print a ledger a method; one that does not fit the model is said among several, and an error alone."""
    from suites.lab.asked import lab_of
    from suites.lab.networks import find_network

    network = find_network(model, offline)
    for name in names:
        try:
            lab, setting = lab_of(network, name, asked)
            if setting.base_bits is not None:
                raise ValueError(
                    f"base_bits {setting.base_bits}: a ledger's formula counts whole weights of {name}; ask with --fits"
                )
            cell = lab.cell(setting)
        except ValueError as error:
            if len(names) == 1:
                raise
            console.print(f"{name}: {error}", markup=False)
            continue
        _print_ledger(console, cell)


def _print_ledger(console: Console, cell: MemoryCell) -> None:
    from suites.lab.fits import gib
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
            f"  of a CUDA device, by its allocator's rules: allocated {gib(cell.allocated_bytes)}, reserved "
            f"{gib(cell.reserved_bytes)}; predicted, not measured",
            markup=False,
        )
    phases = ", ".join(f"{name} {gib(peak.total_bytes)}" for name, peak in ledger.phases.items())
    console.print(f"  peak by phase: {phases}")
    for rule, times in cell.by_rule.items():
        console.print(f"  by rule, {times} times: {rule}", markup=False)


def _device(name: str, default: str) -> str:
    from baselines.registry import checked_name

    return checked_name(name or default, ("cpu", "cuda"), "device")


def _title(setting: Setting, parameters: int) -> str:
    words = (
        f"{setting.method} on {setting.model} ({parameters:,} parameters), rank {setting.rank}, {setting.precision}, "
    )
    words += f"{_moments(setting)}, micro-batch {setting.batch} x {setting.sequence}"
    words += f", {setting.accumulation} micro-batches" if setting.accumulation > 1 else ""
    if setting.processes > 1:
        shared = "sharded" if setting.shard == "all" else "frozen weights sharded"
        how = shared if setting.shard else "a copy each"
        words += f", one of {setting.processes} processes ({how})"
    words += f", {setting.work}: embeddings and head frozen unless the method trains everything" if setting.work else ""
    words += f", targets {setting.targets}" if setting.targets != "attention+mlp" else ""
    words += ", frozen weights in 4 bits" if setting.base_bits else ""
    words += ", per-layer updates" if setting.per_layer else ""
    words += f", {setting.variant}" if setting.variant else ""
    words += f", recomputed: {', '.join(setting.recompute)}" if setting.recompute else ""
    words += ", checkpointing" if setting.checkpointing else ""
    return words + f", for {setting.device}"


def _moments(setting: Setting) -> str:
    """Return in which dtype the moments are, which the width of the state alone does not say."""
    if setting.state_bits == 8:
        return "8-bit moments"
    if setting.precision == "bf16" and setting.bf16_updates == "nearest":
        return "moments in bf16 like the weights (projected ones in fp32)"
    return "moments in fp32"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
