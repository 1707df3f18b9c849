"""Where a run runs: code, packages, device; and seeds that depend on nothing but the run's seed and their purpose."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from results.schema import Environment

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "evaluate",
    "bitsandbytes",
    "peft",
    "accelerate",
    "pandas",
    "numpy",
    "tokenizers",
)

CODE = ("gnlorp", "baselines", "suites", "pyproject.toml")
"""What can change a result; records that a run writes do not make its checkout dirty."""

CODE_FILES = (".py", ".toml", ".json", ".safetensors")
"""Endings of code and of the data that lies among it."""

VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that choose the kernels of torch, MKL and oneDNN."""

ROOT = Path(__file__).resolve().parents[2]
CodeVersion = tuple[str | None, bool | None]
"""Commit, and whether the code differs from it; None: not known."""


def environment(device: torch.device, threads: int, workers: int, code: CodeVersion | None = None) -> Environment:
    """Return the description of this machine and code for a run on `device`.

    `code`: as the process that launched the runs has found it; None: as it is here.

    Raises:
        ValueError: `threads` or `workers` is below 1.
    """
    for name, value in (("threads", threads), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} {value}: must be at least 1")
    commit, dirty = code or code_version(ROOT)
    return Environment(
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=package_versions(),
        device=device.type,
        device_name=device_name(device),
        device_memory_bytes=device_memory_bytes(device),
        cpu_count=usable_cpus(),
        threads=threads,
        workers=workers,
        ram_bytes=int(psutil.virtual_memory().total),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


@cache
def code_version(root: Path) -> CodeVersion:
    """Return the commit of the checkout at `root`, and whether its code differs from it (untracked files count).

    (None, None) where `root` is not the top of a git checkout with a commit, or git is missing.
    """
    top = git(root, "rev-parse", "--show-toplevel")
    commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return None, None
    changes = git(root, "status", "--porcelain", "--", *CODE)
    return commit, None if changes is None else bool(changes)


def code_digest(root: Path = ROOT) -> str:
    """Return 12 hex digits over the content of what can change a result, for machines to compare; git is not asked."""
    found = hashlib.sha256()
    for path in sorted(path for name in CODE for path in (root / name, *(root / name).rglob("*"))):
        if path.is_file() and path.suffix in CODE_FILES:
            found.update(f"{path.relative_to(root).as_posix()}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]


def git(root: Path, *arguments: str) -> str | None:
    """Return what git says for the checkout at `root`; None where it fails or is missing."""
    # Without optional locks, so that runs side by side do not meet at the index.
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Return the versions of the installed ones among `PACKAGES`; torch says its build too (2.13.0+cpu)."""
    return dict(_installed_versions())


@cache
def _installed_versions() -> tuple[tuple[str, str], ...]:
    found = {name: installed for name in PACKAGES if (installed := _installed_version(name)) is not None}
    found["torch"] = str(torch.__version__)
    return tuple(found.items())


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """Return the model name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


def short_device_name(device: torch.device) -> str:
    """Return the model name of the GPU; "cpu" for a processor, whose name says little beside it."""
    return device_name(device) if device.type == "cuda" else device.type


def device_memory_bytes(device: torch.device) -> int | None:
    """Return the memory of the GPU; None for a CPU, whose memory is `ram_bytes`."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


@cache
def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Return how many processors this process may run on, where its control groups give it no less time than that."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the processors' worth of time that control groups leave this process, as containers set it; None: all.

    The least of its group's and of those above it: `cpu.max` of version 2, quota over period of version 1.
    """
    found = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, kinds, place = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        root = mounted / "cpu" if kinds else mounted
        group = root / place.lstrip("/")
        for each in (group, *group.parents):
            if each.is_relative_to(root):
                found += _quota_of(each)
    return min(found, default=None)


def _quota_of(group: Path) -> list[float]:
    """Return the limit that one control group sets; nothing where it sets none, or cannot be read."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return [] if quota in ("max", "-1") else [int(quota) / int(period)]
    except (OSError, ValueError):
        return []


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed in [0, 2³²) for one purpose of a run: the first 4 bytes of sha256("seed:purpose"), big endian.

    The same on every machine and in every process; different purposes give unrelated streams. 32 bits are what every
    generator takes, NumPy's legacy one included.

    Raises:
        ValueError: `seed` is negative, or `purpose` is empty.
    """
    if seed < 0:
        raise ValueError(f"seed {seed}: must be at least 0")
    if not purpose:
        raise ValueError("the purpose of a seed is empty: it must name what the seed is for")
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:4], "big")


def bf16_slowdown(device: torch.device) -> float | None:
    """Return bf16's time over fp32's for one matrix product on this processor; None on a GPU.

    Processors without bf16 units take many times as long: nothing is wrong then, but the run should know.
    """
    if device.type != "cpu":
        return None
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(128, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]
