"""Nearest real neighbours: exact in pieces, and what a generator that copies gets."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.evaluation import neighbours as module
from orchestration.evaluation.neighbours import memorised, neighbours


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pieces that a few pictures already fill."""
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "COLUMNS", 11)
    yield


def features(count: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def one_by_one(drawn: Tensor, real: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """By the definition, a pair at a time, in float64."""
    distances = torch.stack([(real.double() - row).square().sum(1).sqrt() for row in drawn.double()])
    order = distances.argsort(dim=1, stable=True)[:, :k]
    return order, distances.gather(1, order)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(4, 60), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([0.0, 1e4]))
def test_exact_however_it_is_cut(drawn: int, real: int, k: int, seed: int, offset: float) -> None:
    """Also far from the origin, where products in float32 would lose the differences."""
    rows, columns = features(drawn, seed=seed) + offset, features(real, seed=seed + 1) + offset
    found = neighbours(rows, columns, k)
    indices, distances = one_by_one(rows, columns, k)
    assert found.indices.equal(indices)
    torch.testing.assert_close(found.distances, distances, atol=1e-12, rtol=1e-12)


def test_equal_pictures_have_no_distance_and_the_first_of_them_is_named() -> None:
    real = features(40) + 1e3
    real[31] = real[5]
    found = neighbours(real[[31, 12]], real, 2)
    assert found.indices[0].tolist() == [5, 31] and found.distances[0].eq(0).all()
    assert found.indices[1, 0] == 12 and found.distances[1, 0] == 0 and found.distances[1, 1] > 0


def test_a_row_can_be_kept_from_finding_itself() -> None:
    real, places = features(30), torch.tensor([0, 13, 29, 4])
    found = neighbours(real[places], real, 2, itself=places)
    _, distances = one_by_one(real[places], real, 3)
    assert not (found.indices == places[:, None]).any()
    torch.testing.assert_close(found.distances, distances[:, 1:])
    free = neighbours(real[places], real, 1, itself=torch.tensor([-1, 13, -1, -1]))
    assert (free.indices[:, 0] == places).tolist() == [True, False, True, True]


def test_a_generator_that_copies_and_one_that_does_not() -> None:
    training, held_out = features(400, 16), features(120, 16, seed=1)
    copies = training[:120] + 1e-3 * features(120, 16, seed=2)
    copied, fresh, far = (memorised(drawn, training, "view") for drawn in (copies, held_out, held_out * 6))
    assert copied.estimate.value == 1 and copied.estimate.low > 0.95
    assert far.estimate.value == 0
    assert 0.1 < fresh.estimate.value < 0.7
    assert fresh.figure == "memorised/view" and (fresh.real, fresh.drawn, fresh.estimate.count) == (400, 120, 120)
    assert copied.details["nearer_than_typical"] == 1 and far.details["nearer_than_typical"] == 0
    assert copied.details["equal"] == 0 and memorised(training[:10], training, "view").details["equal"] == 1


def test_share_by_its_definition() -> None:
    """On a line: training pictures at 0, 1, 5; those drawn at 0.4, 2.5, 6 and -2."""
    found = memorised(torch.tensor([[0.4], [2.5], [6.0], [-2.0]]), torch.tensor([[0.0], [1.0], [5.0]]), "line")
    # Nearest: 0 at 0.4 (its own nearest at 1), 1 at 1.5 (1), 5 at 1 (4), 0 at 2 (1).
    assert found.estimate.value == 0.5
    assert found.details["median_distance"] == pytest.approx(1.25)
    assert found.details["median_real_distance"] == 1
    assert found.notes == ("from 4 pictures: too few to call a generator a copyist",)


@pytest.mark.parametrize(
    ("drawn", "real", "k", "message"),
    [
        (
            features(3, 5),
            features(3),
            1,
            "features of pictures drawn are (3, 5) and of real ones (3, 6): give (N,F) and ",
        ),
        (
            features(3),
            features(3)[0],
            1,
            "features of pictures drawn are (3, 6) and of real ones (6,): give (N,F) and ",
        ),
        (features(0), features(3), 1, "there are no pictures drawn to find neighbours of: draw some"),
        (features(3), features(2), 3, "neighbours need 3 real pictures or more, and there are 2: take more"),
        (
            features(3) / 0,
            features(3),
            1,
            "features of pictures drawn hold numbers that are not finite: check the pictures and the view",
        ),
        (features(3), features(3) * torch.nan, 1, "features of real pictures hold numbers that are not finite"),
    ],
)
def test_what_is_refused(drawn: Tensor, real: Tensor, k: int, message: str) -> None:
    with pytest.raises(RequestError) as error:
        neighbours(drawn, real, k)
    assert str(error.value).startswith(message)


def test_one_training_picture_has_no_neighbour() -> None:
    with pytest.raises(RequestError, match="neighbours need 2 real pictures or more, and there are 1: take more"):
        memorised(features(3), features(1), "view")
