"""DAMSM's losses against AttnGAN's equations, written again and slowly. Parity: tests/parity."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.attngan import DAMSMConfig, ImageEncoder
from models.attngan.losses import damsm_objective
from models.losses import damsm
from models.losses.damsm import (
    MatchingSettings,
    PictureEmbedding,
    matching_losses,
    own_attention,
    same_class,
    word_scores,
)
from models.parallel import OneRank
from tests.test_attngan_models import PlainTrunk, encoder
from tests.tiny import some_text

ONE = OneRank()


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)


def slow_scores(regions: Tensor, words: list[Tensor], setting: MatchingSettings) -> Tensor:
    """AttnGAN's equations 7 to 11, one caption and one picture at a time."""
    table = []
    for own in regions:
        row = []
        for caption in words:
            over_words = (caption @ own.t()).softmax(0)
            weights = (setting.gamma_1 * over_words).softmax(1)
            cosines = F.cosine_similarity(weights @ own, caption, dim=1)
            total = (setting.gamma_2 * cosines).exp().sum()
            score = (total ** (1 / setting.gamma_2) if setting.gamma2_root else total).log()
            row.append(setting.gamma_3 * score)
        table.append(torch.stack(row))
    return torch.stack(table)


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    pictures=st.integers(1, 4),
    count=st.sampled_from([1, 3, 6]),
    gammas=st.tuples(st.floats(0.5, 10), st.floats(0.5, 10), st.floats(0.5, 20)),
    root=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_all_pairs_at_once_are_every_pair_alone(
    lengths: list[int], pictures: int, count: int, gammas: tuple[float, float, float], root: bool, seed: int
) -> None:
    """In values and in gradients, with fewer regions than they are wide or more; padding has no part in either."""
    random = torch.Generator().manual_seed(seed)
    regions = torch.randn(pictures, count, 4, generator=random, dtype=torch.float64, requires_grad=True)
    words = torch.randn(len(lengths), 5, 4, generator=random, dtype=torch.float64, requires_grad=True)
    padding = torch.arange(5)[None, :] >= torch.tensor(lengths)[:, None]
    setting = MatchingSettings(gamma_1=gammas[0], gamma_2=gammas[1], gamma_3=gammas[2], gamma2_root=root)
    scores = word_scores(regions, words, padding, setting)
    slow = slow_scores(regions, [words[n, :length] for n, length in enumerate(lengths)], setting)
    torch.testing.assert_close(scores, slow, rtol=1e-8, atol=1e-8)
    weights = torch.randn(scores.shape, generator=random, dtype=torch.float64)
    found = torch.autograd.grad((weights * scores).sum(), [regions, words])
    expected = torch.autograd.grad((weights * slow).sum(), [regions, words])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert not found[1][padding].any()
    other = torch.where(padding[:, :, None], 100.0, words.detach())
    torch.testing.assert_close(word_scores(regions, other, padding, setting), scores)


def test_the_batched_loss_is_the_loop_in_float32() -> None:
    """At a realistic size: 289 regions, 256 wide."""
    text = some_text(6, dim=256, longest=9)
    pictures = PictureEmbedding(torch.randn(6, 289, 256), torch.randn(6, 256))
    found = matching_losses(pictures, text, MatchingSettings())
    words = [own[:length].double() for own, length in zip(text.words, text.lengths.tolist(), strict=True)]
    slow = slow_scores(pictures.regions.double(), words, MatchingSettings())
    target = torch.arange(6)
    assert found.words_image_to_text.item() == pytest.approx(F.cross_entropy(slow, target).item(), abs=1e-5)
    assert found.words_text_to_image.item() == pytest.approx(F.cross_entropy(slow.t(), target).item(), abs=1e-5)
    cosines = 10 * F.normalize(pictures.whole.double(), dim=1) @ F.normalize(text.sentence.double(), dim=1).t()
    assert found.sentence_image_to_text.item() == pytest.approx(F.cross_entropy(cosines, target).item(), abs=1e-5)
    assert found.sentence_text_to_image.item() == pytest.approx(F.cross_entropy(cosines.t(), target).item(), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert matching_losses(pictures, text, MatchingSettings()).loss.equal(found.loss)


class CountOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches torch's kernels."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_there_is_no_loop_over_captions_or_pictures() -> None:
    """Of the same few lengths."""

    def operations(count: int) -> int:
        text = replace(some_text(count, dim=4), lengths=torch.arange(count) % 4 + 1)
        regions, whole = torch.randn(count, 6, 4, requires_grad=True), torch.randn(count, 4)
        counted = CountOperations()  # type: ignore[no-untyped-call]
        with counted:
            matching_losses(PictureEmbedding(regions, whole), text, MatchingSettings()).loss.backward()
        return int(counted.count)

    assert operations(4) == operations(32) > 20


@pytest.mark.parametrize("count", [3, 9])
def test_blocks_of_pictures_change_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither values nor gradients; 3 regions are fewer than they are wide, 9 more. The last block is a smaller one."""
    text = some_text(4, dim=5)
    regions = torch.randn(5, count, 5, dtype=torch.float64, requires_grad=True)
    words = text.words.double().requires_grad_()

    def scores_and_gradients() -> list[Tensor]:
        scores = word_scores(regions, words, text.padding(), MatchingSettings())
        return [scores, *torch.autograd.grad(scores.square().sum(), [regions, words])]

    whole = scores_and_gradients()
    monkeypatch.setattr(damsm, "BLOCK_ELEMENTS", int(text.lengths.sum()) * count * 2)
    torch.testing.assert_close(scores_and_gradients(), whole)
    monkeypatch.setattr(damsm, "BLOCK_ELEMENTS", 1)
    torch.testing.assert_close(scores_and_gradients(), whole)


def test_a_word_score_needs_no_small_products() -> None:
    """Dot products in the hundreds, as far apart as float32's exponentials are not."""
    text = some_text(3, dim=4)
    regions, words = 40 * torch.randn(3, 6, 4), 40 * text.words
    scores = word_scores(regions, words, text.padding(), MatchingSettings())
    own = [word[:length].double() for word, length in zip(words, text.lengths.tolist(), strict=True)]
    torch.testing.assert_close(
        scores.double(), slow_scores(regions.double(), own, MatchingSettings()), rtol=1e-5, atol=1e-4
    )


def test_pairs_of_one_class_take_no_part() -> None:
    text, regions, whole = some_text(4), torch.randn(4, 6, 8), torch.randn(4, 8)
    classes = torch.tensor([3, 5, 3, 7])
    excluded = same_class(classes)
    assert excluded.nonzero().tolist() == [[0, 2], [2, 0]]
    setting = MatchingSettings()
    masked = matching_losses(PictureEmbedding(regions, whole), text, setting, classes)
    scores = 10 * F.normalize(whole, dim=1) @ F.normalize(text.sentence, dim=1).t()
    rows = [torch.cat([scores[0, :2], scores[0, 3:]]), scores[1], scores[2, 1:], scores[3]]
    places = [0, 1, 1, 3]
    by_hand = -torch.stack([row.log_softmax(0)[place] for row, place in zip(rows, places, strict=True)]).mean()
    torch.testing.assert_close(masked.sentence_image_to_text, by_hand)
    off = matching_losses(PictureEmbedding(regions, whole), text, MatchingSettings(mask_same_class=False), classes)
    assert off.loss.equal(matching_losses(PictureEmbedding(regions, whole), text, setting).loss)
    assert not off.loss.equal(masked.loss)


def test_own_attention_is_a_distribution_over_regions() -> None:
    text = some_text(3)
    weights = own_attention(torch.randn(3, 6, 8), text.words, text.padding(), 4.0)
    torch.testing.assert_close(weights.sum(2), (~text.padding()).float())


def test_damsm_learns_to_tell_pictures_apart() -> None:
    """One-word captions of pictures of one colour: matched from chance to nearly always."""
    tokens = torch.arange(1, 9)[:, None]
    images = (torch.rand(8, 3, 1, 1) * 2 - 1).expand(-1, -1, 8, 8)
    text_net, image_net = encoder(dropout=0.0), ImageEncoder(PlainTrunk(), 6)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam([*text_net.parameters(), *image_net.parameters()], 0.02)
    losses = []
    for _ in range(60):
        text = text_net(tokens, torch.ones(8, dtype=torch.int64))
        objective = damsm_objective(DAMSMConfig(), nn.Sequential(PlainTrunk(), image_net)(images), text, None, ONE)
        optimizer.zero_grad()
        objective.loss.backward()
        optimizer.step()
        losses.append(objective.loss.item())
    assert losses[0] > 0.8 * 4 * math.log(8) and losses[-1] < 0.2 * losses[0]
    # Two words may lie close by chance: one retrieval of eight may fail.
    assert objective.terms["damsm_sentence_accuracy"] > 0.8 and objective.terms["damsm_word_accuracy"] > 0.5
