"""The bench against an earlier commit: a small history is made, and its layers are measured beside today's."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig
from typer.testing import CliRunner

from baselines.registry import get_method
from results.bench import Bench
from results.store import read_single
from suites.__main__ import app
from suites.bench import former, layer, model
from suites.bench.run import FORMER_SHARE, OF_LAYERS, items

GNLORP = Path(__file__).resolve().parents[2] / "gnlorp"
OPTIONS = """        dropout: float = 0.0,
        norm_gradient: NormGradient = "full",
"""


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with tags: no layer yet, today's, one that computes something else, three that do not fit."""
    root = tmp_path_factory.mktemp("history")
    written = root / "gnlorp" / "layer.py"

    def commit(tag: str, change: Callable[[str], str] = str) -> None:
        shutil.copytree(GNLORP, root / "gnlorp", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        source = written.read_text()
        assert (change(source) == source) == (change is str)
        written.write_text(change(source))
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", tag)
        git(root, "tag", tag)

    git(root, "init", "-q")
    (root / "README.md").write_text("nothing yet")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "empty")
    git(root, "tag", "empty")
    commit("same")
    commit("wrong", lambda source: source.replace("            self.scaling,\n", "            1.5 * self.scaling,\n"))
    commit("renamed", lambda source: source.replace("norm_gradient", "rule"))
    commit("more", lambda source: source.replace(OPTIONS, "        seed: int,\n" + OPTIONS))
    commit("broken", lambda source: source.replace("import math\n", "import math\nimport no_such_library\n"))
    return root


@pytest.fixture
def at_history(history: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the bench take the small history for its checkout."""
    monkeypatch.setattr(former, "ROOT", history)
    return history


def test_the_layer_of_the_commit_is_measured_and_not_todays(at_history: Path) -> None:
    paths = list(sys.path)
    with former.former_layer("wrong") as found:
        cell = layer.layer_cell((48, 32), 4, 16, True, 0.01, found)
    differ = {what for what, apart in cell.agreement.items() if apart > layer.LIMIT}
    assert differ == {
        "gnlorp at wrong, full rule against the formed weight",
        "gnlorp at wrong, detached rule against DoRA",
    }
    assert cell.settings["against"] == git(at_history, "rev-parse", "wrong")
    assert cell.former == ["gnlorp at wrong, full rule", "gnlorp at wrong, detached rule"]
    assert sys.path == paths
    assert not [name for name in sys.modules if name.startswith("gnlorp_at_")]


def test_no_module_of_the_commit_imports_todays_package(at_history: Path) -> None:
    with former.former_layer("same") as found:
        (folder,) = sys.modules[f"gnlorp_at_{found.commit}"].__path__
        trees = [ast.parse(path.read_text()) for path in Path(folder).rglob("*.py")]
    assert len(trees) > 10
    named = [node.module or "" for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named += [
        one.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names
    ]
    assert not [name for name in named if name.partition(".")[0] == "gnlorp"]


def test_in_a_model_only_the_layer_differs(at_history: Path) -> None:
    """The same code under another name trains the same weights to the same bits, dropout included."""
    small = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=70, intermediate_size=32)
    batch = model._batch(2, 8)
    trained = []
    with former.former_layer("same") as found:
        for method in (get_method(model.OURS), model._former_method(found)):
            torch.manual_seed(0)
            network = model._random(small)
            step, _, _ = model._prepared(method, {}, network, batch)
            step()
            trained.append(network.state_dict())
            assert any(type(part) is found.layer for part in network.modules()) == (len(trained) == 2)
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_a_run_against_a_commit_holds_times_bytes_targets_and_hash(at_history: Path, tmp_path: Path) -> None:
    path, commit = tmp_path / "bench.json", git(at_history, "rev-parse", "same")
    arguments = ["bench", "--quick", "--only", ",".join(OF_LAYERS), "--against", commit, "--out", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = read_single(path, Bench)
    assert found.command.endswith(f"--against {commit}")
    for cell in found.cells:
        assert cell.settings["against"] == commit
        assert all(commit[:12] in title and commit not in title for title in cell.former)
        claims = [claim for claim in cell.claims if claim.peer in cell.former]
        times = [claim for claim in claims if claim.what.endswith("time")]
        assert {claim.ours.rpartition(", ")[2]: claim.target for claim in times} == former.TARGETS
        assert len(claims) == 2 * len(times) == 2 * 3 * len(cell.former)
        assert all(claim.values for claim in claims)
        assert all((" rule" in claim.ours) == (" rule" in claim.peer) for claim in claims)
        assert all(("full" in claim.ours) == ("full" in claim.peer) for claim in claims)


def test_without_a_commit_nothing_of_it_is_in_a_cell() -> None:
    cell = layer.layer_cell((48, 32), 4, 16, True, 0.01)
    assert not cell.former
    assert set(cell.settings) == {"shape", "rank", "tokens", "bias", "dtype"}
    assert len(cell.candidates) == len(layer.TITLES) + len(layer.FORWARD)


def test_cells_of_the_layer_are_given_more_time_for_one_more(at_history: Path) -> None:
    with former.former_layer("same") as found:
        longer = items(False, found)
    for before, after in zip(items(False), longer, strict=True):
        assert after.seconds == before.seconds * (FORMER_SHARE if before.group in OF_LAYERS else 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--against", "sane"],
            "against 'sane': must be a commit of this checkout, as a hash, a tag or a branch; near",
        ),
        (["--against", "empty"], "has no gnlorp/layer.py"),
        (["--against", "renamed"], "unexpected keyword argument 'norm_gradient'"),
        (["--against", "more"], "missing 1 required positional argument: 'seed'"),
        (["--against", "broken"], "No module named 'no_such_library'"),
        (["--against", "same", "--only", "refresh,step"], "which measure the layer"),
    ],
)
def test_a_commit_that_cannot_be_measured_is_one_line(
    arguments: list[str], says: str, at_history: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["bench", "--quick", *arguments, "--out", str(tmp_path / "bench.json")])
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not [name for name in sys.modules if name.startswith("gnlorp_at_")]


def test_without_git_or_history_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(former, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="against 'main': needs git, and this code as a git checkout"):
        former.former_layer("main").__enter__()
