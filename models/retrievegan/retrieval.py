"""RetrieveGAN's differentiable retrieval: one patch for each object, each compatible with those before (section 3.3).

Text and algorithm 1 contradict each other in places: each such place is an option of `RetrievalSettings` with both
readings. Paper: Tseng et al., "RetrieveGAN: Image Synthesis via Differentiable Patch Retrieval", 2020.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.contract import Settings
from models.precision import at_least_float32

Distance = Literal["squared", "norm"]
# Rows of whole blocks: torch draws the beginning of a longer row as it draws a shorter one.
NOISE_BLOCK = 16


class RetrievalSettings(Settings):
    """How patches are chosen; equations and lines are the paper's."""

    temperature: float = Field(
        0.1, gt=0, description="tau, the softmax's temperature (equation 2); not given in the paper"
    )
    iterations: int | None = Field(
        None,
        ge=1,
        description="retrievals a picture, at most one an object; none given: one an object, n in the paper. With "
        "fewer, the objects left over have no patch",
    )
    distance: Distance = Field(
        "squared",
        description='minus log pi, how far a patch is from the query: "squared" (the text before equation 1) or "norm" '
        "(algorithm 1, line 5)",
    )
    gumbel: Literal["once", "each_step"] = Field(
        "once",
        description='each patch\'s Gumbel noise: drawn "once" (equation 1, weighted reservoir sampling) or again at '
        '"each_step" (algorithm 1, line 7)',
    )
    gumbel_when_sampling: bool = Field(
        True,
        description="Gumbel noise when pictures are sampled too; off: only the first query differs from seed to seed. "
        "The paper does not say",
    )
    exclusion: Literal["group_mask", "accumulated", "last_step"] = Field(
        "group_mask",
        description='what keeps an object from a second patch. "group_mask": the object is out, by construction (what '
        'the text wants); "accumulated": log(1 - max s) of all steps is added up (equation 4); "last_step": only the '
        "last step's is added (algorithm 1, line 10). s is the softmax, before `selection`: where it is spread out, an "
        "object is picked twice, with the algorithm as printed in nearly every picture",
    )
    query: Literal["mean_of_all", "running_mean"] = Field(
        "mean_of_all",
        description='the next query: "mean_of_all" patches chosen so far (section 3.3), or the "running_mean" of the '
        "last query and the new patch (algorithm 1, line 13)",
    )
    result: Literal["sum", "last"] = Field(
        "sum",
        description='the n-hot vector: the "sum" over all steps (section 3.3) or the "last" step\'s (algorithm 1, line '
        "15), which leaves all other objects without a patch",
    )
    selection: Literal["hard", "soft", "threshold"] = Field(
        "hard",
        description="a step's s in training, always with the softmax's gradient. \"hard\": the likeliest patch alone "
        '(straight-through); "soft": the softmax (equation 2); "threshold": the softmax without what is below '
        "`threshold`, made to sum to 1 (footnote 1). Sampled pictures are always made of whole patches",
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description='least part of the softmax that "threshold" keeps; the largest always stays'
    )
    mixture: Literal["features", "pixels"] = Field(
        "features",
        description="what is mixed by the weights inside a group to be the patch of its object: patches' features or "
        "their pixels. The paper does not say; with hard selection both are one patch",
    )
    epsilon: float = Field(
        1e-7, gt=0, lt=1, description="least 1 - s under the logarithm of equations 3 and 4, where s may be 1"
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen for B pictures of up to N objects with up to K patches each, in T steps.

    weights: (B,N,K), the relaxed n-hot vector s. chosen: (B,N) int64, each object's patch, the first one where it was
    picked twice; -1 where there is none. order: (B,T) int64, the object that each step picked a patch for, and places:
    (B,T) int64, which patch; -1 after the last step. queries: (B,T,C), what each step compared with. logits:
    (B,T,N,K), log pi with noise and exclusion, -inf for patches that could not be picked. start: (B,) int64, the patch
    whose feature was the first query, n * K + k; -1 where that was given.
    """

    weights: Tensor
    chosen: Tensor
    order: Tensor
    places: Tensor
    queries: Tensor
    logits: Tensor
    start: Tensor


def noise_width(groups: int, size: int, settings: RetrievalSettings) -> int:
    """How many standard normal numbers a picture of up to `groups` objects with up to `size` patches needs."""
    patches = groups * size * (groups if settings.gumbel == "each_step" else 1)
    return -(-(1 + patches) // NOISE_BLOCK) * NOISE_BLOCK


def retrieve(
    features: Tensor,
    valid: Tensor,
    settings: RetrievalSettings,
    noise: Tensor,
    query: Tensor | None = None,
    training: bool = True,
) -> Selection:
    """Algorithm 1 for B pictures at once.

    features: (B,N,K,C), E_p of the candidates; valid: (B,N,K) bool, which of them are there: an object may have none.
    noise: (B, `noise_width(N, K, settings)`) standard normal numbers, of which a picture's objects take the same ones
    however many there is room for. query: (B,C), the first query; without one it is a random patch's feature. Without
    `training` whole patches are chosen. Computes in float32 at least.
    """
    needed = noise_width(features.shape[1], features.shape[2], settings)
    if noise.shape[1] < needed:
        raise ValueError(f"each row of noise has {noise.shape[1]} numbers and needs {needed}: ask noise_width")
    with torch.autocast(features.device.type, enabled=False):
        wide = at_least_float32(features)
        # Whatever stands where no patch is, even no number, has no part in sums.
        patches = wide.masked_fill(~valid[..., None], 0)
        return _retrieve(patches, valid, settings, noise.to(wide.dtype), query, training)


def _retrieve(
    features: Tensor, valid: Tensor, settings: RetrievalSettings, noise: Tensor, query: Tensor | None, training: bool
) -> Selection:
    groups, size = features.shape[1:3]
    patches, there = features.flatten(1, 2), valid.flatten(1)
    steps = groups if settings.iterations is None else min(groups, settings.iterations)
    objects = valid.any(2).sum(1)
    perturbed = training or settings.gumbel_when_sampling
    gumbel = (
        _gumbel_rows(noise[:, 1:], groups, size, steps, settings) if perturbed else [torch.zeros_like(noise[:, :1])]
    )
    if query is None:
        start = random_places(there, noise[:, :1]).squeeze(1)
        query = patches.gather(1, start.clamp(min=0)[:, None, None].expand(-1, 1, patches.shape[2])).squeeze(1)
    else:
        start = torch.full_like(objects, -1)
        query = query.to(patches.dtype)

    blocked = ~there
    excluded = torch.zeros_like(there, dtype=patches.dtype)
    weights, total = excluded, torch.zeros_like(query)
    numbers = torch.arange(groups, device=features.device)
    chosen = torch.full_like(there[:, :1], -1, dtype=torch.int64).expand(-1, groups)
    order, places, queries, logits = [], [], [], []
    for step in range(steps):
        active = (step < objects)[:, None]
        # Where nothing is left to pick nothing is blocked: a softmax over nothing is no number.
        closed = blocked & active
        free = gumbel[step % len(gumbel)] + excluded - distances(query[:, None], patches, settings.distance).squeeze(1)
        soft = (free / settings.temperature).masked_fill(closed, -torch.inf).softmax(1)
        logit = free.masked_fill(blocked, -torch.inf)
        pick = logit.argmax(1, keepdim=True)
        picked = _as_selected(soft, pick, settings, training) * active
        weights = weights + picked if settings.result == "sum" else torch.where(active, picked, weights)

        group, place = pick // size, pick % size
        order.append(group.masked_fill(~active, -1))
        places.append(place.masked_fill(~active, -1))
        queries.append(query)
        logits.append(logit)
        mine = (numbers == group) & active
        chosen = torch.where(mine & (chosen < 0), place, chosen)

        new = torch.bmm(picked[:, None], patches).squeeze(1)
        total = total + new
        following = total / (step + 1) if settings.query == "mean_of_all" else (query + new) / 2
        query = torch.where(active, following, query)
        if settings.exclusion == "group_mask":
            blocked = blocked | mine.repeat_interleave(size, 1)
        else:
            term = log_left(soft.view(-1, groups, size).amax(2), settings.epsilon).repeat_interleave(size, 1)
            excluded = term if settings.exclusion == "last_step" else excluded + term
    return Selection(
        weights.view(-1, groups, size),
        chosen,
        torch.cat(order, 1),
        torch.cat(places, 1),
        torch.stack(queries, 1),
        torch.stack(logits, 1).view(-1, steps, groups, size),
        start,
    )


def _as_selected(soft: Tensor, pick: Tensor, settings: RetrievalSettings, training: bool) -> Tensor:
    """A step's softmax (B,M), whose likeliest patch is pick (B,1), as what follows reads it."""
    if not training or settings.selection == "hard":
        hard = torch.zeros_like(soft).scatter(1, pick, 1.0)
        # First the difference, which is exactly 0: the sum has no rounding.
        return (soft - soft.detach()) + hard if training else hard
    if settings.selection == "soft":
        return soft
    # Straight-through as well: of one patch alone, made to sum to 1, the gradient would be 0.
    values = soft.detach()
    kept = values * (values >= values.amax(1, keepdim=True).clamp(max=settings.threshold))
    return (soft - values) + kept / kept.sum(1, keepdim=True)


def _gumbel_rows(noise: Tensor, groups: int, size: int, steps: int, settings: RetrievalSettings) -> list[Tensor]:
    """Gumbel noise (B,N*K) of every step, or one for all."""
    if settings.gumbel == "once":
        return [gumbel_noise(noise[:, : groups * size])]
    table = gumbel_noise(noise[:, : groups * groups * size]).view(len(noise), -1, size)
    # A step's object has its number from the larger of both, so that it stays the same where there is room for more.
    numbers = torch.arange(groups, device=noise.device)
    after = numbers + 1
    blocks = [torch.where(numbers < t, t * t + t + after, numbers * numbers + t) for t in range(steps)]
    return [table[:, block].flatten(1) for block in blocks]


def gumbel_noise(normal: Tensor) -> Tensor:
    """-log(-log(u)) (equation 1) of uniform numbers u, which come as the standard normal ones of the same rank."""
    least = torch.finfo(normal.dtype).tiny
    return -(-torch.special.log_ndtr(normal)).clamp(min=least).log()


def random_places(there: Tensor, normal: Tensor) -> Tensor:
    """Places that are there, each as likely; there: (B,M) bool, normal: (B,Q). (B,Q) int64, -1 where there is none."""
    count = there.sum(1, keepdim=True)
    wanted = (torch.special.ndtr(normal) * count).long().minimum(count - 1)
    place = torch.searchsorted(there.cumsum(1), wanted + 1)
    return torch.where(count > 0, place, -1)


def distances(first: Tensor, second: Tensor, kind: Distance) -> Tensor:
    """(B,P,C) and (B,Q,C) to (B,P,Q), each one's distance to each.

    By differences and not by products, so that it is exactly 0 where two are the same; its gradient there is 0.
    """
    norm = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return norm.square() if kind == "squared" else norm


def log_left(taken: Tensor, epsilon: float) -> Tensor:
    """log(1 - s) of equations 3 and 4, with 1 - s no less than epsilon."""
    return (1 - taken).clamp(min=epsilon).log()


def relaxed_top_k(log_weights: Tensor, k: int, tau: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """k draws without replacement, relaxed: equation 3, without groups and without a query that moves.

    log_weights: (...,M), with Gumbel noise for a random subset, without for the top k. Returns the k-hot vector (...,M)
    and each draw's softmax (k,...,M). Xie and Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations",
    2019, algorithm 1.
    """
    draws: list[Tensor] = []
    for _ in range(k):
        if draws:
            log_weights = log_weights + log_left(draws[-1], epsilon)
        draws.append((log_weights / tau).softmax(-1))
    separate = torch.stack(draws)
    return separate.sum(0), separate


def mix(values: Tensor, weights: Tensor) -> Tensor:
    """What each object is made of: (B,N,K,...) by weights (B,N,K) to (B,N,...), 0 where no patch was picked."""
    flat = values.reshape(*weights.shape, -1)
    return (weights.to(flat.dtype)[:, :, None] @ flat).reshape(*weights.shape[:2], *values.shape[3:])


def chosen_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Each object's own of (B,N,K,...) by its place (B,N) int64, to (B,N,...); 0 where that is -1."""
    flat = values.reshape(*values.shape[:3], -1)
    taken = flat.gather(2, chosen.clamp(min=0)[..., None, None].expand(-1, -1, 1, flat.shape[3])).squeeze(2)
    return taken.masked_fill((chosen < 0)[..., None], 0).reshape(*chosen.shape, *values.shape[3:])
