"""Word losses of a whole batch at once, with their gradients, against one caption at a time: XMC-GAN's and DAMSM's.

Wanted: at least 5 times as fast with at most 1.5 times the memory. The plain loop repeats a caption's words for every
picture, the lean one repeats nothing; no side computes padding. One line for each loss and shape; values and gradients
must agree to 1e-5. Arguments: the losses to measure, all by default.

A shape has a process of its own, where the sides take turns; ratios are medians of each turn's own. Memory is the
growth of the resident set's peak, in a process for each side, after a small batch that loads the kernels: the median of
several, in turn.

Floor: with M pictures of R regions of width D, and K words, the similarities are 2MKRD operations and their gradient
twice that; so are the region contexts, or through the regions' Gram matrix 4MRR(K+D) in all. `floor_s` is the lesser
sum at the rate of a large matrix product, the best seen between the turns; `most_ratio` is the lean loop's best time
over it. Where that is below 5, the loop is bound by the same products and nothing can be 5 times as fast: `speed` then
says "bound by products", else "reached" or "missed". `floor_mib` is what waits for the gradient: both tables of
weights, the contexts where they are formed, and the regions' own gradient.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import report
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from models.contract import TextFeatures
from models.losses.contrastive import contrast_scores, word_region_scores
from models.losses.damsm import MatchingSettings, PictureEmbedding, matching_losses, sentence_scores

BATCH = 48
MEMORY_ROUNDS, RATE_SIZE = 3, 1024
SPEED, MEMORY = 5, 1.5
MATCHING = MatchingSettings()
RHO, TAU = 5.0, 0.02


@dataclass(frozen=True, slots=True)
class Features:
    """What a loss reads. regions: (B,R,D); whole: (B,D)."""

    regions: Tensor
    whole: Tensor
    text: TextFeatures

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.regions, self.text.words, self.whole, self.text.sentence


Loss = Callable[[Features], Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """Captions have from `shortest` to `longest` words."""

    loss: str
    regions: int
    width: int
    shortest: int
    longest: int
    rounds: int = 5

    def features(self, batch: int = BATCH) -> Features:
        """Of a size that gives dot products of about 1, so that no softmax is saturated."""
        draw = torch.Generator().manual_seed(0)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, self.width, generator=draw).mul_(self.width**-0.25).requires_grad_()

        lengths = torch.randint(self.shortest, self.longest + 1, (batch,), generator=draw)
        lengths[0] = self.longest
        text = TextFeatures(leaf(batch, self.longest), lengths, leaf(batch))
        return Features(leaf(batch, self.regions), leaf(batch), text)


SHAPES = (
    Shape("xmcgan", 256, 768, 4, 17, rounds=3),  # with BERT base
    Shape("damsm", 289, 256, 4, 18),  # Inception-v3's 17x17 regions, CUB's 18 words
    Shape("damsm", 289, 256, 20, 20),
    Shape("damsm", 16, 256, 4, 18),
    Shape("damsm", 16, 256, 20, 20),
)


def xmcgan_batched(given: Features) -> Tensor:
    words, padding = given.text.words, given.text.padding()
    return contrast_scores(word_region_scores(given.regions, words, padding, RHO, RHO, TAU)).loss


def xmcgan_lean(given: Features) -> Tensor:
    columns = []
    unit_regions = normalize(given.regions, dim=2)
    for words, length in zip(given.text.words, given.text.lengths.tolist(), strict=True):
        unit_words = normalize(words[:length], dim=1)
        attention = (RHO * unit_words @ unit_regions.transpose(1, 2)).softmax(2)
        context = normalize(attention @ unit_regions, dim=2)
        columns.append((RHO * (context * unit_words).sum(2)).logsumexp(1) / (RHO * TAU))
    return contrast_scores(torch.stack(columns, 1)).loss


def xmcgan_plain(given: Features) -> Tensor:
    columns = []
    for words, length in zip(given.text.words, given.text.lengths.tolist(), strict=True):
        repeated = words[:length].repeat(len(given.regions), 1, 1)
        unit_words, unit_regions = normalize(repeated, dim=2), normalize(given.regions, dim=2)
        attention = (RHO * torch.bmm(unit_words, unit_regions.transpose(1, 2))).softmax(2)
        context = torch.bmm(attention, unit_regions)
        columns.append((RHO * cosine_similarity(unit_words, context, dim=2)).exp().sum(1).log() / (RHO * TAU))
    return contrast_scores(torch.stack(columns, 1)).loss


def damsm_batched(given: Features) -> Tensor:
    return matching_losses(PictureEmbedding(given.regions, given.whole), given.text, MATCHING).loss


def damsm_lean(given: Features) -> Tensor:
    columns = []
    for words, length in zip(given.text.words, given.text.lengths.tolist(), strict=True):
        own = words[:length]
        attention = (MATCHING.gamma_1 * (own @ given.regions.transpose(1, 2)).softmax(1)).softmax(2)
        context = attention @ given.regions
        cosines = (context * own).sum(2) / (context.norm(dim=2) * own.norm(dim=1))
        columns.append(MATCHING.gamma_3 * (MATCHING.gamma_2 * cosines).logsumexp(1))
    return _matching(torch.stack(columns, 1), given)


def damsm_plain(given: Features) -> Tensor:
    columns = []
    for words, length in zip(given.text.words, given.text.lengths.tolist(), strict=True):
        repeated = words[:length].repeat(len(given.regions), 1, 1)
        products = torch.bmm(repeated, given.regions.transpose(1, 2))
        attention = (MATCHING.gamma_1 * products.softmax(1)).softmax(2)
        context = torch.bmm(attention, given.regions)
        cosines = cosine_similarity(repeated, context, dim=2)
        columns.append(MATCHING.gamma_3 * (MATCHING.gamma_2 * cosines).exp().sum(1).log())
    return _matching(torch.stack(columns, 1), given)


def _matching(by_word: Tensor, given: Features) -> Tensor:
    """Sentences need no loop on either side."""
    by_sentence = sentence_scores(given.whole, given.text.sentence, MATCHING.gamma_3)
    return contrast_scores(by_word).loss + contrast_scores(by_sentence).loss


def loss_and_gradients(loss: Loss, given: Features) -> tuple[Tensor, ...]:
    value = loss(given)
    return value.detach(), *torch.autograd.grad(value, given.leaves, allow_unused=True, materialize_grads=True)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_growth_mib(shape: Shape, side: str) -> float:
    """Of one loss with its gradient, in a new process."""
    loss = LOSSES[shape.loss][side]
    loss_and_gradients(loss, shape.features(2))
    given = shape.features()
    resident = _memory_mib("VmRSS")
    loss_and_gradients(loss, given)
    return _memory_mib("VmHWM") - resident


def _memory_mib(field: str) -> float:
    """Of this program alone: getrusage's peak is also that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {field}")


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def take_turns(shape: Shape) -> dict[str, list[float]]:
    """Seconds of each side, and of "product", one large matrix product; a first turn, not counted, compares values."""
    given, losses = shape.features(), LOSSES[shape.loss]
    expected = loss_and_gradients(losses["batched"], given)
    for loss in losses.values():
        for found, wanted in zip(loss_and_gradients(loss, given), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    square = torch.randn(RATE_SIZE, RATE_SIZE)
    times: dict[str, list[float]] = {side: [] for side in (*losses, "product")}
    for _ in range(shape.rounds):
        for side, loss in losses.items():
            times[side].append(seconds(loss_and_gradients, loss, given))
        times["product"] += [seconds(torch.mm, square, square) for _ in range(5)]
    return times


def compare(shape: Shape) -> None:
    times = apart(take_turns, shape)
    peaks: dict[str, list[float]] = {side: [] for side in LOSSES[shape.loss]}
    for _ in range(MEMORY_ROUNDS):
        for side, peak in peaks.items():
            peak.append(apart(peak_growth_mib, shape, side))
    words, regions, width = int(shape.features().text.lengths.sum()), shape.regions, shape.width
    formed, by_gram = 6 * words * regions * width, 4 * regions * regions * (words + width)
    floor_gflop = BATCH * (6 * words * regions * width + min(formed, by_gram)) / 1e9
    gflop_per_s = 2 * RATE_SIZE**3 / min(times["product"]) / 1e9
    kept = 2 * words * regions + (words * width if formed < by_gram else 0) + regions * width
    floor_s = floor_gflop / gflop_per_s
    figures = {
        "batched_s": median(times["batched"]),
        "floor_s": floor_s,
        "most_ratio": min(times["lean"]) / floor_s,
        "batched_mib": median(peaks["batched"]),
        "floor_mib": BATCH * kept * 4 / 2**20,
    }
    for loop in ("lean", "plain"):
        figures |= {
            f"{loop}_s": median(times[loop]),
            f"{loop}_ratio": median(slow / fast for slow, fast in zip(times[loop], times["batched"], strict=True)),
            f"{loop}_mib": median(peaks[loop]),
            f"{loop}_memory_ratio": median(peaks["batched"]) / median(peaks[loop]),
        }
    reached = min(figures["lean_ratio"], figures["plain_ratio"]) >= SPEED
    report(
        benchmark="word_loss",
        loss=shape.loss,
        regions=regions,
        width=width,
        words=words,
        longest=shape.longest,
        threads=torch.get_num_threads(),
        speed="reached" if reached else "bound by products" if figures["most_ratio"] < SPEED else "missed",
        memory="reached" if max(figures["lean_memory_ratio"], figures["plain_memory_ratio"]) <= MEMORY else "missed",
        floor_gflop=floor_gflop,
        gflop_per_s=gflop_per_s,
        **figures,
    )


LOSSES: dict[str, dict[str, Loss]] = {
    "xmcgan": {"batched": xmcgan_batched, "lean": xmcgan_lean, "plain": xmcgan_plain},
    "damsm": {"batched": damsm_batched, "lean": damsm_lean, "plain": damsm_plain},
}

if __name__ == "__main__":
    for each in SHAPES:
        if each.loss in (sys.argv[1:] or LOSSES):
            compare(each)
