"""Distances of distributions and the Inception Score, against torch-fidelity and pytorch-fid."""

import numpy as np
import torch

from orchestration.evaluation.fid import Fid, FrechetDistance, Moments
from orchestration.evaluation.inception_score import inception_scores
from orchestration.evaluation.kid import kernel_distances
from orchestration.evaluation.metric import Asked, Seen

from .conftest import Golden, Load


def float64(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def seen(features: np.ndarray) -> Seen:
    places = np.arange(len(features))
    return Seen(Asked(places, places, places, places, [""] * len(places)), {"net/features": features})


def test_frechet_distance(golden: Load) -> None:
    numbers = golden("frechet_distance")
    cases = {key.split(".")[1] for key in numbers.arrays if key.startswith("in.")}
    assert cases
    for case in cases:
        real, drawn = (numbers.arrays[f"in.{case}.features{side}"] for side in (1, 2))
        moments = (Moments(), Moments())
        for side, features in zip(moments, (real, drawn), strict=True):
            for part in np.array_split(features, 3):
                side.add(part)
        ours = FrechetDistance(*(side.gaussian() for side in moments)).value
        metric = Fid("net")
        metric.update(seen(drawn))
        metric.update_real(seen(real))
        by_metric = metric.compute()[0].estimate.value
        keys = [key for key in numbers.arrays if key.startswith(f"out.{case}.")]
        assert keys
        for key in keys:
            numbers.check(key, float64(ours))
            numbers.check(key, float64(by_metric))


def test_kernel_distance(golden: Load) -> None:
    numbers = golden("kid")
    constants = numbers.meta["constants"]
    assert constants["gamma"] == "1/d"
    real, drawn = numbers.arrays["in.features1"], numbers.arrays["in.features2"]
    rng, size = np.random.RandomState(constants["rng_seed"]), constants["subset_size"]
    pairs = [
        (rng.choice(len(real), size, replace=False), rng.choice(len(drawn), size, replace=False))
        for _ in range(constants["subsets"])
    ]
    values = kernel_distances(real, drawn, pairs, constants["degree"], constants["coef0"])
    numbers.check("out.mean", float64(values.mean()))
    numbers.check("out.std", float64(values.std()))


def scores(numbers: Golden, logits: np.ndarray) -> np.ndarray:
    return inception_scores(logits, np.ones((1, len(logits)), np.int64), numbers.meta["constants"]["splits"])[0]


def test_inception_score(golden: Load) -> None:
    numbers = golden("inception_score")
    logits = numbers.arrays["in.logits"]
    order = np.random.RandomState(numbers.meta["constants"]["rng_seed"]).permutation(len(logits))
    for case, given in (("in_order", logits), ("shuffled", logits[order])):
        found = scores(numbers, given)
        numbers.check(f"out.{case}.mean", float64(found.mean()))
        numbers.check(f"out.{case}.std", float64(found.std()))
