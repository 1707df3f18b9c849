"""Every method through the capability pack, with the answers that the committed matrix records."""

from __future__ import annotations

import pytest

from baselines.registry import methods
from results.capabilities import CapabilityMatrix
from suites.capabilities.checks import checks, run_check
from suites.capabilities.subject import method_subject

LONG = ("clipping", "8-bit", "bf16", "per-layer", "resume", "tied weights")
"""What takes most of the time: by default for the methods that run unnamed, slow for the others."""


def is_slow(method_name: str, check: str) -> bool:
    return check == "compile" or (check in LONG and not methods()[method_name].default)


@pytest.mark.parametrize(
    ("method_name", "check"),
    [
        pytest.param(name, check, marks=[pytest.mark.slow] * is_slow(name, check))
        for name in methods()
        for check in checks()
    ],
)
def test_it_passes_the_capability_pack(method_name: str, check: str, capability_matrix: CapabilityMatrix) -> None:
    subject = method_subject(methods()[method_name])
    found = run_check(checks()[check], subject, ("roberta",))
    assert found.answer != "no", found.reason
    recorded = {row.name: row for row in capability_matrix.rows}.get(method_name)
    if recorded is None:
        # A new method passes as well as any; the record of what it can do is renewed by `suites capabilities --out`.
        print(f"{method_name}: not recorded yet")
    else:
        # The record is over other networks, of which one is enough for a "no".
        answer = recorded.cell(check).answer
        assert answer in (found.answer, "no"), found.reason
