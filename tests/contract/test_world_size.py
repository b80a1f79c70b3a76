"""1 worker x 16 pictures and 2 workers x 8 are the same mathematics: losses, gradients, statistics, progress.

All in float64, where two orders of one sum differ by about 1e-16 of its parts: what is left is far below `TOLERANCE`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from models.registry import get_trainable
from orchestration.training.state import save_checkpoint
from tests.tiny import PROVENANCE, float64, small_pretrained_nets, tiny_experiment, tiny_trainer

from .conftest import LEARNING
from .ranks import ALONE, Scenario, play, to_json, two_branches

TOLERANCE = 1e-9
PATIENCE_S = 300
REPOSITORY = Path(__file__).resolve().parents[2]

# Choices of one system or part that change what travels between workers.
MORE: dict[str, dict[str, dict[str, object]]] = {
    "attngan": {
        "hinge, no mismatched pairs": {"model__adversarial": "hinge", "model__mismatched_pairs": False},
        "the paper's root": {"model__matching__gamma2_root": True},
    },
    "mirrorgan": {
        "the paper's form": {
            "model__extra_convolutions": False,
            "model__generator_terms": "mean",
            "model__mismatched_pairs": False,
            "model__kl_weight": 0.0,
            "model__stream_weight": 20.0,
            "model__stream__loss": "sum",
        },
        "DAMSM's loss too": {"model__damsm_weight": 2.0},
    },
    "xmcgan": {
        "the paper's order": {"model__step_order": "paper"},
        "the paper's losses": {
            "model__directions": "image_to_text",
            "model__region_values": "raw",
            "model__attention_values": "raw",
            "model__word_context": "every_block",
            "model__pretrained_loss": "l2",
            "model__head_layers": 1,
        },
        "averaged buffers": {"model__average__buffers": "averaged", "model__average__warm_up": True},
    },
}
NOT_THE_SAME = Scenario("statistics of each rank alone", "xmcgan", {"model__batch_norm": "rank"}, iterations=1)


def scenarios_of(system: str) -> list[Scenario]:
    """What must not depend on the number of workers."""
    return [
        Scenario(f"{system} as it is", system),
        Scenario(f"{system} in two micro-batches", system, {"training__micro_batches": 2}),
        *(Scenario(f"{system} with {name}", system, changes) for name, changes in MORE.get(system, {}).items()),
    ]


SAME = [scenario for name in LEARNING for scenario in scenarios_of(name)]
GOES_ON = [Scenario(f"{name} goes on", name, iterations=1) for name in LEARNING]

Results = Callable[[Scenario], list[dict[str, Tensor]]]


def one_iteration(name: str, parent: Path) -> Path:
    """The checkpoint of one worker after one iteration, in float64."""
    with float64(), small_pretrained_nets():
        trainer = tiny_trainer(tiny_experiment(name))
        trainer.iteration()
        return save_checkpoint(trainer.state, trainer.experiment, PROVENANCE, parent)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What two processes found for a scenario, by rank; all scenarios are played at once, in one pair of processes."""
    folder = tmp_path_factory.mktemp("two-ranks")
    going_on = [
        replace(scenario, start=str(one_iteration(scenario.system, folder / f"{scenario.system} begins")))
        for scenario in GOES_ON
    ]
    (folder / "scenarios.json").write_text(to_json([*SAME, *going_on, NOT_THE_SAME]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.contract.ranks", str(folder), str(rank), "2"],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, err[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return lambda scenario: [load_file(folder / f"{scenario.name}-{rank}.safetensors") for rank in range(2)]


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each tensor, relative to the largest number of its kind.

    Of its kind and not of the tensor itself: the gradient of a bias that a batch normalisation follows is zero in
    theory, and nothing but rounding.
    """
    assert ours.keys() == theirs.keys()
    largest: dict[str, float] = {}
    for name, value in ours.items():
        kind = kind_of(name)
        largest[kind] = max(largest.get(kind, 0.0), value.abs().max().item())
    return {
        name: (value - theirs[name]).abs().max().item() / max(largest[kind_of(name)], 1e-300)
        for name, value in ours.items()
    }


def kind_of(name: str) -> str:
    """Terms alone; parameters and statistics of a net together; optimizer slots of a net by slot."""
    parts = name.split("/")
    if parts[0] == "terms":
        return name
    return "/".join([parts[1], parts[2], parts[-1] if parts[1] == "optimizer" else ""])


def mean_terms(ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rank 0's tensors, with loss terms averaged over ranks."""
    return {
        name: sum((rank[name] for rank in ranks[1:]), value) / len(ranks) if name.startswith("terms/") else value
        for name, value in ranks[0].items()
    }


def test_every_system_and_part_that_learns_is_played() -> None:
    assert MORE.keys() <= set(LEARNING)
    assert {scenario.system for scenario in SAME} == set(LEARNING)


@pytest.mark.parametrize("scenario", SAME, ids=lambda scenario: scenario.name)
def test_two_workers_are_one(scenario: Scenario, two_ranks: Results) -> None:
    """Loss terms, optimizer moments (the gradients), parameters, buffers and averages, after each iteration."""
    alone, together = play(scenario, ALONE), two_ranks(scenario)
    found = differences(alone, mean_terms(together))
    wrong = {name: value for name, value in found.items() if not value <= TOLERANCE}
    assert not wrong
    kinds = {name.split("/")[1] for name in found if name.startswith("after")}
    trainable = get_trainable(scenario.system)
    averages = {"average"} if trainable.averages(tiny_experiment(scenario.system).model) else set()
    assert kinds == {"net", "optimizer"} | averages
    assert any(name.startswith("terms/") for name in found)


@pytest.mark.parametrize("scenario", SAME, ids=lambda scenario: scenario.name)
def test_workers_stay_bit_equal_to_each_other(scenario: Scenario, two_ranks: Results) -> None:
    """Each steps by itself: were they to differ by a bit, they would drift apart."""
    first, second = two_ranks(scenario)
    apart = [name for name, value in first.items() if not name.startswith("terms/") and not value.equal(second[name])]
    assert not apart


@pytest.mark.parametrize("scenario", GOES_ON, ids=lambda scenario: scenario.name)
def test_a_checkpoint_of_one_worker_goes_on_with_two(scenario: Scenario, two_ranks: Results) -> None:
    alone = play(Scenario("", scenario.system, iterations=2), ALONE)
    last = {name.removeprefix("after 1/"): value for name, value in alone.items() if name.startswith("after 1/")}
    together = {
        name.removeprefix("after 0/"): value
        for name, value in two_ranks(scenario)[0].items()
        if name.startswith("after 0/")
    }
    found = differences({f"after/{k}": v for k, v in last.items()}, {f"after/{k}": v for k, v in together.items()})
    assert max(found.values()) <= TOLERANCE


def test_statistics_of_each_rank_alone_are_different(two_ranks: Results) -> None:
    """The released batch_norm="rank" depends on the number of workers, so this comparison is able to fail."""
    found = differences(play(NOT_THE_SAME, ALONE), mean_terms(two_ranks(NOT_THE_SAME)))
    changed = [name for name, value in found.items() if value > 1e-4]
    assert any("running_var" in name for name in changed)
    assert any(name.startswith("terms/") for name in changed)
    assert any(name.startswith("after 0/optimizer/generator") for name in changed)


def test_gather_gives_each_branch_its_own_gradient(two_ranks: Results) -> None:
    """Two workers with the same loss: twice the gradient of one worker that holds all rows."""
    weights = [[1.0, 2.0], [3.0, 4.0]]
    for rank, found in enumerate(two_ranks(Scenario("two branches", ""))):
        for name in ("first", "second"):
            assert found[name].flatten().tolist() == [2 * weight for weight in weights[rank]]
    assert two_branches(ALONE)["first"].flatten().tolist() == weights[0]
