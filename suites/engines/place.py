"""Where runs go, as typed or as a file of site defaults says: the options that `run`, `tune` and `gate` share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from results.choice import check_choice

if TYPE_CHECKING:
    from suites.engines.away import Away
    from suites.suite import Runtime

HERE = "here"
ENGINES = {
    HERE: (),
    "ray": ("--address", "--gpus-per-run", "--pack", "--wait-nodes", "--retries"),
    "slurm": ("--slurm", "--detach", "--retries"),
}
"""Names of the engines, and the settings that each takes."""
RETRIES = 2


def _complete(incomplete: str) -> list[str]:
    return [name for name in ENGINES if name.startswith(incomplete)]


@dataclass(frozen=True)
class Place:
    """What the command line says of where runs go; None or False: it does not say."""

    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            help="`here`: processes of this machine; `ray`: tasks of Ray; `slurm`: jobs of SLURM (docs/machines.md); "
            "default: what gnlorp.toml says, else `here`",
            autocompletion=_complete,
        ),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(help="`--on ray`: `host:port` of its head, `auto`; default: RAY_ADDRESS, else one started here"),
    ] = None
    gpus_per_run: Annotated[
        float | None,
        typer.Option(help="`--on ray`: share of a GPU a run, 0.5 for two on each; default: a whole one"),
    ] = None
    pack: Annotated[
        bool, typer.Option("--pack", help="`--on ray`: several runs on a GPU where their predicted memory fits")
    ] = False
    wait_nodes: Annotated[
        str | None,
        typer.Option(
            help="`--on ray`: how long the first node that can take a run may take to come, such as `10m`, where an "
            "autoscaler starts nodes or they join late; default: 0, refused at once"
        ),
    ] = None
    slurm: Annotated[
        str | None,
        typer.Option(help="`--on slurm`: `partition=gpu,time=12:00:00`; also mem, cpus, account, qos, constraint"),
    ] = None
    detach: Annotated[
        bool, typer.Option("--detach", help="`--on slurm`: hand the runs over and return; the same command collects")
    ] = False
    retries: Annotated[
        int | None, typer.Option(help="away: how often a run whose node is lost is tried again; default: 2")
    ] = None


@dataclass(frozen=True)
class Settled:
    """Where runs go, all said."""

    on: str = HERE
    address: str | None = None
    gpus_per_run: float | None = None
    pack: bool = False
    wait_s: float = 0.0
    slurm: Mapping[str, str] = field(default_factory=dict)
    detach: bool = False
    retries: int = RETRIES

    @property
    def away(self) -> bool:
        """Whether runs go to other machines."""
        return self.on != HERE


def takes_place(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Place`; it is called with `place`, settled, after its other arguments.

    The settling happens inside the call, so that what is wrong is refused where the command refuses the rest.
    """
    hints = get_type_hints(Place, include_extras=True)
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    kept = [each for each in own if each.name != "place"]
    offered = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name], default=each.default)
        for each in fields(Place)
    ]
    parameters = [*kept, *offered]

    @functools.wraps(command)
    def wrapper(*positional: Any, **given: Any) -> None:
        place = Place(**{each.name: given.pop(each.name) for each in fields(Place)})
        command(*positional, **given, place=place)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper


def settled(place: Place) -> Settled:
    """Return where runs go: what was typed, else what a file of site defaults says, else this machine.

    Raises:
        ValueError: an engine or a setting that does not exist, or that the engine does not take: it would be passed
            over without a word.
    """
    from suites.engines import cluster, queue
    from suites.engines.site import read_site, site_file

    path = site_file()
    site = {} if path is None else read_site(path)
    on = place.on or site.get("on", HERE)
    check_choice(on, list(ENGINES), "engine")
    typed = {
        "--address": place.address,
        "--gpus-per-run": place.gpus_per_run,
        "--pack": place.pack or None,
        "--wait-nodes": place.wait_nodes,
        "--slurm": place.slurm,
        "--detach": place.detach or None,
        "--retries": place.retries,
    }
    for name, value in typed.items():
        if value is not None and name not in ENGINES[on]:
            takers = [engine for engine, taken in ENGINES.items() if name in taken]
            said = name if value is True else f"{name} {value}"
            raise ValueError(f"{said}: is for --on {' or '.join(takers)}, not for --on {on}")
    retries = _first(place.retries, site.get("retries"), RETRIES)
    if retries < 0:
        raise ValueError(f"retries {retries}: must be at least 0 (nearest allowed value: 0)")
    found = Settled(on, retries=retries, detach=place.detach)
    if on == "slurm":
        return replace(found, slurm={**site.get("slurm", {}), **queue.settings_of(place.slurm)})
    if on == "ray":
        wait_s = cluster.seconds_of(_first(place.wait_nodes, site.get("wait-nodes"), "0"))
        found = replace(found, address=_first(place.address, site.get("address"), None), wait_s=wait_s)
        if place.pack and place.gpus_per_run is not None:
            raise ValueError(f"--pack and --gpus-per-run {place.gpus_per_run:g}: give one of the two")
        if place.pack or place.gpus_per_run is not None:
            return replace(found, pack=place.pack, gpus_per_run=place.gpus_per_run)
        return replace(found, pack=site.get("pack", False), gpus_per_run=site.get("gpus-per-run"))
    return found


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def opened(
    place: Settled, runtime: Runtime, store: Path, say: Callable[[str], None]
) -> AbstractContextManager[Away | None]:
    """Return a context inside which plans run where `place` says; None in it stands for this machine's launcher.

    Nothing is started or asked before it is entered: whoever finds that no run is missing never does.

    Raises:
        ValueError: what is wrong with the settings alone, or an engine that is not installed.
    """
    if not place.away:
        return nullcontext()
    from suites.engines import away

    away.refuse_group(runtime)
    if place.on == "slurm":
        return away.on_slurm(runtime, store, place.slurm, place.retries, say, place.detach)
    return away.on_ray(runtime, place.address, place.gpus_per_run, place.retries, say, place.pack, place.wait_s)
