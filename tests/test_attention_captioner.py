"""The captioner with attention over regions: its equations by hand, regions that are missing, what it learns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.abilities import Captioner
from models.contract import NOTHING, Batch, Given, Regions, StageMissing, StepContext, Tokens, parameter_count
from models.cpgan.captioner import AttentionCaptioner, AttentionCaptionerConfig, TopDownCaptioner, frozen_captioner
from models.losses.captioning import caption_loss
from models.parallel import OneRank, Ranks
from tests.tiny import in_dtype

WORDS = 9
SMALL: dict[str, Any] = {
    "region_dim": 5,
    "embedding_dim": 4,
    "hidden_dim": 6,
    "attention_dim": 3,
    "region_scale": "none",
    "longest_description": 7,
}
CONFIG = AttentionCaptionerConfig(**SMALL)
PART = AttentionCaptioner()


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**changes: Any) -> TopDownCaptioner:
    return TopDownCaptioner(AttentionCaptionerConfig(**(SMALL | changes)), WORDS)


def some_regions(counts: list[int], places: int = 4, width: int = 5) -> Regions:
    """Random features; what stands at padding is no zero, so that it shows where it is read."""
    shape = len(counts), places
    return Regions(torch.rand(*shape, 4), torch.randn(*shape, width), torch.rand(shape), torch.tensor(counts))


def some_tokens(lengths: list[int], positions: int = 6) -> Tokens:
    ids = torch.randint(1, WORDS, (len(lengths), positions))
    taken = torch.tensor(lengths)
    return Tokens(ids.masked_fill(torch.arange(positions)[None, :] >= taken[:, None], 0), taken, "digest")


def a_batch(counts: list[int], lengths: list[int]) -> Batch:
    return Batch(torch.arange(len(counts)), tokens=some_tokens(lengths), regions=some_regions(counts))


def alone(noise: Tensor | None = None, ranks: Ranks | None = None) -> StepContext:
    def drawn(width: int) -> Tensor:
        assert noise is not None and noise.shape[1] == width
        return noise

    return StepContext(ranks or OneRank(), drawn)


def objective_of(net: TopDownCaptioner, batch: Batch, context: StepContext) -> Tensor:
    [phase] = PART.phases(net.config)
    return phase.losses({"captioner": net}, batch, context)["captioner"].loss


def lstm_by_hand(cell: torch.nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    gates = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
    keep_in, forget, new, out = gates.chunk(4)
    c = forget.sigmoid() * c + keep_in.sigmoid() * new.tanh()
    return out.sigmoid() * c.tanh(), c


def by_hand(net: TopDownCaptioner, tokens: list[int], features: list[Tensor]) -> tuple[list[Tensor], list[list[float]]]:
    """Equations 2 to 7 of one picture, one region and one word at a time."""
    hidden = net.config.hidden_dim
    h1, c1, h2, c2 = (torch.zeros(hidden) for _ in range(4))
    mean = sum(features, torch.zeros(net.config.region_dim)) / max(len(features), 1)
    logits, attention = [], []
    for word in [0, *tokens[:-1]]:
        h1, c1 = lstm_by_hand(net.attention_lstm, torch.cat([h2, mean, net.embedding.weight[word]]), h1, c1)
        scores = [
            net.score.weight[0] @ torch.tanh(net.region_proj.weight @ v + net.state_proj.weight @ h1) for v in features
        ]
        shares = torch.stack(scores).softmax(0).tolist() if scores else []
        attended = sum((a * v for a, v in zip(shares, features, strict=True)), torch.zeros(net.config.region_dim))
        h2, c2 = lstm_by_hand(net.language_lstm, torch.cat([attended, h1]), h2, c2)
        logits.append(net.word.weight @ h2 + net.word.bias)
        attention.append(shares)
    return logits, attention


class TestTheNet:
    def test_by_hand(self) -> None:
        with in_dtype(torch.float64):
            net, regions, tokens = small(), some_regions([4, 2, 0, 1]), some_tokens([6, 3, 2, 1])
            logits, attention = net(tokens.ids, regions), net.attend(tokens.ids, tokens.lengths, regions)
            assert logits.shape == (4, 6, WORDS) and attention.shape == (4, 6, 4)
            for row in range(4):
                features = list(regions.features[row, : regions.counts[row]])
                wanted, shares = by_hand(net, tokens.ids[row].tolist(), features)
                torch.testing.assert_close(logits[row], torch.stack(wanted))
                for step in range(6):
                    padded = [*shares[step], 0.0, 0.0, 0.0, 0.0][:4]
                    inside = step < int(tokens.lengths[row])
                    torch.testing.assert_close(attention[row, step], torch.tensor(padded if inside else [0.0] * 4))

    def test_a_word_is_told_from_the_words_before(self) -> None:
        net, regions, tokens = small(), some_regions([4, 3]), some_tokens([6, 6]).ids
        other = tokens.clone()
        other[:, 2] = other[:, 2] % (WORDS - 1) + 1
        logits, changed = net(tokens, regions), net(other, regions)
        assert changed[:, :3].equal(logits[:, :3])
        assert not torch.isclose(changed[:, 3:], logits[:, 3:]).all(2).any()

    def test_more_padding_changes_nothing(self) -> None:
        net, regions, tokens = small(), some_regions([4, 2, 0]), some_tokens([6, 4, 3])
        wide = replace(
            regions,
            boxes=F.pad(regions.boxes, (0, 0, 0, 3), value=0.5),
            features=F.pad(regions.features, (0, 0, 0, 3), value=1e6),
            scores=F.pad(regions.scores, (0, 3)),
        )
        torch.testing.assert_close(net(tokens.ids, wide), net(tokens.ids, regions))
        found = net.attend(tokens.ids, tokens.lengths, wide)
        assert found[..., 4:].eq(0).all() and found[1, :, 2:].eq(0).all()
        torch.testing.assert_close(found[0].sum(1), torch.ones(6))
        torch.testing.assert_close(found[..., :4], net.attend(tokens.ids, tokens.lengths, regions))

    @pytest.mark.parametrize("scale", ["none", "unit", "standard"])
    def test_pictures_without_regions_train(self, scale: str) -> None:
        net = small(region_scale=scale)
        batch = a_batch([0, 0], [3, 6])
        assert batch.regions is not None and batch.tokens is not None
        objective_of(net, batch, alone()).backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert net.attend(batch.tokens.ids, batch.tokens.lengths, batch.regions).eq(0).all()
        told = PART.describe({"captioner": net}, batch)
        # What is told is the same: there is nothing to tell them apart.
        assert told.shape == (2, 7) and told[0].equal(told[1]) and (told[:, 0] > 0).all()

    def test_scaled_regions_are_read_alike_whatever_their_scale(self) -> None:
        regions, tokens = some_regions([4, 3]), some_tokens([5, 6]).ids
        large = replace(regions, features=regions.features * 1000)
        shifted = replace(regions, features=regions.features * 1000 + 70)
        for scale, other, same in (
            ("none", large, False),
            ("unit", large, True),
            ("unit", shifted, False),
            ("standard", shifted, True),
        ):
            net = small(region_scale=scale)
            told = torch.allclose(net(tokens, regions), net(tokens, other), atol=1e-4)
            assert told is same, scale

    def test_regions_of_another_width(self) -> None:
        message = "model.region_dim is 5 but the regions have 64 features: set model.region_dim=64, or find"
        with pytest.raises(ValueError, match=message):
            small()(some_tokens([6, 6]).ids, some_regions([4, 4], width=64))

    def test_bfloat16(self) -> None:
        net, regions, tokens = small(), some_regions([4, 0, 2]), some_tokens([6, 2, 5])
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(tokens.ids, regions)
        torch.testing.assert_close(logits.float(), net(tokens.ids, regions), rtol=0.1, atol=0.05)

    def test_published_sizes(self) -> None:
        with torch.device("meta"):
            [net] = PART.build(AttentionCaptionerConfig(), Given(10_010)).values()
        hidden, embedding, attention, region, words = 1000, 1000, 512, 1024, 10_010
        lstms = sum(4 * hidden * (read + hidden + 2) for read in (hidden + region + embedding, region + hidden))
        looks = attention * (region + hidden + 1)
        assert parameter_count(net) == lstms + looks + words * embedding + words * (hidden + 1)


class TestDropout:
    def test_noise_decides_what_is_dropped(self) -> None:
        net, regions, tokens = small(dropout=0.5), some_regions([4, 3]), some_tokens([5, 6]).ids
        noise = torch.randn(2, net.noise_width(6))
        dropped = net(tokens, regions, noise)
        assert dropped.equal(net(tokens, regions, noise))
        assert not torch.isclose(dropped, net(tokens, regions, -noise)).all(2).any()
        whole = net.eval()(tokens, regions, noise)
        states, _ = net._read(tokens, regions)
        kept = (noise > 0).view_as(states)
        torch.testing.assert_close(dropped, net.word(states * kept * 2))
        torch.testing.assert_close(whole, net.word(states))

    def test_the_share_that_is_dropped(self) -> None:
        net = small(dropout=0.2)
        kept = net._drop(torch.ones(1000, 1, 6), torch.randn(1000, 6))
        assert set(kept.flatten().tolist()) == {0.0, 1.25}
        assert kept.eq(0).float().mean().item() == pytest.approx(0.2, abs=0.03)
        assert net._drop(torch.ones(1000, 1, 6), None).eq(0).float().mean().item() == pytest.approx(0.2, abs=0.03)


class HalfOfTwo:
    """The first of two ranks; gathers what it was told the other has."""

    rank, size = 0, 2

    def __init__(self, others: Tensor) -> None:
        self.others = others

    def gather(self, local: Tensor) -> Tensor:
        return torch.cat([local, (self.others + 1).clamp(max=6)])

    def average_(self, tensors: Any) -> None:
        raise AssertionError


class TestTheLoss:
    def test_the_end_is_learnt_where_there_is_room(self) -> None:
        batch = a_batch([4, 3, 1], [6, 3, 1])
        assert batch.tokens is not None and batch.regions is not None
        for learn_end, said in ((True, [6, 4, 2]), (False, [6, 3, 1])):
            net = small(learn_end=learn_end)
            logs = net(batch.tokens.ids, batch.regions).log_softmax(2)
            ids = batch.tokens.ids.tolist()
            each = [-logs[row, step, ids[row][step]] for row in range(3) for step in range(said[row])]
            torch.testing.assert_close(objective_of(net, batch, alone()), torch.stack(each).mean())

    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_two_ranks_give_the_gradient_of_one(self, dropout: float) -> None:
        with in_dtype(torch.float64):
            net, batch = small(dropout=dropout), a_batch([4, 0, 2, 3], [6, 1, 3, 5])
            noise = torch.randn(4, net.noise_width(6))
            whole = objective_of(net, batch, alone(noise))
            assert batch.tokens is not None
            halves = []
            for own, other in ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(0, 2))):
                context = alone(noise[own], HalfOfTwo(batch.tokens.lengths[other]))
                halves.append(objective_of(net, batch[own], context))
            together = torch.stack(halves).mean()
            torch.testing.assert_close(together, whole)
            found, wanted = (torch.autograd.grad(loss, list(net.parameters())) for loss in (together, whole))
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs)


SHAPES, FLAG = 4, 4
"""Of the toy pictures below: features are a one-hot shape, and a flag on the one region that the caption names."""


def toy(count: int) -> tuple[Batch, Tensor]:
    """Pictures with 2 to 5 regions, one of them flagged; captions "a SHAPE", or "the SHAPE here" for the last shape.
    Also the flagged place (B,)."""
    counts = torch.randint(2, 6, (count,))
    shapes = torch.randint(0, SHAPES, (count, 5))
    flagged = (torch.rand(count) * counts).long()
    features = F.one_hot(shapes, SHAPES + 1).float()
    rows = torch.arange(count)
    features[rows, flagged, FLAG] = 1.0
    named = shapes[rows, flagged]
    last = named == SHAPES - 1
    ids = torch.zeros(count, 5, dtype=torch.int64)
    ids[:, 0] = torch.where(last, 2, 1)
    ids[:, 1] = 4 + named
    ids[:, 2] = torch.where(last, 3, 0)
    regions = Regions(
        torch.rand(count, 5, 4), features + 0.05 * torch.randn_like(features), torch.rand(count, 5), counts
    )
    return Batch(rows, tokens=Tokens(ids, torch.where(last, 3, 2), "digest"), regions=regions), flagged


@pytest.fixture(scope="module")
def taught() -> TopDownCaptioner:
    torch.manual_seed(1)
    config = AttentionCaptionerConfig(**(SMALL | {"hidden_dim": 32, "attention_dim": 16, "embedding_dim": 8}))
    net = TopDownCaptioner(config, WORDS)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        objective_of(net, toy(64)[0], alone()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net


class TestWhatItLearns:
    def test_a_shape_is_said_where_it_looks(self, taught: TopDownCaptioner) -> None:
        batch, flagged = toy(300)
        assert batch.tokens is not None and batch.regions is not None
        attention = taught.eval().attend(batch.tokens.ids, batch.tokens.lengths, batch.regions)
        # Chance: one of 3.5 regions. What is read before the shape is said may have shown the flag already.
        looked = attention[:, :2].max(1).values.argmax(1)
        assert (looked == flagged).float().mean() > 0.95

    def test_descriptions_are_the_captions_and_end(self, taught: TopDownCaptioner) -> None:
        batch, _ = toy(300)
        assert batch.tokens is not None
        taught.train()
        told = PART.describe({"captioner": taught}, batch)
        assert taught.training
        assert told.shape == (300, 7) and told.dtype == torch.int64
        assert (told[:, :5] == batch.tokens.ids).all(1).float().mean() > 0.9
        assert told[:, 5:].eq(0).all()

    def test_each_word_is_the_likeliest_after_those_before(self) -> None:
        net, regions = small().eval(), some_regions([4, 0, 2])
        told = net.describe(regions)
        logits = net(told, regions)
        logits[:, 0, 0] = -torch.inf
        inside = (told == 0).cumsum(1) <= 1
        assert (logits.argmax(2) == told)[inside].all() and told[~inside].eq(0).all()

    def test_nothing_follows_the_end(self) -> None:
        net = small().eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter)
        net.word.bias.data[0] = 3.0
        regions = some_regions([4] * 60)
        told = net.describe(regions)
        after = (told == 0).cumsum(1) - (told == 0).int() > 0
        assert told[after].eq(0).all() and len(set(told.ne(0).sum(1).tolist())) > 2
        # Without the end's rule words would follow.
        assert net(told, regions).argmax(2)[after].ne(0).any()

    def test_a_description_has_a_word_and_no_more_than_the_longest(self) -> None:
        net, regions = small().eval(), some_regions([4, 2])
        net.word.bias.data[0] = 50.0
        assert net.describe(regions).ne(0).sum(1).tolist() == [1, 1]
        net.word.bias.data[0] = -50.0
        assert net.describe(regions).ne(0).all()


class TestThePart:
    def test_it_is_a_captioner(self) -> None:
        assert isinstance(PART, Captioner)
        assert PART.stages(CONFIG) == {"detector": "grid_detector"}
        assert (PART.text_dim(CONFIG), PART.resolution(CONFIG)) == (4, 256)
        assert PART.optimizers(CONFIG).keys() == {"captioner"} == PART.build(CONFIG, Given(WORDS)).keys()

    def test_no_vocabulary(self) -> None:
        with pytest.raises(ValueError, match="the captioner reads word indices but the vocabulary has 0 words"):
            PART.build(CONFIG, NOTHING)

    def test_terms(self) -> None:
        net, batch = small(), a_batch([4, 2], [3, 6])
        [phase] = PART.phases(CONFIG)
        objective = phase.losses({"captioner": net}, batch, alone())["captioner"]
        assert objective.terms.keys() == {"caption", "caption_accuracy"}
        assert 0 <= objective.terms["caption_accuracy"] <= 1
        assert batch.tokens is not None and batch.regions is not None
        direct = caption_loss(net(batch.tokens.ids, batch.regions), batch.tokens.ids, torch.tensor([4, 6]))
        assert objective.terms["caption"].equal(direct)


def trained_folder(folder: Path, net: TopDownCaptioner, **described: Any) -> Given:
    """As training leaves it."""
    part = {"system": PART.name, "model": net.config.model_dump(mode="json"), "longest": 6} | described
    (folder / "part.json").write_text(json.dumps(part))
    save_file(net.state_dict(), folder / "captioner.safetensors")
    return Given(WORDS, {"captioner": folder})


class TestFrozen:
    def test_it_is_the_trained_one(self, tmp_path: Path) -> None:
        net, regions, tokens = small(), some_regions([4, 2]), some_tokens([6, 6]).ids
        frozen = frozen_captioner(trained_folder(tmp_path, net), 256)
        assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
        assert frozen(tokens, regions).equal(net(tokens, regions))

    def test_on_meta(self, tmp_path: Path) -> None:
        given = trained_folder(tmp_path, small())
        with torch.device("meta"):
            nets = frozen_captioner(NOTHING, 256), frozen_captioner(given, 256)
        assert all(parameter.is_meta for net in nets for parameter in net.parameters())

    def test_without_the_stage(self) -> None:
        with pytest.raises(StageMissing, match="captioner comes from the trained stage 'captioner'"):
            frozen_captioner(Given(WORDS), 256)

    def test_regions_of_pictures_of_another_side(self, tmp_path: Path) -> None:
        given = trained_folder(tmp_path, small())
        with pytest.raises(ValueError, match=r"resolution is 64, but .* side 256: set resolution=256, or train"):
            frozen_captioner(given, 64)

    def test_another_vocabulary(self, tmp_path: Path) -> None:
        given = trained_folder(tmp_path, small())
        with pytest.raises(ValueError, match=r"'captioner' does not fit: embedding.weight .*the data's vocabulary"):
            frozen_captioner(replace(given, vocabulary_size=WORDS + 1), 256)

    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ({"system": "stream"}, "it holds the part 'stream', not 'attention_captioner'"),
            ({"model": {"speed": 3}}, "speed"),
            (None, "cannot be read"),
        ],
    )
    def test_another_part(self, tmp_path: Path, written: dict[str, Any] | None, said: str) -> None:
        given = trained_folder(tmp_path, small(), **(written or {}))
        if written is None:
            (tmp_path / "part.json").write_text("{")
        with pytest.raises(ValueError, match=said) as caught:
            frozen_captioner(given, 256)
        assert str(caught.value).endswith("train it again") and "\n" not in str(caught.value)
