"""Sessions: `python -m nox -l` lists them; what stands after `--` goes to the command, `-- --help` explains it.

All sessions share one environment under .nox/, made on first use and again when pyproject.toml or constraints.txt
change. With GNLORP_PYTHON set to an interpreter that has everything installed, that one is used, nothing installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / f"shared-{sys.version_info.major}.{sys.version_info.minor}"
PEERS = ("galore-torch==1.0", "pytorch-optimizer==4.1.0")
"""Packages that tests compare with; their own requirements are left out, since what is compared needs torch alone."""
nox.options.sessions = ["tests"]
nox.needs_version = ">=2024.10"


def shared_python(session: nox.Session, *extras: str) -> str:
    """Return the interpreter of the shared environment, made if it is missing or stale.

    Beside `extras` it has what the arguments ask for: all-MiniLM-L6-v2, Ray, SLURM's client.
    """
    given = os.environ.get("GNLORP_PYTHON")
    if given:
        return given
    python = SHARED / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    for extra in ("suites,dev", *dict.fromkeys((*extras, *asked_extras(session.name, list(session.posargs))))):
        stamp = SHARED / f"{extra}.stamp"
        content = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
        digest = hashlib.sha256(content + " ".join(PEERS).encode()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            continue
        session.log(f"setting up the shared environment ({extra}) in {SHARED.relative_to(ROOT)}: a minute or two")
        if not python.exists():
            session.run(sys.executable, "-m", "venv", str(SHARED), external=True)
        # Python compiles the few modules that are imported when they are; pip would compile every one there is.
        install = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
        session.run(*install, "-c", "constraints.txt", "-e", f".[{extra}]", external=True)
        if "dev" in extra:
            session.run(*install, "--no-deps", *PEERS, external=True)
        stamp.write_text(digest)
    return str(python)


def asked_extras(name: str, arguments: list[str]) -> list[str]:
    """Return the extras that the arguments of session `name` need: profile small's encoder (not c4's), engines."""
    words = {name, *(part for word in arguments for part in word.split("="))}
    small = ["small"] if words & {"small", "minilm"} and "c4" not in words else []
    return [*small, *(engine for engine in ("ray", "slurm") if engine in words)]


def glue(session: nox.Session, rank: int) -> None:
    """Run the GLUE comparison at `rank`, then write tables and figures and print their paths last."""
    compare(session, "glue", ["--rank", str(rank)])


def compare(session: nox.Session, suite: str, rank: list[str]) -> None:
    """Run a suite's comparison, then write tables and figures and print their paths last.

    Options that say what a report shows (`--where`, `--against`, conventions of the average) go to the report, all
    others to the runs. Where runs ended badly the report is made all the same, and the session fails.
    """
    python = shared_python(session)
    arguments = list(session.posargs)
    if {"--help", "-h"} & set(arguments):
        for command in (("suites", "run", suite, "--help"), ("reports", suite, "--help")):
            call(session, python, "-m", *command)
        return
    shown, asked = report_options(arguments, said(python, "-m", "reports", "options", suite).split())
    said(python, "-m", "reports", suite, *shown, "--help")  # a slip is found before hours of runs
    given = _option(asked, "--rank")
    swept = any(value.partition("=")[0].endswith("rank") for value in _every(asked, "--sweep"))
    # Ranks of a sweep are rows of one table.
    reported = ["--rank", "all"] if swept else given or rank
    failed = call(session, python, "-m", "suites", "run", suite, *([] if given else rank), *asked)
    where = [word for name in ("--profile", "--device") for word in _option(asked, name)]
    profile = said(python, "-m", "suites", "profile", suite, *where).split()[-1]
    records = _option(asked, "--out")[1:] or ["results/runs"]
    call(
        session, python, "-m", "reports", suite, *reported, "--profile", profile, "--records", *records, *shown,
    )  # fmt: skip
    if failed:
        session.error("some runs did not end well: the tables name them")


def report_options(arguments: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """Return the words for the report, which are the options `names` and how averages treat seeds, and all others."""
    shown, rest, at = [], [], 0
    while at < len(arguments):
        name, equals, value = arguments[at].partition("=")
        value = value if equals else "".join(arguments[at + 1 : at + 2])
        of_report = name in names or (name == "--seeds" and value in ("same", "shared"))
        words = arguments[at : at + (1 if equals or not of_report else 2)]
        (shown if of_report else rest).extend(words)
        at += len(words)
    return shown, rest


def call(session: nox.Session, *command: str) -> int:
    """Run a command and return 0 or 1; end with its exit code where that is above 1.

    nox ends with 1 whatever a command's exit code was, and ours tell bad input (2) from a run or a check that failed
    (1). Ctrl-C reaches the command too, which says in a line where it stopped: it is waited for.
    """
    session.log(" ".join(command[1:]))
    code = exact(*command)
    if code not in (0, 1):
        sys.exit(abs(code))
    return code


def exact(*command: str) -> int:
    """Run a command to its end, whatever is pressed meanwhile, and return its exit code."""
    process = subprocess.Popen(command)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


def said(*command: str) -> str:
    """Return what a command prints; end with its exit code where it fails: it has said why."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(abs(done.returncode))
    return done.stdout


def must(session: nox.Session, *command: str) -> None:
    """Run a command of which exit code 1 is a failure of the session."""
    if call(session, *command):
        session.error("failed: see above")


def _option(arguments: list[str], name: str) -> list[str]:
    """Return [name, value] of the last `name value` or `name=value` among the arguments, or nothing."""
    found = _every(arguments, name)
    return [name, found[-1]] if found else []


def _every(arguments: list[str], name: str) -> list[str]:
    """Return the values of every `name value` and `name=value` among the arguments, in order."""
    found = []
    for index, word in enumerate(arguments):
        if word == name and index + 1 < len(arguments):
            found.append(arguments[index + 1])
        elif word.startswith(f"{name}="):
            found.append(word.partition("=")[2])
    return found


@nox.session(venv_backend="none")
def glue_rank8(session: nox.Session) -> None:
    """GLUE at rank 8, five methods: `-- --profile small --data-dir DIR`, `-- --profile paper`, `-- --help`."""
    glue(session, 8)


@nox.session(venv_backend="none")
def glue_rank4(session: nox.Session) -> None:
    """GLUE at rank 4, five methods."""
    glue(session, 4)


@nox.session(venv_backend="none")
def c4(session: nox.Session) -> None:
    """C4 pre-training, six methods and a control: `-- --profile small --data-dir DIR`, `-- --help`."""
    compare(session, "c4", [])


@nox.session(venv_backend="none")
def instruct(session: nox.Session) -> None:
    """Instruction tuning, generated answers and multiple choice: `-- --data-dir DIR --model DIR` for real ones."""
    compare(session, "instruct", _option(list(session.posargs), "--rank"))


@nox.session(venv_backend="none")
def own(session: nox.Session) -> None:
    """A task of one's own: `-- --task reviews.toml --model DIR`; what the file says: docs/own.md."""
    compare(session, "own", _option(list(session.posargs), "--rank"))


@nox.session(venv_backend="none")
def paper_tables(session: nox.Session) -> None:
    """The papers' tables cell by cell and the HTML page, from records alone: `-- --records results/runs`."""
    must(session, shared_python(session), "-m", "reports", "paper", *session.posargs)


@nox.session(venv_backend="none")
def plan(session: nox.Session) -> None:
    """What would run, for how long, in how much memory: `-- glue --profile paper --device cpu`; runs nothing."""
    must(session, shared_python(session), "-m", "suites", "plan", *(session.posargs or ["glue"]))


@nox.session(venv_backend="none")
def memory(session: nox.Session) -> None:
    """Memory without weights or a GPU: matrix, claims, tables; `-- 7b galore --fits 24GiB` for one answer."""
    python = shared_python(session)
    if session.posargs:
        must(session, python, "-m", "suites", "memory", *session.posargs)
        return
    must(session, python, "-m", "suites", "memory-matrix")
    must(session, python, "-m", "suites", "claims")
    must(session, python, "-m", "reports", "memory", "--records", "results/runs/memory")


@nox.session(venv_backend="none")
def tune(session: nox.Session) -> None:
    """Search every method's learning rates, equal budget, held-out rows: `-- c4 --profile small --data-dir DIR`."""
    must(session, shared_python(session), "-m", "suites", "tune", *(session.posargs or ["glue"]))


@nox.session(venv_backend="none")
def methods(session: nox.Session) -> None:
    """The methods, their papers, and their settings with defaults and sources."""
    must(session, shared_python(session), "-m", "suites", "methods", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Speed and memory beside peft, galore-torch and torch: about 30 minutes on 2 quiet cores; `-- --quick`."""
    arguments = list(session.posargs)
    python = shared_python(session, "small")
    call(session, python, "-m", "suites", "bench", *arguments)
    if not {"--help", "-h"} & set(arguments):
        record = _option(arguments, "--out")[1:] or ["results/runs/bench.json"]
        must(session, python, "-m", "reports", "bench", "--record", *record)


@nox.session(venv_backend="none")
def gpu_check(session: nox.Session) -> None:
    """What a CUDA device does with this code, in ten minutes, offline; `-- --device cpu` rehearses it without one."""
    must(session, shared_python(session, "small"), "-m", "suites", "gpu-check", *session.posargs)


@nox.session(venv_backend="none")
def regression(session: nox.Session) -> None:
    """The gate: micro GLUE and C4 against results/reference/gate; `-- --only galore`, `-- --update`, `-- --help`."""
    arguments = list(session.posargs)
    python = shared_python(session)
    if {"--help", "-h"} & set(arguments):
        must(session, python, "-m", "reports", "gate", "--help")
        return
    if not _option(arguments, "--records"):
        said(python, "-m", "reports", "gate", "--records", ".", *arguments, "--help")  # a slip is found before the runs
        only = [word for value in _every(arguments, "--only") for word in ("--only", value)]
        # A run that fails is a finding of the gate, not the end of it; bad input is.
        call(session, python, "-m", "suites", "gate", "run", *only)
        arguments = ["--records", said(python, "-m", "suites", "gate", "folder").split()[-1], *arguments]
    if call(session, python, "-m", "reports", "gate", *arguments):
        session.error("the gate found something")


@nox.session(venv_backend="none")
def gate_trial(session: nox.Session) -> None:
    """Seeded faults, one at a time in a copy of the tree: does the gate see them? `-- --fault NAME`; long."""
    must(session, shared_python(session), "tests/gate_trial/trial.py", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The default tests, a process a core; `-- -m slow` for the slow ones, `-- -k NAME` for some."""
    workers = ("-n", "auto", "--dist", "loadfile")
    # Dozens of the processes that tests start would each compile the tree anew where bytecode is not to be kept.
    kept = {"PYTHONDONTWRITEBYTECODE": ""}
    session.run(shared_python(session), "-m", "pytest", *workers, *session.posargs, external=True, env=kept)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    python = shared_python(session)
    session.run(python, "-m", "ruff", "check", ".", external=True)
    session.run(python, "-m", "ruff", "format", "--check", ".", external=True)


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """mypy, strict, on everything but tests."""
    session.run(shared_python(session), "-m", "mypy", *session.posargs, external=True)


@nox.session(venv_backend="none")
def package(session: nox.Session) -> None:
    """Build wheel and source archive into dist/."""
    session.run(shared_python(session), "-m", "build", *session.posargs, external=True)
