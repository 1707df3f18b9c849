"""--offline sends no request, and what would need one fails at once with the true cause."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

GUARD = """
import socket, sys

def refuse(*arguments, **options):
    print("A REQUEST WAS SENT", arguments, flush=True)
    raise OSError("the network is guarded")

connect = socket.socket.connect
# Processes of one machine talk to one another through a file.
socket.socket.connect = lambda made, to: (connect if made.family == socket.AF_UNIX else refuse)(made, to)
socket.create_connection = socket.getaddrinfo = refuse
from suites.__main__ import app
from suites.suite import Runtime
start = __import__("time").perf_counter()
try:
    app(sys.argv[1:], standalone_mode=False)
except BaseException as end:
    print("code", getattr(end, "exit_code", end))
print("seconds", __import__("time").perf_counter() - start)
"""


def offline(*words: str) -> tuple[str, float]:
    """Return what a command prints where every request is noticed, and its seconds after the imports."""
    variables = {**os.environ, "HF_HOME": "/nonexistent/cache", "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        variables.pop(name, None)
    code = [sys.executable, "-c", GUARD, *words, "--offline"]
    done = subprocess.run(code, capture_output=True, text=True, env=variables, timeout=120)
    text = done.stdout + done.stderr
    return text, float(text.rpartition("seconds ")[2].split()[0])


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("plan", "glue", "--model", "owner/nothing"), "which --offline forbids"),
        (("run", "glue", "--profile", "paper", "--device", "cpu", "--task", "rte"), "this run is offline"),
        (("plan", "instruct", "--profile", "paper", "--device", "cpu", "--task", "solve"), "which --offline forbids"),
    ],
)
@pytest.mark.slow
def test_no_request_is_sent_and_the_cause_is_said(words: tuple[str, ...], cause: str) -> None:
    started = time.perf_counter()
    text, seconds = offline(*words)
    assert "A REQUEST WAS SENT" not in text, text
    assert cause in text, text
    assert "code 2" in text, text
    assert seconds < 60, f"{seconds} of {time.perf_counter() - started}"


@pytest.mark.slow
def test_a_plan_of_the_published_runs_needs_no_network() -> None:
    text, _ = offline("plan", "glue", "--profile", "paper", "--device", "cpu", "--task", "rte")
    assert "A REQUEST WAS SENT" not in text, text
    assert "code" not in text, text
    assert "FacebookAI/roberta-base" in text


def test_libraries_that_are_loaded_already_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    from suites.offline import VARIABLES, go_offline

    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    go_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE
