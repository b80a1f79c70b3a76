"""Means and batch statistics over workers that have different numbers of objects, none of them included.

`python -m tests.test_uneven_ranks FOLDER RANK SIZE` is what each of two processes runs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.blocks.norm import BatchNorm
from models.parallel import OneRank, Ranks, current_ranks, mean_over_ranks, normalise_over_ranks
from tests.contract.ranks import ALONE, Scenario, play, to_json
from tests.contract.test_world_size import TOLERANCE, differences, mean_terms

PATIENCE_S = 300
REPOSITORY = Path(__file__).resolve().parents[1]
COUNTS = ((3, 5), (0, 4), (4, 0), (1, 1), (1, 9))
SHAPES = ((3,), (3, 2), (3, 2, 4))
SCENARIOS = [
    Scenario(
        "a random query, mixed pixels",
        "retrievegan",
        {"model__selection_losses__truth_query": "random", "model__retrieval__mixture": "pixels"},
    ),
    Scenario("soft, the truth apart", "retrievegan", {"model__truth_among_candidates": "selection_loss"}),
]


def numbers(rows: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 7


def share(whole: Tensor, counts: tuple[int, ...], rank: int | None) -> Tensor:
    """A rank's rows, or all of them."""
    if rank is None:
        return whole.clone()
    start = sum(counts[:rank])
    return whole[start : start + counts[rank]].clone()


def results(ranks: Ranks, rank: int | None) -> dict[str, Tensor]:
    """What a rank finds, or one alone that has everything; gradients as those of the mean over ranks."""
    found: dict[str, Tensor] = {}
    for counts in COUNTS:
        for shape in SHAPES:
            name = f"{counts} {shape}"
            x = share(numbers(sum(counts), *shape), counts, rank).requires_grad_()
            loss = mean_over_ranks(x.sin(), ranks)
            (gradient,) = torch.autograd.grad(loss, x)
            found |= {f"{name} mean/loss": loss.detach(), f"{name} mean/rows": gradient / ranks.size}

            aim = share(numbers(sum(counts), *shape, seed=1), counts, rank)
            layer = BatchNorm(shape[0], momentum=0.3).double()
            with torch.no_grad():
                layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
                layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
            y = layer(x)
            loss = mean_over_ranks((y - aim).square() * aim, ranks)
            by_x, *by_parameters = torch.autograd.grad(loss, [x, *layer.parameters()])
            found |= {
                f"{name} norm/loss": loss.detach(),
                f"{name} norm/rows of y": y.detach(),
                f"{name} norm/rows": by_x / ranks.size,
                f"{name} norm/mean": layer.running_mean.clone(),
                f"{name} norm/variance": layer.running_var.clone(),
            }
            found |= {f"{name} norm/loss {place}": value for place, value in enumerate(by_parameters)}
    found["nobody/loss"] = mean_over_ranks(numbers(0), ranks)
    return {name: value.contiguous() for name, value in found.items()}


def statistics(ranks: Ranks, rank: int | None) -> dict[str, Tensor]:
    """Of one channel far from 0: variances of squares would be rounding alone."""
    counts = (2, 6)
    x = share(1e8 + numbers(8, 1), counts, rank)
    found = normalise_over_ranks(x, 0.0, ranks)
    return dict(zip(("rows", "mean", "variance", "count"), found, strict=True))


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting-point'}", rank=rank, world_size=size)
    ranks = current_ranks()
    save_file(results(ranks, rank), folder / f"results-{rank}.safetensors")
    save_file(statistics(ranks, rank), folder / f"statistics-{rank}.safetensors")
    dist.destroy_process_group()


def in_two_processes(module: str, folder: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(rank), "2"],
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    in_two_processes("tests.test_uneven_ranks", folder)
    return folder


def test_two_workers_with_different_counts_are_one_with_all(folder: Path) -> None:
    """Losses are means over ranks, rows follow each other, statistics are everybody's."""
    alone = results(OneRank(), None)
    ranks = [load_file(folder / f"results-{rank}.safetensors") for rank in range(2)]
    assert ranks[0].keys() == ranks[1].keys() == alone.keys() and len(alone) == 9 * len(COUNTS) * len(SHAPES) + 1
    for name, expected in alone.items():
        ours = [one[name] for one in ranks]
        kind = name.rpartition("/")[2]
        if kind.startswith("rows"):
            together = torch.cat(ours)
        elif kind.startswith("loss"):
            together = torch.stack(ours).mean(0)
        else:
            assert torch.equal(*ours), name
            together = ours[0]
        assert torch.allclose(together, expected, rtol=1e-10, atol=1e-11), name
    assert alone["nobody/loss"] == ranks[0]["nobody/loss"] == ranks[1]["nobody/loss"] == 0


def test_statistics_far_from_zero(folder: Path) -> None:
    first, second = (load_file(folder / f"statistics-{rank}.safetensors") for rank in range(2))
    x = 1e8 + numbers(8, 1)
    torch.testing.assert_close(first["variance"], x.var(0, correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(first["mean"], x.mean(0), rtol=1e-15, atol=0)
    assert first["count"] == second["count"] == 8 and torch.equal(first["variance"], second["variance"])
    together = torch.cat([first["rows"], second["rows"]])
    torch.testing.assert_close(together, (x - x.mean(0)) / x.std(0, correction=0), rtol=0, atol=1e-6)


def test_mean_over_one_rank_is_the_mean() -> None:
    values = numbers(5, 2)
    assert mean_over_ranks(values, OneRank()).item() == pytest.approx(values.mean().item(), rel=1e-15)
    assert mean_over_ranks(values[:0], OneRank()) == 0


def test_retrieval_in_all_its_forms_is_that_of_one_worker(tmp_path: Path) -> None:
    """Ranks have different numbers of objects and of patches."""
    (tmp_path / "scenarios.json").write_text(to_json(SCENARIOS))
    in_two_processes("tests.contract.ranks", tmp_path)
    for scenario in SCENARIOS:
        alone = play(scenario, ALONE)
        ranks = [load_file(tmp_path / f"{scenario.name}-{rank}.safetensors") for rank in range(2)]
        found = differences(alone, mean_terms(ranks))
        assert max(found.values()) < TOLERANCE


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
