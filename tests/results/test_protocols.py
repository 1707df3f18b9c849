"""The published settings: each has a source, the special stands after the general, margins are in the right unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from results.protocols import Protocols, read_protocols
from results.published import PublishedError


def protocol_file(folder: Path, statement: dict[str, object]) -> Path:
    """Write a file of one protocol with one statement."""
    whole = {"source": "a table", "places": "tasks", "margins": {}, "margins_source": "-", "statements": [statement]}
    path = folder / "protocols.json"
    path.write_text(json.dumps({"glue": whole}))
    return path


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"source": ""}, "statements.0.source"),
        ({"values": {}}, "statements.0.values"),
        ({"status": "guessed"}, "statements.0.status"),
        ({"sizes": ["60m"]}, "statements.0.sizes"),
    ],
)
def test_a_setting_without_source_or_with_an_unknown_word_is_refused(
    tmp_path: Path, change: dict[str, object], text: str
) -> None:
    good: dict[str, object] = {"values": {"epochs": 30}, "source": "table 7", "status": "stated"}
    assert read_protocols(protocol_file(tmp_path, good))["glue"].settings("any", 8, "cola")["epochs"].value == 30
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(PublishedError, match=text):
        read_protocols(protocol_file(other, {**good, **change}))


def test_the_last_statement_that_speaks_of_a_run_counts() -> None:
    found = Protocols.model_validate(
        {
            "glue": {
                "source": "a table",
                "places": "tasks",
                "margins": {"score": 1.0, "perplexity": 0.02},
                "margins_source": "-",
                "statements": [
                    {"values": {"a": 1, "b": 1}, "source": "s", "status": "stated"},
                    {"values": {"a": 2}, "source": "s", "status": "stated", "methods": ["x"]},
                    {"values": {"a": 3}, "source": "s", "status": "chosen", "ranks": [4], "places": ["cola"]},
                ],
            }
        }
    ).root["glue"]
    assert found.settings("y", 4, "rte")["a"].value == 1
    assert found.settings("x", 4, "rte")["a"].value == 2
    assert found.settings("x", 4, "cola")["a"].value == 3
    assert found.settings("x", 8, "cola")["a"].value == 2
    assert found.settings("x", None, "cola")["a"].value == 3
    assert found.settings("x", 4, "cola")["b"].value == 1
    assert (found.margin("score", 79.0), found.margin("perplexity", 30.0), found.margin("memory", 1.0)) == (1, 0.6, 0)


def test_rates_stand_as_the_sources_print_them() -> None:
    glue, c4 = read_protocols()["glue"], read_protocols()["c4"]
    rates = {task: glue.settings("galore", 8, task)["learning_rate"].value for task in ("mnli", "sst2", "stsb")}
    assert rates == {"mnli": 1e-5, "sst2": 2e-5, "stsb": 3e-5}
    four = {task: glue.settings("galore", 4, task)["learning_rate"].value for task in ("rte", "cola")}
    assert four == {"rte": 1e-5, "cola": 3e-5}
    assert [glue.settings("galore", rank, "rte")["config.scale"].value for rank in (8, 4)] == [2, 4]
    assert glue.settings("lora", 8, "rte")["learning_rate"].value == 5e-4
    assert c4.settings("lora", 128, "60m")["config.alpha"].value == 32
    assert c4.settings("galore", 1024, "7b")["config.refresh_gap"].value == 500
