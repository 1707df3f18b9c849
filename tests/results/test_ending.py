"""How command lines end: one line, the right code, nothing left to complain."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results.ending import BAD_INPUT, completion, interrupted_early, one_line_errors, version_line

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def python(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a Python process from an installed copy's point of view: another folder, this tree importable."""
    settings = {"capture_output": True, "text": True, "timeout": 120, "check": False, "env": ENVIRONMENT, **options}
    return subprocess.run([sys.executable, *words], **settings)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n lines"), "error: two lines\n"),
        (OSError("no disk"), "error: no disk\n"),
        (KeyboardInterrupt(), "interrupted: no run was in hand\n"),
        (KeyboardInterrupt("kept"), "interrupted: kept\n"),
    ],
)
def test_what_a_person_did_is_one_line(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (BAD_INPUT, line)


def test_our_own_faults_keep_their_trace() -> None:
    with pytest.raises(TypeError), one_line_errors():
        raise TypeError("a fault of ours")


def test_ctrl_c_while_modules_load_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted_early(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted: no run was in hand\n"


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_ctrl_c_in_a_command_is_one_line(tmp_path: Path) -> None:
    slow = "import sys, time, typer; from results import ending; app = typer.Typer()\n"
    slow += "@app.command()\ndef wait() -> None:\n    with ending.one_line_errors():\n"
    slow += "        print('here', flush=True); time.sleep(60)\n"
    slow += "sys.excepthook = ending.interrupted_early; ending.run(app, 'suites')\n"
    process = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, "interrupted: no run was in hand\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "command",
    [
        "-m suites --help",
        *(pytest.param(f"-m {words}", marks=pytest.mark.slow) for words in ("reports --help", "suites tasks glue")),
    ],
)
def test_a_closed_pipe_is_quiet(command: str, tmp_path: Path) -> None:
    line = f"{sys.executable} {command} | true; sleep 0.1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""


def test_a_broken_pipe_inside_a_command_is_quiet(tmp_path: Path) -> None:
    code = "from results.ending import one_line_errors\nwith one_line_errors():\n    raise BrokenPipeError"
    done = python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", ["suites", pytest.param("reports", marks=pytest.mark.slow)])
def test_versions_are_told(name: str, tmp_path: Path) -> None:
    done = python("-m", name, "--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gnlorp ")
    assert len(done.stdout.splitlines()) == 1
    assert "nothing-of-this-name not installed" in version_line(("gnlorp", "nothing-of-this-name"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("name", "typed", "found"), [("suites", "suites ru", "run"), ("suites", "suites run gl", "glue"),
                                 ("suites", "suites run glue --method lo", "lora"),
                                 pytest.param("reports", "reports gl", "glue", marks=pytest.mark.slow)]
)  # fmt: skip
def test_bash_completes(name: str, typed: str, found: str, tmp_path: Path) -> None:
    words = typed.split(" ")
    script = f'python() {{ "{sys.executable}" "$@"; }}; export -f python\n' + completion(name, "bash").replace(
        "python -m", f'"{sys.executable}" -m'
    )
    script += f'\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _{name}_completion; echo "${{COMPREPLY[@]}}"\n'
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert found in done.stdout.split(), (done.stdout, done.stderr)


def test_a_shell_without_a_script_is_refused() -> None:
    assert all(completion("suites", shell) for shell in ("zsh", "fish"))
    with pytest.raises(ValueError, match="shell 'tcsh': known are bash, zsh, fish"):
        completion("suites", "tcsh")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [(("rnu",), "run"), (("run", "gleu"), "glue"), (("run", "glue", "--method", "lorra"), "lora"),
     (("plan", "glue", "--task", "colaa"), "cola"), (("run", "glue", "--profile", "mikro"), "micro"),
     (("tasks", "gleu"), "glue"), (("capabilities", "--method", "lorra"), "lora")],
)  # fmt: skip
def test_a_typo_is_answered_before_torch_is_imported(words: tuple[str, ...], nearest: str, tmp_path: Path) -> None:
    code = "import sys, runpy; sys.modules['torch'] = None; runpy.run_module('suites', None, '__main__')"
    done = python("-c", code, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert nearest in done.stderr
    assert "torch" not in done.stderr
