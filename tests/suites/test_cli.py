"""The command line: what it prints, and what bad input gives: one line, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub.constants
import psutil
import pytest
import torch
from typer.testing import CliRunner

from baselines.registry import default_methods, methods
from results.lab import RecomputedClaims
from results.schema import Record
from results.store import read_records
from suites import options
from suites.__main__ import app
from suites.generated import encoder_path
from suites.measure.environment import environment
from suites.registry import get_suite
from suites.run.checkpoint import LOCKS

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--seeds", "0", "--task", "cola", "--steps", "2", "--set", "train_rows=32", "--set", "eval_rows=32")
ONE = (*FEW, "--method", "full")
Invoke = Callable[..., Any]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(app, arguments)

    return call


def check_refused(result: Any, *parts: str) -> None:
    """The rule for bad input."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--method", "gradnorm"), ("unknown method 'gradnorm'", "known are", "nearest: gradnormlorp")),
        (("--task", "colaa"), ("unknown task 'colaa'", "known are", "nearest: cola")),
        (("--profile", "mikro"), ("unknown profile 'mikro'", "known are", "nearest: micro")),
        (("--offline", "--model", "microo"), ("unknown model 'microo'", "a folder", "nearest: micro")),
        (("--model", "./nowhere"), ("model './nowhere'", "no such folder", "micro, minilm")),
        (("--device", "gpu"), ("unknown device 'gpu'", "nearest: cpu")),
        (("--rank", "0"), ("rank 0", "at least 1", "nearest allowed value: 1")),
        (("--rank=-1",), ("rank -1", "at least 1", "nearest allowed value: 1")),
        (("--rank", "100", "--method", "lora"), ("rank 100", "96x96", "nearest allowed value: 96")),
        (("--rank", "1", "--method", "gradnormlorp"), ("rank 1", "nearest allowed value: 2")),
        (("--rank", "100", "--method", "galore"), ("projection_rank 100", "96x96", "nearest allowed value: 9")),
        (("--set", "targets=nothing"), ("target pattern 'nothing'", "matches no", "self.query")),
        (("--seeds", "one"), ("seed 'one'", "whole number", "nearest allowed value: 0")),
        (("--seeds=-1",), ("seed -1", "at least 0", "nearest allowed value: 0")),
        (("--seeds", ""), ("seed ''", "whole number")),
        (("--workers", "0"), ("workers 0", "between 1 and", "nearest allowed value: 1")),
        (("--set", "batch_size"), ("--set 'batch_size'", "name=value")),
        (("--set", "batchsize=3"), ("unknown setting 'batchsize'", "known are", "nearest: batch_size")),
        (("--set", "batch_size=0"), ("batch_size = 0", "greater than 0")),
        (("--set", "batch_size=many"), ("batch_size = 'many'", "integer")),
        (("--set", "accumulation=3"), ("accumulation 3", "must divide batch_size 16", "nearest allowed value: 2")),
        (("--set", "epochs=1"), ("steps and epochs", "exactly one")),
        (("--set", "rank=4"), ("rank=4", "--rank")),
        (("--set", "size.micro.default_rank=4"), ("size.micro.default_rank=4", "--rank")),
        (("--sweep", "default_rank=4"), ("--sweep default_rank=4", "--rank")),
        (("--set", "rank.8.batch_size=4"), ("--set rank", "--rank")),
        (("--set", "method.lora.task.rte.learning_rate=1"), ("task inside method", "task.<task>.method.<method>")),
        (("--sweep", "task.rte.methods=1"), ("--sweep: methods inside task",)),
        (("--set", "steps=3"), ("--set steps=3", "--steps gives it too")),
        (("--set", "state_bits=16"), ("state_bits = 16", "8 or 32", "nearest allowed value: 8")),
        (("--set", "task.colla.max_length=8"), ("unknown task in --set 'colla'", "nearest: cola")),
        (("--set", "method.laura.learning_rate=1"), ("unknown method in --set 'laura'", "nearest: lora")),
        (("--set", "method.lora=4"), ("method.lora=4", "method.lora.<setting>=value")),
        (("--set", "task.cola.method.lora.config=4"), ("config=4", "config.<setting of a method>")),
        (("--set", "method.lora.config.ranks=4"), ("unknown lora setting 'ranks'", "nearest: rank")),
        (("--set", "batch_size=8", "--set", "batch_size=4"), ("batch_size=8", "batch_size=4", "together")),
        (("--set", "max_length=2"), ("max_length 2", "at least 3")),
        (("--steps", "0"), ("steps = 0", "greater than 0")),
        (("--seeds", "9223372036854775808"), ("seed 9223372036854775808", "at most 9223372036854775807")),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: tuple[str, ...], parts: tuple[str, ...], invoke: Invoke, tmp_path: Path
) -> None:
    check_refused(invoke("run", "glue", *FEW, *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suite_is_refused(invoke: Invoke) -> None:
    for command in ("run", "plan", "tune"):
        check_refused(invoke(command, "glu", "--profile", "micro"), "unknown suite 'glu'", "nearest: glue")
    check_refused(invoke("tasks", "glu"), "unknown suite 'glu'", "nearest: glue")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_paper_without_a_gpu_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    check_refused(
        invoke("run", "glue", "--profile", "paper"), "profile 'paper'", "CUDA", "nearest: small", "--device cpu"
    )
    check_refused(invoke("run", "glue", "--device", "cuda"), "device 'cuda'", "nearest allowed value: cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_gpu")
def test_paper_offline_is_refused_with_what_to_do(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("run", "glue", "--profile", "paper", "--device", "cpu", "--offline")
    check_refused(result, "nyu-mll/glue", "network", "--data-dir", "--profile micro")
    assert list(tmp_path.iterdir()) == []


def subprocess_run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "suites", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.usefixtures("no_gpu")
def test_paper_without_network_is_refused_at_once(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(module, "HF_HUB_CACHE", tmp_path / "empty", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "empty")
    result = invoke("run", "glue", "--profile", "paper", "--device", "cpu", "--task", "cola")
    check_refused(result, "hub data nyu-mll/glue/cola")
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_so_it_is_in_a_process_that_is_told_by_its_environment(tmp_path: Path) -> None:
    # The hub's client reads its settings when it is imported.
    done = subprocess_run(
        tmp_path, "run", "glue", "--profile", "paper", "--device", "cpu", "--task", "cola",
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: hub data nyu-mll/glue/cola")
    assert not (tmp_path / "results").exists()


SENTENCES = [f"w{number}\t{number % 2}\t\tthe sentence of number {number}" for number in range(12)]


@pytest.fixture
def cola(tmp_path: Path) -> Path:
    """A folder with CoLA in its official layout."""
    folder = tmp_path / "data" / "CoLA"
    folder.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return folder


def truncate(path: Path) -> None:
    path.write_text("\n".join([*SENTENCES[:4], "w4\t1", *SENTENCES[5:]]) + "\n")


def mislabel(path: Path) -> None:
    path.write_text("\n".join([*SENTENCES[:2], "w2\t7\t\tsomething", *SENTENCES[3:]]) + "\n")


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"w\t1\t\tcaf\xe9\n")


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv"])
@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (Path.unlink, ("no file {name}", "train.tsv, dev.tsv")),
        (truncate, ("{name}, line 5", "2 tab-separated columns, expected 4", "'w4\\t1'")),
        (mislabel, ("{name}, line 3", "wrong label '7'", "allowed are 0, 1", "nearest is '1'")),
        (lambda path: path.write_text(""), ("{name}", "no rows", "at least one")),
        (spoil, ("{name}, line 13", "not UTF-8", "e9")),
    ],
)
def test_a_fault_in_the_data_is_refused(
    name: str, fault: Callable[[Path], None], parts: tuple[str, ...], cola: Path, invoke: Invoke, tmp_path: Path
) -> None:
    fault(cola / name)
    result = invoke("run", "glue", *FEW, "--data-dir", str(cola.parent))
    check_refused(result, *(part.format(name=name) for part in parts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_data_folder_that_is_not_there_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    check_refused(invoke("run", "glue", *FEW, "--data-dir", "nowhere"), "nowhere", "no such directory", "train.tsv")
    assert list(tmp_path.iterdir()) == []


def test_a_model_folder_without_weights_or_tokenizer_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    check_refused(invoke("run", "glue", *FEW, "--model", str(folder)), "model folder", "has no config.json")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    check_refused(invoke("run", "glue", *FEW, "--model", str(folder)), "model folder", "has no tokenizer")
    (folder / "model.safetensors").write_bytes(b"no weights")
    check_refused(invoke("run", "glue", *FEW, "--model", str(folder)), "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.fixture
def encoders(tmp_path: Path) -> list[Path]:
    """Two folders with the micro encoder."""
    return [shutil.copytree(encoder_path(), tmp_path / name) for name in ("one", "two")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "model=./one"),
        ("--model", "./two", "--set", "task.cola.model=./one"),
        ("--model", "./one"),
        ("--model", "./two", "--sweep", "model=./one"),
        ("--sweep", "model=micro,./one"),
    ],
)
@pytest.mark.usefixtures("encoders")
def test_a_folder_of_a_model_is_named_in_any_way(arguments: tuple[str, ...], invoke: Invoke) -> None:
    result = invoke("plan", "glue", *ONE, *arguments)
    assert result.exit_code == 0, result.output
    assert "model: one" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--sweep", "model=./one,./two"), ("model './two'", "one folder at most", "'one'")),
        (
            ("--model", "./one", "--set", "task.rte.model=./two", "--task", "cola,rte"),
            ("model './two'", "one folder at most", "'one'"),
        ),
        (("--model", "./one", "--set", "model=./two"), ("--set model='./two'", "--model gives it too")),
    ],
)
@pytest.mark.usefixtures("encoders")
def test_several_folders_of_models_are_refused(
    arguments: tuple[str, ...], parts: tuple[str, ...], invoke: Invoke
) -> None:
    check_refused(invoke("run", "glue", *ONE, *arguments), *parts)


def test_a_tokenizer_and_a_sweep_of_them_are_refused(invoke: Invoke) -> None:
    few = ("plan", "c4", "--seeds", "0", "--method", "full", "--sweep", "tokenizer=a,b", "--tokenizer", "c")
    check_refused(invoke(*few), "--sweep tokenizer", "--tokenizer gives it too")


def record_text(make_plan: Any) -> str:
    """A valid record, made without a run."""
    plan = make_plan()
    return Record(
        plan=plan,
        plan_hash=plan.hash(),
        status="failed",
        error="nothing",
        started_at="2025-01-01T00:00:00+00:00",
        finished_at="2025-01-01T00:00:00+00:00",
        environment=environment(torch.device("cpu"), 1, 1),
    ).model_dump_json()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text[:-20], "not a record of schema version 1"),
        (lambda text: '{"model": "resnet", "accuracy": 0.9}', "not a record of schema version 1"),
        (lambda text: text.replace('"schema_version":1', '"schema_version":2'), "schema version 2 is newer than 1"),
        (lambda text: text.replace('"seed":0', '"seed":1'), "is not that of its plan"),
    ],
    ids=["cut off", "foreign", "other version", "edited"],
)
def test_a_corrupt_or_foreign_record_in_the_store_is_refused(
    change: Callable[[str], str], part: str, make_plan: Any, invoke: Invoke, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    text = change(record_text(make_plan))
    (store / "some.json").write_text(text)
    for command in ("run", "plan"):
        check_refused(invoke(command, "glue", *FEW, "--out", str(store)), "some.json", part)
    assert [path.name for path in store.iterdir()] == ["some.json"]
    assert (store / "some.json").read_text() == text


def test_a_file_in_the_place_of_the_folder_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    check_refused(invoke("run", "glue", *ONE, "--out", "store"), "store")
    check_refused(invoke("run", "glue", *ONE, "--out", "store/below"), "store/below", "cannot be written", "--out")
    assert (tmp_path / "store").read_text() == "mine"


@pytest.mark.parametrize(("number", "text"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_a_full_or_read_only_folder_is_refused(
    number: int, text: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    check_refused(invoke("run", "glue", *ONE, "--out", "store"), "cannot be written", text, "--out")
    assert list((tmp_path / "store").iterdir()) == []


def test_plan_shows_everything_and_writes_nothing(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("plan", "glue", *FEW)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("profile micro (auto: no CUDA device is here), device cpu\n")
    for part in ("Full fine-tuning", "LoRA", "DoRA", "GaLore", "GradNormLoRP", "MiB"):
        assert part in result.stdout
    count = len(default_methods())
    assert f"{count} runs (1 task), {count} missing" in result.stdout
    assert "checks pipeline and ordering, not the paper's numbers" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_another_kind_leaves_the_reference_to_say_how_long(
    make_plan: Any, invoke: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f"{make_plan().label}.json").write_text(record_text(make_plan))
    result = invoke("plan", "glue", *ONE, "--out", "store")
    assert result.exit_code == 0, result.output
    assert "expected time: " in result.stdout
    assert "unknown" not in result.stdout


def test_run_runs_what_is_missing_and_nothing_twice(invoke: Invoke, tmp_path: Path) -> None:
    first = invoke("run", "glue", *FEW, "--method", "lora,full,lora", "--out", "store")
    assert first.exit_code == 0, first.output
    assert "2 runs ok" in first.stdout
    assert len(read_records([tmp_path / "store"])) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    second = invoke("run", "glue", *FEW, "--method", "lora,full", "--out", "store")
    assert second.exit_code == 0
    assert "0 missing" in second.stdout
    assert "everything is there" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before


def test_quiet_prints_nothing_of_what_went_well(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("run", "glue", *FEW, "--method", "lora", "--out", "store", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert len(read_records([tmp_path / "store"])) == 1
    check_refused(invoke("run", "glue", *FEW, "--quiet", "--method", "lorra"), "nearest: lora")


def test_no_command_writes_into_a_committed_folder_unless_told(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suites.lab.claims.recompute", lambda traces: RecomputedClaims(verdicts=[], rules=[]))
    for command in (("claims", "--quick"), ("memory-matrix", "--model", "micro", "--method", "lora"), ("catalogue",)):
        monkeypatch.setattr("suites.lab.matrix.run_matrix", lambda *given: [given[2] / "cell.json"])
        result = invoke(*command)
        assert result.exit_code == 0, result.output
        assert Path(result.stdout.split()[-1]).parts[:2] == ("results", "runs")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"runs"}


def test_ctrl_c_before_the_first_run_is_said_in_one_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("suites.run.preflight.check", stop)
    result = invoke("run", "glue", *ONE)
    assert result.exit_code == 2
    assert result.stderr == "interrupted: no run was in hand\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_ctrl_c_keeps_the_runs_apart_and_the_same_command_completes_them(tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ("run", "glue", "--seeds", "0", "--task", "rte", "--method", "full,lora", "--steps", "120",
                 "--set", "train_rows=32", "--set", "eval_rows=32", "--set", "batch_size=8",
                 "--out", str(store))  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "suites", *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for_a_run(process.pid, store)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert stderr.splitlines() == [
        "interrupted: the runs in hand are recorded as such; the same command goes on where it stopped"
    ]
    records = read_records([store])
    assert {record.status for record in records} == {"interrupted"}
    # Hidden: what `status` reads, and locks.
    # A checkpoint stands there where Ctrl-C came after the first step.
    assert {path.suffix or path.name for path in store.glob("[!.]*")} <= {".json", "checkpoints"}

    again = subprocess_run(tmp_path, *arguments)
    assert (again.returncode, again.stderr) == (0, "")
    assert sorted((record.status, record.plan.method) for record in read_records([store])) == [
        ("ok", "full"),
        ("ok", "lora"),
    ]
    assert [path.suffix for path in store.glob("[!.]*")] == [".json", ".json"]


def wait_for_a_run(pid: int, store: Path) -> None:
    """Wait until a run is in hand: it has its lock (predictions, which come first, have none), and a child of the fork
    server, which is a child of the command, has computed a while."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        workers = [worker for child in psutil.Process(pid).children() for worker in child.children()]
        if any((store / LOCKS).glob("*")) and any(sum(worker.cpu_times()[:2]) > 0.5 for worker in workers):
            return
        time.sleep(0.02)
    pytest.fail("no run was started")


def test_help_names_the_commands_and_where_to_start(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("run", "plan", "tune", "methods", "tasks", "profile", "python -m suites run glue"):
        assert word in result.stdout


@pytest.mark.parametrize("command", ["run", "plan", "tune"])
def test_every_option_is_in_the_help(command: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke(command, "--help")
    assert result.exit_code == 0
    names = ["--profile", "--rank", "--task", "--method", "--model", "--data-dir", "--steps", "--set", "--out",
             "--workers", "--device", "--offline"]  # fmt: skip
    for name in names:
        assert name in result.stdout
    assert ("--seeds" in result.stdout) is (command != "tune")
    assert ("--no-write" in result.stdout) is (command == "tune")
    assert ("small" if command == "tune" else "auto") in result.stdout


def test_methods_lists_every_method_with_its_settings(invoke: Invoke) -> None:

    result = invoke("methods")
    assert result.exit_code == 0
    for name, method in methods().items():
        assert f"{name}  {method.title}" in result.stdout
        for setting in method.config_type.model_fields:
            assert f"    {setting} = " in result.stdout


@pytest.mark.usefixtures("no_gpu")
def test_tasks_and_profile_print_one_line(invoke: Invoke) -> None:
    assert invoke("tasks").stdout == ", ".join(get_suite("glue").tasks) + "\n"
    assert invoke("profile").stdout == "micro\n"
    assert invoke("profile", "--profile", "small").stdout == "small\n"
    check_refused(invoke("profile", "--profile", "smal"), "unknown profile 'smal'", "nearest: small")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["batch_size=32", "model=minilm"], {"batch_size": 32, "model": "minilm"}),
        (["learning_rate = 1e-3", "targets=attention+mlp"], {"learning_rate": 1e-3, "targets": "attention+mlp"}),
        (["task.cola.steps=4", "task.rte.steps=5"], {"task": {"cola": {"steps": 4}, "rte": {"steps": 5}}}),
        (["method.lora.config={rank=4, dropout=0.0}"], {"method": {"lora": {"config": {"rank": 4, "dropout": 0.0}}}}),
        (['model=it\'s \\ a "path"'], {"model": 'it\'s \\ a "path"'}),
    ],
)
def test_sets_are_toml_and_bare_words(texts: list[str], expected: dict[str, Any]) -> None:
    assert options.parse_sets(texts) == expected


def test_names_and_seeds_given_twice_count_once() -> None:
    assert options.split("cola, rte,cola,") == ["cola", "rte"]
    assert options.parse_seeds("2,0,2") == [2, 0]
