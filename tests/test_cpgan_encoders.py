"""CPGAN's text and image encoders and their matching against its equations, written again and slowly."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.contract import Regions
from models.cpgan.config import CPGANConfig, MemoryTextSettings
from models.cpgan.image import coarse
from models.cpgan.text import MemoryTextEncoder
from models.encoders.trunk import TrunkFeatures
from models.losses import damsm
from models.losses.damsm import MatchingSettings, matching_losses, own_attention, word_scores
from tests.test_cpgan_models import REGION_DIM, object_aware
from tests.test_damsm import slow_scores
from tests.tiny import some_text


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)


def some_boxes(counts: list[int], most: int = 6) -> Regions:
    """Random features of so many boxes a picture, padded with zeros."""
    found = Regions(
        torch.rand(len(counts), most, 4),
        torch.randn(len(counts), most, REGION_DIM),
        torch.rand(len(counts), most),
        torch.tensor(counts),
    )
    return replace(found, features=found.features.masked_fill(found.padding()[:, :, None], 0.0))


def some_features(count: int, side: int = 4) -> TrunkFeatures:
    return TrunkFeatures(torch.randn(count, 3, side, side), torch.randn(count, 12))


# The memory-attended text encoder


def memory_encoder(**changes: Any) -> MemoryTextEncoder:
    memory = torch.randn(11, REGION_DIM)
    memory[0] = 0
    values = {"embedding_dim": 5, "text_dim": 6, "memory_hidden_dim": 7, "memory_dim": 4, **changes}
    return MemoryTextEncoder(MemoryTextSettings(**values), memory)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    fusion=st.sampled_from(["paper", "released"]),
    sentence=st.sampled_from(["last_word", "final_states"]),
    seed=st.integers(0, 99),
)
def test_words_are_read_with_their_memories(lengths: list[int], fusion: str, sentence: str, seed: int) -> None:
    """Equations 8 and 9, one caption at a time."""
    torch.manual_seed(seed)
    net = memory_encoder(fusion=fusion, sentence=sentence).eval()
    tokens = torch.randint(1, 11, (len(lengths), 5))
    tokens[torch.arange(5)[None, :] >= torch.tensor(lengths)[:, None]] = 0
    text = net(tokens, torch.tensor(lengths))
    assert text.words.shape == (len(lengths), 5, 6) and not text.words[text.padding()].any()
    for row, length in enumerate(lengths):
        read = []
        for word in tokens[row, :length].tolist():
            hidden = net.memory_fc1.weight @ net.memory[word] + net.memory_fc1.bias
            projected = net.memory_fc2.weight @ torch.where(hidden > 0, hidden, 0.01 * hidden)
            if fusion == "paper":
                read.append(torch.cat([net.embedding.weight[word], projected + net.memory_fc2.bias]))
            else:
                assert net.memory_fc2.bias is None
                read.append(net.joint_proj.weight @ torch.cat([net.embedding.weight[word], projected]).tanh())
        states, (last, _) = net.lstm(torch.stack(read)[None])
        torch.testing.assert_close(text.words[row, :length], states[0])
        # w_T is what both directions say at the last word: the backward one has read no more than that.
        wanted = states[0, -1] if sentence == "last_word" else last[:, 0].flatten()
        torch.testing.assert_close(text.sentence[row], wanted)


@pytest.mark.parametrize(("fusion", "width"), [("paper", 9), ("released", 5)])
def test_dropout_follows_the_noise(fusion: str, width: int) -> None:
    net = memory_encoder(fusion=fusion, dropout=0.25).train()
    tokens, lengths = torch.randint(1, 11, (3, 4)), torch.tensor([4, 2, 3])
    assert net.noise_width(4) == 4 * width
    noise = torch.randn(3, 4 * width)
    text = net(tokens, lengths, noise)
    assert text.words.equal(net(tokens, lengths, noise).words)
    assert not text.words.equal(net(tokens, lengths, -noise).words)
    torch.testing.assert_close(net(tokens[1:2], lengths[1:2], noise[1:2]).words[0], text.words[1])
    assert net.eval()(tokens, lengths, noise).words.equal(net(tokens, lengths).words)


def test_the_memory_is_kept_but_not_trained() -> None:
    net = memory_encoder()
    assert net.state_dict()["memory"].equal(net.memory)
    assert "memory" not in dict(net.named_parameters())
    text = net(torch.randint(1, 11, (3, 4)), torch.tensor([4, 2, 3]))
    gradients = torch.autograd.grad(text.words.sum() + text.sentence.sum(), list(net.parameters()))
    assert all(gradient.any() for gradient in gradients)


# The object-aware image encoder


@pytest.mark.parametrize("order", ["objects_first", "grid_first"])
def test_regions_are_equation_10(order: str) -> None:
    encoder, features, boxes = object_aware(order=order), some_features(2), some_boxes([6, 2])
    embedding = encoder(features, boxes)
    weight = encoder.region_proj.weight[:, :, 0, 0]
    for b in range(2):
        objects = [encoder.object_proj.weight @ own + encoder.object_proj.bias for own in boxes.features[b]]
        grid = []
        for i, j in np.ndindex(2, 2):
            largest = features.regions[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((1, 2))
            grid.append(weight @ largest + encoder.region_proj.bias)
        both = [*objects, *grid] if order == "objects_first" else [*grid, *objects]
        torch.testing.assert_close(embedding.regions[b], torch.stack(both))
    missing = [[False] * 6, [False, False, True, True, True, True]]
    first = order == "objects_first"
    expected = [own + [False] * 4 if first else [False] * 4 + own for own in missing]
    assert embedding.absent is not None and embedding.absent.tolist() == expected
    torch.testing.assert_close(embedding.whole, encoder.pooled_proj(features.pooled))


def test_the_published_grid_is_8_by_8() -> None:
    regions = torch.randn(1, 2, 17, 17)
    pooled = coarse(regions, 8)
    assert pooled.shape == (1, 2, 8, 8)
    # 17 places in 8 overlapping parts: part i is from floor(17 i / 8) up to ceil(17 (i + 1) / 8).
    for i, j in np.ndindex(8, 8):
        rows, columns = (slice(17 * k // 8, -(-17 * (k + 1) // 8)) for k in (i, j))
        assert pooled[0, :, i, j].equal(regions[0, :, rows, columns].amax((1, 2)))
    assert coarse(regions, 17) is regions and coarse(regions, 20) is regions
    assert coarse(torch.randn(1, 2, 3, 9), 8).shape == (1, 2, 3, 8)


@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    order=st.sampled_from(["objects_first", "grid_first"]),
    root=st.booleans(),
    block=st.sampled_from([1, 2**21]),
    seed=st.integers(0, 99),
)
def test_missing_boxes_count_for_nothing(counts: list[int], order: str, root: bool, block: int, seed: int) -> None:
    """The score of a picture with padding is that with the padding cut off; without any box, that of the grid alone."""
    torch.manual_seed(seed)
    encoder, features, boxes = object_aware(order=order).double(), some_features(len(counts)), some_boxes(counts)
    features = TrunkFeatures(features.regions.double(), features.pooled.double())
    boxes = replace(boxes, features=boxes.features.double())
    text, setting = some_text(3), MatchingSettings(gamma2_root=root)
    embedding = encoder(features, boxes)
    regions = embedding.regions.detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(damsm, "BLOCK_ELEMENTS", block)
        scores = word_scores(regions, text.words.double(), text.padding(), setting, embedding.absent)
    slow = torch.cat(
        [
            slow_scores(
                own[~absent][None],
                [words[:length].double() for words, length in zip(text.words, text.lengths.tolist(), strict=True)],
                setting,
            )
            for own, absent in zip(regions, embedding.absent, strict=True)
        ]
    )
    torch.testing.assert_close(scores, slow, rtol=1e-9, atol=1e-9)
    weights = torch.randn(scores.shape, dtype=torch.float64)
    [found], [expected] = (torch.autograd.grad((weights * each).sum(), [regions]) for each in (scores, slow))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert not found[embedding.absent].any()
    attention = own_attention(
        regions[:1], text.words[:1].double(), text.padding()[:1], setting.gamma_1, embedding.absent[:1]
    )
    assert not attention[0, :, embedding.absent[0]].any()
    torch.testing.assert_close(attention.sum(2), (~text.padding()[:1]).double())


def test_tiscl_is_equations_14_to_25() -> None:
    """With their errata: gamma_3 R(I, D), the minus before both logarithms; and the mean over the batch, as AttnGAN."""
    text, encoder = some_text(4), object_aware()
    embedding = encoder(some_features(4), some_boxes([6, 0, 3, 1]))
    assert embedding.absent is not None
    g1, g2, g3 = 4.0, 5.0, 10.0
    words, sentence = torch.zeros(4, 4), torch.zeros(4, 4)
    for i in range(4):
        seen = embedding.regions[i][~embedding.absent[i]].t()  # V, D x regions
        for j, length in enumerate(text.lengths.tolist()):
            w = text.words[j, :length].t()  # D x T
            similar = w.t() @ seen
            similar = similar.exp() / similar.exp().sum(0)
            total = torch.zeros(())
            for t in range(length):
                alpha = (g1 * similar[t]).exp() / (g1 * similar[t]).exp().sum()
                context = (alpha * seen).sum(1)
                total = total + (g2 * (context @ w[:, t]) / (context.norm() * w[:, t].norm())).exp()
            words[i, j] = (total ** (1 / g2)).log()
            whole, s = embedding.whole[i], text.sentence[j]
            sentence[i, j] = whole @ s / (whole.norm() * s.norm())
    loss = torch.zeros(())
    for table in (words, sentence):
        raised = (g3 * table).exp()
        for i in range(4):
            loss = loss - ((raised[i, i] / raised[i].sum()).log() + (raised[i, i] / raised[:, i].sum()).log()) / 4
    found = matching_losses(embedding, text, CPGANConfig().matching)
    torch.testing.assert_close(found.loss, loss, rtol=1e-4, atol=1e-4)
