"""A method is a file: one without a METHOD, or under a name that is not its own, is refused in words that name it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import baselines
from baselines.registry import methods
from suites.__main__ import app

Add = Callable[[str, str], None]
COPY = "from dataclasses import replace\nfrom baselines.lora import METHOD as LORA\nMETHOD = replace(LORA, name={!r})\n"


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Return (name, text) -> None, which puts a file beside the methods until the test ends."""
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        methods.cache_clear()

    yield write
    methods.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("baselines."):
            del sys.modules[name]


def test_one_more_file_is_one_more_method(add: Add) -> None:
    known = set(methods())
    add("another", COPY.format("another"))
    assert set(methods()) == known | {"another"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"baselines/another\.py: has no METHOD = Method\(\.\.\.\)"),
        ("METHOD = 'lora'\n", r"baselines/another\.py: has no METHOD"),
        (COPY.format("lora"), r"baselines/another\.py: its METHOD is called 'lora', as that of baselines/lora\.py"),
        (
            COPY.format("other"),
            r"baselines/another\.py: its METHOD is called 'other': .*nearest allowed name: 'another'",
        ),
        (
            COPY.format("another").replace("name=", "title=' ', name="),
            r"baselines/another\.py: its METHOD has no title",
        ),
    ],
    ids=["empty", "another type", "a name twice", "a name not its own", "no title"],
)
def test_a_file_that_is_no_method_is_refused_by_its_name(add: Add, text: str, words: str) -> None:
    add("another", text)
    with pytest.raises(ValueError, match=words):
        methods()
    for command in (["methods"], ["plan", "glue"]):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 2
        assert "baselines/another.py" in found.output
