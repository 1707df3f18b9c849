"""The description of machine and code, and seeds that are the same everywhere."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from suites.measure import environment as env


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "loop.py").write_text("a = 1\n")
    (tmp_path / "results").mkdir()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


code_version = env.code_version.__wrapped__


def test_clean_checkout(checkout: Path) -> None:
    assert code_version(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


def test_changed_and_new_code_is_dirty_but_records_are_not(checkout: Path) -> None:
    (checkout / "results" / "record.json").write_text("{}")
    assert code_version(checkout)[1] is False
    (checkout / "suites" / "new.py").write_text("b = 1\n")
    assert code_version(checkout)[1] is True
    (checkout / "suites" / "new.py").unlink()
    (checkout / "suites" / "loop.py").write_text("a = 2\n")
    assert code_version(checkout)[1] is True


def test_no_checkout_no_commit_no_git(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version(checkout / "suites") == (None, None)
    empty = checkout / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    assert code_version(empty) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert code_version(checkout) == (None, None)


def test_environment_of_this_process() -> None:
    found = env.environment(torch.device("cpu"), threads=2, workers=3)
    assert (found.device, found.device_memory_bytes, found.threads, found.workers) == ("cpu", None, 2, 3)
    assert found.packages["torch"] == torch.__version__
    assert found.packages["transformers"] == version("transformers")
    assert found.device_name
    assert 1 <= found.cpu_count <= (os.cpu_count() or 1)
    assert found.ram_bytes > 2**28


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5),
        # A container of version 1 sees its own group at the root, under the host's name.
        ("4:memory:/\n3:cpu,cpuacct:/c\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)  # fmt: skip
def test_a_containers_share_of_the_processors_is_read(
    groups: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(text)
    assert env.cpu_quota(tmp_path / "cgroup", tmp_path / "sys") == quota
    assert env.cpu_quota(tmp_path / "none", tmp_path / "sys") is None


@pytest.mark.parametrize(("quota", "cpus"), [(None, 6), (0.5, 1), (2.5, 3), (64.0, 6)])
def test_no_more_processors_are_used_than_there_is_time_for(
    quota: float | None, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(env, "cpu_quota", lambda: quota)
    assert env.usable_cpus() == cpus


def test_missing_packages_are_left_out_and_the_answer_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "PACKAGES", ("torch", "no-such-package-of-ours"))
    env._installed_versions.cache_clear()
    first = env.package_versions()
    env._installed_versions.cache_clear()
    assert first == {"torch": torch.__version__}
    env.package_versions()["torch"] = "changed"
    assert env.package_versions()["torch"] == torch.__version__
    env._installed_versions.cache_clear()


@pytest.mark.parametrize(("threads", "workers", "message"), [(0, 1, "threads 0"), (1, 0, "workers 0")])
def test_counts_below_one_are_refused(threads: int, workers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.environment(torch.device("cpu"), threads, workers)


def test_seeds_are_fixed_numbers() -> None:
    # First 4 bytes of sha256("0:data"), as any sha256 tool prints them.
    assert env.derived_seed(0, "data") == 4120022293
    assert len({env.derived_seed(seed, purpose) for seed in range(50) for purpose in ("data", "model")}) == 100
    assert all(0 <= env.derived_seed(seed, "order") < 2**32 for seed in range(50))


@pytest.mark.parametrize(("seed", "purpose", "message"), [(-1, "data", "seed -1"), (0, "", "purpose")])
def test_bad_seeds(seed: int, purpose: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.derived_seed(seed, purpose)


def test_bf16_is_compared_with_fp32_on_a_processor_only() -> None:
    factor = env.bf16_slowdown(torch.device("cpu"))
    assert factor is not None
    assert factor > 0
    assert env.bf16_slowdown(torch.device("cuda")) is None
