"""Word losses of a whole batch at once, with their gradients, against one caption at a time: XMC-GAN's and DAMSM's.

Wanted: at least 5 times as fast with at most 1.5 times the memory. The plain loop repeats a caption's words for every
picture, the lean one repeats nothing; both leave padding out, which the batch computes. One line for each loss; values
and gradients must agree to 1e-5. Memory is the growth of the resident set's peak in a process of its own for each side,
after a small batch that loads the kernels.

Floor of XMC-GAN's: 2*M*N*T*R*D multiply-adds for the similarities and 2*M*N*T*R*R for the contexts' lengths, forward;
DAMSM's is the same and its sentences' 2*M*N*D.
"""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timing import interleaved, report
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from models.contract import TextFeatures
from models.losses.contrastive import contrast_scores, word_region_scores
from models.losses.damsm import MatchingSettings, PictureEmbedding, matching_losses, sentence_scores

BATCH, TOKENS, ROUNDS = 48, 17, 3
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


def features(batch: int, regions: int, width: int) -> Features:
    """Of a size that gives dot products of about 1, so that no softmax is saturated."""
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, width, generator=draw).mul_(width**-0.25).requires_grad_()

    lengths = torch.randint(4, TOKENS + 1, (batch,), generator=draw)
    lengths[0] = TOKENS
    return Features(leaf(batch, regions), leaf(batch), TextFeatures(leaf(batch, TOKENS), lengths, leaf(batch)))


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


def peak_growth_mib(loss: Loss, regions: int, width: int) -> float:
    """Of one loss with its gradient, in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_growth_mib, (loss, regions, width))


def _peak_growth_mib(loss: Loss, regions: int, width: int) -> float:
    loss_and_gradients(loss, features(2, regions, width))
    given = features(BATCH, regions, width)
    resident = _memory_mib("VmRSS")
    loss_and_gradients(loss, given)
    return _memory_mib("VmHWM") - resident


def _memory_mib(field: str) -> float:
    """Of this program alone: getrusage's peak is also that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {field}")


def compare(name: str, batched: Loss, loops: dict[str, Loss], regions: int, width: int) -> None:
    given = features(BATCH, regions, width)
    memory = peak_growth_mib(batched, regions, width)
    figures = {"batched_peak_mib": memory}
    for kind, loop in loops.items():
        for ours, theirs in zip(loss_and_gradients(batched, given), loss_and_gradients(loop, given), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        sides = partial(loss_and_gradients, batched, given), partial(loss_and_gradients, loop, given)
        fast, slow = interleaved(*sides, ROUNDS)
        loop_memory = peak_growth_mib(loop, regions, width)
        figures |= {
            f"{kind}_batched_s": fast,
            f"{kind}_loop_s": slow,
            f"{kind}_ratio": slow / fast,
            f"{kind}_peak_mib": loop_memory,
            f"{kind}_memory_ratio": memory / loop_memory,
        }
    floor = 2 * BATCH * BATCH * TOKENS * regions * (width + regions) / 1e9
    report(benchmark="word_loss", loss=name, regions=regions, width=width, floor_gflop=floor, **figures)


def main() -> None:
    xmcgan: dict[str, Loss] = {"lean": xmcgan_lean, "plain": xmcgan_plain}
    damsm: dict[str, Loss] = {"lean": damsm_lean, "plain": damsm_plain}
    compare("xmcgan", xmcgan_batched, xmcgan, 256, 768)  # with BERT base
    compare("damsm", damsm_batched, damsm, 289, 256)  # Inception-v3's 17x17 regions
    compare("damsm", damsm_batched, damsm, 16, 256)


if __name__ == "__main__":
    main()
