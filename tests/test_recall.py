"""Recall@k: against a search that anyone would write, several captions of an image, ties, and who saw what."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.evaluation.estimates import share
from orchestration.evaluation.metric import Asked, Metric, Seen
from orchestration.evaluation.recall import KS, PROTOCOLS, Recall

WIDTH = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def vectors(seed: int, count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def seen(
    places: NDArray[np.int64], image_ids: NDArray[np.int64], pictures: Tensor, captions: Tensor, view: str = "damsm"
) -> Seen:
    asked = Asked(places, image_ids, image_ids, image_ids, [""] * len(places))
    return Seen(asked, {f"{view}/picture": pictures.numpy(), f"{view}/caption": captions.numpy()})


def pairs(owners: Sequence[int], noise: float, seed: int = 0) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """(N,) image ids, pictures (N,C) and captions (N,C): each caption is its picture with noise."""
    image_ids = 7 * np.array(owners)
    pictures = vectors(seed, max(owners) + 1)[list(owners)]
    return image_ids, pictures, pictures + noise * vectors(seed + 1, len(owners))


def recalled(owners: Sequence[int], noise: float, seed: int = 0, view: str = "damsm") -> Recall:
    metric = Recall(view)
    metric.update_real(seen(np.arange(len(owners)), *pairs(owners, noise, seed), view))
    return metric


def values(metric: Recall) -> dict[str, float]:
    return {result.figure: result.estimate.value for result in metric.compute()}


def brute_force(image_ids: NDArray[np.int64], pictures: Tensor, captions: Tensor) -> tuple[list[int], list[int]]:
    """Ranks in both directions, one cosine at a time."""
    images = sorted(set(image_ids.tolist()))
    first = {image: image_ids.tolist().index(image) for image in images}

    def cosine(image: int, caption: int) -> float:
        return float(torch.cosine_similarity(pictures[first[image]].double(), captions[caption].double(), dim=0))

    to_image = []
    for caption, own in enumerate(image_ids.tolist()):
        to_image.append(sum(cosine(image, caption) >= cosine(own, caption) - 1e-6 for image in images if image != own))
    to_caption = []
    for image in images:
        mine = [caption for caption in range(len(captions)) if image_ids[caption] == image]
        best = max(cosine(image, caption) for caption in mine)
        others = [caption for caption in range(len(captions)) if caption not in mine]
        to_caption.append(sum(cosine(image, caption) >= best - 1e-6 for caption in others))
    return to_image, to_caption


class TestRanks:
    @settings(max_examples=40, deadline=None)
    @given(
        owners=st.lists(st.integers(0, 9), min_size=2, max_size=24).filter(lambda owners: len(set(owners)) > 1),
        noise=st.sampled_from([0.0, 1.0, 3.0]),
        seed=st.integers(0, 10**6),
        chunk=st.sampled_from([1, 7, 10**6]),
    )
    def test_they_are_the_search_that_anyone_would_write(
        self, owners: list[int], noise: float, seed: int, chunk: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("orchestration.evaluation.recall.CHUNK_NUMBERS", chunk)
            to_image, to_caption = recalled(owners, noise, seed).ranks()
        expected = brute_force(*pairs(owners, noise, seed))
        assert (to_image.tolist(), to_caption.tolist()) == expected

    def test_figures_are_shares_of_ranks(self) -> None:
        metric = recalled([place % 120 for place in range(300)], 1.0)
        to_image, to_caption = metric.ranks()
        results = {result.figure: result for result in metric.compute()}
        assert list(results) == [
            *(f"recall/caption-to-image@{k}" for k in KS),
            *(f"recall/image-to-caption@{k}" for k in KS),
        ]
        for direction, ranks in (("caption-to-image", to_image), ("image-to-caption", to_caption)):
            found = [results[f"recall/{direction}@{k}"] for k in KS]
            assert [each.estimate for each in found] == [share(ranks < k) for k in KS]
            assert found[0].details == {"median_rank": np.median(ranks) + 1}
            assert found[0].estimate.count == len(ranks)
        assert 0.05 < results["recall/caption-to-image@1"].estimate.value < 0.95
        assert {(result.real, result.drawn) for result in results.values()} == {(120, 0)}

    def test_several_captions_of_an_image(self) -> None:
        """Image 5 has a caption that is right and one that shows image 6; with the latter, image 7 ties."""
        pictures = torch.eye(3)[[0, 0, 1, 2]]
        captions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0.4, 0], [0, 0, 1]])
        metric = Recall()
        metric.update_real(seen(np.arange(4), np.array([5, 5, 6, 7]), pictures, captions))
        to_image, to_caption = metric.ranks()
        assert to_image.tolist() == [0, 2, 1, 0]
        assert to_caption.tolist() == [0, 1, 0]
        note = metric.compute()[0].notes[0]
        assert note.startswith("4 captions of 3 images: a caption has its image as the only right one")

    def test_one_caption_each_needs_no_note(self) -> None:
        assert recalled(range(12), 1.0).compute()[0].notes == ()

    def test_a_k_that_cannot_miss_says_nothing(self) -> None:
        """Six images, one with three captions: of eight captions five are wrong for it."""
        found = values(recalled([0, 0, 0, 1, 2, 3, 4, 5], 0.0))
        assert list(found) == [f"recall/{way}@{k}" for way in ("caption-to-image", "image-to-caption") for k in (1, 5)]
        assert "recall/caption-to-image@5" not in values(recalled(range(5), 0.0))
        assert "recall/image-to-caption@5" not in values(recalled([0, 0, 0, 1, 2, 3, 4], 0.0))
        assert set(values(recalled([0, 1], 0.0))) == {"recall/caption-to-image@1", "recall/image-to-caption@1"}


class TestKnownEncoders:
    def test_a_perfect_one(self) -> None:
        assert set(values(recalled([place // 5 for place in range(250)], 0.0)).values()) == {1.0}

    def test_one_vector_for_everything_finds_nothing(self) -> None:
        ids = np.arange(60) // 2
        pictures, captions = vectors(0, 30)[torch.from_numpy(ids)], vectors(1, 60)
        rounded = captions[:1].repeat(60, 1) * (1 + 1e-7 * torch.arange(60)[:, None] / 60)
        for shown, told in (
            (pictures[:1].repeat(60, 1), rounded),
            (torch.zeros(60, WIDTH), captions),
            (pictures * torch.nan, captions),
        ):
            metric = Recall()
            metric.update_real(seen(np.arange(60), ids, shown, told))
            assert set(values(metric).values()) == {0.0}

    def test_a_difference_of_rounding_is_a_tie(self) -> None:
        """Each finds the other's too, by a cosine that is less by 1e-7."""
        turn = torch.tensor(5e-4)
        both = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.tensor([1.0, 0])])
        metric = Recall()
        metric.update_real(seen(np.arange(2), np.arange(2), both, both))
        assert set(values(metric).values()) == {0.0}

    def test_captions_that_are_all_one_are_at_most_chance(self) -> None:
        """From caption to image one image is always first; from image to caption all tie."""
        ids = np.arange(40)
        metric = Recall()
        metric.update_real(seen(ids, ids, vectors(0, 40), vectors(1, 1).repeat(40, 1)))
        found = values(metric)
        for k in (1, 5, 10, 20):
            assert found[f"recall/caption-to-image@{k}"] == k / 40
            assert found[f"recall/image-to-caption@{k}"] == 0

    def test_a_caption_that_is_no_number_finds_nothing_and_hides_none(self) -> None:
        ids, pictures, captions = pairs([0, 0, 1, 2], 0.0)
        captions[1] = torch.nan
        metric = Recall()
        metric.update_real(seen(np.arange(4), ids, pictures, captions))
        to_image, to_caption = metric.ranks()
        assert to_image.tolist() == [0, 2, 0, 0]
        assert to_caption.tolist() == [0, 1, 1]  # the caption that is no number comes before those of others


class TestWhoSawWhat:
    @settings(max_examples=20, deadline=None)
    @given(order=st.permutations(range(30)), cut=st.integers(0, 30), twice=st.lists(st.integers(0, 29), max_size=4))
    def test_merged_parts_are_the_whole(self, order: list[int], cut: int, twice: list[int]) -> None:
        owners = [place % 11 for place in range(30)]
        ids, pictures, captions = pairs(owners, 1.5)
        metrics = []
        for part in (order[:cut], [*order[cut:], *twice]):
            metric = Recall()
            for start in range(0, len(part), 7):
                rows = part[start : start + 7]
                metric.update_real(seen(np.array(rows), ids[rows], pictures[rows], captions[rows]))
            metrics.append(metric)
        metrics[0].merge(metrics[1])
        assert metrics[0].compute() == recalled(owners, 1.5).compute()

    def test_it_is_a_metric_of_real_pictures(self) -> None:
        metric: Metric = Recall()
        assert (set(metric.looks_at), set(metric.looks_at_real), metric.plan) == (set(), {"damsm"}, "every-caption")
        metric.update(seen(np.arange(4), *pairs(range(4), 0.0)))
        with pytest.raises(RequestError):
            metric.compute()

    def test_an_independent_encoder_is_in_the_protocol(self) -> None:
        metric = recalled(range(4), 0.0, view="dual-clip")
        assert set(values(metric)) == {"recall/dual-clip/caption-to-image@1", "recall/dual-clip/image-to-caption@1"}
        with pytest.raises(ValueError, match="recall/dual-clip/both-ways is not recall/both-ways"):
            Recall().merge(metric)

    def test_what_is_kept_is_not_the_views(self) -> None:
        ids, pictures, captions = pairs(range(6), 0.0)
        metric = Recall()
        metric.update_real(seen(np.arange(6), ids, pictures, captions))
        pictures.zero_()
        assert values(metric)["recall/caption-to-image@1"] == 1

    def test_protocols_are_described(self) -> None:
        assert all(name.startswith("recall/") and about for name, about in PROTOCOLS.items())


class TestWrongUse:
    def test_no_captions(self) -> None:
        for metric in (Recall(), recalled([0, 1], 0.0)):
            metric._parts = metric._parts[:0]
            with pytest.raises(
                RequestError,
                match="recall tells images apart by their captions, and no images were given .*: judge a s",
            ):
                metric.compute()

    def test_one_image(self) -> None:
        with pytest.raises(
            RequestError, match="and 1 image was given with captions: judge a split with captions of tw"
        ):
            recalled([0, 0, 0], 0.0).compute()

    @pytest.mark.parametrize(
        ("places", "ids", "pictures", "captions"),
        [
            (3, 4, (4, 2), (4, 2)),
            (4, 3, (4, 2), (4, 2)),
            (4, 4, (4, 2), (4, 3)),
            (4, 4, (4,), (4,)),
            (4, 4, (3, 2), (3, 2)),
        ],
    )
    def test_shapes_that_do_not_fit(
        self, places: int, ids: int, pictures: Sequence[int], captions: Sequence[int]
    ) -> None:
        with pytest.raises(ValueError, match="two \\(B,C\\) are wanted, not"):
            Recall().update_real(seen(np.arange(places), np.arange(ids), torch.ones(*pictures), torch.ones(*captions)))
