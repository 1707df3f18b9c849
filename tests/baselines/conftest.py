"""Tiny networks of three architectures, made from their configurations alone: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from baselines.registry import methods
from results.capabilities import CapabilityMatrix
from results.store import read_single
from suites.capabilities import networks
from suites.measure.environment import ROOT

ONE_NETWORK = "llama"


@pytest.fixture
def make_network() -> Callable[[str], nn.Module]:
    """Return name -> a fresh network, always the same one, in training mode."""
    return networks.make_network


@pytest.fixture
def make_batch() -> Callable[[str], dict[str, Tensor]]:
    """Return name -> a fixed batch with labels."""
    return networks.make_batch


@pytest.fixture(scope="session")
def capability_matrix() -> CapabilityMatrix:
    """Return the committed capability matrix."""
    return read_single(ROOT / "results" / "reference" / "capabilities.json", CapabilityMatrix)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow what tries a method that runs only where it is named on more than one network: each is tried on one."""
    for item in items:
        given = getattr(item, "callspec", None)
        name, network = (given.params.get(key) for key in ("method_name", "network")) if given else (None, None)
        if name in methods() and not methods()[name].default and network not in (None, ONE_NETWORK):
            item.add_marker(pytest.mark.slow)
