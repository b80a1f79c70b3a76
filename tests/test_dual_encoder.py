"""TReCS's dual encoder: its loss against a loop, what reaches which weights, what is compared, and that it learns."""

import math
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor, nn

from models.abilities import Matcher
from models.contract import Batch, Nets, Objective, StepContext, TextFeatures, parameter_count
from models.encoders.image import WeightsMissing
from models.encoders.trunk import ImageTrunkSettings
from models.losses.contrastive import contrast_scores, margin_contrast
from models.losses.damsm import same_class
from models.parallel import OneRank
from models.trecs.dual_encoder import DualEncoder, DualEncoderConfig, TextTower, retrieval_objective
from orchestration.config import first_problem
from orchestration.evaluation.metric import Asked, Seen
from orchestration.evaluation.recall import Recall
from tests.tiny import small_pretrained_nets, some_text

UNTRAINED = ImageTrunkSettings(name="efficientnet-lite0", weights="random", side=32)
SMALL: dict[str, Any] = {
    "text_dim": 8,
    "heads": 2,
    "hidden_dim": 7,
    "transformer_dim": 12,
    "joint_dim": 6,
    "resolution": 32,
    "trunk": UNTRAINED,
}
BATCH, STEPS = 6, 600


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**changes: Any) -> DualEncoderConfig:
    return DualEncoderConfig(**(SMALL | changes))


def built(config: DualEncoderConfig, seed: int = 0) -> dict[str, nn.Module]:
    """In training mode, on a pretrained net of one convolution."""
    torch.manual_seed(seed)
    with small_pretrained_nets():
        nets = DualEncoder().build(config)
    return {name: net.train() for name, net in nets.items()}


def some_batch(rows: int = BATCH, seed: int = 0) -> Batch:
    return Batch(torch.arange(rows), numbers(rows, 3, 32, 32, seed=seed).tanh(), some_text(rows, seed=seed))


def context(ranks: Any = None, rows: int = BATCH) -> StepContext:
    return StepContext(ranks or OneRank(), lambda width: numbers(rows, width, seed=5))


def objective(config: DualEncoderConfig, nets: Nets, batch: Batch, ranks: Any = None) -> Objective:
    [phase] = DualEncoder().phases(config)
    assert phase.trains == ("text", "image")
    found = phase.losses(nets, batch, context(ranks, len(batch.image_ids)))
    assert found["text"] is found["image"]
    return found["text"]


def plain_loss(scores: Tensor, margin: float = 0.0, excluded: Tensor | None = None) -> tuple[float, float]:
    """Mean -log softmax of the true pair, of rows and of columns, one at a time."""
    count = len(scores)
    table = [[scores[i, j].item() - margin * (i == j) for j in range(count)] for i in range(count)]
    out = [[excluded is not None and bool(excluded[i, j]) for j in range(count)] for i in range(count)]
    rows = columns = 0.0
    for i in range(count):
        row = sum(math.exp(table[i][j]) for j in range(count) if not out[i][j])
        column = sum(math.exp(table[j][i]) for j in range(count) if not out[j][i])
        rows += (math.log(row) - table[i][i]) / count
        columns += (math.log(column) - table[i][i]) / count
    return rows, columns


class TestLoss:
    @pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
    def test_it_is_the_mean_of_both_directions(self, margin: float) -> None:
        scores = 2 * numbers(5, 5).double()
        rows, columns = plain_loss(scores, margin)
        assert abs(rows - columns) > 0.01
        assert margin_contrast(scores, margin).loss.item() == pytest.approx((rows + columns) / 2, rel=1e-12)

    def test_a_margin_handicaps_the_true_pair(self) -> None:
        """One worth as much as all it is compared with has a loss as if it were so much worse; accuracy stays."""
        scores = numbers(5, 5).double() + 3 * torch.eye(5, dtype=torch.float64)
        losses = [margin_contrast(scores, margin).loss.item() for margin in (0.0, 0.5, 5.0)]
        assert losses[0] < losses[1] - 0.01 < losses[2] - 1
        plain, far = margin_contrast(scores), margin_contrast(scores, 9.0)
        assert plain.accuracy == far.accuracy > 0.5 and plain.entropy == far.entropy
        without = margin_contrast(scores - 0.5 * torch.eye(5)).loss.item()
        assert losses[1] == pytest.approx(without, rel=1e-12)

    def test_excluded_pairs_are_neither_true_nor_false(self) -> None:
        scores, ids = 2 * numbers(6, 6).double(), torch.tensor([4, 7, 4, 9, 9, 4])
        excluded = same_class(ids)
        assert int(excluded.sum()) == 8 and not excluded.diagonal().any()
        rows, columns = plain_loss(scores, 0.2, excluded)
        assert margin_contrast(scores, 0.2, excluded).loss.item() == pytest.approx((rows + columns) / 2, rel=1e-12)
        assert margin_contrast(scores, 0.2).loss > margin_contrast(scores, 0.2, excluded).loss + 0.01

    def test_the_released_weights_are_halves(self) -> None:
        scores = numbers(4, 4)
        assert margin_contrast(scores).loss == contrast_scores(scores).loss / 2

    @pytest.mark.parametrize("mask", [True, False])
    def test_of_vectors_by_dot_product(self, mask: bool) -> None:
        pictures, narratives, ids = numbers(5, 6), numbers(5, 6, seed=1), torch.tensor([3, 1, 3, 2, 5])
        config = small(margin=0.4, mask_same_image=mask)
        rows, columns = plain_loss(pictures @ narratives.t(), 0.4, same_class(ids) if mask else None)
        found = retrieval_objective(config, pictures, narratives, ids)
        assert found.loss.item() == pytest.approx((rows + columns) / 2, rel=1e-5)
        assert found.terms["retrieval"] == found.loss and not found.terms["retrieval"].requires_grad
        assert 0 <= found.terms["retrieval_accuracy"] <= 1

    def test_of_vectors_by_cosine(self) -> None:
        """The margin is the cosine's, and is scaled with it."""
        pictures, narratives = numbers(5, 6), 4 * numbers(5, 6, seed=1)
        cosines = torch.cosine_similarity(pictures[:, None], narratives[None], dim=2)
        rows, columns = plain_loss(7 * (cosines - 0.3 * torch.eye(5)))
        config = small(similarity="cosine", scale=7.0, margin=0.3)
        found = retrieval_objective(config, pictures, narratives, torch.arange(5)).loss.item()
        assert found == pytest.approx((rows + columns) / 2, rel=1e-5)

    def test_half_precision_is_scored_in_full(self) -> None:
        pictures, narratives = (numbers(5, 6, seed=seed).bfloat16() for seed in (0, 1))
        with torch.autocast("cpu", torch.bfloat16):
            found = retrieval_objective(small(), pictures, narratives, torch.arange(5)).loss
        assert found.dtype == torch.float32
        assert found == retrieval_objective(small(), pictures.float(), narratives.float(), torch.arange(5)).loss


@dataclass
class Watched:
    """One rank that says what it gathers."""

    seen: list[Tensor]
    rank: int = 0
    size: int = 1

    def gather(self, local: Tensor) -> Tensor:
        self.seen.append(local)
        return local


@dataclass
class Half:
    """The second of two ranks; the first one's rows are known, with their gradient."""

    whole: list[Tensor]
    rank: int = 1
    size: int = 2

    def gather(self, local: Tensor) -> Tensor:
        """Of those that were gathered with everything, the one whose last rows these are."""
        [found] = [
            tensor
            for tensor in self.whole
            if tensor.shape[1:] == local.shape[1:]
            and tensor.dtype == local.dtype
            and torch.allclose(tensor[-len(local) :].double(), local.double(), atol=1e-5)
        ]
        return found


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_rank_with_half_of_the_batch_has_the_loss_of_all(similarity: str) -> None:
    """So the mean over ranks is the loss of one with everything, and so are the gradients."""
    config = small(similarity=similarity, margin=0.1)
    nets, batch = built(config), replace(some_batch(), image_ids=torch.tensor([1, 2, 3, 4, 5, 1]))
    seen: list[Tensor] = []
    alone = objective(config, nets, batch, Watched(seen))
    assert len(seen) == 3
    longest = [nets[name].longest.clone() for name in ("text", "image")]  # type: ignore[operator]
    half = objective(config, built(config), batch[3:], Half(seen))
    torch.testing.assert_close(half.loss, alone.loss)
    assert half.loss != objective(config, built(config), batch[3:]).loss
    again = [net.longest for net in (nets["text"], nets["image"])]
    assert all(bool(one == other) for one, other in zip(longest, again, strict=True))


class TestNets:
    def test_it_is_a_matcher_and_names_what_it_needs(self) -> None:
        part, config = DualEncoder(), DualEncoderConfig()
        assert isinstance(part, Matcher) and not hasattr(part, "sample")
        assert part.needs == {"images", "narratives"} and part.reads == {"features"}
        assert part.transform == "xmcgan" and part.averages(config) == {} and part.stages(config) == {}
        assert (part.text_dim(config), part.resolution(config)) == (768, 299)
        assert part.optimizers(config) == dict.fromkeys(("text", "image"), config.optimizer)
        rates = config.optimizer
        assert (rates.learning_rate, rates.decay, rates.gradient_norm) == (1e-4, 0.998, 1.0)

    def test_defaults_on_meta_have_their_size(self) -> None:
        """The text tower by its formula, Inception-v3 by its published size without the classifiers."""
        with torch.device("meta"):
            nets = DualEncoder().build(DualEncoderConfig())
        assert all(tensor.is_meta for net in nets.values() for tensor in (*net.parameters(), *net.buffers()))
        assert nets.keys() == {"text", "image"}
        c = d = 768
        f, j = 128, 2048
        layer = 2 * (2 * d) + (d * 3 * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d)
        assert parameter_count(nets["text"]) == (c * d + d) + layer + 2 * d + (d * j + j)
        assert parameter_count(nets["image"]) == 21_785_568 + 2048 * j + j

    def test_layers_and_widths_are_as_asked_for(self) -> None:
        tower = TextTower(small(layers=3))
        c, d, f, j = 8, 12, 7, 6
        layer = 4 * d + 4 * (d * d + d) + (d * f + f) + (f * d + d)
        assert parameter_count(tower) == (c * d + d) + 3 * layer + 2 * d + (d * j + j)
        assert tower.noise_width(5) == 2 * 3 * 5 * d

    def test_the_pictures_net_is_fine_tuned_and_features_are_not(self) -> None:
        """With the packaged net itself: every weight is reached, statistics stay, and none is left over."""
        pytest.importorskip("efficientnet_lite_pytorch", reason="the offline image trunk is not installed")
        config = small()
        torch.manual_seed(0)
        nets = {name: net.train() for name, net in DualEncoder().build(config).items()}
        batch = some_batch()
        text = batch.text
        assert text is not None
        before = {name: value.clone() for name, value in nets["image"].named_buffers() if "running" in name}
        loss = objective(config, nets, batch).loss
        for name, net in nets.items():
            found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
            assert all(gradient is not None for gradient in found), name
            assert all(bool(gradient.abs().sum() > 0) for gradient in found[:1] if gradient is not None)
        assert len(before) > 80
        assert all(value.equal(before[name]) for name, value in nets["image"].named_buffers() if name in before)
        assert not text.words.requires_grad and text.words.grad is None

    def test_a_frozen_net_is_apart_and_does_not_learn(self) -> None:
        config = small(fine_tuned=False)
        nets = built(config)
        assert nets.keys() == {"text", "image", "trunk"} and DualEncoder().optimizers(config).keys() == {
            "text",
            "image",
        }
        assert [name for name, _ in nets["image"].named_parameters()] == ["projection.weight", "projection.bias"]
        assert not any(parameter.requires_grad for parameter in nets["trunk"].parameters())
        assert objective(config, nets, some_batch()).loss.requires_grad
        tuned = built(small())
        missing, unknown = tuned["image"].load_state_dict(nets["image"].state_dict(), strict=False)
        assert not unknown and all(name.startswith("trunk.") for name in missing)
        part, images = DualEncoder(), numbers(3, 3, 32, 32)
        assert part.embed_images(nets, images).equal(part.embed_images(tuned, images))

    def test_weights_come_back_from_files(self) -> None:
        config, part, batch = small(), DualEncoder(), some_batch()
        nets, other = built(config), built(config, seed=1)
        objective(config, nets, batch)
        for name, net in nets.items():
            other[name].load_state_dict(
                load(save({key: value.contiguous() for key, value in net.state_dict().items()}))
            )
        for ours, theirs in zip(part.embed(nets, batch), part.embed(other, batch), strict=True):
            assert ours.equal(theirs) and not ours[:, -2:].eq(0).all()

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_padding_and_neighbours_change_nothing(self, pooling: str) -> None:
        config, part = small(pooling=pooling, layers=2), DualEncoder()
        nets, text = built(config), some_text(5)
        words = text.words.clone()
        words[text.padding()] = math.nan
        longer = nn.functional.pad(words, (0, 0, 0, 4), value=9.0)
        found = part.embed_captions(nets, text)
        torch.testing.assert_close(part.embed_captions(nets, replace(text, words=longer)), found)
        alone = part.embed_captions(nets, TextFeatures(text.words[:1], text.lengths[:1], text.sentence[:1]))
        torch.testing.assert_close(alone, found[:1])
        changed = text.words.clone()
        changed[torch.arange(5), text.lengths - 1] += 1
        assert (part.embed_captions(nets, replace(text, words=changed)) - found).abs().amax(1).min() > 0

    def test_pooling_takes_the_first_token_or_the_mean(self) -> None:
        """Two layers' worth of nothing: with attention and feed-forward silent, each token is only normalised."""
        text = some_text(4)
        for pooling in ("cls", "mean"):
            tower = TextTower(small(pooling=pooling))
            for layer in tower.layers:
                for silent in (layer.attended, layer.fed):
                    nn.init.zeros_(silent.weight)  # type: ignore[union-attr, arg-type]
                    nn.init.zeros_(silent.bias)  # type: ignore[union-attr, arg-type]
            tokens = tower.norm(tower.input(text.words))
            rows = [tokens[row, : 1 if pooling == "cls" else int(text.lengths[row])].mean(0) for row in range(4)]
            torch.testing.assert_close(tower(text), tower.projection(torch.stack(rows)))

    def test_dropout_follows_the_noise_and_only_in_training(self) -> None:
        config = small(dropout=0.5, layers=2)
        nets, batch, part = built(config), some_batch(), DualEncoder()
        first, again = (objective(config, nets, batch).loss for _ in range(2))
        assert first == again
        [phase] = part.phases(config)
        other = phase.losses(nets, batch, StepContext(OneRank(), lambda width: numbers(BATCH, width, seed=6)))
        assert other["text"].loss != first
        still = objective(small(layers=2), nets, batch).loss  # no noise: torch's own generator decides
        assert still != objective(small(layers=2), nets, batch).loss
        captions = [part.embed_captions(nets, batch.text) for _ in range(2) if batch.text]
        assert captions[0].equal(captions[1]) and nets["text"].training
        assert captions[0].equal(part.embed_captions(_copied(nets, built(small(layers=2))), some_batch().text))  # type: ignore[arg-type]

    def test_without_weights_it_says_so(self) -> None:
        with pytest.raises(
            WeightsMissing, match=r"inception-v3 needs its ImageNet weights by path: set trunk\.weights"
        ):
            DualEncoder().build(DualEncoderConfig())


def _copied(nets: Nets, others: Nets) -> Nets:
    for name, net in nets.items():
        others[name].load_state_dict(net.state_dict())
    return others


class TestComparable:
    def trained(self, similarity: str) -> tuple[DualEncoder, dict[str, nn.Module]]:
        """Nets that have seen a batch, whose vectors are of very different lengths."""
        config = small(similarity=similarity)
        nets = built(config)
        with torch.no_grad():
            for name in ("text", "image"):
                nets[name].projection.weight *= 3  # type: ignore[union-attr, operator]
        objective(config, nets, some_batch(40))
        return DualEncoder(), nets

    def test_dot_products_stay_and_lengths_are_even(self) -> None:
        part, nets = self.trained("dot")
        batch = some_batch(30, seed=3)
        assert batch.images is not None and batch.text is not None
        pictures, narratives = part.embed(nets, batch)
        assert pictures.shape == narratives.shape == (30, 8) and not pictures.requires_grad
        with torch.no_grad():
            for net in nets.values():
                net.eval()
            raw = nets["image"](nets["image"].trunk(batch.images).pooled), nets["text"](batch.text)  # type: ignore[operator]
        trained = raw[0] @ raw[1].t()
        torch.testing.assert_close(pictures @ narratives.t(), trained)
        for vectors, plain in zip((pictures, narratives), raw, strict=True):
            lengths, before = vectors.norm(dim=1), plain.norm(dim=1)
            torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))
            assert before.max() > 1.05 * before.min()
        cosines = torch.cosine_similarity(pictures[:, None], narratives[None], dim=2)
        distances = torch.cdist(pictures, narratives)
        for dim in (0, 1):
            assert cosines.argmax(dim).equal(trained.argmax(dim))
            assert distances.argmin(dim).equal(trained.argmax(dim))
        # So that the comparison can fail: the cosine of the plain vectors finds others.
        plain_cosines = torch.cosine_similarity(raw[0][:, None], raw[1][None], dim=2)
        assert not plain_cosines.argmax(1).equal(trained.argmax(1)) or not plain_cosines.argmax(0).equal(
            trained.argmax(0)
        )

    def test_the_longest_is_that_of_all_batches(self) -> None:
        config = small()
        nets = built(config)
        sizes = []
        for seed in range(3):
            objective(config, nets, some_batch(seed=seed))
            sizes.append([float(nets[name].longest) for name in ("text", "image")])  # type: ignore[arg-type]
        assert all(later >= earlier > 0 for pair in zip(*sizes, strict=True) for earlier, later in pairwise(pair))
        assert len({tuple(row) for row in sizes}) > 1

    def test_too_long_vectors_keep_their_products(self) -> None:
        _, nets = self.trained("dot")
        tower: Any = nets["image"]
        vectors = numbers(3, 6) * 100 * tower.longest
        found = tower.comparable(vectors, first=True)
        assert found[:, :6].equal(vectors) and found[:, 6:].eq(0).all()

    def test_cosines_are_of_unit_vectors(self) -> None:
        part, nets = self.trained("cosine")
        for vectors in part.embed(nets, some_batch()):
            assert vectors.shape == (BATCH, 6)
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(BATCH))
        assert all(float(net.longest) == 0 for net in nets.values())  # type: ignore[arg-type]

    def test_modes_are_left_as_they_were(self) -> None:
        part, nets = self.trained("dot")
        part.embed(nets, some_batch())
        assert nets["image"].training and nets["text"].training
        assert not any(module.training for module in nets["image"].trunk.net.modules())  # type: ignore[union-attr]


class TestSettings:
    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (
                {"transformer_dim": 100},
                "transformer_dim 100 cannot be divided among 8 heads: make it a multiple of 8",
            ),
            ({"heads": 0}, "heads: input should be greater than or equal to 1, not 0"),
            ({"dropout": 1.0}, "dropout: input should be less than 1, not 1.0"),
            ({"margin": -0.1}, "margin: input should be greater than or equal to 0, not -0.1"),
            ({"margin": math.nan}, "margin: input should be a finite number, not nan"),
            ({"pooling": "last"}, "pooling: input should be 'cls' or 'mean', not 'last'"),
            ({"similarity": "l2"}, "similarity: input should be 'dot' or 'cosine', not 'l2'"),
            ({"scale": 0}, "scale: input should be greater than 0, not 0"),
            ({"resolution": 16}, "resolution: input should be greater than or equal to 32, not 16"),
            ({"joint": 3}, "joint: extra inputs are not permitted, not 3"),
        ],
    )
    def test_wrong_ones_are_said(self, wrong: dict[str, Any], said: str) -> None:
        with pytest.raises(ValidationError) as caught:
            DualEncoderConfig(**wrong)
        assert first_problem(caught.value) == said

    def test_every_field_is_described(self) -> None:
        assert all(info.description for info in DualEncoderConfig.model_fields.values())


SETS = np.random.default_rng(0).permutation(np.array(list(combinations(range(10), 4))))
TAUGHT = 150
COLOURS, NAMES = numbers(10, 3, seed=8).tanh(), numbers(11, 8, seed=9)


def told_pictures(sets: NDArray[np.int64], seed: int) -> Batch:
    """Pictures of 4 colours, each in 4 of 16 squares at random, that are told by the names of the colours in any order,
    behind a first token that is always the same."""
    generator, count = np.random.default_rng(seed), len(sets)
    squares = torch.from_numpy(generator.permuted(sets.repeat(4, 1), axis=1)).view(count, 4, 4)
    pixels = COLOURS[squares].permute(0, 3, 1, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    named = np.concatenate([np.full((count, 1), 10), generator.permuted(sets, axis=1)], 1)
    words = NAMES[torch.from_numpy(named)]
    text = TextFeatures(words, torch.full((count,), 5), words.mean(1))
    return Batch(torch.arange(count), pixels + 0.05 * numbers(count, 3, 32, 32, seed=seed), text)


def recalls(nets: Nets, held_out: Batch) -> dict[str, float]:
    picture, caption = DualEncoder().embed(nets, held_out)
    metric, places = Recall(), held_out.image_ids.numpy()
    arrays = {"damsm/picture": picture.numpy(), "damsm/caption": caption.numpy()}
    metric.update_real(Seen(Asked(places, places, places, places, [""] * len(places)), arrays))
    return {result.figure: result.estimate.value for result in metric.compute()}


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_it_learns_to_find_pictures_it_never_saw(similarity: str) -> None:
    """Among 60 pictures of sets of colours that it was never shown: chance 1/60 and 5/60."""
    config = small(similarity=similarity, transformer_dim=32, hidden_dim=64, joint_dim=32, margin=0.1, scale=20.0)
    nets, held_out = built(config), told_pictures(SETS[TAUGHT:], seed=10**6)
    [phase] = DualEncoder().phases(config)
    before = recalls(nets, held_out)
    optimizers = [torch.optim.Adam(net.parameters(), 3e-3) for net in nets.values()]
    for step in range(STEPS):
        shown = np.random.default_rng(step).permutation(TAUGHT)[:32]
        batch = told_pictures(SETS[shown], seed=step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        phase.losses(nets, batch, context(rows=32))["text"].loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    after = recalls(nets, held_out)
    for way in ("caption-to-image", "image-to-caption"):
        assert before[f"recall/{way}@1"] < 0.1
        assert after[f"recall/{way}@1"] > 0.4 and after[f"recall/{way}@5"] > 0.8, (before, after)
