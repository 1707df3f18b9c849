"""A real SLURM on the loopback device, for tests: configured, started and ended here, with nothing left behind.

Its programs are those on PATH (Debian: slurm-wlm and munge), or those of packages that were only unpacked into the
folder that GNLORP_SLURM_ROOT names.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = "GNLORP_SLURM_ROOT"
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
KillWait=10
MessageTimeout=60
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
{plugins}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000
PartitionName=low Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes={host} MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Programs:
    """Where the daemons lie, and what the environment must hold for all of SLURM's programs."""

    daemons: dict[str, str]
    environment: dict[str, str]
    plugins: str


def programs() -> Programs | None:
    """Return the programs of SLURM and munge; None where one is missing."""
    root = os.environ.get(ROOT)
    path, environment, plugins = os.environ.get("PATH", ""), {}, ""
    if root:
        libraries = [str(each) for each in Path(root).glob("usr/lib/*-linux-gnu")]
        plugged = [str(each) for each in Path(root).glob("usr/lib/*/slurm-wlm")]
        path = f"{root}/usr/bin:{root}/usr/sbin:{path}"
        known = [part for part in [os.environ.get("LD_LIBRARY_PATH")] if part]
        environment = {"PATH": path, "LD_LIBRARY_PATH": ":".join([*libraries, *plugged, *known])}
        plugins = f"PluginDir={':'.join(plugged)}"
    places = f"{path}:{SBIN}"
    daemons = {
        name: found
        for name in DAEMONS
        for found in [shutil.which(name, path=places) or shutil.which(f"{name}-wlm", path=places)]
        if found is not None
    }
    there = len(daemons) == len(DAEMONS) and all(shutil.which(name, path=path) for name in ("sbatch", "srun", "squeue"))
    return Programs(daemons, environment, plugins) if there else None


@contextlib.contextmanager
def running(found: Programs, folder: Path) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd, with all they write in `folder`; yield what the environment must hold."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    ports = free_ports(2)
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=folder,
            controller_port=ports[0],
            node_port=ports[1],
            plugins=found.plugins,
        )
    )
    environment = {**found.environment, "SLURM_CONF": str(config)}
    munge = ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    commands = [
        [found.daemons["munged"], *munge, "--num-threads=1"],
        [found.daemons["slurmctld"], "-D", "-f", str(config)],
        [found.daemons["slurmd"], "-D", "-d", found.daemons["slurmstepd"], "-f", str(config)],
    ]
    with contextlib.ExitStack() as started:
        for command in commands:
            started.enter_context(daemon(command, folder, environment))
        wait_for_node(environment, folder)
        try:
            yield environment
        finally:
            end_jobs(environment)


@contextlib.contextmanager
def daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a daemon in the foreground of a process of ours, ended with the context."""
    with (folder / f"{Path(command[0]).name}.out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
        try:
            time.sleep(1.0)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_node(environment: dict[str, str], folder: Path) -> None:
    """Wait until the node takes jobs, or fail with what the daemons said."""
    until = time.monotonic() + 60
    while "idle" not in said(environment, "sinfo", "-h", "-o", "%t").split():
        if time.monotonic() > until:
            logs = [path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out")]
            raise RuntimeError("SLURM does not come up: " + "\n".join(logs))
        time.sleep(0.5)


def end_jobs(environment: dict[str, str]) -> None:
    """End all jobs, and wait until none is left: one that outlives the daemons would be nobody's."""
    until = time.monotonic() + 40
    said(environment, "scancel", "--me")
    while said(environment, "squeue", "-h") and time.monotonic() < until:
        time.sleep(0.5)


def said(environment: dict[str, str], *command: str) -> str:
    """Return what a command of SLURM says, whatever its exit code."""
    held = {**os.environ, **environment}
    return subprocess.run(command, env=held, capture_output=True, text=True, check=False, timeout=60).stdout


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
