"""FID: known distances, sums that do not depend on the way, honest intervals, statistics files, bad input."""

import hashlib
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn_by_hypothesis
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from orchestration.evaluation.fid import INFLUENCE_SAMPLES, PROTOCOLS, Fid, FrechetDistance, Gaussian, Moments
from orchestration.evaluation.fid_statistics import Statistics, load_statistics, save_statistics
from orchestration.evaluation.metric import Metric

from .distributions import NET, assert_same, falling, given, normal, numbers, refusal, scattered, seen


def fid(real: NDArray[Any], drawn: NDArray[Any]) -> float:
    return given(Fid(NET), drawn, real).compute()[0].estimate.value


def test_gaussians_with_a_known_distance() -> None:
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 2.0])
    distance = FrechetDistance(Gaussian.of(np.zeros(3), np.diag(a)), Gaussian.of(np.array([1.0, 2, 0]), np.diag(b)))
    # For covariances that commute: |m1 - m2|^2 and the squared differences of the deviations.
    assert distance.value == pytest.approx(5 + ((a**0.5 - b**0.5) ** 2).sum())


@pytest.mark.parametrize("counts", [(300, 200), (20, 30), (200, 12)])
def test_the_same_as_torchmetrics(counts: tuple[int, int]) -> None:
    real, drawn = normal(0, counts[0], 24), normal(1, counts[1], 24, 0.3)
    net = nn.Identity()
    net.num_features = 24  # type: ignore[assignment]
    theirs = FrechetInceptionDistance(feature=net).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(real).double(), real=True)
    theirs.update(torch.from_numpy(drawn).double(), real=False)
    assert fid(real, drawn) == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_equal_sets_are_at_0_and_noise_is_farther_than_blur() -> None:
    real = falling(0, 400, 16)
    assert fid(real, real) == pytest.approx(0, abs=1e-10)
    for count in range(2, 40):
        assert 0 <= fid(real[:count], real[:count]) < 1e-10
    blurred, noise = falling(1, 400, 16) * np.float32(0.8), normal(2, 400, 16, 5, 3)
    assert 0 < fid(real, falling(3, 400, 16)) < fid(real, blurred) < fid(real, noise)


def test_a_constant_generator_is_as_far_as_the_real_ones_spread() -> None:
    real = normal(0, 500, 6)
    same = np.repeat(real.mean(0, keepdims=True), 30, axis=0)
    assert fid(real, same) == pytest.approx(np.cov(real.T).trace(), rel=1e-5)
    assert fid(same, same) == pytest.approx(0, abs=1e-10)


@settings(deadline=None, max_examples=12)
@drawn_by_hypothesis(
    st.integers(1, 4), st.integers(0, 1000), st.sampled_from([(60, 50, 8), (9, 200, 24), (30, 12, 24), (260, 250, 60)])
)
def test_any_way_to_the_sums_gives_the_same(workers: int, order: int, sizes: tuple[int, int, int]) -> None:
    real, drawn = falling(0, sizes[0], sizes[2]), falling(1, sizes[1], sizes[2], 0.2)
    # Features that say the same: the covariance of one side has eigenvalues that should be 0.
    real[:, 4:7] = real[:, :3]
    make = partial(Fid, NET, 3)
    assert_same(scattered(make, workers, order, drawn, real).compute(), given(make(), drawn, real).compute())


@pytest.mark.parametrize("width", [5, 300])
def test_influences_are_derivatives_by_weight(width: int) -> None:
    real, drawn, step, chosen = falling(0, 250, width), falling(1, 200, width, 0.2).astype(np.float64), 1e-4, 7

    def gaussian(weight: float) -> Gaussian:
        weights = np.ones(len(drawn))
        weights[chosen] = weight
        mean = weights @ drawn / weights.sum()
        return Gaussian(mean, (drawn - mean).T * np.sqrt(weights / weights.sum()))

    side = Moments()
    side.add(real)
    up, level, down = (FrechetDistance(side.gaussian(), gaussian(1 + by)) for by in (step, 0, -step))
    influences = level.influences(drawn)
    derivative = (up.value - down.value) / (2 * step) * len(drawn)
    assert influences[chosen] - influences.mean() == pytest.approx(derivative, rel=1e-3)


def test_means_far_from_0_cost_no_digits() -> None:
    real, drawn = normal(0, 300, 5).round(2), normal(1, 300, 5, 0.5).round(2)
    far = np.float32(2**14)
    exact = fid((real * 128).round() / 128, (drawn * 128).round() / 128)
    assert fid((real * 128).round() / 128 + far, (drawn * 128).round() / 128 + far) == pytest.approx(exact, rel=1e-9)


def floats_of(moments: Moments) -> int:
    return moments._mean.size + moments._scatter.size + sum(rows.size for rows in moments._rows)


def test_memory_does_not_grow_with_the_number_of_pictures() -> None:
    width, metric = 10, Fid(NET)
    for start in range(0, 3 * INFLUENCE_SAMPLES, 500):
        places = np.arange(start, start + 500)
        metric.update(seen(normal(start, 500, width), places=places))
        metric.update_real(seen(normal(start, 500, width), places=places))
        for moments in (*metric._halves, metric._real):
            assert floats_of(moments) <= width + 2 * width * width
        assert sum(len(rows) for _, rows in metric._samples._parts) <= 2 * INFLUENCE_SAMPLES
        assert not metric._real_places.kept()[1].size
    assert len(metric._samples.kept()[0]) == INFLUENCE_SAMPLES
    assert numbers(metric.compute())[f"fid/{NET} drawn"] == 3 * INFLUENCE_SAMPLES


@pytest.mark.parametrize(("count", "width", "shift"), [(200, 8, 0.3), (200, 8, 0.0), (60, 60, 0.2), (30, 60, 0.2)])
def test_intervals_hold_what_other_draws_give(count: int, width: int, shift: float) -> None:
    real = falling(0, count, width)
    estimates = [
        given(Fid(NET, seed), falling(seed, count, width, shift), real).compute()[0].estimate for seed in range(1, 61)
    ]
    values = np.array([estimate.value for estimate in estimates])
    halves = np.array([(estimate.high - estimate.low) / 2 for estimate in estimates])
    # 0.95 of intervals hold it; of 60, fewer than 0.85 once in a thousand times.
    assert np.mean(np.abs(values - values.mean()) <= halves) >= 0.85
    assert 0.75 < halves.mean() / 1.96 / values.std(ddof=1) < 1.7


def test_extrapolation_takes_away_most_of_what_few_pictures_add() -> None:
    real, width, count = falling(0, 2000, 32), 32, 200
    truth = fid(real, falling(1, 40_000, width, 0.1))
    few = [given(Fid(NET, seed), falling(seed, count, width, 0.1), real).compute() for seed in range(2, 32)]
    plain, extrapolated = (np.array([results[n].estimate.value for results in few]) for n in range(2))
    assert plain.mean() - truth > 5 * abs(extrapolated.mean() - truth)
    assert few[0][1].figure == f"fid_inf/{NET}"
    halves = np.array([results[1].estimate.high - results[1].estimate.value for results in few])
    assert 0.7 < halves.mean() / 1.96 / extrapolated.std(ddof=1) < 1.7


def test_no_extrapolation_from_halves_smaller_than_the_features() -> None:
    results = given(Fid(NET), normal(0, 50, 40), normal(1, 50, 40)).compute()
    assert [result.name for result in results] == ["fid"]
    assert not results[0].notes


def test_fewer_pictures_than_features_are_noted() -> None:
    (result,) = given(Fid(NET), normal(0, 5, 8), normal(1, 7, 8)).compute()
    assert [note.partition(":")[0] for note in result.notes] == [
        "fewer real pictures (7) than features (8)",
        "fewer drawn pictures (5) than features (8)",
    ]
    assert (result.real, result.drawn, result.estimate.count) == (7, 5, 5)


def test_it_is_a_metric_and_its_protocols_are_described() -> None:
    metric: Metric = Fid(NET)
    assert (metric.looks_at, metric.looks_at_real, metric.plan) == ({NET}, {NET}, "captions")
    assert {name.partition("/")[0] for name in PROTOCOLS} == {"fid", "fid_inf"}


# Bad input


def test_too_few_pictures() -> None:
    message = refusal(lambda: given(Fid(NET), normal(0, 1, 4), normal(1, 9, 4)).compute())
    assert message == f"fid/{NET} needs at least 2 drawn pictures, and has 1: judge more"
    assert "2 real pictures, and has 0" in refusal(given(Fid(NET), normal(0, 9, 4)).compute)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers(value: float) -> None:
    rows = normal(0, 9, 4)
    rows[6, 2] = value
    metric = Fid(NET)
    message = refusal(lambda: metric.update(seen(rows)))
    assert message.startswith(f"{NET}/features of the picture at place 6 holds values that are not finite numbers: ")
    assert "at place 6" in refusal(lambda: metric.update_real(seen(rows)))
    # What was refused has left nothing.
    assert_same(
        given(metric, normal(0, 9, 4), normal(1, 9, 4)).compute(),
        given(Fid(NET), normal(0, 9, 4), normal(1, 9, 4)).compute(),
    )


def test_features_of_two_widths() -> None:
    metric = given(Fid(NET), normal(0, 9, 4))
    message = refusal(lambda: metric.update(seen(normal(0, 9, 5), places=np.arange(9, 18))))
    assert message.startswith(f"{NET}/features has 5 numbers a picture where it had 4 before: ")
    message = refusal(given(Fid(NET), normal(0, 9, 4), normal(0, 9, 5)).compute)
    assert "the real pictures have 5 and those drawn 4: use the same weights for both" in message


@pytest.mark.parametrize("rows", [np.zeros((3, 2, 2)), np.zeros(3), np.zeros((4, 2)), np.zeros((3, 0))])
def test_arrays_that_are_not_rows(rows: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"net/features of 3 pictures must be \(B,F\), not \("):
        Fid(NET).update(seen(rows, places=np.arange(3)))


def test_a_place_counts_once() -> None:
    metric = given(Fid(NET), normal(0, 9, 4), normal(1, 9, 4))
    before = metric.compute()
    for again in (lambda: metric.update(seen(normal(0, 9, 4))), lambda: metric.merge(given(Fid(NET), normal(0, 1, 4)))):
        with pytest.raises(ValueError, match="at place 0 came twice"):
            again()
    with pytest.raises(ValueError, match="a place twice in one portion"):
        metric.update(seen(normal(0, 2, 4), places=np.array([50, 50])))
    other = given(Fid(NET), normal(0, 0, 4))
    other.update(seen(normal(0, 3, 4), places=np.arange(20, 23)))
    other.update_real(seen(normal(0, 3, 4)))
    with pytest.raises(ValueError, match="at place 0 came twice"):
        metric.merge(other)
    assert_same(metric.compute(), before)


def test_another_protocol_or_seed_is_not_merged() -> None:
    metric = given(Fid(NET), normal(0, 9, 4), normal(1, 9, 4))
    before = metric.compute()
    for other in (Fid("other"), Fid(NET, 1)):
        with pytest.raises(ValueError, match=f"is not fid/{NET}"):
            metric.merge(other)
    metric.merge(Fid(NET))
    assert_same(metric.compute(), before)


# Statistics files


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """As pytorch-fid and TTUR write them."""
    real = normal(1, 90, 4)
    np.savez(tmp_path / "real.npz", mu=real.mean(0), sigma=np.cov(real.T.astype(np.float64)))
    return tmp_path / "real.npz"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_statistics_come_back(tmp_path: Path, suffix: str) -> None:
    measured = given(Fid(NET), normal(0, 50, 4), normal(1, 90, 4))
    path = tmp_path / f"real{suffix}"
    save_statistics(path, measured.real_statistics("ab" * 32))
    loaded = load_statistics(path, NET, "ab" * 32, width=4)
    assert (loaded.count, loaded.net, loaded.weights, loaded.source) == (90, NET, "ab" * 32, str(path))
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    metric = given(Fid(NET, real=loaded), normal(0, 50, 4))
    assert (metric.protocol, metric.looks_at_real) == (NET, frozenset())
    assert metric.real_statistics() is loaded
    assert_same(metric.compute(), measured.compute())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_published_file_makes_another_protocol(published: Path) -> None:
    found = load_statistics(published, NET)
    metric = given(Fid(NET, real=found), normal(0, 50, 4))
    results = metric.compute()
    assert {result.protocol for result in results} == {f"{NET}/real-{found.digest[:8]}"}
    assert results[0].notes == (
        f"{published} does not say by which net and from how many real pictures it is: both are taken on trust as "
        f"fitting {NET}",
    )
    assert results[0].real == 0
    assert results[0].estimate.value == pytest.approx(fid(normal(1, 90, 4), normal(0, 50, 4)), rel=1e-6)
    with pytest.raises(ValueError, match="has its real pictures' statistics from"):
        metric.update_real(seen(normal(1, 9, 4)))
    with pytest.raises(ValueError, match="is not fid"):
        metric.merge(Fid(NET))


def test_statistics_of_another_net_weights_or_width(tmp_path: Path, published: Path) -> None:
    path = tmp_path / "mine.npz"
    save_statistics(path, Statistics(np.zeros(4), np.eye(4), 9, NET, "a" * 64))
    assert refusal(lambda: load_statistics(path, "other")) == (
        f"{path} holds statistics of {NET}, not of other: give a file of other"
    )
    assert f"by other weights of {NET} (aaaaaaaaaaaa and not bbbbbbbbbbbb)" in refusal(
        lambda: load_statistics(path, NET, "b" * 64)
    )
    message = f"{published} holds statistics of 4 features, and the pictures drawn have 6: give a file of the same net"
    assert refusal(lambda: load_statistics(published, NET, width=6)) == message
    metric = Fid(NET, real=load_statistics(published, NET))
    assert refusal(lambda: metric.update(seen(normal(0, 9, 6)))) == message
    assert "not of other" in refusal(lambda: Fid("other", real=load_statistics(path, NET)))


def write_npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "it is no archive of arrays"),
    "text": (lambda path: path.write_text("mu sigma"), "it is no archive of arrays"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"mu": 1})), "it is no archive of arrays"),
    "torn": (lambda path: path.write_bytes(npz(path)[:-30]), "it is no archive of arrays"),
    "one array": (lambda path: path.write_bytes(npy()), "it is no archive of arrays"),
    "no sigma": (lambda path: write_npz(path, mu=np.zeros(4)), "sigma"),
    "objects": (lambda path: write_npz(path, mu=np.array([{}], object), sigma=np.eye(1)), "allow_pickle"),
    "words": (lambda path: write_npz(path, mu=np.array(["a"]), sigma=np.eye(1)), "could not convert"),
    "sigma of another width": (lambda path: write_npz(path, mu=np.zeros(4), sigma=np.eye(3)), "mu is (4,) and sigma"),
    "no rows": (lambda path: write_npz(path, mu=np.zeros(0), sigma=np.zeros((0, 0))), "mu is (0,)"),
    "NaN": (lambda path: write_npz(path, mu=np.full(2, np.nan), sigma=np.eye(2)), "not all of its numbers are finite"),
    "not symmetric": (
        lambda path: write_npz(path, mu=np.zeros(2), sigma=np.array([[1, 2], [0, 1.0]])),
        "no covariance",
    ),
    "negative": (lambda path: write_npz(path, mu=np.zeros(2), sigma=-np.eye(2)), "sigma is no covariance"),
    "no count": (lambda path: write_npz(path, mu=np.zeros(1), sigma=np.eye(1), count="many"), "invalid literal"),
}


def npz(path: Path) -> bytes:
    write_npz(path, mu=np.zeros(40), sigma=np.eye(40))
    return path.read_bytes()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.eye(3))
    return content.getvalue()


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_hold_no_statistics(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "real.npz"
    make, why = FAULTS[fault]
    make(path)
    message = refusal(lambda: load_statistics(path, NET))
    assert message.startswith(f"{path} holds no statistics of features (")
    assert why in message
    assert message.endswith("): give a file with mu (F) and sigma (F,F)")


def test_safetensors_without_statistics_and_other_suffixes(tmp_path: Path) -> None:
    path = tmp_path / "real.safetensors"
    path.write_bytes(b"nonsense")
    assert "holds no statistics of features (" in refusal(lambda: load_statistics(path, NET))
    for call in (
        lambda: load_statistics(tmp_path / "real.pkl", NET),
        lambda: save_statistics(tmp_path / "real.pkl", Statistics(np.zeros(1), np.eye(1))),
    ):
        assert refusal(call) == ("statistics are kept as .npz or .safetensors, not as real.pkl: give such a file")
