"""The sessions: which words go to the runs and which to the report, exit codes, and Ctrl-C."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from results.ending import BAD_INPUT

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["--epoch", "--tasks", "--mrpc", "--against", "--where"]


@pytest.fixture(scope="module")
def sessions() -> ModuleType:
    """The noxfile, imported."""
    spec = importlib.util.spec_from_file_location("noxfile_under_test", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "shown", "rest"),
    [
        ("--set batch_size=8 --where training.state_bits=8", "--where training.state_bits=8", "--set batch_size=8"),
        ("--where=a=1 --task rte --against lora", "--where=a=1 --against lora", "--task rte"),
        ("--seeds 0,1 --seeds shared", "--seeds shared", "--seeds 0,1"),
        ("--quiet --epoch best --out here", "--epoch best", "--quiet --out here"),
        ("--where", "--where", ""),
        ("", "", ""),
    ],
)
def test_options_of_the_report_are_told_from_those_of_the_runs(
    line: str, shown: str, rest: str, sessions: ModuleType
) -> None:
    assert sessions.report_options(line.split(), NAMES) == (shown.split(), rest.split())


@pytest.mark.parametrize(
    ("name", "line", "extras"),
    [
        ("glue_rank8", "--profile small --data-dir DIR", ["small"]),
        ("tune", "glue --profile=small", ["small"]),
        ("own", "--task FILE --model minilm", ["small"]),
        ("plan", "c4 --profile small", []),
        ("c4", "--profile small --on ray", ["ray"]),
        ("glue_rank4", "--on slurm --slurm partition=gpu", ["slurm"]),
        ("glue_rank8", "", []),
    ],
)
def test_the_environment_has_what_the_arguments_ask_for(
    name: str, line: str, extras: list[str], sessions: ModuleType
) -> None:
    assert sessions.asked_extras(name, line.split()) == extras


@pytest.mark.parametrize(
    ("line", "run", "report"),
    [
        ("--set state_bits=8 --where training.state_bits=8 --seeds 0",
         "suites run glue --rank 8 --set state_bits=8 --seeds 0",
         "reports glue --rank 8 --profile micro --records results/runs --where training.state_bits=8"),
        ("--sweep rank=4,8 --out here", "suites run glue --rank 8 --sweep rank=4,8 --out here",
         "reports glue --rank all --profile micro --records here"),
        ("--rank 4", "suites run glue --rank 4", "reports glue --rank 4 --profile micro --records results/runs"),
    ],
)  # fmt: skip
def test_a_line_is_a_run_and_a_report(
    line: str, run: str, report: str, sessions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setenv("GNLORP_PYTHON", "python")
    monkeypatch.setattr(sessions, "exact", lambda *words: ran.append(" ".join(words[2:])) or 0)
    monkeypatch.setattr(sessions, "said", lambda *words: "micro" if "profile" in words else "\n".join(NAMES))
    sessions.glue(SimpleNamespace(name="glue_rank8", posargs=line.split(), log=lambda text: None, error=pytest.fail), 8)
    assert ran == [run, report]


def test_a_run_that_failed_is_reported_and_fails_the_session(
    sessions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNLORP_PYTHON", "python")
    codes = iter((1, 0))
    monkeypatch.setattr(sessions, "exact", lambda *words: next(codes))
    monkeypatch.setattr(sessions, "said", lambda *words: "micro")
    failed: list[str] = []
    sessions.glue(SimpleNamespace(name="glue_rank8", posargs=[], log=lambda text: None, error=failed.append), 8)
    assert next(codes, None) is None
    assert len(failed) == 1


@pytest.mark.parametrize(
    "session",
    ["regression"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("glue_rank8", "c4", "plan", "memory", "paper_tables", "bench", "tune", "gpu_check")
    ],
)
def test_bad_input_keeps_its_exit_code_through_nox(session: str, tmp_path: Path) -> None:
    words = {"plan": ["gleu"], "memory": ["mikro", "--offline"]}.get(session, ["--nothing-of-this-name", "x"])
    done = subprocess.run(
        [sys.executable, "-m", "nox", "-f", str(ROOT / "noxfile.py"), "-s", session, "--", *words],
        cwd=tmp_path, env={**os.environ, "GNLORP_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == BAD_INPUT, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_ctrl_c_waits_for_the_command_and_keeps_its_code(tmp_path: Path) -> None:
    child = "import sys, time\ntry:\n    print('here', flush=True); time.sleep(60)\n"
    child += "except KeyboardInterrupt:\n    time.sleep(0.6); print('interrupted: kept', file=sys.stderr); sys.exit(2)"
    outer = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('n', sys.argv[1]); m = u.module_from_spec(s)\n"
    )
    outer += f"s.loader.exec_module(m); sys.exit(m.exact(sys.executable, '-c', {child!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", outer, str(ROOT / "noxfile.py")], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, "interrupted: kept\n")
