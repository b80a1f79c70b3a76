"""R-precision against DM-GAN's 1+99 and CPGAN's batches of 100, where no tie decides."""

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestration.evaluation.metric import Asked, Seen
from orchestration.evaluation.r_precision import TIE, RPrecision, cosines, true_ranks

from .conftest import Golden, Load


def own_and_wrong(numbers: Golden) -> tuple[Tensor, Tensor]:
    """Pictures (N,C), and for each its own caption before the mismatched ones (N,K,C)."""
    wrong = numbers["in.mismatched_pool"][numbers["in.mismatched_index"]]
    captions = torch.cat([numbers["in.sentence_codes"][:, None], wrong], 1)
    assert captions.shape[1] == numbers.meta["constants"]["pool"]
    return numbers["in.image_codes"], captions


def test_scores_and_hits_of_dm_gan(golden: Load) -> None:
    numbers = golden("r_precision")
    scores = cosines(*own_and_wrong(numbers))
    hits = (true_ranks(scores) == 0).double()
    numbers.check("out.dmgan.scores", scores)
    numbers.check("out.dmgan.hit", hits)
    # That of its float32 scores, whose last digit the subtraction leaves.
    margin = (scores[:, 0] - scores[:, 1:].amax(1)).abs().min()
    assert margin.item() == pytest.approx(numbers["out.margin_min"].item(), abs=2e-7)
    assert margin > TIE
    numbers.check("out.dmgan.plain_mean", hits.mean())
    # Its folds lack their last picture each.
    fold = len(hits) // numbers.meta["constants"]["folds"]
    means = torch.stack([part[:-1].mean() for part in hits.split(fold) if len(part) == fold])
    numbers.check("out.dmgan.mean_over_folds", means.mean())
    numbers.check("out.dmgan.std_over_folds", means.std(correction=0))


def test_batches_of_cpgan(golden: Load) -> None:
    numbers = golden("r_precision")
    pictures, captions = numbers["in.cpgan.image_codes"], numbers["in.cpgan.sentence_codes"]
    size, places = numbers.meta["constants"]["pool"], np.arange(len(pictures))
    metric = RPrecision(f"batch-{size}")
    asked = Asked(places, places, places, places, [""] * len(places))
    metric.update(Seen(asked, {"damsm/picture": pictures.numpy(), "damsm/caption": captions.numpy()}))
    numbers.check("out.cpgan.hit", torch.from_numpy(metric.ranks() == 0).long())
    top_1 = next(result.estimate for result in metric.compute() if result.figure == f"r_precision/batch-{size}/top-1")
    assert top_1.value == pytest.approx(numbers["out.cpgan.hit"].double().mean().item())
    assert top_1.count == len(places)
