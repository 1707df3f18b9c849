"""Settings: which layer beats which, lengths in two units, and what is refused in which words."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest

from baselines.registry import methods
from suites import config
from suites.config import (
    PROFILE_NAMES,
    Settings,
    check_table,
    listed,
    load_profile,
    method_config,
    profile_path,
    resolve,
    tuned_path,
    validated,
)
from suites.glue import GlueSettings
from suites.registry import all_suites
from suites.sweep import nested

LEVELS = ("layer", "task", "method", "task.method")
MODEL: dict[str, Any] = {"model": "toy"}


def at(level: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return a layer that gives `values` at one of the LEVELS, for task "a" and method "lora"."""
    return {
        "layer": values,
        "task": {"task": {"a": values}},
        "method": {"method": {"lora": values}},
        "task.method": {"task": {"a": {"method": {"lora": values}}}},
    }[level]


def joined(*layers: dict[str, Any]) -> dict[str, Any]:
    """Merge nested tables."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = joined(result[key], value) if both else value
    return result


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand an empty folder in for the profiles."""
    monkeypatch.setattr(config, "PROFILES", tmp_path)
    return tmp_path


def test_defaults_are_the_weakest() -> None:
    assert resolve(Settings, [MODEL], "a", "lora") == Settings(model="toy")
    assert resolve(Settings, [MODEL, {"batch_size": 3}], "a", "lora").batch_size == 3


@pytest.mark.parametrize(("weak", "strong"), list(itertools.combinations(range(len(LEVELS)), 2)))
def test_inside_a_layer_the_narrower_level_wins(weak: int, strong: int) -> None:
    both = joined(at(LEVELS[strong], {"batch_size": 2}), at(LEVELS[weak], {"batch_size": 1}))
    assert resolve(Settings, [MODEL, both], "a", "lora").batch_size == 2


@pytest.mark.parametrize(("weak", "strong"), list(itertools.product(LEVELS, LEVELS)))
def test_a_later_layer_wins_at_whatever_level(weak: str, strong: str) -> None:
    layers = [MODEL, at(weak, {"batch_size": 1}), at(strong, {"batch_size": 2})]
    assert resolve(Settings, layers, "a", "lora").batch_size == 2


@pytest.mark.parametrize("level", LEVELS)
def test_a_table_is_for_its_task_and_method_alone(level: str) -> None:
    layers = [MODEL, at(level, {"batch_size": 9})]
    assert resolve(Settings, layers, "a", "lora").batch_size == 9
    assert (resolve(Settings, layers, "b", "lora").batch_size == 9) == (level in ("layer", "method"))
    assert (resolve(Settings, layers, "a", "dora").batch_size == 9) == (level in ("layer", "task"))


def test_the_whole_chain_from_profile_to_command_line(profiles: Path) -> None:
    """Every layer sets its own setting and all later ones; each must be seen from the layer that is last to set it."""
    (profiles / "micro.toml").write_text(
        """
        [toy]
        model = "m"
        max_length = 1
        batch_size = 1
        train_rows = 1
        eval_rows = 1
        [toy.method.lora]
        batch_size = 2
        train_rows = 2
        eval_rows = 2
        [toy.rank.8]
        train_rows = 3
        eval_rows = 3
        [toy.rank.4]
        max_length = 99
        [other]
        max_length = 98
        """
    )
    (profiles / "micro.toy.rank8.tuned.toml").write_text("[method.lora]\neval_rows = 4\nwarmup_fraction = 0.4")
    (profiles / "micro.toy.rank4.tuned.toml").write_text("max_length = 97")
    layers = load_profile("micro", "toy", 8)
    found = resolve(GlueSettings, [*layers, {"warmup_fraction": 0.5}], "a", "lora")
    assert (found.max_length, found.batch_size, found.train_rows, found.eval_rows) == (1, 2, 3, 4)
    assert found.warmup_fraction == 0.5
    assert resolve(GlueSettings, layers, "a", "lora").warmup_fraction == 0.4
    assert resolve(GlueSettings, layers, "a", "dora").eval_rows == 3
    assert resolve(GlueSettings, load_profile("micro", "toy", 4), "a", "lora").max_length == 97


def test_a_method_in_the_command_lines_layer(profiles: Path) -> None:
    layers = [MODEL, at("task.method", {"learning_rate": 1e-3}), at("method", {"learning_rate": 2e-3})]
    assert resolve(Settings, layers, "a", "lora").learning_rate == 2e-3


@pytest.mark.parametrize(("first", "second"), [({"steps": 5}, {"epochs": 2.0}), ({"epochs": 2.0}, {"steps": 5})])
@pytest.mark.parametrize(("weak", "strong"), list(itertools.combinations(range(len(LEVELS)), 2)))
def test_a_length_replaces_the_weaker_one_in_the_other_unit(
    first: dict[str, Any], second: dict[str, Any], weak: int, strong: int
) -> None:
    """Inside one layer by level, and from layer to layer."""
    one = joined(at(LEVELS[weak], first), at(LEVELS[strong], second))
    for layers in ([MODEL, one], [MODEL, at(LEVELS[strong], first), at(LEVELS[weak], second)]):
        found = resolve(Settings, layers, "a", "lora")
        assert {"steps": found.steps, "epochs": found.epochs} == {"steps": None, "epochs": None, **second}


def test_both_units_at_once_stay_for_the_plan_to_refuse() -> None:
    found = resolve(Settings, [MODEL, {"steps": 5, "epochs": 1.0}], "a", "lora")
    assert (found.steps, found.epochs) == (5, 1.0)


def test_config_is_merged_setting_by_setting() -> None:
    layers = [
        {**MODEL, "config": {"scale": 1.0, "alpha": 1.0}},
        at("method", {"config": {"alpha": 2.0, "dropout": 0.0}}),
        at("task", {"config": {"dropout": 0.5}}),
    ]
    assert resolve(Settings, layers, "a", "lora").config == {"scale": 1.0, "alpha": 2.0, "dropout": 0.5}
    assert layers[0]["config"] == {"scale": 1.0, "alpha": 1.0}


def test_lists_of_names_and_the_searchs_table_are_no_settings() -> None:
    layers = [{**MODEL, "methods": ["lora"], "search": {"steps": 3, "tasks": ["a"]}}, {"methods": ["full", "lora"]}]
    assert resolve(Settings, layers, "a", "lora").steps is None
    assert listed(layers, "methods") == ("full", "lora")
    assert listed(layers, "tasks") == ()
    check_table(layers[0], Settings, ["a"], "profile")
    for wrong, text in (
        ({"methods": []}, "methods=\\[\\]: must be a list of names"),
        ({"methods": ["lorra"]}, "unknown methods in profile 'lorra'.*nearest: lora"),
        ({"search": {"tasks": ["aa"]}}, "unknown tasks in profile 'aa'"),
        ({"search": {"method": {"lora": {"stepps": 3}}}}, "unknown setting 'stepps'"),
    ):
        with pytest.raises(ValueError, match=text):
            check_table(wrong, Settings, ["a"], "profile")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("method.lora.task.a.steps", r"task inside method is read by no run: .* as task\.<task>\.method\.<method>"),
        ("size.9m.task.a.steps", "task inside size is read by no run"),
        ("task.a.size.9m.steps", "size inside task is read by no run"),
        ("task.a.task.a.steps", "task inside task is read by no run"),
        ("task.a.method.lora.method.lora.steps", r"method inside task\.method is read by no run"),
        ("task.a.search.steps", "search inside task is read by no run"),
        ("search.search.steps", "search inside search is read by no run"),
        ("search.rank.8.steps", "rank inside search is read by no run"),
        ("task.a.rank.8.steps", "rank inside task is read by no run"),
        ("task.a.methods", r"methods inside task is read by no run: .*\(nearest allowed: methods=\[\.\.\.\]\)"),
        ("size.9m.tasks", "tasks inside size is read by no run"),
        ("method.lora.default_rank", r"default_rank inside method is read by no run: .*\(nearest allowed: --rank\)"),
        ("search.size.9m.default_rank", r"default_rank inside search\.size is read by no run"),
    ],
)
def test_what_no_run_would_read_is_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^--set: {text}"):
        check_table(nested(name, 1), Settings, ["a"], "--set")


@pytest.mark.parametrize(
    "name",
    [
        "steps",
        "method.lora.steps",
        "task.a.method.lora.steps",
        "size.9m.method.lora.steps",
        "size.9m.default_rank",
        "search.size.9m.method.lora.steps",
        "rank.8.search.task.a.method.lora.steps",
    ],
)
def test_what_a_run_reads_is_not(name: str) -> None:
    check_table(nested(name, 1), Settings, ["a"], "profile")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"batch_sise": 4}, r"^unknown setting 'batch_sise': known are model, .*; nearest: batch_size$"),
        ({"batch_size": 0}, r"^setting batch_size = 0: input should be greater than 0$"),
        ({"learning_rate": -1.0}, r"^setting learning_rate = -1.0: input should be greater than 0$"),
        (
            {"precision": "bf16-autcast"},
            r"^setting precision = 'bf16-autcast': input should be 'fp32', 'bf16' or 'bf16-autocast' "
            r"\(nearest allowed value: bf16-autocast\)$",
        ),
        ({"warmup_fraction": 1.0}, r"^setting warmup_fraction = 1.0: input should be less than 1$"),
        ({"state_bits": 16}, r"^setting state_bits = 16: input should be 8 or 32 \(nearest allowed value: 8\)$"),
        ({"state_bits": 31}, r"^setting state_bits = 31: input should be 8 or 32 \(nearest allowed value: 32\)$"),
        ({"steps": "many"}, r"^setting steps = 'many': input should be a valid integer"),
        ({"steps": 0}, r"^setting steps = 0: input should be greater than 0$"),
    ],
)
@pytest.mark.parametrize("level", LEVELS)
def test_a_wrong_setting_is_named_with_its_value_and_rule(values: dict[str, Any], text: str, level: str) -> None:
    with pytest.raises(ValueError, match=text) as raised:
        resolve(Settings, [MODEL, at(level, values)], "a", "lora")
    assert "\n" not in str(raised.value)


def test_validated_returns_the_kind_asked_for() -> None:
    assert validated(Settings, {"model": "x", "steps": 3}, "setting") == Settings(model="x", steps=3)


def test_an_unknown_profile_and_one_without_the_suite(profiles: Path) -> None:
    (profiles / "micro.toml").write_text("[glue]\nmodel = 'micro'\n")
    with pytest.raises(ValueError, match="unknown profile 'smal': known are micro, small, paper, fair; nearest: small"):
        load_profile("smal", "glue", 8)
    with pytest.raises(ValueError, match="profile 'micro' has no settings for suite 'c4'"):
        load_profile("micro", "c4", 8)


def test_the_tuned_file_lies_beside_the_profile(profiles: Path) -> None:
    assert tuned_path("small", "glue", 8) == profiles / "small.glue.rank8.tuned.toml"


@pytest.mark.parametrize("profile", PROFILE_NAMES)
@pytest.mark.parametrize("rank", [4, 8])
def test_the_profiles_resolve_for_every_suite_that_they_have_and_method(profile: str, rank: int) -> None:
    for name in tomllib.loads(profile_path(profile).read_text()):
        suite = all_suites()[name]
        layers = load_profile(profile, name, rank)
        check_table(layers[0], suite.settings, suite.tasks, profile)
        # A suite may have the tasks alone that files bring it.
        task = next(iter(suite.tasks), "brought")
        for method in methods():
            settings = resolve(suite.settings, layers, task, method)
            method_config(method, rank, settings.config)
            assert (settings.steps is None) != (settings.epochs is None)
            in_search = resolve(suite.settings, [*layers, layers[0].get("search", {})], task, method)
            assert "search" not in layers[0] or in_search.trials


def test_method_config_puts_overrides_on_top_of_the_rank() -> None:
    found = method_config("gradnormlorp", 16, {"scale": 3.0}).model_dump()
    assert (found["rank"], found["projection_rank"], found["scale"]) == (16, 8, 3.0)
    assert method_config("gradnormlorp", 16, {"projection_rank": 2}).model_dump()["projection_rank"] == 2


@pytest.mark.parametrize(
    ("method", "rank", "overrides", "text"),
    [
        ("lorra", 8, {}, r"^unknown method 'lorra': known are .*; nearest: lora$"),
        ("lora", 8, {"alfa": 1.0}, r"^unknown lora setting 'alfa': known are .*alpha, dropout; nearest: alpha$"),
        ("lora", 8, {"alpha": 0}, r"^lora setting alpha = 0: input should be greater than 0$"),
        ("lora", 8, {"dropout": 1.0}, r"^lora setting dropout = 1.0: input should be less than 1$"),
        (
            "galore",
            8,
            {"side": "left"},
            r"^galore setting side = 'left': input should be 'small', 'large' or 'both' \(nearest allowed .*: large\)$",
        ),
        (
            "galore",
            8,
            {"refresh_gap": 0},
            r"^galore setting refresh_gap = 0: input should be greater than or equal to 1$",
        ),
        ("gradnormlorp", 1, {}, r"^rank 1: gradnormlorp needs at least 2"),
        ("full", 8, {"scale": 1.0}, r"^unknown full setting 'scale': known are none$"),
    ],
)
def test_a_wrong_method_setting_is_named(method: str, rank: int, overrides: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        method_config(method, rank, overrides)
