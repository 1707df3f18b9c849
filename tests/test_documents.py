"""The documents: tables are those of the snapshot, links lead somewhere, commands parse, the README is one screen."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nox
import pytest
import torch
import typer
import yaml
from trial import run_trial

from reports.__main__ import app as reports_app
from reports.documents import BLOCK, documents, filled
from suites.__main__ import app as suites_app
from suites.registry import all_suites

ROOT = Path(__file__).resolve().parent.parent
TABLED = documents(ROOT)
LINKED = [
    *TABLED,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "gnlorp/PAPER.md", "results/NOTES.md")),
]
TYPED = [path for path in LINKED if path.name not in ("CHANGELOG.md", "NOTES.md")]
"""Documents of today; the other two also say what was."""
ROOMS = ("gnlorp", "baselines", "suites", "results", "reports", "tests", "docs")
MADE = ("results/runs", "reports/build")
"""Folders that are not there before a command has made them."""
MADE_ONLY = (".csv", ".json", ".tex", ".svg")
"""Forms of a report that a repository does not keep: the command makes them."""
README_LINES = 150
TRIAL = typer.Typer()
TRIAL.command()(run_trial)
COMMAND_LINES = {"suites": suites_app, "reports": reports_app, "tests/gate_trial/trial.py": TRIAL}
APPS: dict[str, Any] = {name: typer.main.get_command(app) for name, app in COMMAND_LINES.items()}


def named(paths: list[Path]) -> list[Any]:
    """Return the paths as parameters called by their place in the repository."""
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in paths]


def prose(text: str) -> str:
    """Return Markdown without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Return the targets of Markdown links, images and `<img>`, as written; inline code holds none."""
    bare = re.sub(r"`[^`]*`", "", prose(text))
    return re.findall(r"\]\(([^)\s]+)\)", bare) + re.findall(r'<img src="([^"]+)"', bare)


def anchors(text: str) -> list[str]:
    """Return the anchors that GitHub gives the headings of a Markdown text."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*)$", prose(text), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        twins = sum(1 for each in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", each))
        found.append(f"{slug}-{twins}" if twins else slug)
    return found


def broken(path: Path, text: str) -> list[str]:
    """Return the relative links of the document at `path` that lead nowhere."""
    wrong = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        there = target.exists() and target.is_relative_to(ROOT)
        if there and anchor:
            there = anchor in anchors(text if target == path else target.read_text())
        # What a repository keeps of a report is its Markdown and its PNG; the other forms are made by the command.
        if not there or (target.is_relative_to(ROOT / "reports" / "snapshot") and target.suffix in MADE_ONLY):
            wrong.append(link)
    return wrong


def console_lines(text: str) -> list[str]:
    """Return the commands of a document: lines of console blocks, and inline code that begins like one."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    inline = re.findall(r"`((?:python -m|torchrun|pip|pytest)\s[^`]*)`", prose(text))
    return lines + [" ".join(code.split()) for code in inline]


def commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command that a shell line joins by `&&`, without comment and variables."""
    words = shlex.split(line, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        command, words = words[:end], words[end + 1 :]
        while command and re.fullmatch(r"[A-Z][A-Z_]*=.*", command[0]):
            command = command[1:]
        yield command


def parse_app(name: str, words: list[str]) -> None:
    """Let typer parse the words as it would, without running anything.

    Raises:
        Exception: click's usage error, of whatever class the installed typer has.
    """
    command = APPS[name]
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            raise ValueError(
                f"python -m {name}: no command {' '.join(words[:1])!r} among {', '.join(command.commands)}"
            )
        command, words = command.commands[words[0]], words[1:]
    if "--help" not in words:
        command.make_context(command.name, list(words))


@pytest.fixture(scope="module")
def sessions() -> ModuleType:
    """The noxfile, imported."""
    spec = importlib.util.spec_from_file_location("noxfile_of_the_documents", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(sessions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return parse(line): raises where a command would not be understood. Nothing is run."""
    monkeypatch.setenv("GNLORP_PYTHON", "python")

    def run(*words: str, silent: bool = False, **_: Any) -> str | bool:
        words_of_a_command(list(words))
        return "micro" if silent else True

    def answering(answer: object) -> Callable[..., object]:
        return lambda *words: (words_of_a_command(list(words)), answer)[1]

    monkeypatch.setattr(sessions, "exact", answering(0))
    monkeypatch.setattr(sessions, "said", answering("--where --against micro"))

    def session(words: list[str]) -> None:
        names, _, arguments = " ".join(words).partition(" -- ")
        if names == "-l":
            return
        assert names.startswith("-s ")
        for name in names.removeprefix("-s ").split():
            fake = SimpleNamespace(posargs=shlex.split(arguments), run=run, log=print, error=pytest.fail)
            assert hasattr(sessions, name), f"noxfile.py has no session {name!r}"
            getattr(sessions, name)(fake)

    def module(name: str, words: list[str]) -> None:
        if name == "nox":
            session(words)
        elif name in APPS:
            parse_app(name, words)
        elif name == "pip":
            assert words[0] == "install"
            assert {word for word in words if word.startswith("-")} <= {"-e", "-c"}
        elif name == "pytest":
            check_pytest(words)
        elif name in ("ruff", "mypy", "build", "venv"):
            pass
        else:
            assert importlib.util.find_spec(name) is not None, f"no module {name!r}"
            assert name.partition(".")[0] in ROOMS, f"no rule for python -m {name}"

    def words_of_a_command(words: list[str]) -> None:
        if words[:2] in (["python", "-m"], [sys.executable, "-m"]):
            module(words[2], words[3:])
        elif words[0] == "python" and words[1] in APPS:
            parse_app(words[1], words[2:])
        elif words[0] == "torchrun":
            at = words.index("-m")
            module(words[at + 1], words[at + 2 :])
        elif words[0] in ("pip", "pytest"):
            module(words[0], words[1:])
        elif words[:2] != ["pre-commit", "install"]:
            raise AssertionError(f"no rule for {shlex.join(words)}")

    def line_of(line: str) -> None:
        for words in commands(line):
            words_of_a_command(words)

    return line_of


def check_pytest(words: list[str]) -> None:
    """Raise AssertionError where pytest is given a file that is not there or an option of ours that it has not."""
    plugin = (ROOT / "results" / "pytest_plugin.py").read_text()
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), word
        elif word.startswith("--gnlorp"):
            assert f'addoption("{word.partition("=")[0]}"' in plugin, word


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("path", named(TABLED))
def test_tables_are_those_of_the_snapshot(path: Path) -> None:
    text = path.read_text()
    assert filled(text, ROOT / "reports" / "snapshot") == text, "python -m reports documents"


def test_the_documents_hold_tables() -> None:
    assert sum(len(BLOCK.findall(path.read_text())) for path in TABLED) > 10


@pytest.mark.parametrize("path", named(LINKED))
def test_links_lead_somewhere(path: Path) -> None:
    assert not broken(path, path.read_text())


@pytest.mark.parametrize("path", named(TYPED))
def test_files_named_in_the_text_are_there(path: Path) -> None:
    code = re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`", prose(path.read_text()))
    code = [name for name in code if not name.startswith(MADE) and "NAME" not in name]
    assert not [name for name in code if not (ROOT / name).exists()]


def python_blocks(path: Path) -> list[str]:
    """Return the Python code blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", named(TYPED))
def test_python_blocks_import_what_is_there(path: Path) -> None:
    for block in python_blocks(path):
        tree = ast.parse(block)
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), str(path), "exec"), {})


def test_the_code_of_the_readme_runs() -> None:
    names = ("query", "value", "key", "intermediate.dense", "output.dense")
    blocks = {name.partition(".")[0]: torch.nn.Linear(16, 16) for name in names}
    nested = {name: torch.nn.ModuleDict({"dense": layer}) for name, layer in blocks.items() if f"{name}.dense" in names}
    model = torch.nn.ModuleDict({**blocks, **nested})
    before = {name: type(module) for name, module in model.named_modules()}
    (code,) = python_blocks(ROOT / "README.md")
    space: dict[str, Any] = {"model": model}
    exec(code, space)
    assert isinstance(space["optimizer"], torch.optim.Optimizer)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("__init__.py")}
    rooms -= {f"suites/{name}" for name in all_suites()}
    assert not {room for room in rooms if f"`{room}`" not in text and not room.startswith("tests")}


@pytest.mark.parametrize("path", named(TYPED))
def test_commands_parse(path: Path, parse: Callable[[str], None]) -> None:
    for line in console_lines(path.read_text()):
        try:
            parse(line)
        except Exception as problem:
            raise AssertionError(f"{line}: {problem}") from problem


def test_commands_of_workflows_and_hooks_parse(parse: Callable[[str], None]) -> None:
    steps: list[Any] = []
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            steps += [step["run"] for step in job["steps"] if "run" in step]
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]:
        steps += [hook["entry"] for hook in repo["hooks"]]
    ours = [step for step in steps if step.startswith("python")]
    assert len(ours) >= 6
    for step in ours:
        parse(step)


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("python -m pip install nox && python -m nox -s glue_rank8", True),
        ("python -m nox -s glue_rank8 -- --profile small --data-dir DIR  # a comment", True),
        ("python -m nox -s glue_rank9", False),
        ("python -m nox -s glue_rank8 -- --profil small", False),
        ("python -m suites plan glue --seeds 0", True),
        ("python -m suites plan glue --seed 0", False),
        ("python -m suites gate replicate --name NAME", True),
        ("python -m nox -s gate_trial -- --fault NAME", True),
        ("python -m nox -s gate_trial -- --faults NAME", False),
        ("python -m suites gate", False),
        ("python -m reports nothing", False),
        ("python -m reports glue --ranks 8", False),
        ("python -m gnlorp.examples.trainer", True),
        ("python -m gnlorp.examples.trainers", False),
        ("torchrun --nproc_per_node 2 -m suites run c4 --wrong", False),
        ("A_VARIABLE=1 pytest tests/test_documents.py", True),
        ("pytest tests/test_no_documents.py", False),
        ("pytest --gnlorp-referrence DIR", False),
        ("curl somewhere", False),
    ],
)
def test_the_reader_of_commands_tells_right_from_wrong(line: str, right: bool, parse: Callable[[str], None]) -> None:
    if right:
        parse(line)
        return
    with pytest.raises(Exception):  # noqa: B017, PT011  click's own classes, by whichever library typer brings them
        parse(line)


def test_the_reader_of_links_sees_every_form() -> None:
    text = '# A `b` c\n## A b c\n[x](CHANGELOG.md#unreleased) ![y](no.png) <img src="no.svg"> `[z](not-a-link)`\n'
    text += "[own](#a-b-c-1) [none](#a-b-c-2) [web](https://example.org)\n```python\nlist[0](no-link)\n```\n"
    text += "[svg](reports/snapshot/x.svg)\n"
    assert broken(ROOT / "README.md", text) == ["no.png", "#a-b-c-2", "reports/snapshot/x.svg", "no.svg"]


def test_sessions_are_found_by_nox(sessions: ModuleType) -> None:
    assert {"glue_rank8", "c4", "tests", "regression"} <= set(nox.registry.get())
