"""What SLURM's own commands say, read: no accounting (`sacct`) is needed, which many clusters do not have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from results.choice import check_choice
from suites.engines.engine import NoRoom, Resources

SQUEUE = ("squeue", "--me", "-h", "-o", "%i|%T|%r|%j")
SINFO = ("sinfo", "-h", "-o", "%P|%a|%D|%c|%G")
WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
AT_WORK = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
NEVER = frozenset({"PartitionConfig", "BadConstraints", "PartitionTimeLimit", "PartitionNodeLimit"})
"""Reasons to wait that do not go away by themselves."""
NOTICE_S = 120
"""How long before its time limit, or after the word of its preemption, a job has to save: what submitit asks for."""
LEAST_MINUTES = 5
DEFAULT_TIME = "1-00:00:00"
SETTINGS = ("partition", "time", "mem", "cpus", "account", "qos", "constraint")
"""What `--slurm` takes, and the table `slurm` of a file of site defaults."""


class Job(NamedTuple):
    """One line of the queue."""

    state: str
    reason: str
    name: str


def jobs(squeue: str) -> dict[str, Job]:
    """Return job id -> state, reason and name of the lines of `SQUEUE`."""
    lines = (line.strip().split("|", 3) for line in squeue.splitlines() if line.count("|") >= 3)
    return {number: Job(*rest) for number, *rest in lines}


def live(known: Mapping[str, Job], name: str) -> str | None:
    """Return the id of a job of that name that waits or is at work; None where there is none."""
    alive = WAITING | AT_WORK - {"COMPLETING"}
    return next((number for number, job in known.items() if job.name == name and job.state in alive), None)


def facts(scontrol: str) -> dict[str, str]:
    """Return the fields of a line of `scontrol show job ID -o`; none where it no longer knows the job."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", scontrol))


def why(scontrol: str) -> str:
    """Return what `scontrol` says of a job that is no longer in the queue."""
    known = facts(scontrol)
    if "JobState" not in known:
        return "SLURM knows nothing of it any more"
    return f"SLURM says {known['JobState']}, reason {known.get('Reason', '-')}, exit code {known.get('ExitCode', '-')}"


@dataclass(frozen=True)
class Partition:
    """One partition: whether it is the default, and (nodes, CPUs, GPUs a node) of each kind of node in it."""

    name: str
    default: bool
    nodes: tuple[tuple[int, int, int], ...]


def partitions(sinfo: str) -> dict[str, Partition]:
    """Return the partitions that are up, of the lines of `SINFO`."""
    found: dict[str, Partition] = {}
    for line in sinfo.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 5 and parts[1] == "up":
            name, default = parts[0].rstrip("*"), parts[0].endswith("*")
            before = found[name].nodes if name in found else ()
            cpus = int(re.sub(r"\D", "", parts[3]) or 0)
            found[name] = Partition(name, default, (*before, (int(parts[2]), cpus, _gpus(parts[4]))))
    return found


def _gpus(gres: str) -> int:
    """Return the GPUs in a GRES text such as gpu:2 or gpu:a100:4(S:0-1),shard:8."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def chosen(known: Mapping[str, Partition], name: str | None) -> Partition:
    """Return the partition that jobs go to.

    Raises:
        ValueError: there is none of that name, or no default one; the text lists those there are.
    """
    if name is None:
        default = next((each for each in known.values() if each.default), None)
        if default is None:
            raise ValueError(f"--slurm: no default partition is up; give partition=, of {', '.join(known) or 'none'}")
        return default
    check_choice(name, list(known), "partition")
    return known[name]


def slots(partition: Partition, resources: Resources) -> int:
    """Return how many runs the whole partition takes at a time, were it empty.

    Raises:
        NoRoom: no node of it could ever take one: SLURM would let it wait for ever.
    """
    found = 0
    for nodes, cpus, gpus in partition.nodes:
        fitting = cpus // resources.cpus
        found += nodes * (min(fitting, gpus) if resources.gpus else fitting)
    if found == 0:
        wanted = f"{resources.cpus} CPUs" + (" and a GPU" if resources.gpus else "")
        there = "; ".join(f"{nodes} with {cpus} CPUs, {gpus} GPUs" for nodes, cpus, gpus in partition.nodes)
        raise NoRoom(f"partition {partition.name!r}: no node has what a run asks for, {wanted} (nodes: {there})")
    return found


def settings_of(text: str | None) -> dict[str, str]:
    """Return the settings of `--slurm partition=gpu,time=2:00:00`.

    Raises:
        ValueError: not name=value, an unknown name, or one given twice.
    """
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        name, equals, value = (each.strip() for each in part.partition("="))
        if not (equals and value):
            raise ValueError(f"--slurm {text!r}: must be name=value, comma-joined, of {', '.join(SETTINGS)}")
        check_choice(name, SETTINGS, "setting of --slurm")
        if name in found:
            raise ValueError(f"--slurm {text!r}: {name} stands there twice")
        found[name] = value
    return found


def cpus_of(settings: Mapping[str, str]) -> int | None:
    """Return the CPUs that a run is given by the settings; None where they do not say.

    Raises:
        ValueError: no whole number from 1 on.
    """
    text = settings.get("cpus")
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"--slurm cpus={text}: must be a whole number from 1 on (nearest allowed value: 1)")
    return int(text)


def minutes(text: str) -> int:
    """Return a time limit in minutes: "90", "2:00:00" or "1-12:00:00", as SLURM takes them, rounded up.

    Raises:
        ValueError: of no such form, or none at all.
    """
    given = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):(\d\d)|(\d+))", text)
    if given is not None:
        days, hours, minute, second, alone = (int(part or 0) for part in given.groups())
        found = alone or (days * 24 + hours) * 60 + minute + (second > 0)
        if found:
            return found
    raise ValueError(f"--slurm time={text}: must be minutes, H:MM:SS or D-HH:MM:SS, above 0 (such as 2:00:00)")


def limit_of(settings: Mapping[str, str]) -> int:
    """Return the time limit of a job in minutes.

    Raises:
        ValueError: of no form that SLURM takes, or so short that a job would be told to save as soon as it begins.
    """
    found = minutes(settings.get("time", DEFAULT_TIME))
    if found < LEAST_MINUTES:
        raise ValueError(
            f"--slurm time={settings['time']}: must be at least {LEAST_MINUTES} minutes, since a run is told to save "
            f"{NOTICE_S} s before (nearest allowed value: {LEAST_MINUTES})"
        )
    return found
