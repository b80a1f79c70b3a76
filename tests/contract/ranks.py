"""What each of the processes of `test_world_size` runs: `python -m tests.contract.ranks FOLDER RANK SIZE`."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from models.parallel import OneRank, Ranks, current_ranks
from orchestration.training.state import open_checkpoint, restore
from tests.tiny import float64, small_pretrained_nets, tensors_of, terms_of, tiny_experiment, tiny_trainer


@dataclass(frozen=True, slots=True)
class Scenario:
    """Some iterations of a tiny experiment in float64; `start` is a checkpoint to go on from."""

    name: str
    system: str
    changes: dict[str, Any] = field(default_factory=dict)
    iterations: int = 2
    start: str | None = None


def play(scenario: Scenario, ranks: Ranks) -> dict[str, Tensor]:
    """Everything that training changes after each iteration, and every loss term of this rank."""
    found: dict[str, Tensor] = {}
    with float64(), small_pretrained_nets():
        trainer = tiny_trainer(tiny_experiment(scenario.system, **scenario.changes), ranks)
        if scenario.start:
            restore(open_checkpoint(Path(scenario.start)), trainer.state)
        for iteration in range(scenario.iterations):
            trainer.iteration()
            found |= {f"after {iteration}/{name}": value for name, value in tensors_of(trainer).items()}
    for place, (name, value) in enumerate(terms_of(trainer)):
        found[f"terms/{place:03d} {name}"] = value.double()
    return found


def two_branches(ranks: Ranks) -> dict[str, Tensor]:
    """The gradient of a sum of two gathered tensors: autograd hands the same tensor to both branches."""
    first = torch.tensor([[1.0 + ranks.rank], [2.0]], requires_grad=True)
    second = torch.tensor([[3.0], [4.0 + ranks.rank]], requires_grad=True)
    weight = torch.arange(1.0, 1.0 + 2 * ranks.size)[:, None]
    (weight * (ranks.gather(first) + ranks.gather(second))).sum().backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None and second.grad is not None
    return {"first": first.grad, "second": second.grad}


def main(folder: Path, rank: int, size: int) -> None:
    """Play every scenario of FOLDER/scenarios.json, and write what each gave to FOLDER."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting-point'}", rank=rank, world_size=size)
    ranks = current_ranks()
    save_file(two_branches(ranks), folder / f"two branches-{rank}.safetensors")
    for values in json.loads((folder / "scenarios.json").read_text()):
        scenario = Scenario(**values)
        save_file(play(scenario, ranks), folder / f"{scenario.name}-{rank}.safetensors")
    dist.destroy_process_group()


def to_json(scenarios: list[Scenario]) -> str:
    """The content of scenarios.json."""
    return json.dumps([asdict(scenario) for scenario in scenarios])


ALONE = OneRank()

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
