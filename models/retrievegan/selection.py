"""The losses on what was retrieved: ground-truth selection and co-occurrence (section 3.3, equation 5).

Of the first the paper says what it encourages and no formula; options here are what it leaves open.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.contract import Settings
from models.parallel import Ranks, mean_over_ranks
from models.precision import at_least_float32
from models.retrievegan.retrieval import Distance, chosen_of, distances, mix, random_places


class SelectionLossSettings(Settings):
    """Forms of both losses."""

    truth_query: Literal["each", "random"] = Field(
        "each",
        description='which ground-truth patch is the query ("one of" them, section 3.3): "each" in turn, or a "random" '
        "one",
    )
    truth_mass: Literal["group", "all"] = Field(
        "group",
        description="minus the logarithm of a ground-truth patch's probability, among its object's own candidates "
        '("group") or among those of all objects but the query\'s ("all"); the paper does not say',
    )
    truth_temperature: float = Field(
        1.0,
        gt=0,
        description="temperature of that probability: 1 is pi of equation 1, from which a patch is drawn whatever tau "
        "is",
    )
    pairs: Literal["all", "once"] = Field(
        "all",
        description='equation 5\'s sum over i, j: "all" takes each pair in both orders, "once" i < j only; the paper '
        "does not say",
    )
    pair_reduction: Literal["sum", "mean"] = Field(
        "sum",
        description='"sum" over a picture\'s pairs (equation 5), then the mean over pictures; "mean" over all pairs: a '
        "picture with many objects does not count so much more",
    )
    pair_distance: Distance = Field(
        "squared", description='d of equation 5: "squared" or "norm"; the paper says distance'
    )


def ground_truth_selection_loss(
    features: Tensor,
    valid: Tensor,
    truth: Tensor,
    settings: SelectionLossSettings,
    distance: Distance,
    ranks: Ranks,
    normal: Tensor | None = None,
) -> Tensor:
    """With a ground-truth patch as query, -log of the probability of every other object's: their mean, a scalar.

    features: (B,N,K,C), E_p of the candidates; valid: (B,N,K) bool; truth: (B,N) int64, which candidate is the object's
    own patch, -1 where none is. distance: the retrieval's. normal: (B,) standard normal numbers, for a random query.
    0 where no picture has two true patches.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features).masked_fill(~valid[..., None], 0)
        known = _known(valid, truth)
        queries, asked = chosen_of(features, truth), torch.arange(truth.shape[1], device=truth.device).expand_as(truth)
        if settings.truth_query == "random":
            assert normal is not None
            asked = random_places(known, normal[:, None])
            queries = queries.gather(1, asked.clamp(min=0)[..., None].expand(-1, -1, queries.shape[2]))
        others = _others(known, asked)
        closed = ~valid[:, None].expand(-1, asked.shape[1], -1, -1)
        scores = -_from_queries(queries, features, distance) / settings.truth_temperature
        if settings.truth_mass == "all":
            own = asked[..., None] == torch.arange(truth.shape[1], device=truth.device)
            closed = (closed | own[..., None]).flatten(2)
            scores = scores.flatten(2)
        # A softmax over nothing is no number, and nobody reads it.
        closed = closed & ~closed.all(-1, keepdim=True)
        chances = scores.masked_fill(closed, -torch.inf).log_softmax(-1).view(*others.shape, -1)
        true = chances.gather(3, truth.clamp(min=0)[:, None, :, None].expand(*others.shape, 1)).squeeze(3)
        return mean_over_ranks(-true[others], ranks)


@torch.no_grad()
def true_patch_ranks(features: Tensor, valid: Tensor, truth: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """How near to a ground-truth patch each other object's is: candidates nearer, half of those as near, and candidates
    in all, its own patch not counted, both (P,). One for each pair of a picture's objects with true patches.

    Chance is half of the candidates. Arguments as those of `ground_truth_selection_loss`.
    """
    features = at_least_float32(features).masked_fill(~valid[..., None], 0)
    known, queries = _known(valid, truth), chosen_of(features, truth)
    asked = torch.arange(truth.shape[1], device=truth.device).expand_as(truth)
    others = _others(known, asked)
    far = _from_queries(queries, features, distance)
    own = far.gather(3, truth.clamp(min=0)[:, None, :, None].expand(*others.shape, 1))
    there = valid[:, None]
    before = ((far < own) & there).sum(3) + (((far == own) & there).sum(3) - 1) / 2
    rivals = (there.sum(3) - 1).expand_as(before)
    return before[others], rivals[others]


def co_occurrence_loss(
    embeddings: Tensor, weights: Tensor, there: Tensor, settings: SelectionLossSettings, ranks: Ranks
) -> Tensor:
    """Equation 5: how far apart a picture's retrieved patches are where F_occur puts them, a scalar.

    embeddings: (B,N,K,E), F_occur of the candidates; weights: (B,N,K), `Selection.weights`, which the gradient goes to;
    there: (B,N) bool, objects that have a patch. A patch retrieved in part is in part where it would be.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        # Even no number has no part in sums where no patch is.
        known = at_least_float32(embeddings).masked_fill(~there[..., None, None], 0)
        retrieved = mix(known, weights)
        apart = distances(retrieved, retrieved, settings.pair_distance)
        pairs = there[:, :, None] & there[:, None, :]
        numbers = torch.arange(there.shape[1], device=there.device)
        order = numbers[:, None] - numbers
        pairs = pairs & (order < 0 if settings.pairs == "once" else order != 0)
        if settings.pair_reduction == "mean":
            return mean_over_ranks(apart[pairs], ranks)
        return (apart * pairs).sum((1, 2)).mean()


def _known(valid: Tensor, truth: Tensor) -> Tensor:
    """(B,N) bool: objects whose true patch is among their candidates."""
    there = valid.gather(2, truth.clamp(min=0)[..., None]).squeeze(2)
    return there & (truth >= 0)


def _others(known: Tensor, asked: Tensor) -> Tensor:
    """(B,Q,N) bool: objects of true patches, but the one whose patch the query is; asked: (B,Q) int64, -1 for none."""
    queried = known.gather(1, asked.clamp(min=0)) & (asked >= 0)
    numbers = torch.arange(known.shape[1], device=known.device)
    return queried[..., None] & known[:, None] & (asked[..., None] != numbers)


def _from_queries(queries: Tensor, features: Tensor, distance: Distance) -> Tensor:
    """Queries (B,Q,C) and candidates (B,N,K,C) to (B,Q,N,K)."""
    far = distances(queries, features.flatten(1, 2), distance)
    return far.view(*queries.shape[:2], *features.shape[1:3])
