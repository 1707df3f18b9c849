"""The options that the commands share: declared once, handed to a command as one value.

torch is imported only where a device is asked for, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from suites.sweep import RANK, Sweep, nested, parse_sweeps
from suites.typed import (
    DEVICES,
    PROFILES,
    complete_device,
    complete_methods,
    complete_profile,
    complete_suite,
    complete_tasks,
)

if TYPE_CHECKING:
    import torch

    from suites.suite import Beside
    from suites.suite import Suite as TrainingSuite

RUNS = Path("results") / "runs"

Suite = Annotated[str, typer.Argument(help="suite to run, e.g. `glue`", autocompletion=complete_suite)]
Profile = Annotated[
    str,
    typer.Option(
        help="`auto` (micro without a CUDA device, paper with one), `micro`, `small`, `paper` (published settings) or "
        "`fair` (the same runs, searched learning rates)",
        autocompletion=complete_profile,
    ),
]
Device = Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`", autocompletion=complete_device)]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `run`, `plan` and `tune` can be told, as typed."""

    suite: Suite
    profile: Profile = "auto"
    rank: Annotated[
        int | None,
        typer.Option(
            help="rank of the comparison: of the factors, or of the projection for galore; default: 8, in c4 the "
            "profile's, in its `paper` by the model's size"
        ),
    ] = None
    task: Annotated[
        str,
        typer.Option(
            help="comma-joined tasks (see `tasks`), in suite `own` files (.toml, .py); default: all",
            autocompletion=complete_tasks,
        ),
    ] = ""
    method: Annotated[
        str,
        typer.Option(
            help="comma-joined methods (see `methods`), files `path.py:METHOD`, or `all`; default: the profile's",
            autocompletion=complete_methods,
        ),
    ] = ""
    seeds: Annotated[str, typer.Option(help="comma-joined seeds")] = "0,1,2"
    model: Annotated[
        str,
        typer.Option(
            help="glue, own: `micro`, `minilm`, a folder, or a hub name; instruct: `micro-decoder`, a folder, or a hub "
            "name; c4: a size such as `60m`; default: the profile's"
        ),
    ] = ""
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="folder with the data in its official layout (GLUE: TSV, C4: JSON lines), instead of the hub"
        ),
    ] = None
    tokenizer: Annotated[
        str,
        typer.Option(help="c4: `t5-base`, `bpe:N` (trained on the data), or a file or folder; default: the profile's"),
    ] = ""
    steps: Annotated[int | None, typer.Option(help="optimizer steps a run, instead of the profile's")] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="any other setting, in TOML: `--set batch_size=32`, `--set task.cola.max_length=64`, "
            "`--set method.gradnormlorp.config.projection_rank=2`",
        ),
    ] = None
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="a setting under several values, each a row of tables: `--sweep method.lora.config.alpha=8,16,32`; "
            "`rank` too; several: every combination"
        ),
    ] = None
    out: Annotated[Path, typer.Option(help="folder of the records; a run with a record there is not run again")] = RUNS
    workers: Annotated[int | None, typer.Option(help="runs at a time; default: one a core, one on a GPU")] = None
    device: Device = "auto"
    checkpoint_every: Annotated[
        int | None, typer.Option(help="optimizer steps between checkpoints; default: one every five minutes")
    ] = None
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="under torchrun: shard weights, gradients and state over the processes (FSDP2), no copy each",
        ),
    ] = False
    keep_trained_whole: Annotated[
        bool,
        typer.Option(
            "--keep-trained-whole",
            help="with --shard: shard the frozen weights alone, for LoRA and its kin: any optimizer, 8-bit state too",
        ),
    ] = False
    fresh: Annotated[
        bool, typer.Option("--fresh", help="start anew instead of going on from the checkpoints of a run cut off")
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print errors and runs that did not end well, nothing else")
    ] = False
    offline: Annotated[bool, typer.Option("--offline", help="never use the network")] = False
    tracker: Annotated[
        str,
        typer.Option(help="comma-joined: tensorboard, wandb, trackio, mlflow; files go to OUT/trackers; default: none"),
    ] = ""
    save_model: Annotated[
        str,
        typer.Option(help="keep each run's model in OUT/models: `merged` (an ordinary one) or `adapters` alone"),
    ] = ""
    push_to_hub: Annotated[
        str, typer.Option(help="owner/name: put the models that --save-model keeps into this private repository")
    ] = ""


def takes_options(
    fixed: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator: the command line gets the fields of `Options`, the command one `Options` as first argument.

    Args:
        fixed: fields that this command does not offer, with their values.
        defaults: fields whose default is another one here.
    """
    settled, changed = dict(fixed or {}), dict(defaults or {})
    hints = get_type_hints(Options, include_extras=True)
    offered = [field for field in dataclasses.fields(Options) if field.name not in settled]

    def parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
        default = changed.get(field.name, field.default)
        return inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        ]
        parameters = [*map(parameter, offered), *own]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            options = Options(**settled, **{field.name: given.pop(field.name) for field in offered})
            command(options, **given)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate


def overrides_of(options: Options, suite: TrainingSuite[Any]) -> dict[str, Any]:
    """Return the settings that the command line lays over the profile's.

    Raises:
        ValueError: a `--set` that is no TOML, that speaks of a task, method or setting that does not exist or stands
            where no run reads it, or that another option gives too.
    """
    overrides = parse_sets(options.set_ or [])
    typed = {"model": options.model or None, "tokenizer": options.tokenizer or None, "steps": options.steps}
    for name, value in typed.items():
        if value is not None and name in overrides:
            raise ValueError(f"--set {name}={overrides[name]!r}: --{name} gives it too; leave one of the two out")
        overrides |= {} if value is None else {name: value}
    overrides |= {"source": "directory"} if options.data_dir is not None else {}
    _check_said(overrides, suite, "--set")
    return overrides


def _check_said(table: Mapping[str, Any], suite: TrainingSuite[Any], where: str) -> None:
    """Raise ValueError for what no run reads, and for a rank, which a profile may speak of and a command asks for."""
    from suites.config import check_table

    def refuse_rank(part: Mapping[str, Any], before: str = "") -> None:
        for name in ("rank", "default_rank"):
            if name in part:
                raise ValueError(f"{where} {before}{name}={part[name]!r}: the rank is given by --rank")

    refuse_rank(table)
    check_table(table, suite.settings, suite.tasks, where)
    for size, settings in table.get("size", {}).items():
        refuse_rank(settings, f"size.{size}.")


def beside_of(options: Options) -> Beside:
    """Return what the runs leave beside their records.

    Raises:
        ValueError: an unknown tracker or form of a model; a repository without models, or without the network.
    """
    from baselines.registry import checked_name
    from suites.run.follow import check_trackers
    from suites.suite import Beside

    if options.save_model:
        checked_name(options.save_model, ("merged", "adapters"), "form of a saved model")
    if options.push_to_hub and not options.save_model:
        raise ValueError(f"push-to-hub {options.push_to_hub!r}: needs --save-model merged, or adapters")
    if options.push_to_hub and options.offline:
        raise ValueError(f"push-to-hub {options.push_to_hub!r}: needs the network, which --offline forbids")
    form: Any = options.save_model or None
    return Beside(options.out, check_trackers(split(options.tracker)), form, options.push_to_hub or None)


def sweep_of(options: Options, suite: TrainingSuite[Any]) -> tuple[Sweep, ...]:
    """Return the settings that the command line gives several values.

    Raises:
        ValueError: a `--sweep` that is none, that speaks of a task, method or setting that does not exist or stands
            where no run reads it, or of tokenizers beside a file of one.
    """
    found = parse_sweeps(options.sweep or [])
    for name, values in found:
        for value in values if name != RANK else ():
            _check_said(nested(name, value), suite, "--sweep")
    if "tokenizer" in dict(found) and options.tokenizer:
        raise ValueError("--sweep tokenizer: --tokenizer gives it too; leave one of the two out")
    return found


def resolve_device(name: str, dry: bool = False) -> torch.device:
    """Return the torch device that `name` stands for; `dry`: nothing will run, so that it need not be here.

    Raises:
        ValueError: unknown, or CUDA asked for where there is none.
    """
    import torch

    from baselines.registry import checked_name

    checked_name(name, DEVICES, "device")
    if name == "cuda" and dry:
        return torch.device("cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': no CUDA device is here (nearest allowed value: cpu)")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_profile(name: str, device: torch.device, insisted: bool = False) -> tuple[str, str]:
    """Return (profile, why).

    Raises:
        ValueError: unknown, or `paper` or `fair` without a GPU and without `--device cpu` insisting on it.
    """
    from baselines.registry import checked_name
    from suites.config import PUBLISHED

    checked_name(name, PROFILES, "profile")
    if name == "auto":
        if device.type == "cuda":
            return "paper", "auto: a CUDA device is here"
        return "micro", "auto: no CUDA device is here"
    if name in PUBLISHED and device.type != "cuda" and not insisted:
        raise ValueError(
            f"profile {name!r}: needs a CUDA device, and none is here (allowed: micro, small; nearest: small); "
            "to run it on the processor for days, insist with --device cpu"
        )
    return name, "asked for"


def split(text: str) -> list[str]:
    """Return the parts of a comma-joined list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a comma-joined list.

    Raises:
        ValueError: a part is no whole number, or there is none.
    """
    seeds = []
    for part in split(text) or [text]:
        try:
            seeds.append(int(part))
        except ValueError as error:
            raise ValueError(
                f"seed {part!r}: must be a whole number from 0 on, several joined by commas (nearest allowed value: 0)"
            ) from error
    return list(dict.fromkeys(seeds))


def parse_sets(texts: list[str]) -> dict[str, Any]:
    """Return `--set` options merged into one table.

    Raises:
        ValueError: not `name=value` in TOML, or the same setting twice.
    """
    try:
        return tomllib.loads("\n".join(_as_toml(text) for text in texts))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--set {' --set '.join(texts)}: cannot be given together: {error}") from error


def _as_toml(text: str) -> str:
    """Return `text` as TOML, where a value that is no TOML is taken for a bare word."""
    name, equals, value = text.partition("=")
    if equals:
        for candidate in (text, f"{name} = {json.dumps(value.strip(), ensure_ascii=False)}"):
            try:
                tomllib.loads(candidate)
            except tomllib.TOMLDecodeError:
                continue
            return candidate
    raise ValueError(f"--set {text!r}: must be name=value, such as batch_size=32 or task.cola.max_length=64")
