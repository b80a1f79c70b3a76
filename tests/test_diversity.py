"""Several pictures of one caption: which are compared, how different they look, and whether they are one picture."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from models.encoders.perceptual_trunks import PerceptualTrunk
from models.losses.lpips import LpipsHeads, LpipsSettings
from orchestration.errors import RequestError, RunError
from orchestration.evaluation import diversity, duplicates
from orchestration.evaluation.diversity import Diversity, LpipsPairs, open_lpips, view_name
from orchestration.evaluation.duplicates import Duplicates, Pixels, shared_between_groups
from orchestration.evaluation.estimates import mean, share
from orchestration.evaluation.metric import Asked, Result, Seen
from orchestration.evaluation.repeats import next_of_group

CPU = torch.device("cpu")
RANDOM = LpipsSettings(net="squeeze", weights="random")
VIEW = "lpips-squeeze-random"
Metric = Diversity | Duplicates


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lpips() -> LpipsPairs:
    return LpipsPairs(RANDOM, CPU)


def asked(groups: Iterable[int], first: int = 0) -> Asked:
    listed = np.array(list(groups), np.int64)
    places = first + np.arange(len(listed))
    return Asked(places, listed + 100, listed + 100, listed, [f"caption {group}" for group in listed])


def noise_pictures(count: int, seed: int = 0, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).byte()


def seen(metric_arrays: dict[str, NDArray[Any]], groups: Iterable[int], first: int = 0) -> Seen:
    return Seen(asked(groups, first), metric_arrays)


def portions(groups: Sequence[int], columns: dict[str, NDArray[Any]], edges: Sequence[int]) -> list[Seen]:
    """Cut at the edges, places running on."""
    starts, ends = [0, *edges], [*edges, len(groups)]
    return [
        seen({name: column[start:end] for name, column in columns.items()}, groups[start:end], start)
        for start, end in zip(starts, ends, strict=True)
    ]


def only(metric: Metric) -> Result:
    (result,) = metric.compute()
    return result


# ---- which pictures are compared


def test_each_picture_is_compared_with_the_next_of_its_group() -> None:
    found = next_of_group(np.array([5, 5, 2, 9, 9, 9, 7, 7, 7, 7]))
    # Of two pictures one pair, of one none, of more a ring.
    assert found.tolist() == [1, -1, -1, 4, 5, 3, 7, 8, 9, 6]
    assert next_of_group(np.array([], np.int64)).tolist() == []


def test_a_group_in_two_pieces_is_refused() -> None:
    with pytest.raises(ValueError, match="pictures of one group do not follow each other"):
        next_of_group(np.array([1, 2, 1]))


# ---- the LPIPS view


def test_lpips_of_pairs(lpips: LpipsPairs) -> None:
    pictures = noise_pictures(7)
    pictures[1] = pictures[0]
    found = lpips.look(pictures, asked([0, 0, 1, 2, 2, 2, 3]))
    assert list(found) == [f"{VIEW}/next"] and lpips.name == VIEW
    (values,) = found.values()
    assert values.dtype == np.float32 and values.shape == (7,)
    assert values[0] == 0 and np.isnan(values[[1, 2, 6]]).all() and (values[3:6] > 0).all()
    signed = pictures.float() / 127.5 - 1
    with torch.inference_mode():
        expected = lpips.net(signed[[3, 4, 5]], signed[[4, 5, 3]]).numpy()
    np.testing.assert_allclose(values[3:6], expected, rtol=1e-5)


def test_a_group_does_not_depend_on_the_others_of_its_portion(lpips: LpipsPairs) -> None:
    """To the last bit."""
    pictures, groups = noise_pictures(20, seed=3), np.repeat(np.arange(10), 2)
    whole = lpips.look(pictures, asked(groups))[f"{VIEW}/next"]
    for rows in ([0, 1], [8, 9], [14, 15, 2, 3, 6, 7]):
        part = lpips.look(pictures[rows], asked(groups[rows]))[f"{VIEW}/next"]
        assert np.array_equal(part, whole[rows], equal_nan=True)


def test_many_groups_at_once_as_on_a_gpu(lpips: LpipsPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, groups = noise_pictures(11, seed=4), [0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4]
    alone = lpips.look(pictures, asked(groups))[f"{VIEW}/next"]
    monkeypatch.setattr(diversity, "MOST_ON_GPU", 5)
    monkeypatch.setattr(lpips, "device", torch.device("cuda"))
    blocks = [block.tolist() for block in lpips._blocks(np.array(groups))]
    assert blocks == [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    monkeypatch.setattr(lpips, "device", CPU)
    monkeypatch.setattr(lpips, "_blocks", lambda groups: [np.array(block) for block in blocks])
    together = lpips.look(pictures, asked(groups))[f"{VIEW}/next"]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_a_view_is_named_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.safetensors"
    save_file(PerceptualTrunk("squeeze", "random").state_dict(), file)
    unpublished = LpipsSettings(net="squeeze", weights=str(file))
    digits = diversity.file_sha256(file)[:8]
    assert view_name(unpublished) == f"lpips-squeeze-{digits}" and view_name(RANDOM) == VIEW
    monkeypatch.setitem(diversity.PUBLISHED_FILES, digits, "squeeze-caffe")
    opened = open_lpips(unpublished)(CPU)
    assert opened.name == "lpips-squeeze-caffe" == view_name(unpublished)
    # Other linear layers are another protocol.
    heads = tmp_path / "heads.safetensors"
    state = LpipsHeads(PerceptualTrunk("squeeze", "random").widths).state_dict()
    save_file({name: value.abs() for name, value in state.items()}, heads)
    other = open_lpips(unpublished.model_copy(update={"heads": str(heads)}))(CPU)
    assert len({opened.digest, other.digest, LpipsPairs(RANDOM, CPU).digest}) == 3
    assert all(len(view.digest) == 64 for view in (opened, other))


def test_the_name_of_the_real_file(shared_data: Path) -> None:
    path = shared_data / "weights/squeezenet1_1_imagenet_caffe_fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"real weights are absent: no file {path}")
    assert view_name(LpipsSettings(net="squeeze", weights=str(path))) == "lpips-squeeze-caffe"


def test_what_the_view_refuses(lpips: LpipsPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(call: Callable[[], object]) -> str:
        with pytest.raises(RequestError) as error:
            call()
        return str(error.value)

    missing = LpipsSettings(net="vgg")
    expected = "LPIPS cannot look: vgg needs its ImageNet weights by path: set lpips.weights=PATH to the file that"
    assert refusal(lambda: view_name(missing)).startswith(expected)
    assert refusal(lambda: LpipsPairs(missing, CPU)).startswith(expected)
    file = tmp_path / "net.safetensors"
    save_file(PerceptualTrunk("squeeze", "random").state_dict(), file)
    assert refusal(lambda: LpipsPairs(LpipsSettings(net="alex", weights=str(file)), CPU)) == (
        f"LPIPS cannot look: {file} does not hold the weights of alex (alexnet-owt-7be5be79.pth): give the file of "
        "that net"
    )
    assert refusal(lambda: lpips.look(noise_pictures(2, side=16), asked([0, 0]))) == (
        f"{VIEW} cannot look: pictures of 16 x 16 px are too small for squeeze: it needs 17 px or more"
    )
    assert "must be uint8" in refusal(lambda: lpips.look(torch.zeros(2, 3, 32, 32), asked([0, 0])))
    monkeypatch.setattr(lpips.net, "between", lambda first, second: torch.full((len(first[0]),), torch.nan))
    with pytest.raises(RunError, match="gave a distance that is not a number: check its weights"):
        lpips.look(noise_pictures(2), asked([0, 0]))


# ---- the view of pixels


def test_pixels_of_pairs() -> None:
    pictures = torch.full((5, 3, 20, 30), 100, dtype=torch.uint8)
    pictures[1] += 12
    pictures[3, :, :10] = 103
    found = Pixels(CPU).look(pictures, asked([0, 0, 1, 1, 2]))
    rms, thumbnails = found["pixels/next_rms"], found["pixels/thumbnail"]
    assert rms.dtype == np.float32 and thumbnails.dtype == np.int64
    assert rms[0] == 12 and rms[2] == pytest.approx(3 / 2**0.5) and np.isnan(rms[[1, 3, 4]]).all()
    assert thumbnails[0] == thumbnails[2] == thumbnails[4] != thumbnails[1]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_thumbnails_of_any_shape(height: int, width: int, seed: int) -> None:
    """Equal pictures have equal ones; one whose fields are brighter by a level of sixteen has another."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 200, (3, height, width), np.uint8)
    first = duplicates._thumbnail(picture)
    assert duplicates._thumbnail(picture.copy()) == first and -(2**63) <= first < 2**63
    assert duplicates._thumbnail(picture + np.uint8(16)) != first


def test_pixels_do_not_depend_on_the_rest_of_the_portion() -> None:
    pictures, groups = noise_pictures(9, seed=5), np.repeat(np.arange(3), 3)
    whole, part = (Pixels().look(pictures[a:b], asked(groups[a:b])) for a, b in ((0, 9), (3, 6)))
    for name, values in part.items():
        assert np.array_equal(values, whole[name][3:6])


def test_pixels_refuse_what_is_not_bytes() -> None:
    with pytest.raises(RequestError, match="must be uint8"):
        Pixels().look(torch.zeros(2, 3, 8, 8), asked([0, 0]))


# ---- the metrics


def diversity_of(values: Sequence[float], groups: Sequence[int]) -> Result:
    metric = Diversity("view")
    metric.update(seen({"view/next": np.array(values, np.float32)}, groups))
    return only(metric)


def test_diversity_is_the_mean_over_pairs_with_captions_as_samples() -> None:
    result = diversity_of([0.25, np.nan, 0.5, np.nan, 0.75, np.nan], [0, 0, 1, 1, 2, 2])
    expected = mean(np.array([0.25, 0.5, 0.75]))
    assert result.estimate.value == expected.value == 0.5
    assert (result.estimate.low, result.estimate.high) == pytest.approx((expected.low, expected.high))
    assert result.figure == "diversity/view" and (result.real, result.drawn, result.estimate.count) == (0, 6, 3)
    assert result.details == {"std": pytest.approx(np.std([0.25, 0.5, 0.75])), "pairs": 3, "captions": 3}


def test_pairs_of_one_caption_do_not_make_the_interval_narrower() -> None:
    """Three equal pairs a caption say no more than one."""
    thrice = diversity_of(np.repeat([0.25, 0.5, 0.75], 3).tolist(), np.repeat([0, 1, 2], 3).tolist())
    once = diversity_of([0.25, np.nan, 0.5, np.nan, 0.75, np.nan], [0, 0, 1, 1, 2, 2])
    assert (thrice.estimate.low, thrice.estimate.high) == pytest.approx((once.estimate.low, once.estimate.high))
    assert thrice.details["pairs"] == 9


def test_captions_with_more_pairs_count_for_more() -> None:
    result = diversity_of([0.75, 0.75, 0.75, 0.25, np.nan], [0, 0, 0, 1, 1])
    assert result.estimate.value == pytest.approx(0.625)
    assert result.estimate.low < 0.625 < result.estimate.high


def test_interval_of_unequal_groups_covers() -> None:
    """Of 200 experiments about 190 intervals hold the truth; with pairs as samples they would be far fewer."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        sizes = random.integers(2, 8, 60)
        groups = np.repeat(np.arange(60), sizes)
        values = 0.5 + random.normal(0, 0.1, 60)[groups] + random.normal(0, 0.02, len(groups))
        values[next_of_group(groups) < 0] = np.nan
        estimate = diversity_of(values.tolist(), groups.tolist()).estimate
        covered += estimate.low <= 0.5 <= estimate.high
    assert 178 <= covered <= 199


def duplicates_of(pictures: Tensor, groups: Sequence[int], threshold: float | None = None) -> Result:
    metric = Duplicates(threshold=threshold)
    metric.update(Seen(asked(groups), Pixels().look(pictures, asked(groups))))
    return only(metric)


def test_a_constant_generator_is_all_duplicates() -> None:
    groups = np.repeat(np.arange(40), 2).tolist()
    result = duplicates_of(noise_pictures(1).expand(80, -1, -1, -1), groups)
    assert (result.estimate.value, result.estimate.high) == (1, 1) and result.estimate.low > 0.9
    assert result.details["equal_to_another_captions"] == 1 and result.details["median_distance"] == 0
    assert result.figure == "duplicates/rms-8" and (result.real, result.drawn, result.estimate.count) == (0, 80, 40)


def test_a_generator_that_ignores_its_noise_is_all_duplicates_of_other_captions() -> None:
    """One picture a caption: the mode dropping that the rate is for."""
    groups = np.repeat(np.arange(40), 2)
    barely = (
        (
            noise_pictures(40)[groups].int()
            + torch.randint(-4, 5, (80, 3, 32, 32), generator=torch.Generator().manual_seed(9))
        )
        .clamp(0, 255)
        .byte()
    )
    result = duplicates_of(barely, groups.tolist())
    assert result.estimate.value == 1 and 1 < result.details["median_distance"] < 4
    assert result.details["equal_to_another_captions"] == 0


def test_a_generator_with_visible_differences_has_none() -> None:
    groups = np.repeat(np.arange(40), 2)
    base = noise_pictures(40)[groups]
    base[1::2, :, 8:24, 8:24] = 255 - base[1::2, :, 8:24, 8:24]
    result = duplicates_of(base, groups.tolist())
    assert (result.estimate.value, result.estimate.low) == (0, 0) and result.estimate.high < 0.1


def test_duplicates_of_shares_and_thresholds() -> None:
    pictures = torch.full((8, 3, 8, 8), 50, dtype=torch.uint8)
    for place, level in ((1, 3), (3, 6), (5, 12), (7, 100)):
        pictures[place] += level
    result = duplicates_of(pictures, [0, 0, 1, 1, 2, 2, 3, 3])
    assert result.estimate == share(np.array([True, True, False, False]))
    assert result.details["share_at_half_the_threshold"] == 0.25
    assert result.details["share_at_twice_the_threshold"] == 0.75
    assert result.details["median_distance"] == 9
    assert duplicates_of(pictures, [0, 0, 1, 1, 2, 2, 3, 3], threshold=100).estimate.value == 1
    assert Duplicates(threshold=2.5).protocol == "rms-2.5"


def test_pairs_of_one_caption_are_not_more_trials() -> None:
    """Wilson's interval is over captions, however many pictures each has."""
    pictures = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    pictures[6:] = (torch.arange(6) * 40).byte()[:, None, None, None]
    result = duplicates_of(pictures, np.repeat([0, 1, 2, 3], 3).tolist())
    expected = share(np.array([True, True, False, False]))
    assert result.estimate.value == 0.5
    assert (result.estimate.low, result.estimate.high) == pytest.approx((expected.low, expected.high))


def test_duplicates_by_lpips(lpips: LpipsPairs) -> None:
    pictures, groups = noise_pictures(6), [0, 0, 1, 1, 2, 2]
    pictures[1], pictures[3] = pictures[0], pictures[2] // 2
    metric = Duplicates(VIEW)
    assert metric.looks_at == {"pixels", VIEW} and metric.protocol == f"{VIEW}-0.05"
    metric.update(Seen(asked(groups), lpips.look(pictures, asked(groups)) | Pixels().look(pictures, asked(groups))))
    assert only(metric).estimate.value == pytest.approx(1 / 3)


def test_equal_pictures_of_other_captions() -> None:
    found = shared_between_groups(np.array([0, 0, 1, 1, 2, 2]), np.array([7, 7, 8, -3, -3, 9]))
    # 7 comes twice within one caption only.
    assert found.tolist() == [False, False, False, True, True, False]


METRICS: dict[str, Callable[[], Metric]] = {
    "diversity": lambda: Diversity("view"),
    "duplicates": Duplicates,
    "duplicates by view": lambda: Duplicates("view"),
}


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_any_order_of_portions_and_merges_is_the_same(make: Callable[[], Metric], shuffled: Any, workers: int) -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), random.integers(1, 5, 30))
    values = (random.random(len(groups)) * 0.1).astype(np.float32)
    values[next_of_group(groups) < 0] = np.nan
    columns: dict[str, NDArray[Any]] = {
        "view/next": values,
        "pixels/next_rms": values * 160,
        "pixels/thumbnail": random.integers(0, 30, len(groups)),
    }
    starts = (np.flatnonzero(np.diff(groups)) + 1).tolist()
    parts = portions(groups.tolist(), columns, starts[4::5])
    whole = make()
    for part in parts:
        whole.update(part)
    shuffled.shuffle(parts)
    team = [make() for _ in range(workers)]
    for index, part in enumerate(parts):
        team[index % workers].update(part)
        team[index % workers].update_real(part)
    # Also where a worker did a portion that another one had done.
    team[-1].update(parts[0])
    shuffled.shuffle(team)
    for other in team[1:]:
        team[0].merge(other)
    assert only(team[0]) == only(whole)


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_what_the_metrics_refuse(make: Callable[[], Metric]) -> None:
    def part(values: Sequence[float], groups: Sequence[int]) -> Seen:
        column = np.array(values, np.float32)
        thumbnails = np.arange(len(values))
        return seen({"view/next": column, "pixels/next_rms": column, "pixels/thumbnail": thumbnails}, groups)

    metric = make()
    figure = f"{metric.name}/{metric.protocol}"
    for portion, captions in (
        (None, 0),
        (part([np.nan, np.nan], [0, 1]), 0),
        (part([0.5, np.nan, np.nan], [0, 0, 1]), 1),
    ):
        metric = make()
        if portion is not None:
            metric.update(portion)
        with pytest.raises(RequestError) as error:
            metric.compute()
        assert str(error.value) == (
            f"{figure} compares pictures of one caption, and {captions} of the captions drawn have two or more: draw "
            "two pictures or more for each of at least 2 captions"
        )
    metric.update(part([0.75, np.nan, np.nan], [0, 0, 1]))
    with pytest.raises(ValueError, match="a picture came twice with different numbers"):
        metric.compute()


def test_protocols_do_not_mix_and_thresholds_are_numbers() -> None:
    with pytest.raises(ValueError, match="diversity/a cannot add diversity/b"):
        Diversity("a").merge(Diversity("b"))
    with pytest.raises(ValueError, match="duplicates/rms-8 cannot add duplicates/rms-4"):
        Duplicates().merge(Duplicates(threshold=4))
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"the threshold of duplicates is {wrong}: give a number from 0 on"):
            Duplicates(threshold=wrong)


def test_real_photographs_by_both_rules(shared_data: Path) -> None:
    """The same photograph saved as JPEG is a duplicate, its mirror image is not; diversity tells them apart."""
    weights = shared_data / "weights/squeezenet1_1_imagenet_caffe_fp16.safetensors"
    files = sorted((shared_data / "coco-mini/val2017").glob("*.jpg"))[:12]
    if not weights.is_file() or len(files) < 12:
        pytest.skip(f"real weights or photographs are absent from {shared_data}")
    view = LpipsPairs(LpipsSettings(net="squeeze", weights=str(weights)), CPU)
    photographs = [Image.open(file).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC) for file in files]
    groups = asked(np.repeat(np.arange(len(files)), 2))
    rates = {}
    for name, change in {
        "noise": lambda row: np.clip(row + np.random.default_rng(0).normal(0, 3, row.shape), 0, 255).astype(np.uint8),
        "mirrored": lambda row: row[:, ::-1],
    }.items():
        rows = [each for row in map(np.asarray, photographs) for each in (row, change(row))]
        pictures = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)
        arrays = view.look(pictures, groups) | Pixels().look(pictures, groups)
        metrics = Duplicates(), Duplicates(view.name), Diversity(view.name)
        for metric in metrics:
            metric.update(Seen(groups, arrays))
        rates[name] = [only(metric).estimate.value for metric in metrics]
    assert rates["noise"][:2] == [1, 1] and rates["mirrored"][:2] == [0, 0]
    assert rates["noise"][2] < 0.03 and rates["mirrored"][2] > 0.2
