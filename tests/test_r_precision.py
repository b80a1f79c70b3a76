"""R-precision: encoders whose worth is known, pools, ties, and results that do not depend on who saw what."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.evaluation.estimates import Estimate, figures, share
from orchestration.evaluation.metric import Asked, Metric, Seen
from orchestration.evaluation.r_precision import (
    PROTOCOLS as DESCRIBED,
)
from orchestration.evaluation.r_precision import (
    RPrecision,
    cosines,
    draw_others,
    most_others,
    true_ranks,
)

COUNT, WIDTH = 120, 16
PROTOCOLS = ["1+99", "1+12", "1+12-other-classes", "batch-100", "batch-8"]
CLASSES = np.arange(COUNT) % 7


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def vectors(seed: int, count: int = COUNT) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def seen(
    places: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    pictures: Tensor,
    captions: Tensor,
    class_ids: NDArray[np.int64] | None = None,
    view: str = "damsm",
) -> Seen:
    classes = image_ids if class_ids is None else class_ids
    asked = Asked(places, image_ids, classes, image_ids, [f"caption {place}" for place in places])
    return Seen(asked, {f"{view}/picture": pictures.numpy(), f"{view}/caption": captions.numpy()})


def judged(protocol: str, pictures: Tensor, captions: Tensor, seed: int = 0, **options: Any) -> RPrecision:
    """A metric that saw one picture of each image, all at once."""
    metric = RPrecision(protocol, seed, **options)
    places = np.arange(len(pictures))
    metric.update(seen(places, 10 * places, pictures, captions, CLASSES[: len(places)], metric.view))
    return metric


def values(metric: RPrecision) -> dict[str, Estimate]:
    return {result.figure: result.estimate for result in metric.compute()}


def tops(metric: RPrecision) -> list[float]:
    return [result.estimate.value for result in metric.compute()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestKnownEncoders:
    def test_a_perfect_encoder_is_always_right(self, protocol: str) -> None:
        found = judged(protocol, vectors(0), 3 * vectors(0))
        assert tops(found) == [1.0, 1.0, 1.0]

    def test_one_vector_for_everything_is_at_most_chance(self, protocol: str) -> None:
        assert tops(judged(protocol, vectors(0)[:1].repeat(COUNT, 1), vectors(1)[:1].repeat(COUNT, 1))) == [0, 0, 0]
        assert tops(judged(protocol, vectors(0), vectors(1)[:1].repeat(COUNT, 1))) == [0, 0, 0]
        assert tops(judged(protocol, torch.zeros(COUNT, WIDTH), torch.zeros(COUNT, WIDTH))) == [0, 0, 0]

    def test_a_constant_with_rounding_is_at_most_chance(self, protocol: str) -> None:
        """Batches of other sizes round otherwise."""
        captions = vectors(1)[:1].repeat(COUNT, 1) * (1 + 1e-7 * torch.arange(COUNT)[:, None] / COUNT)
        assert tops(judged(protocol, vectors(0), captions)) == [0, 0, 0]

    def test_numbers_that_are_none_are_wrong(self, protocol: str) -> None:
        assert tops(judged(protocol, vectors(0) * torch.nan, vectors(0))) == [0, 0, 0]

    def test_an_encoder_that_knows_nothing_is_at_chance(self, protocol: str) -> None:
        found = judged(protocol, vectors(0), vectors(1))
        listed = 12 + 1 if protocol.startswith("1+12") else int(protocol.removeprefix("batch-").removeprefix("1+"))
        for top, estimate in enumerate(values(found).values(), start=1):
            assert estimate.low <= top / listed + 0.03
            assert estimate.high >= top / listed - 0.03

    def test_the_true_caption_is_last_for_one_that_is_wrong(self, protocol: str) -> None:
        ranks = judged(protocol, vectors(0), -vectors(0)).ranks()
        wrong = int(protocol.removeprefix("batch-").removeprefix("1+").partition("-")[0]) - protocol.startswith("b")
        assert (ranks > 0.8 * wrong).mean() > 0.9


class TestRanks:
    def test_a_tie_goes_against_the_true_caption(self) -> None:
        scores = torch.tensor([[0.5, 0.5, 0.4], [0.5, 0.5 - 1e-7, 0.6], [0.5, 0.49, 0.4], [0.5, torch.nan, 0.1]])
        assert true_ranks(scores).tolist() == [1, 2, 0, 1]

    def test_cosines_do_not_depend_on_lengths(self) -> None:
        pictures, captions = vectors(0, 3), vectors(1, 12).view(3, 4, WIDTH)
        expected = torch.nn.functional.cosine_similarity(pictures[:, None].double(), captions.double(), dim=2)
        assert torch.allclose(cosines(7 * pictures, 0.1 * captions), expected)

    def test_they_are_the_loop_anyone_would_write(self) -> None:
        pictures, captions = vectors(2), vectors(2) + 2.5 * vectors(3)
        places = np.arange(COUNT)
        others = draw_others(places, 10 * places, 10 * places, 99, seed=5)
        expected = []
        for place in places:
            own = torch.cosine_similarity(pictures[place], captions[place], dim=0)
            wrong = [torch.cosine_similarity(pictures[place], captions[other], dim=0) for other in others[place]]
            expected.append(sum(bool(score >= own) for score in wrong))
        metric = judged("1+99", pictures, captions, seed=5)
        assert metric.ranks().tolist() == expected
        found = values(metric)
        assert list(found) == [f"r_precision/1+99/top-{top}" for top in (1, 2, 3)]
        assert [each.value for each in found.values()] == [
            np.mean([rank < top for rank in expected]) for top in (1, 2, 3)
        ]
        assert 0 < found["r_precision/1+99/top-1"].value < found["r_precision/1+99/top-3"].value < 1
        assert {each.count for each in found.values()} == {COUNT}

    def test_a_top_that_holds_every_caption_says_nothing(self) -> None:
        assert list(values(judged("1+2", vectors(0), vectors(1)))) == [f"r_precision/1+2/top-{top}" for top in (1, 2)]
        assert list(values(judged("batch-2", vectors(0), vectors(1)))) == ["r_precision/batch-2/top-1"]

    def test_many_pictures_are_ranked_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for protocol in PROTOCOLS:
            whole = judged(protocol, vectors(0), vectors(0) + 2 * vectors(1)).ranks()
            with monkeypatch.context() as patch:
                patch.setattr("orchestration.evaluation.r_precision.CHUNK_NUMBERS", 5000)
                assert np.array_equal(judged(protocol, vectors(0), vectors(0) + 2 * vectors(1)).ranks(), whole)


class TestPools:
    @settings(max_examples=40, deadline=None)
    @given(
        images=st.lists(st.integers(0, 12), min_size=2, max_size=60),
        classes=st.integers(1, 13),
        first=st.integers(0, 10**6),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_no_caption_is_of_the_own_image_or_class(
        self, images: list[int], classes: int, first: int, seed: int
    ) -> None:
        image_ids = np.array(images)
        for groups in (image_ids, image_ids % classes):
            count = most_others(image_ids, groups)
            positions = first + np.arange(len(images))
            with pytest.raises(RequestError):
                draw_others(positions, image_ids, groups, count + 1, seed)
            if not count:
                continue
            others = draw_others(positions, image_ids, groups, count, seed)
            assert others.shape == (len(images), count)
            assert not (groups[others] == groups[:, None]).any()
            assert not (image_ids[others] == image_ids[:, None]).any()
            # One caption an image: each image is at most once among the wrong ones.
            assert all(len(set(image_ids[row])) == count for row in others)

    def test_most_others_without_classes(self) -> None:
        assert most_others(np.array([4, 4, 9, 1])) == 2
        assert most_others(np.array([4, 4])) == 0

    def test_every_other_caption_is_as_likely(self) -> None:
        places = np.arange(40)
        others = np.concatenate([draw_others(places, places, places, 10, seed) for seed in range(50)])
        times = np.bincount(others.reshape(-1), minlength=40)
        # 50 * 39 sets could hold each caption, with probability 10/39.
        assert abs(times - 500).max() < 5 * (50 * 39 * 10 / 39 * 29 / 39) ** 0.5

    def test_pictures_and_seeds_have_pools_of_their_own(self) -> None:
        places = np.arange(COUNT)
        pools = [draw_others(places, places, places, 9, seed) for seed in (1, 1, 2)]
        assert np.array_equal(pools[0], pools[1])
        assert (pools[0] != pools[2]).any(1).mean() > 0.9
        assert len({tuple(row) for row in pools[0].tolist()}) == COUNT
        assert np.array_equal(draw_others(places[60:], places[60:], places[60:], 9, 1), other_start(60))

    def test_the_seed_is_the_metrics(self) -> None:
        pictures, captions = vectors(0), vectors(0) + 3 * vectors(1)
        ranks = [judged("1+30", pictures, captions, seed).ranks() for seed in (1, 1, 2)]
        assert np.array_equal(ranks[0], ranks[1])
        assert not np.array_equal(ranks[0], ranks[2])

    def test_captions_of_the_own_class_do_not_compete(self) -> None:
        """Pictures and captions show their class and nothing more."""
        shown = torch.nn.functional.one_hot(torch.from_numpy(CLASSES)).float()
        assert tops(judged("1+99-other-classes", shown, shown)) == [1, 1, 1]
        assert tops(judged("1+99", shown, shown))[0] == 0

    def test_two_captions_of_one_image_are_no_rivals(self) -> None:
        """Each image twice, in one batch: its two captions say the same."""
        shown = vectors(0, 50).repeat(2, 1)
        image_ids = np.tile(np.arange(50), 2)
        for protocol in ("1+49", "batch-100"):
            metric = RPrecision(protocol)
            metric.update(seen(np.arange(100), image_ids, shown, shown))
            assert tops(metric) == [1, 1, 1]


def other_start(start: int) -> NDArray[np.int64]:
    """The same pool again, asked for otherwise."""
    places = np.arange(start, COUNT)
    return draw_others(places, 5 * places, 5 * places, 9, 1)


@st.composite
def portions(draw: st.DrawFn) -> tuple[list[list[list[int]]], list[int]]:
    """Positions dealt to workers in batches, in any order; and some that came to two workers."""
    order = draw(st.permutations(range(COUNT)))
    cuts = sorted(draw(st.sets(st.integers(1, COUNT - 1), max_size=9)))
    batches = [list(order[start:stop]) for start, stop in zip([0, *cuts], [*cuts, COUNT], strict=True)]
    owners = draw(st.lists(st.integers(0, 3), min_size=len(batches), max_size=len(batches)))
    workers: list[list[list[int]]] = [[], [], [], []]
    for batch, owner in zip(batches, owners, strict=True):
        workers[owner].append(batch)
    return workers, draw(st.lists(st.integers(0, COUNT - 1), max_size=5))


class TestWhoSawWhat:
    @settings(max_examples=30, deadline=None)
    @given(dealt=portions(), protocol=st.sampled_from(PROTOCOLS))
    def test_merged_parts_are_the_whole(self, dealt: tuple[list[list[list[int]]], list[int]], protocol: str) -> None:
        workers, twice = dealt
        pictures, captions = vectors(0), vectors(0) + 2 * vectors(1)
        metrics = []
        for batches in workers:
            metric = RPrecision(protocol, 3)
            for batch in [*batches, *([twice] if twice else [])]:
                places = np.array(batch)
                metric.update(seen(places, 10 * places, pictures[batch], captions[batch], CLASSES[batch]))
            metrics.append(metric)
        whole = metrics[0]
        for metric in metrics[1:]:
            whole.merge(metric)
        alone = judged(protocol, pictures, captions, 3)
        assert np.array_equal(whole.ranks(), alone.ranks())
        assert whole.compute() == alone.compute()

    def test_other_positions_than_from_zero(self) -> None:
        """batch-K: positions name the batches, and one that is not whole is left out."""
        metric = RPrecision("batch-50")
        places = np.arange(30, 130)
        metric.update(seen(places, places, vectors(0, 100), vectors(0, 100)))
        assert values(metric)["r_precision/batch-50/top-1"].count == 50

    def test_what_is_kept_is_not_the_views(self) -> None:
        """A portion's buffers may be used again."""
        shown = vectors(0, 8)
        metric = judged("1+7", shown, shown)
        shown.zero_()
        assert tops(metric) == [1, 1, 1]

    def test_it_is_a_metric(self) -> None:
        metric: Metric = RPrecision("1+99")
        assert (set(metric.looks_at), set(metric.looks_at_real), metric.plan) == ({"damsm"}, set(), "captions")
        result = judged("1+99", vectors(0), vectors(0)).compute()[0]
        assert (result.name, result.protocol, result.real, result.drawn) == ("r_precision", "1+99/top-1", 0, COUNT)

    def test_an_independent_encoder_is_in_the_protocol(self) -> None:
        found = judged("1+99", vectors(0), vectors(0), view="dual-clip")
        assert list(values(found)) == [f"r_precision/dual-clip/1+99/top-{top}" for top in (1, 2, 3)]
        assert found.looks_at == {"dual-clip"}
        with pytest.raises(ValueError, match="dual-clip/1\\+99 with seed 0 is not 1\\+99 with seed 0"):
            judged("1+99", vectors(0), vectors(0)).merge(found)

    def test_protocols_are_described(self) -> None:
        assert all(f"r_precision/{protocol}" in DESCRIBED for protocol in ("1+99", "1+99-other-classes", "batch-100"))


class TestTies:
    """What is said where ties decide."""

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_a_constant_encoder(self, protocol: str) -> None:
        results = judged(protocol, vectors(0), vectors(1)[:1].repeat(COUNT, 1)).compute()
        judged_pictures = results[0].drawn
        for result in results:
            assert (result.estimate.value, result.estimate.low, result.details["tied"]) == (0, 0, 1)
            assert f"in {judged_pictures} of {judged_pictures} pictures the encoder gives a wrong" in result.notes[0]

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_no_tie(self, protocol: str) -> None:
        for metric in (judged(protocol, vectors(0), vectors(0)), judged(protocol, vectors(0) * torch.nan, vectors(0))):
            assert all(result.notes == () and result.details == {"tied": 0} for result in metric.compute())

    def test_some(self) -> None:
        """Two images share a caption, and a third is beaten by it."""
        captions = vectors(0, 4)
        captions[1] = captions[0]
        pictures = captions.clone()
        pictures[2] = captions[0]
        result = judged("1+3", pictures, captions).compute()[0]
        assert result.estimate.value == 1 / 4
        assert result.details == {"tied": 1 / 2}
        assert result.notes[0].startswith("in 2 of 4 pictures")


class TestWrongUse:
    @pytest.mark.parametrize(
        "protocol",
        [
            "",
            "1+",
            "1+0",
            "2+99",
            "batch",
            "batch-0",
            "batch-1",
            "batch-8-other-classes",
            "1+99-classes",
            "1+9\n",
            "1+٣",
        ],
    )
    def test_a_protocol_that_is_none(self, protocol: str) -> None:
        with pytest.raises(
            RequestError, match="r_precision has no protocol .*: use 1\\+99, 1\\+99-other-classes or batch"
        ):
            RPrecision(protocol)

    def test_too_few_pictures(self) -> None:
        with pytest.raises(
            RequestError, match="99 captions that are wrong for image 0, .* have 39: judge more pictures"
        ):
            judged("1+99", vectors(0, 40), vectors(0, 40)).compute()
        with pytest.raises(RequestError, match=r"batch-100 needs a whole batch of 100 pictures, and 40 were judged"):
            judged("batch-100", vectors(0, 40), vectors(0, 40)).compute()
        with pytest.raises(RequestError, match=r"r_precision/1\+99 has no pictures to judge"):
            RPrecision("1+99").compute()

    def test_the_picture_that_lacks_captions_is_named(self) -> None:
        metric = RPrecision("1+2-other-classes")
        metric.update(seen(np.arange(4), np.arange(4) + 70, vectors(0, 4), vectors(0, 4), np.array([1, 2, 2, 2])))
        with pytest.raises(
            RequestError, match="2 captions that are wrong for image 71, and the pictures judged have 1"
        ):
            metric.compute()

    @pytest.mark.parametrize(
        ("places", "ids", "pictures", "captions"),
        [
            (3, 4, (4, 2), (4, 2)),
            (4, 3, (4, 2), (4, 2)),
            (4, 4, (4, 2), (5, 2)),
            (4, 4, (4, 2), (4, 3)),
            (4, 4, (4,), (4,)),
            (4, 4, (3, 2), (3, 2)),
        ],
    )
    def test_shapes_that_do_not_fit(
        self, places: int, ids: int, pictures: Sequence[int], captions: Sequence[int]
    ) -> None:
        with pytest.raises(ValueError, match="two \\(B,C\\) are wanted, not"):
            RPrecision().update(seen(np.arange(places), np.arange(ids), torch.ones(*pictures), torch.ones(*captions)))

    @pytest.mark.parametrize(("protocol", "seed"), [("1+9", 1), ("1+8", 0)])
    def test_other_protocols_are_not_merged(self, protocol: str, seed: int) -> None:
        with pytest.raises(
            ValueError, match=f"{protocol[:2]}.* with seed {seed} is not .*9 with seed 0".replace("+", ".")
        ):
            RPrecision("1+9", 0).merge(RPrecision(protocol, seed))


class TestShare:
    @pytest.mark.parametrize(
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        ("hits", "count", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_intervals_of_the_literature(self, hits: int, count: int, low: float, high: float) -> None:
        found = share(np.arange(count) < hits)
        assert (found.value, found.count) == (hits / count, count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)

    def test_all_right_is_certain_only_at_one_end(self) -> None:
        found = share(np.ones(20, np.bool_))
        assert (found.value, found.high) == (1, 1)
        assert found.low == pytest.approx(1 - 0.1611, abs=5e-5)

    def test_no_pictures(self) -> None:
        with pytest.raises(ValueError, match="no pictures to take a share of"):
            share(np.array([], np.bool_))

    def test_figures_keep_metric_and_protocol(self) -> None:
        assert figures({"r_precision/1+99/top-1": Estimate(0.5, 0.4, 0.6, 100)}) == {
            "r_precision/1+99/top-1": 0.5,
            "r_precision_low/1+99/top-1": 0.4,
            "r_precision_high/1+99/top-1": 0.6,
        }
