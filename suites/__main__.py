"""Command line of the suites: `python -m suites --help`."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

BAD_INPUT = 2
RUNS = Path("results") / "runs"
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Compare memory-efficient training methods on the same data, loop and ruler.\n\n"
        "Start with `python -m suites run glue` (micro profile without a GPU: offline, minutes). "
        "See what would run first with `python -m suites plan glue`. Only missing runs are run."
    ),
)
WIDTH_OF_A_FILE = 150
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Suite = Annotated[str, typer.Argument(help="suite to run, e.g. `glue`")]
Profile = Annotated[
    str,
    typer.Option(help="`auto` (micro without a CUDA device, paper with one), `micro`, `small` or `paper`"),
]
Rank = Annotated[int, typer.Option(help="rank of the comparison: of the factors, or of the projection for galore")]
Tasks = Annotated[str, typer.Option("--task", help="comma-joined tasks; default: all")]
Methods = Annotated[str, typer.Option("--method", help="comma-joined methods; default: all (see `methods`)")]
Seeds = Annotated[str, typer.Option(help="comma-joined seeds")]
Model = Annotated[str, typer.Option(help="`micro`, `minilm`, a folder, or a hub name; default: the profile's")]
DataDir = Annotated[
    Path | None, typer.Option(help="folder with the data in its official layout (GLUE: TSV), instead of the hub")
]
Out = Annotated[Path, typer.Option(help="folder of the records; a run with a record there is not run again")]
Workers = Annotated[int | None, typer.Option(help="runs at a time; default: one a core, one on a GPU")]
Device = Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`")]
Offline = Annotated[bool, typer.Option("--offline", help="never use the network")]
Steps = Annotated[int | None, typer.Option(help="optimizer steps a run, instead of the profile's")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="any other setting, in TOML: `--set batch_size=32`, `--set task.cola.max_length=64`, "
        "`--set method.gradnormlorp.config.projection_rank=2`",
    ),
]


@dataclass(frozen=True)
class Prepared:
    """A request made ready: everything the commands share."""

    request: Any
    runtime: Any
    plans: list[Any]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user got wrong into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        errors.print(f"error: {text}", style="bold red", markup=False)
        raise typer.Exit(BAD_INPUT) from None


@app.command()
def run(
    suite: Suite,
    profile: Profile = "auto",
    rank: Rank = 8,
    task: Tasks = "",
    method: Methods = "",
    seeds: Seeds = "0,1,2",
    model: Model = "",
    data_dir: DataDir = None,
    steps: Steps = None,
    set_: Sets = None,
    out: Out = RUNS,
    workers: Workers = None,
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Run the missing runs of a comparison and write one record each."""
    with one_line_errors():
        prepared = prepare(
            suite, profile, rank, task, method, seeds, model, data_dir, steps, set_, workers, device, offline
        )
        failed = start(prepared, out)
    raise typer.Exit(1 if failed else 0)


@app.command()
def plan(
    suite: Suite,
    profile: Profile = "auto",
    rank: Rank = 8,
    task: Tasks = "",
    method: Methods = "",
    seeds: Seeds = "0,1,2",
    model: Model = "",
    data_dir: DataDir = None,
    steps: Steps = None,
    set_: Sets = None,
    out: Out = RUNS,
    workers: Workers = None,
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Show what `run` would do, how long it should take and how much memory it needs; run nothing."""
    with one_line_errors():
        prepared = prepare(
            suite, profile, rank, task, method, seeds, model, data_dir, steps, set_, workers, device, offline
        )
        show(prepared, out)


@app.command()
def tune(
    suite: Suite,
    profile: Profile = "small",
    rank: Rank = 8,
    task: Tasks = "",
    method: Methods = "",
    model: Model = "",
    data_dir: DataDir = None,
    steps: Steps = None,
    set_: Sets = None,
    out: Out = RUNS / "tuning",
    workers: Workers = None,
    device: Device = "auto",
    offline: Offline = False,
    write: Annotated[bool, typer.Option(help="write the choice beside the profile")] = True,
) -> None:
    """Choose each method's learning rate from a grid of equal size, on a held-out part of train, one seed.

    Validation is never looked at. The records of the grid stay in --out.
    """
    from suites import tuning

    with one_line_errors():
        prepared = prepare(
            suite, profile, rank, task, method, "0", model, data_dir, steps, set_, workers, device, offline, plans=False
        )
        plans = tuning.grid_plans(prepared.request, prepared.runtime)
        failed = start(Prepared(prepared.request, prepared.runtime, plans), out)
        console.print(tuning.choice_table(plans, out))
        if write:
            console.print(str(tuning.write_choice(prepared.request, plans, out)))
    raise typer.Exit(1 if failed else 0)


@app.command()
def methods() -> None:
    """List the methods, their papers and their settings with defaults."""
    from baselines.registry import methods as all_methods

    for name, method in all_methods().items():
        paper = f"arXiv {method.arxiv}" if method.arxiv else "the yardstick"
        console.print(f"[bold]{name}[/bold]  {method.title}, {paper}")
        for field, info in method.config_type.model_fields.items():
            console.print(f"    {field} = {info.default}: {info.description}", markup=False)


@app.command()
def tasks(suite: Suite = "glue") -> None:
    """List the tasks of a suite."""
    from suites.registry import get_suite

    with one_line_errors():
        console.print(", ".join(get_suite(suite).tasks))


@app.command("profile")
def which_profile(suite: Suite = "glue", profile: Profile = "auto", device: Device = "auto") -> None:
    """Print the profile that `auto` stands for on this machine."""
    with one_line_errors():
        console.print(resolve_profile(profile, resolve_device(device))[0])


def resolve_device(name: str) -> Any:
    """Return the torch device that `name` stands for.

    Raises:
        ValueError: unknown, or CUDA asked for where there is none.
    """
    import torch

    from baselines.registry import checked_name

    checked_name(name, ("auto", "cpu", "cuda"), "device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': no CUDA device is here (nearest allowed value: cpu)")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_profile(name: str, device: Any, insisted: bool = False) -> tuple[str, str]:
    """Return (profile, why).

    Raises:
        ValueError: unknown, or `paper` without a GPU and without `--device cpu` insisting on it.
    """
    from baselines.registry import checked_name
    from suites.config import PROFILE_NAMES

    checked_name(name, ("auto", *PROFILE_NAMES), "profile")
    if name == "auto":
        if device.type == "cuda":
            return "paper", "auto: a CUDA device is here"
        return "micro", "auto: no CUDA device is here"
    if name == "paper" and device.type != "cuda" and not insisted:
        raise ValueError(
            "profile 'paper': needs a CUDA device, and none is here (allowed: micro, small; nearest: small); "
            "to run it on the processor for days, insist with --device cpu"
        )
    return name, "asked for"


def prepare(
    suite: str,
    profile: str,
    rank: int,
    task: str,
    method: str,
    seeds: str,
    model: str,
    data_dir: Path | None,
    steps: int | None,
    set_: list[str] | None,
    workers: int | None,
    device: str,
    offline: bool,
    plans: bool = True,
) -> Prepared:
    """Resolve the command line. Says in its first line which profile runs and where.

    Raises:
        ValueError: whatever is wrong with it, in one line.
    """
    torch_device = resolve_device(device)
    name, why = resolve_profile(profile, torch_device, insisted=device == "cpu")
    console.print(f"profile {name} ({why}), device {torch_device.type}", style="bold")
    from suites.launch import shared_out
    from suites.plan import Request, make_plans
    from suites.registry import get_suite
    from suites.suite import Runtime

    get_suite(suite)
    overrides = parse_sets(set_ or [])
    overrides |= {"model": model} if model else {}
    overrides |= {"source": "directory"} if data_dir is not None else {}
    overrides |= {"steps": steps} if steps is not None else {}
    folder = Path(model) if model and Path(model).is_dir() else None
    data_dir = data_dir.resolve() if data_dir is not None else None
    runtime = shared_out(Runtime(torch_device, data_dir, folder, offline=offline), workers)
    request = Request(
        suite=suite,
        profile=name,
        rank=rank,
        tasks=tuple(split(task)),
        methods=tuple(split(method)),
        seeds=tuple(parse_seeds(seeds)),
        overrides=tuple(overrides.items()),
    )
    return Prepared(request, runtime, make_plans(request, runtime) if plans else [])


def show(prepared: Prepared, out: Path) -> list[Any]:
    """Check the plans against model and data, print what is to run, and return the missing ones."""
    from suites import console as view
    from suites.plan import expected_seconds, missing, reference_root
    from suites.preflight import check, predict_peaks
    from results.store import read_records

    known = read_records([out]) if out.exists() else []
    todo = missing(prepared.plans, known)
    if todo:
        check(todo, prepared.runtime)
    predicted = predict_peaks(todo, prepared.runtime)
    console.print(view.plan_table(prepared.plans, todo, predicted))
    first = prepared.plans[0]
    console.print(f"model: {first.model.name}" + (f" ({first.model.disclosure})" if first.model.disclosure else ""))
    references = read_records([reference_root()]) if reference_root().exists() else []
    seconds = expected_seconds(todo, known or references, prepared.runtime.workers)
    tasks = len({plan.task for plan in prepared.plans})
    console.print(
        f"{len(prepared.plans)} runs: {tasks} tasks, {len(todo)} missing, {prepared.runtime.workers} at a time, "
        f"{prepared.runtime.threads} threads each; expected time: "
        + (view.duration_text(seconds) if todo else "none, everything is there")
        + f"; records in {out}"
    )
    return [(plan, predicted.get(plan.hash())) for plan in todo]


def start(prepared: Prepared, out: Path) -> int:
    """Show and run the missing plans; return how many did not end well.

    Raises:
        ValueError: bad input, or a store that cannot be used.
    """
    from results.store import check_writable
    from suites.console import ProgressListener
    from suites.launch import Interrupted, launch

    check_writable(out)
    todo = show(prepared, out)
    if not todo:
        return 0
    plans = [plan for plan, _ in todo]
    try:
        with ProgressListener(console, plans) as listener:
            records = launch(plans, prepared.runtime, out, {plan.hash(): peak for plan, peak in todo}, listener)
    except Interrupted:
        errors.print("interrupted: the runs in hand are recorded as such; the same command goes on where it stopped")
        raise typer.Exit(BAD_INPUT) from None
    bad = [record for record in records if record.status != "ok"]
    console.print(f"{len(records) - len(bad)} runs ok" + (f", {len(bad)} not" if bad else ""))
    return len(bad)


def split(text: str) -> list[str]:
    """Return the parts of a comma-joined list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a comma-joined list.

    Raises:
        ValueError: a part is no whole number, or there is none.
    """
    parts = split(text)
    if not parts:
        raise ValueError(f"seeds {text!r}: must be whole numbers joined by commas (nearest allowed value: 0)")
    for part in parts:
        if not part.lstrip("-").isdigit():
            raise ValueError(f"seed {part!r}: must be a whole number (nearest allowed value: 0)")
    return [int(part) for part in parts]


def parse_sets(texts: list[str]) -> dict[str, Any]:
    """Return `--set` options merged into one table.

    Raises:
        ValueError: not `name=value` in TOML.
    """
    try:
        return tomllib.loads("\n".join(texts))
    except tomllib.TOMLDecodeError:
        pass
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: must be name=value")
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            try:
                tomllib.loads(f"{name} = '{value.strip()}'")
            except tomllib.TOMLDecodeError as error:
                raise ValueError(f"--set {text!r}: {error}") from error
    quoted = []
    for text in texts:
        name, _, value = text.partition("=")
        try:
            tomllib.loads(text)
            quoted.append(text)
        except tomllib.TOMLDecodeError:
            quoted.append(f"{name} = '{value.strip()}'")
    return tomllib.loads("\n".join(quoted))


if __name__ == "__main__":
    sys.exit(app())
