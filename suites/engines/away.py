"""From the command line to an engine and back: `run ... --on ray`."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from results.schema import Plan, Record
from results.store import write_atomically
from suites.engines import journal
from suites.engines.cluster import LOCAL, named, show_token
from suites.engines.engine import Engine, Resources, Task
from suites.engines.follow import Clock, Say, follow_alone
from suites.engines.node import NONCE
from suites.engines.packing import shares
from suites.run.worker import Listener
from suites.suite import Runtime


@dataclass(frozen=True)
class Away:
    """Runs plans on other machines; called as `suites.run.launch.launch` is.

    `slots`: runs at a time.
    `check`: (store, runtime, nonce) -> None; says what people should know of the nodes, or raises ValueError.
    `detach`: hand over and come back, with the records of a later command to come.
    `sizes`: (plans, runtime) -> plan hash -> what a run is given where that is not `resources`.
    """

    engine: Engine
    resources: Resources
    retries: int
    slots: int
    say: Say
    check: Callable[[Path, Runtime, str], None] = lambda store, runtime, nonce: None
    detach: bool = False
    sizes: Callable[[Sequence[Plan], Runtime], Mapping[str, Resources]] = lambda plans, runtime: {}

    def __call__(
        self,
        plans: Sequence[Plan],
        runtime: Runtime,
        store: Path,
        predicted: Mapping[str, int | None],
        listen: Listener,
        reserved: Mapping[str, int] | None = None,
    ) -> list[Record]:
        """Run `plans` and return the records of those that came to an end; the others were said to be lost.

        Raises:
            ValueError, Interrupted: as `follow`.
        """
        if not plans:
            return []
        store, runtime = store.resolve(), absolute(runtime)
        with journal.alone(store), self._nonce(store) as nonce:
            self.check(store, runtime, nonce)
            sizes = self.sizes(plans, runtime)
            tasks = [
                Task(
                    plan,
                    runtime,
                    store,
                    predicted.get(key),
                    (reserved or {}).get(key),
                    sizes.get(key, self.resources),
                    nonce,
                )
                for plan, key in ((plan, plan.hash()) for plan in plans)
            ]
            ended = follow_alone(tasks, self.engine, listen, self.retries, self.say, Clock(), self.detach)
        return ended.records

    @contextmanager
    def _nonce(self, store: Path) -> Iterator[str]:
        """Have a nonce in the store; one that jobs of an earlier command may still look for stays."""
        path = store / NONCE
        if path.exists() and (self.engine.outlives or journal.any_entry(store)):
            yield path.read_text()
            return
        nonce = secrets.token_hex(16)
        write_atomically(path, nonce.encode())
        try:
            yield nonce
        finally:
            if not self.engine.outlives:
                path.unlink(missing_ok=True)


def absolute(runtime: Runtime) -> Runtime:
    """Return `runtime` with paths that mean the same in every folder."""
    beside, model = runtime.beside, runtime.model_dir
    return replace(
        runtime,
        model_dir=None if model is None else model.resolve(),
        beside=replace(beside, folder=None if beside.folder is None else beside.folder.resolve()),
    )


def size_of_a_run(runtime: Runtime, gpus_per_run: float | None) -> Resources:
    """Return what a run is given: its threads on a processor; on a GPU one of them, or the share that is asked for.

    Raises:
        ValueError: a share outside (0, 1], or GPUs for runs on the processor.
    """
    if runtime.device.type != "cuda":
        if gpus_per_run is not None:
            raise ValueError(
                f"gpus-per-run {gpus_per_run:g}: the runs are on the processor; --device cuda asks for GPUs"
            )
        return Resources(runtime.threads)
    gpus = 1.0 if gpus_per_run is None else gpus_per_run
    if not 0 < gpus <= 1:
        near = 1 if gpus > 1 else 0.5
        raise ValueError(
            f"gpus-per-run {gpus:g}: must be above 0 and at most 1, since a run uses one device "
            f"(nearest allowed value: {near:g})"
        )
    return Resources(1, gpus)


def on_ray(
    runtime: Runtime,
    address: str | None,
    gpus_per_run: float | None,
    retries: int,
    say: Say,
    pack: bool = False,
    wait_s: float = 0.0,
) -> AbstractContextManager[Away]:
    """Return a context that connects to Ray when it is entered, and says what Ray has.

    `wait_s`: how long the first node that could take a run may take to come.

    Raises:
        ValueError: Ray is not installed, or the settings do not fit; inside: it is not there, or no node could take a
            run.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--on ray: Ray is not installed: pip install 'gnlorp[ray]'")
    size = size_of_a_run(runtime, gpus_per_run)
    if pack and runtime.device.type != "cuda":
        raise ValueError("--pack: the runs are on the processor; --device cuda asks for GPUs")
    alone = named(address) == LOCAL
    if wait_s and alone:
        raise ValueError("--wait-nodes: no node joins a Ray that the command itself starts; give --address")
    return _joined(address, size, retries, say, pack, None if alone else wait_s)


@contextmanager
def _joined(
    address: str | None, size: Resources, retries: int, say: Say, pack: bool, wait_s: float | None
) -> Iterator[Away]:
    show_token(named(address))
    from suites.engines.on_ray import RayEngine, connected
    from suites.engines.room import awaited

    with connected(address), RayEngine() as engine:
        capacity = awaited(engine, size, wait_s, say)
        so_far = " so far" if wait_s else ""
        say(
            f"ray: {capacity.where}; {capacity.slots} runs at a time{so_far}, lost ones tried again {retries} times at "
            "most"
        )

        def check(store: Path, runtime: Runtime, nonce: str) -> None:
            apart = engine.check_nodes(store, nonce, size)
            if not apart:
                return
            nodes = ", ".join(sorted(apart))
            if runtime.beside.model or runtime.beside.trackers:
                raise ValueError(f"{store} is not shared with {nodes}: saved models and trackers need a shared folder")
            say(f"{store} is not shared with {nodes}: records come back from there; a lost one starts anew")

        def packed(plans: Sequence[Plan], runtime: Runtime) -> Mapping[str, Resources]:
            return packed_sizes(plans, runtime, *engine.gpus(), say)

        away = Away(engine, size, retries, capacity.slots, say, check)
        yield replace(away, sizes=packed) if pack else away


def packed_sizes(
    plans: Sequence[Plan], runtime: Runtime, gpus: int, gpu_bytes: int, say: Say
) -> Mapping[str, Resources]:
    """Return what each run is given where several share a GPU by their predicted memory, and say so."""
    from suites.run.preflight import device_bytes

    needs: Mapping[str, int | None] = {plan.hash(): None for plan in plans}
    if len(plans) > gpus:
        needs = {**needs, **device_bytes(plans, runtime)}
    given = shares(needs, gpus, gpu_bytes)
    together = sum(share < 1 for share in given.values())
    say(f"packed: {together} of {len(plans)} runs share one of {gpus} GPUs of {gpu_bytes / 2**30:.1f} GiB")
    return {key: Resources(1, share) for key, share in given.items()}


def on_slurm(
    runtime: Runtime, store: Path, settings: Mapping[str, str], retries: int, say: Say, detach: bool = False
) -> AbstractContextManager[Away]:
    """Return a context that looks at SLURM's partitions when it is entered, and says what the chosen one has.

    Raises:
        ValueError: submitit or SLURM is not here, or a setting is wrong; inside: a partition that does not exist, or
            no node that could ever take a run.
    """
    from suites.engines import queue

    queue.limit_of(settings)
    cpus = queue.cpus_of(settings)
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("--on slurm: submitit is not installed: pip install 'gnlorp[slurm]'")
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError("--on slurm: no sbatch is here: give the command on a login node of the cluster")
    size = size_of_a_run(runtime, None)
    return _queued(store, settings, size if cpus is None else replace(size, cpus=cpus), retries, say, detach)


@contextmanager
def _queued(
    store: Path, settings: Mapping[str, str], size: Resources, retries: int, say: Say, detach: bool
) -> Iterator[Away]:
    from suites.engines.on_slurm import SlurmEngine

    engine = SlurmEngine(store, settings)
    capacity = engine.capacity(size)
    say(
        f"slurm: {capacity.where}; {capacity.slots} runs at a time were it empty, lost ones tried again {retries} "
        "times at most"
    )
    yield Away(engine, size, retries, capacity.slots, say, detach=detach)


def refuse_group(runtime: Runtime) -> None:
    """Raise ValueError where torchrun started this command: an engine hands out whole runs."""
    if runtime.group.size > 1:
        raise ValueError(f"--on: {runtime.group.size} processes of torchrun work on one run here; use --on here")
