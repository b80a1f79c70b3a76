"""The contract tests run over every registered system and part, a new one unasked."""

from collections.abc import Iterator

import pytest
import torch

from models.registry import part_names, system_names
from tests.tiny import learns, small_pretrained_nets

LEARNING = [name for name in (*system_names(), *part_names()) if learns(name)]


@pytest.fixture(params=system_names())
def system_name(request: pytest.FixtureRequest) -> str:
    """Every registered system in turn."""
    name: str = request.param
    return name


@pytest.fixture(params=[*system_names(), *part_names()])
def trainable_name(request: pytest.FixtureRequest) -> str:
    """Every registered system and part in turn: all that has a run of its own."""
    found: str = request.param
    return found


@pytest.fixture(params=LEARNING)
def learning_name(request: pytest.FixtureRequest) -> str:
    """Those of them that have something to train themselves."""
    found: str = request.param
    return found


@pytest.fixture(autouse=True)
def alone_and_light() -> Iterator[None]:
    """One thread, so that sums have one order; small stand-ins for pretrained nets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with small_pretrained_nets():
        yield
    torch.set_num_threads(before)
