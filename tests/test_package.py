"""The wheel: gnlorp alone, importable from anywhere with torch and nothing else of the project."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
for name in ("baselines", "suites", "results", "reports", "peft", "transformers", "pydantic", "bitsandbytes"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import gnlorp, torch
from pathlib import Path
assert Path(gnlorp.__file__).resolve().is_relative_to(Path(sys.argv[1]).resolve()), gnlorp.__file__
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(12, 8))
names = gnlorp.attach(model, ["0"], rank=4, alpha=8.0)
optimizer = gnlorp.GradNormLoRPAdamW(gnlorp.param_groups(model, projection_rank=2), lr=1e-2)
x = torch.randn(5, 12)
losses = []
for _ in range(20):
    loss = (model(x) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert type(gnlorp.merge(model)[0]) is torch.nn.Linear
assert all(hasattr(gnlorp, name) for name in gnlorp.__all__)
print(names)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of the repository as its build backend does, without an isolated environment."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, the build backend, is not installed")
    folder = tmp_path_factory.mktemp("dist")
    (path,) = builder.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


def test_the_wheel_holds_gnlorp_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in inside} == {"gnlorp"}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gnlorp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == expected
    assert "gnlorp/py.typed" in inside


@pytest.mark.parametrize(("version", "plugin"), [("standard", False), ("editable", True)])
def test_only_an_editable_install_brings_the_pytest_plugin(version: str, plugin: bool, tmp_path: Path) -> None:
    """pytest loads every installed plugin; the plugin's package is not in the wheel."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, the build backend, is not installed")
    (path,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=[version])
    archive = zipfile.ZipFile(path)
    points = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert any("results.pytest_plugin" in text for text in points) == plugin


def test_the_wheel_needs_torch_alone(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    needs = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    plain = [need for need in needs if "extra ==" not in need]
    assert [need.split(">")[0] for need in plain] == ["torch"]


def test_the_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(site)], cwd=elsewhere, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['0']"


def test_the_licence_goes_with_wheel_and_source(wheel: Path, tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.sdist", reason="hatchling, the build backend, is not installed")
    (source,) = builder.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    licence = (ROOT / "LICENSE").read_bytes()
    archive = zipfile.ZipFile(wheel)
    (inside,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert archive.read(inside) == licence
    with tarfile.open(source) as packed:
        member = packed.extractfile(f"{Path(source).name.removesuffix('.tar.gz')}/LICENSE")
        assert member is not None
        assert member.read() == licence


def test_the_citation_is_of_this_version_and_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
