"""Command line of the suites: `python -m suites --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from results import ending
from suites.bf16_study import register as register_bf16_study
from suites.engines.command import register as register_run
from suites.engines.command import sayer
from suites.engines.place import Place, opened, settled, takes_place
from suites.engines.status import note_asked, refuse_handed
from suites.engines.status import register as register_status
from suites.gate.command import register as register_gate
from suites.gpu.command import register as register_gpu_check
from suites.lab.command import register as register_memory
from suites.options import (
    RUNS,
    Device,
    Options,
    Profile,
    Suite,
    beside_of,
    overrides_of,
    parse_seeds,
    resolve_device,
    resolve_profile,
    split,
    sweep_of,
    takes_options,
)
from suites.padding import register as register_padding
from suites.typed import check_methods, check_suite, check_typed

if TYPE_CHECKING:
    import torch

    from results.schema import Plan, Record
    from suites.engines.away import Away
    from suites.measure.predict import Prediction
    from suites.plan import Request
    from suites.run.distributed import Group
    from suites.suite import Outside, Runtime

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Compare memory-efficient training methods on the same data, loop and ruler.\n\n"
        "Start with `python -m suites run glue`, or `run c4` (micro profile without a GPU: offline, minutes). "
        "See what would run first with `python -m suites plan glue`. Only missing runs are run."
    ),
)
WIDTH_OF_A_FILE = 150
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Prepared:
    """A request made ready: everything the commands share."""

    request: Request
    runtime: Runtime
    plans: list[Plan]


def one_line_errors() -> AbstractContextManager[None]:
    """Turn what a user got wrong, and Ctrl-C, into one line on stderr and exit code 2."""

    def said(line: str) -> None:
        errors.print(line, style="bold red" if line.startswith("error") else None, markup=False)

    return ending.one_line_errors(write=said, kinds=(ValueError, TypeError, OSError))


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda on: _print_version(on), help="print versions")
    ] = False,
) -> None:
    # The help of the commands as a whole stands above, with the app. One command's --quiet is not the next one's.
    console.quiet = errors.quiet = False


def _print_version(asked: bool) -> None:
    if asked:
        packages = ("gnlorp", "torch", "transformers", "accelerate", "peft", "bitsandbytes")
        console.print(ending.version_line(packages), markup=False)
        raise typer.Exit


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="`bash`, `zsh` or `fish`")] = "bash") -> None:
    """Print a script that makes `suites` a short form of `python -m suites` and completes it: `eval` it in bash."""
    with one_line_errors():
        sys.stdout.write(ending.completion("suites", shell))


register_run(app, console, one_line_errors, lambda: (prepare, start))


@app.command()
@takes_options(fixed={"quiet": False})
def plan(options: Options) -> None:
    """Show what `run` would do, how long it should take and how much memory it needs; run nothing."""
    with one_line_errors():
        prepared = prepare(options, dry=True)
        from suites.console import parts_table, size_lines
        from suites.run.preflight import predict

        todo, known = missing_runs(prepared.plans, prepared.runtime, options.out)
        predictions = predict(todo, prepared.runtime)
        parts = {key: found.peak for key, found in predictions.items()}
        show(
            prepared.plans,
            prepared.runtime,
            todo,
            known,
            {key: peak.total_bytes for key, peak in parts.items()},
            options.out,
        )
        for line in size_lines(prepared.plans):
            console.print(line, markup=False)
        if parts:
            console.print(parts_table(todo, parts))
        if prepared.runtime.device.type == "cuda":
            from suites.console import hours_lines

            for line in hours_lines(todo, prepared.runtime):
                console.print(line, markup=False)


@app.command()
@takes_options(fixed={"seeds": "0", "sweep": None, "save_model": "", "push_to_hub": ""}, defaults={"profile": "small"})
@takes_place
def tune(
    options: Options,
    place: Place,
    trials: Annotated[
        int | None, typer.Option(help="points that every method is given in every round; default: the profile's")
    ] = None,
    write: Annotated[bool, typer.Option(help="write the choice beside the profile")] = True,
) -> None:
    """Search each method's learning rates with an equal budget, on held-out train rows.

    Every method gets the same number of trials, at the same quasi-random points of a square: the learning rate of its
    matrices, and that of the rest, which every method trains alike (`rest_learning_rate`). Both go over log ranges that
    are equally wide for all, around the method's usual rate: `methods` lists them, and
    `--set method.lora.range=[1e-4,1e-2]` gives another. If a method's best lies within a tenth of an end of a range,
    all ranges are widened by a decade and tried again, at most `--set rounds=3` times in all. `--set confirm=3` runs
    a method's best trial again at the runs' own length, and where it gets worse by it, or is no better than the
    constant prediction on a task (`--set confirm_tasks=cola,mrpc` adds some), the next best, at most three. Validation
    is never looked at.

    Records and journal stand in OUT/search-SUITE-PROFILE-rRANK: the same command goes on where it stopped, and several
    at a time, in other terminals or on other devices of the same file system, share the work.
    """
    with one_line_errors():
        from suites.search import command

        where = settled(place)
        if where.detach:
            raise ValueError("--detach: is for run and gate run, not for tune: a search hands out round after round")
        prepared = prepare(options, plans=False, away=where.away)

        asked, runtime = prepared.request, prepared.runtime
        folder = command.folder_of(asked, options.out)

        def shown(*given: Any) -> None:
            plans, todo, known, predicted = given
            show(plans, runtime, todo, known, predicted, folder)

        there = opened(where, runtime, folder, sayer(console))
        failed = command.tune(console, asked, runtime, folder, trials, options.fresh, write, shown, there)
    raise typer.Exit(1 if failed else 0)


@app.command()
def capabilities(
    method: Annotated[str, typer.Option(help="comma-joined methods; default: all")] = "",
    backend: Annotated[str, typer.Option(help="of torch.compile: inductor (needs a C++ compiler) or aot_eager")] = (
        "inductor"
    ),
    learning_rate: Annotated[float | None, typer.Option(help="default: by kind of method")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the record, results/reference/capabilities.json")] = None,
) -> None:
    """Check what every method can do (accumulation, clipping, resume, merge, ...) and print the matrix."""
    with one_line_errors():
        check_methods(split(method))
        from suites.capabilities.command import print_matrix

        failed = print_matrix(console, split(method), backend, learning_rate, out)
    raise typer.Exit(1 if failed else 0)


@app.command()
def bench(
    only: Annotated[
        str, typer.Option(help="comma-joined groups: layer, refresh, step, methods, model; default: all")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="tiny shapes, seconds: says whether all of it works")] = False,
    time: Annotated[float, typer.Option(help="share of the usual measuring time, such as 0.3")] = 1.0,
    against: Annotated[
        str | None, typer.Option(help="git revision (hash, tag, branch): its layer takes turns with today's")
    ] = None,
    out: Annotated[Path, typer.Option(help="file for the record")] = RUNS / "bench.json",
) -> None:
    """Measure speed and memory beside peft, galore-torch and torch's AdamW; wants a quiet machine."""
    with one_line_errors():
        from suites.bench.command import bench as measure

        wrong = measure(console, split(only), quick, time, out, against)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def methods() -> None:
    """List the methods, their papers, usual learning rates, and settings with defaults."""
    with one_line_errors():
        from baselines.registry import methods as all_methods

        for name, method in all_methods().items():
            paper = f"arXiv {method.arxiv}" if method.arxiv else "the yardstick"
            console.print(f"[bold]{name}[/bold]  {method.title}, {paper}")
            for work, rates in method.rates.items():
                span = f"{rates.usual:g}, range {rates.low:g} to {rates.high:g} ({rates.source})"
                console.print(f"    learning rate, {work}: {span}", markup=False)
            for field, info in method.config_type.model_fields.items():
                console.print(f"    {field} = {info.default}: {info.description}", markup=False)


@app.command()
def tasks(suite: Suite = "glue") -> None:
    """List the tasks of a suite."""
    with one_line_errors():
        check_suite(suite)
        from suites.registry import get_suite

        console.print(", ".join(get_suite(suite).tasks) or "none: files bring them, --task path/to/task.toml")


@app.command()
def protocol(
    suite: Suite = "glue",
    method: Annotated[str, typer.Option(help="comma-joined methods; default: all that it speaks of")] = "",
    rank: Annotated[int | None, typer.Option(help="that rank alone")] = None,
    place: Annotated[str, typer.Option(help="that task or model size alone, such as cola or 60m")] = "",
) -> None:
    """Show every setting of the published runs, which the profile `paper` takes, with its source."""
    with one_line_errors():
        from suites.console import protocol_table

        console.print(protocol_table(suite, split(method), rank, place))


@app.command("catalogue")
def write_the_catalogue(
    out: Annotated[Path, typer.Option(help="the file; results/reference/catalogue.json is the committed one")] = RUNS
    / "catalogue.json",
) -> None:
    """Write what methods, suites, tasks and metrics say of themselves: how records that embed nothing are read."""
    with one_line_errors():
        from results.store import write_single
        from suites.catalogue import catalogue

        console.print(str(write_single(out, catalogue())), soft_wrap=True)


@app.command("profile")
def which_profile(suite: Suite = "glue", profile: Profile = "auto", device: Device = "auto") -> None:
    """Print the profile that `auto` stands for on this machine."""
    with one_line_errors():
        check_suite(suite)
        console.print(resolve_profile(profile, resolve_device(device))[0])


def prepare(options: Options, plans: bool = True, dry: bool = False, away: bool = False) -> Prepared:
    """Resolve the command line. Says in its first line which profile runs and where; `dry`: nothing is to be run.

    `away`: it runs on other machines, so that their device need not be here.

    Raises:
        ValueError: whatever is wrong with it, in one line.
    """
    check_typed(options)
    from suites.run.distributed import joined_group

    if options.offline:
        from suites.offline import go_offline

        go_offline()
    group = joined_group()
    errors.quiet = not group.leads
    console.quiet = options.quiet or errors.quiet
    device = resolve_device(options.device, dry or away)
    name, why = resolve_profile(options.profile, device, insisted=options.device == "cpu")
    console.print(f"profile {name} ({why}), device {device.type}", style="bold")
    from suites import outside
    from suites.config import default_rank
    from suites.models import first_folder
    from suites.plan import Request, combinations, comparison, make_plans
    from suites.registry import get_suite
    from suites.suite import Outside

    suite = get_suite(options.suite)
    names, method_files = outside.named_methods(split(options.method))
    tasks, task_files = outside.named_tasks(split(options.task), suite)
    overrides = overrides_of(options, suite)
    rank = options.rank if options.rank is not None else default_rank(name, options.suite, overrides.get("model"))
    request = Request(
        suite=options.suite,
        profile=name,
        rank=rank,
        rank_by_model=options.rank is None,
        tasks=tuple(tasks),
        methods=tuple(names),
        seeds=tuple(parse_seeds(options.seeds)),
        overrides=tuple(overrides.items()),
        sweep=sweep_of(options, suite),
    )
    asked = [comparison(each) for each in combinations(request)]
    folder = first_folder(each.settings(*cell).model for each in asked for cell in each.cells())
    runtime = runtime_of(options, device, group, Outside(method_files, task_files), dry, folder)
    if not plans:
        return Prepared(request, runtime, [])
    for line in dict.fromkeys(line for each in asked for line in each.notes()):
        console.print(line, style="yellow", markup=False)
    return Prepared(request, runtime, make_plans(request, runtime))


def runtime_of(
    options: Options, device: torch.device, group: Group, outside: Outside, dry: bool, model_dir: Path | None
) -> Runtime:
    """Return what runs need to know of this machine.

    Raises:
        ValueError: an option outside its rule.
    """
    from suites.run.distributed import sharded_group
    from suites.run.processes import shared_out
    from suites.suite import Runtime

    group = sharded_group(group, options.shard, options.keep_trained_whole)
    data_dir = options.data_dir.resolve() if options.data_dir is not None else None
    if options.checkpoint_every is not None and options.checkpoint_every < 1:
        raise ValueError(f"checkpoint-every {options.checkpoint_every}: must be at least 1 (nearest allowed value: 1)")
    tokenizer = Path(options.tokenizer).resolve() if options.tokenizer and Path(options.tokenizer).exists() else None
    runtime = Runtime(
        device,
        data_dir,
        model_dir,
        offline=options.offline,
        tokenizer=tokenizer,
        dry=dry,
        group=group,
        checkpoint_steps=options.checkpoint_every,
        outside=outside,
        beside=beside_of(options),
    )
    return shared_out(runtime, options.workers)


def missing_runs(plans: list[Plan], runtime: Runtime, out: Path) -> tuple[list[Plan], list[Record]]:
    """Return the plans without a record in `out`, checked against model and data, and the records there.

    Raises:
        ValueError: a record that cannot be read; data, model or settings that do not fit.
    """
    from results.store import read_records
    from suites.plan import missing
    from suites.run.preflight import check

    known = read_records([out]) if out.exists() else []
    todo = missing(plans, known)
    for line in check(todo, runtime):
        console.print(line, style="yellow", markup=False)
    return todo, known


def show(
    plans: list[Plan],
    runtime: Runtime,
    todo: list[Plan],
    known: list[Record],
    predicted: Mapping[str, int | None],
    out: Path,
) -> None:
    """Print what is to run, how much memory it needs and how long it should take."""
    from results.store import read_records
    from suites import console as view
    from suites.plan import REFERENCE, expected_seconds

    console.print(view.plan_table(plans, todo, predicted))
    for model in dict.fromkeys(plan.model for plan in plans):
        console.print(f"model: {model.name}" + (f" ({model.disclosure})" if model.disclosure else ""))
    seconds = expected_seconds(todo, known, runtime.workers)
    # Records of other runs in the same folder say nothing of these.
    if todo and seconds is None:
        seconds = expected_seconds(todo, read_records([REFERENCE]), runtime.workers)
    console.print(view.summary_line(plans, todo, runtime, seconds, out), markup=False)
    if warning := view.precision_warning(todo, runtime):
        console.print(warning, style="yellow", markup=False)


def start(
    plans: list[Plan],
    runtime: Runtime,
    out: Path,
    fresh: bool = False,
    there: AbstractContextManager[Away | None] | None = None,
) -> int:
    """Show and run the missing plans, here unless `there`, entered only where one is missing; return how many failed.

    Raises:
        ValueError: bad input, or a store that cannot be used.
        KeyboardInterrupt: Ctrl-C.
    """
    from suites.run import distributed

    todo, known = missing_runs(plans, runtime, out)
    for each in todo:
        distributed.check_divides(each.training.accumulation, runtime.group)
    with there if there is not None and todo else nullcontext() as away:
        return _started(plans, todo, known, runtime, out, fresh, away)


def _started(
    plans: list[Plan],
    todo: list[Plan],
    known: list[Record],
    runtime: Runtime,
    out: Path,
    fresh: bool,
    away: Away | None,
) -> int:
    from results.store import check_writable
    from suites.console import ProgressListener
    from suites.console import result_line as view_of
    from suites.run import checkpoint, saved
    from suites.run.launch import launch, launch_here
    from suites.run.preflight import predict

    group = runtime.group
    # The step of one process that has it all says nothing of a shard's: see `memory --gpus N --shard`.
    predictions = predict(todo, runtime) if group.shard is None else {}
    predicted: dict[str, int | None] = {key: found.peak.total_bytes for key, found in predictions.items()}
    reserved = reserved_bytes(todo, predictions, runtime, there=away is not None)
    if todo and group.leads:
        check_writable(out)
        if away is None or fresh:
            refuse_handed(todo, out)
        begin_anew(todo, out) if fresh else checkpoint.check_unchanged(out, todo)
        note_asked(todo, out, away.slots if away else runtime.workers)
    show(plans, replace(runtime, workers=away.slots) if away else runtime, todo, known, predicted, out)
    if line := saved.without_model(plans, todo, out) if runtime.beside.model else None:
        console.print(line, style="yellow", markup=False)
    if not todo:
        publish(plans, runtime, out)
        return 0
    if going_on := checkpoint.unfinished(out, todo):
        console.print(f"{going_on} of them go on from a checkpoint in {out / checkpoint.FOLDER}", markup=False)
    with ProgressListener(console, todo) as listener:
        run_all = away or (launch if group.size == 1 else launch_here)
        records = run_all(todo, runtime, out, predicted, listener, reserved)
    if away is not None and away.detach:
        console.print(
            f"{len(todo)} runs are in the hands of {away.engine.name}; the same command collects", markup=False
        )
        console.print(f"python -m suites status {out}", markup=False)
        return 0
    bad = [record for record in records if record.status != "ok"]
    not_well = len(todo) - len(records) + len(bad)
    console.print(f"{len(records) - len(bad)} runs ok" + (f", {not_well} not" if not_well else ""))
    for record in bad if console.quiet and group.leads else ():
        errors.print(view_of(record), markup=False)
    publish(plans, runtime, out)
    return not_well


def reserved_bytes(
    plans: list[Plan], predictions: Mapping[str, Prediction], runtime: Runtime, there: bool = False
) -> dict[str, int]:
    """Say which plans may not fit the device (not known `there`); return what its allocator should reserve, by hash.

    Raises:
        ValueError: a plan that cannot fit.
    """
    from suites.measure.environment import device_memory_bytes
    from suites.run.preflight import memory_warnings

    if runtime.device.type != "cuda":
        return {}
    for line in memory_warnings(plans, predictions, None if there else device_memory_bytes(runtime.device)):
        console.print(line, style="yellow", markup=False)
    return {key: found.held.reserved_bytes for key, found in predictions.items()}


def publish(plans: list[Plan], runtime: Runtime, out: Path) -> None:
    """Put the models of these plans into the hub's repository, where one is named, and say where each stands."""
    from suites.run.saved import push

    if runtime.beside.repository and runtime.group.leads:
        for line in push(plans, out, runtime.beside.repository):
            console.print(line, markup=False)


def begin_anew(plans: list[Plan], out: Path) -> None:
    """Remove the checkpoints of these plans."""
    from suites.run import checkpoint

    for each in plans:
        checkpoint.remove(checkpoint.folder_of(out, each))


register_memory(app, console, one_line_errors)
register_gate(app, console, one_line_errors, start)
register_status(app, console, one_line_errors)
register_gpu_check(app, console, one_line_errors)
register_padding(app, console, one_line_errors, prepare)
register_bf16_study(app, console, one_line_errors, prepare, start)

if __name__ == "__main__":
    sys.excepthook = ending.interrupted_early
    ending.run(app, "suites")
