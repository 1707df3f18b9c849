"""The API of the suites: arguments, frames, and the notebook of the documents, run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from suites import api
from suites.options import Options

ROOT = Path(__file__).resolve().parents[2]


def test_arguments_are_the_options_of_the_command_line() -> None:
    asked: dict[str, Any] = {
        "tasks": ["rte", "cola"], "methods": "lora", "seeds": (0, 1), "steps": 3, "data_dir": "DIR",
        "settings": {"method": {"lora": {"config": {"alpha": 4}}}, "clip_norm": 0.5}, "sweep": {"rank": [4, 8]},
    }  # fmt: skip
    assert api.options_of("glue", Path("out"), asked) == Options(
        suite="glue", out=Path("out"), task="rte,cola", method="lora", seeds="0,1", steps=3, data_dir=Path("DIR"),
        set_=["method.lora.config.alpha=4", "clip_norm=0.5"], sweep=["rank=[4, 8]"], quiet=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"task": ["rte"], "stepz": 3}, "unknown argument 'stepz'.*nearest: steps"),
        ({"methods": ["lorra"]}, "unknown method 'lorra'.*nearest: lora"),
        ({"seeds": [2**63]}, "seed 9223372036854775808: must be at most 9223372036854775807"),
        ({"settings": {"batchsize": 3}}, "unknown setting 'batchsize'.*nearest: batch_size"),
    ],
)
def test_wrong_arguments_are_named(asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        api.plan("glue", profile="micro", out=tmp_path, **asked)


def test_a_plan_is_a_typed_frame_with_its_settings(tmp_path: Path) -> None:
    frame = api.plan(
        "glue", profile="micro", tasks=["rte"], methods=["full", "lora"], seeds=[0, 7], out=tmp_path, predict=False
    )
    assert len(frame) == 4
    kinds = frame.dtypes.astype(str)
    assert kinds[["plan_hash", "seed", "missing", "predicted_peak_bytes"]].tolist() == [
        "string", "Int64", "boolean", "Int64",
    ]  # fmt: skip
    assert frame["missing"].all()
    assert frame["predicted_peak_bytes"].isna().all()
    assert frame["method_config.rank"].isna().tolist() == [True, False, True, False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "fresh"), [({}, False), ({"fresh": True}, True)])
def test_to_begin_anew_is_handed_on(
    asked: dict[str, Any], fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        pass

    def start(plans: Any, runtime: Any, out: Path, given: bool = False) -> int:
        assert given is fresh
        raise Started

    monkeypatch.setattr("suites.__main__.start", start)
    with pytest.raises(Started):
        api.run("glue", profile="micro", tasks=["rte"], methods=["full"], seeds=[0], out=tmp_path, **asked)


@pytest.mark.slow
def test_the_notebook_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.DOTALL | re.MULTILINE
    )
    space: dict[str, Any] = {}
    exec(compile(block, "docs/python.md", "exec"), space)
    runs, scores = space["runs"], space["scores"]
    assert isinstance(runs, pd.DataFrame)
    assert sorted(runs["method"]) == ["gradnormlorp", "lora", "lora"]
    assert runs["score"].notna().all()
    assert set(scores["title"]) == {"LoRA, alpha 8", "LoRA, alpha 16", "GradNormLoRP"}
    assert space["plan"]["predicted_peak_bytes"].notna().all()
    assert (tmp_path / "memory.pdf").read_bytes().startswith(b"%PDF")
