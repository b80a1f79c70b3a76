"""The truncation trick: the map of the numbers, and the systems whose settings decide whether there is a latent."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models.blocks.noise import seeded_noise, truncated
from models.contract import Given
from models.registry import get_system
from orchestration.evaluation.looking import drawer
from orchestration.training.state import build_nets
from tests.tiny import CPU, some_conditions, tiny_experiment, tiny_given

thresholds = st.floats(1e-3, 1e3)
numbers = st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=50)


def float32(value: float) -> float:
    return torch.tensor(value).item()


# The map.


@given(values=numbers, threshold=thresholds | st.floats(1e-30, 1e30))
@settings(deadline=None, max_examples=200)
def test_nothing_lies_beyond_the_threshold(values: list[float], threshold: float) -> None:
    z = torch.tensor(values)
    found = truncated(z, threshold)
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    assert found.abs().max() <= float32(threshold) and (found.abs() <= z.abs()).all()
    # Odd: as likely above as below.
    assert truncated(-z, threshold).equal(-found)


@given(values=numbers, threshold=thresholds)
@settings(deadline=None, max_examples=200)
def test_it_increases(values: list[float], threshold: float) -> None:
    found = truncated(torch.tensor(values).sort().values.double(), threshold)
    assert (found.diff() >= -1e-12 * max(1.0, threshold)).all()


def test_different_numbers_stay_different() -> None:
    z = torch.linspace(-4, 4, 801)
    for threshold in (0.01, 0.5, 2.0, 100.0):
        assert (truncated(z, threshold).diff() > 0).all()


@pytest.mark.parametrize("threshold", [0.02, 0.5, 1.0, 2.0, 8.0])
def test_the_distribution_is_the_truncated_normal(threshold: float) -> None:
    z = seeded_noise(range(200), 500, CPU, threshold).flatten().numpy()
    assert stats.kstest(z, stats.truncnorm(-threshold, threshold).cdf).pvalue > 0.01
    # The test sees a spread that is a twentieth off.
    assert stats.kstest(z * 0.95, stats.truncnorm(-threshold, threshold).cdf).pvalue < 1e-6


@pytest.mark.parametrize("threshold", [0.1, 0.7, 2.0, 5.0])
def test_it_is_the_inverse_distribution_function(threshold: float) -> None:
    # The lower half alone: the upper one is its mirror image, and scipy's has lost its digits there.
    z = np.linspace(-8, 0, 321)
    expected = stats.truncnorm.ppf(stats.norm.cdf(z), -threshold, threshold)
    np.testing.assert_allclose(truncated(torch.from_numpy(z), threshold).numpy(), expected, rtol=0, atol=1e-9)


def test_far_tails_stay_inside() -> None:
    z = torch.tensor([-40.0, -8.0, 8.0, 40.0])
    for threshold in (1e-20, 0.5, 3.0, 39.0):
        assert truncated(z, threshold).abs().max() <= float32(threshold)
    # Not a last digit beyond, where nothing is rounded to float32.
    assert all(truncated(z.double(), limit).abs().max() <= limit for limit in np.linspace(0.1, 6, 60).tolist())
    assert truncated(z, 3.0).tolist() == [-3.0, -3.0, 3.0, 3.0]
    # The threshold is far beyond: nothing to truncate, not even where a distribution function has no digits.
    assert truncated(z, 1e3).equal(z)
    torch.testing.assert_close(truncated(torch.linspace(-8, 8, 999), 1e3), torch.linspace(-8, 8, 999))
    assert truncated(torch.zeros(2, 3), 1.0).equal(torch.zeros(2, 3))


@given(threshold=st.floats(0.01, 10), step=st.floats(1e-7, 1e-3))
@settings(deadline=None, max_examples=100)
def test_it_is_continuous_in_the_threshold(threshold: float, step: float) -> None:
    z = torch.linspace(-6, 6, 101).double()
    moved = (truncated(z, threshold + step) - truncated(z, threshold)).abs()
    assert moved.max() <= 1.01 * step + 1e-9


@pytest.mark.parametrize("wrong", [0.0, -2.0, float("nan"), float("-inf")])
def test_a_wrong_threshold_is_named(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"^truncation is {wrong}: it is a number of standard deviations above 0$"):
        seeded_noise([1], 3, CPU, wrong)


@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    threshold=st.none() | thresholds,
    others=st.lists(st.integers(0, 2**63 - 1), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_rows_are_independent_of_the_others(seeds: list[int], threshold: float | None, others: list[int]) -> None:
    together = seeded_noise([*others, *seeds], 7, CPU, threshold)[len(others) :]
    for row, seed in enumerate(seeds):
        assert seeded_noise([seed], 7, CPU, threshold)[0].equal(together[row])


def test_none_leaves_every_bit() -> None:
    expected = torch.randn(9, generator=torch.Generator().manual_seed(3))
    assert seeded_noise([3], 9, CPU)[0].equal(expected) and seeded_noise([3], 9, CPU, None)[0].equal(expected)
    assert not seeded_noise([3], 9, CPU, 1.0)[0].equal(expected)


# Systems whose settings decide.


QUIET = {"model__perceptual_weight": 0.0}
# What leaves z out of a tiny system, and other settings.
WITHOUT_Z: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "spade": ({"model__use_vae": False}, QUIET),
    "ccfpse": ({"model__use_vae": False}, QUIET),
    "trecs": ({"stages__ccfpse__model__use_vae": False}, {}),
}


@pytest.mark.parametrize("name", WITHOUT_Z)
def test_without_z_nothing_can_be_truncated(name: str) -> None:
    without, others = WITHOUT_Z[name]
    for changes, has in (({**others, **without}, False), (others, True)):
        experiment = tiny_experiment(name, **changes)
        nets, system = build_nets(experiment, tiny_given(experiment)), get_system(name)
        assert system.truncates(nets, experiment.model) is has
        conditions = some_conditions(experiment, 2)
        draw = drawer(experiment, nets, CPU)
        one, other = draw(conditions, [1, 2]), draw(conditions, [3, 4])
        assert one.equal(other) is not has and one.equal(draw(conditions, [1, 2], None))
        if has:
            assert not draw(conditions, [1, 2], 0.5).equal(one)
            continue
        with pytest.raises(ValueError, match=r"^truncation is 0\.5, but these settings draw from no latent"):
            draw(conditions, [1, 2], 0.5)


def test_released_trecs_has_no_latent() -> None:
    """CC-FPSE's released form has an encoder, so z; SPADE's has none."""
    for generator, has in (("ccfpse", True), ("spade", False)):
        config = get_system(generator).Config()
        with torch.device("meta"):
            net = get_system(generator).build(config, Given(classes=3))["generator"]
        trecs = get_system("trecs")
        assert trecs.truncates({"generator": net}, trecs.Config(generator=generator)) is has
