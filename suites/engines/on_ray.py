"""Runs as tasks of Ray core: a box of GPUs, boxes joined by `ray start`, Kubernetes through KubeRay, spot nodes.

Ray waits without a word for resources that no node has, so that they are counted first. Its own retries are off: which
loss is tried again is the business of `follow`. Its tasks end with their command.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from suites.engines.board import Board, Said
from suites.engines.cluster import CONNECT_S, LOCAL, amounts, check_address, fits, loopback_nodes, named
from suites.engines.engine import Capacity, Gone, NoRoom, Queued, Resources, Running, State, Task
from suites.engines.node import Refusal, check_code, check_commit, run_task, shares
from suites.measure.environment import ROOT, code_digest, code_version, usable_cpus
from suites.suite import Runtime

PROBE_S = 300.0
"""How long a node may take for its first answer: a worker starts and imports torch from a cold, shared disk."""
Node = Mapping[str, Any]


class RayEngine:
    """See `suites.engines.engine.Engine`; a connection to Ray stands already."""

    name = "ray"
    outlives = False
    pause_s = 0.5

    def __init__(self) -> None:
        self._code, self._commit = code_digest(), code_version(ROOT)[0]
        self._serve = ray.remote(max_retries=0)(_serve)
        self._tasks: dict[str, Any] = {}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
        self._said: dict[str, Said] = {}
        self._read_at = 0.0
        self._asked = False

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *details: object) -> None:
        if self._asked:
            # Ray would keep that node up for ever, with no command left that wants it.
            request_resources(bundles=[])

    def capacity(self, resources: Resources) -> Capacity:
        nodes = _alive()
        lost = loopback_nodes({node["NodeManagerHostname"]: node["NodeManagerAddress"] for node in nodes})
        if lost:
            raise ValueError(
                f"ray: {', '.join(lost)} joined as 127.0.0.1, where the other nodes do not find it: start Ray there "
                "with --node-ip-address and the address that they see"
            )
        slots = sum(fits(node["Resources"], resources) for node in nodes)
        if slots == 0:
            wanted = f"{resources.cpus} CPUs" + (f" and {resources.gpus:g} of a GPU" if resources.gpus else "")
            each = "; ".join(f"{node['NodeManagerHostname']}: {amounts(node['Resources'])}" for node in nodes)
            raise NoRoom(f"ray: no node has what a run asks for, {wanted} (nodes: {each or 'none'})")
        return Capacity(
            slots, f"{len(nodes)} node{'s' * (len(nodes) != 1)}: {amounts(*(node['Resources'] for node in nodes))}"
        )

    def ask_for(self, resources: Resources) -> None:
        """Have Ray's autoscaler, where it has one, keep a node up that takes such a run, until the engine is left."""
        request_resources(bundles=[{"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})])
        self._asked = True

    def check_nodes(self, store: Path, nonce: str, resources: Resources) -> list[str]:
        """Ask every node that could take a run whether it can; return the names of those that do not share `store`.

        Raises:
            ValueError: a node with other code, without the suite, or that does not answer.
        """
        probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
        asked = {}
        for node in _alive():
            if fits(node["Resources"], resources):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answer = probe.options(scheduling_strategy=there).remote(self._code, self._commit, str(store), nonce)
                asked[answer] = node["NodeManagerHostname"]
        apart = []
        for answer, name in asked.items():
            try:
                shared = ray.get(answer, timeout=PROBE_S)
            except GetTimeoutError:
                raise ValueError(f"ray: node {name} does not answer in {PROBE_S:g} s") from None
            except RayError as error:
                raise ValueError(f"ray: {_reason(error)} (node {name})") from error
            if not shared:
                apart.append(name)
        return apart

    def gpus(self) -> tuple[int, int]:
        """Return how many GPUs there are, and the bytes of the smallest.

        Raises:
            ValueError: a node does not say.
        """
        probe = ray.remote(num_cpus=0, num_gpus=0.01, max_retries=0)(_gpu_bytes)
        nodes = [node for node in _alive() if node["Resources"].get("GPU")]
        sizes = []
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = node["NodeManagerHostname"]
            try:
                size = ray.get(probe.options(scheduling_strategy=there).remote(), timeout=PROBE_S)
            except (GetTimeoutError, RayError) as error:
                raise ValueError(f"--pack: node {name} does not say what memory its GPUs have: {error}") from error
            if size is None:
                raise ValueError(f"--pack: node {name} does not say what memory its GPUs have; use --gpus-per-run")
            sizes.append(size)
        return sum(int(node["Resources"]["GPU"]) for node in nodes), min(sizes)

    def submit(self, task: Task) -> str:
        handle = uuid.uuid4().hex[:12]
        size = {"num_cpus": task.resources.cpus, "num_gpus": task.resources.gpus}
        options = self._serve.options(name=task.plan.label, **size)
        self._tasks[handle] = options.remote(self._code, self._commit, pickle.dumps(task), self._board, handle)
        return handle

    def poll(self, handle: str) -> State:
        if handle not in self._tasks:
            return Gone("Ray has never heard of it", "lost")
        ended, _ = ray.wait([self._tasks[handle]], timeout=0)
        if not ended:
            said = self._read().get(handle)
            return Queued() if said is None else Running(*said)
        try:
            gone: Gone = ray.get(self._tasks[handle])
            return gone
        except RayTaskError as error:
            return Gone(_reason(error), "refused" if isinstance(error.cause, Refusal) else "lost")
        except RayError as error:
            return Gone(_reason(error), "lost")

    def cancel(self, handle: str) -> None:
        # Not by force: the launcher on the node is interrupted as by Ctrl-C, and records what it had in hand.
        if handle in self._tasks:
            ray.cancel(self._tasks[handle], force=False)

    def _read(self) -> dict[str, Said]:
        """Return what the board says, asked once a pause; where it does not answer, what it said last."""
        if time.monotonic() - self._read_at >= self.pause_s:
            try:
                self._said = ray.get(self._board.read.remote(), timeout=CONNECT_S)
            except RayError:
                pass
            self._read_at = time.monotonic()
        return self._said


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the Ray at `address` ("host:port", "auto": one that runs on this machine), or start one here.

    Raises:
        ValueError: nothing answers there, or what answers is another version.
    """
    where = named(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    check_address(where)
    own: dict[str, Any] = {"num_cpus": usable_cpus(), "include_dashboard": False} if where == LOCAL else {}
    try:
        ray.init(address=where, log_to_driver=False, logging_level="ERROR", **own)
    except ConnectionError as error:
        raise ValueError(
            f"--address {where}: {_first_line(error)}: it may be of another version, or have another token than "
            "~/.ray/auth_token here"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--address {where}: {_first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def placed(runtime: Runtime, resources: Resources) -> Runtime:
    """Return `runtime` as it is on this node, inside a task: threads, runs beside it, and the GPUs it is given."""
    context = ray.get_runtime_context()
    mine = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    beside = max(1, fits(mine, resources))
    if not resources.gpus:
        return replace(runtime, threads=resources.cpus, workers=beside)
    given = ",".join(context.get_accelerator_ids()["GPU"])
    return replace(runtime, threads=max(1, int(mine.get("CPU", 1)) // beside), workers=beside, visible_devices=given)


def _serve(code: str, commit: str | None, packed: bytes, board: Any, handle: str) -> Gone:
    """Body of a task of Ray: the code is compared before anything of the command's is unpacked.

    The node may have come after the others were asked.
    """
    check_code(code, socket.gethostname())
    check_commit(commit, socket.gethostname())
    task: Task = pickle.loads(packed)

    def tell(*said: Any) -> None:
        board.put.remote(handle, *said)

    return run_task(replace(task, runtime=placed(task.runtime, task.resources)), tell)


def _probe(code: str, commit: str | None, store: str, nonce: str) -> bool:
    check_code(code, socket.gethostname())
    check_commit(commit, socket.gethostname())
    return shares(Path(store), nonce)


def _gpu_bytes() -> int | None:
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None


def _alive() -> list[Node]:
    return [node for node in ray.nodes() if node["Alive"]]


def _reason(error: RayError) -> str:
    """Return why a task is gone: what was raised there, else the kind of loss with its first line."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        kind = "" if isinstance(error.cause, Refusal) else f"{type(error.cause).__name__}: "
        return f"{kind}{_first_line(error.cause)}"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
