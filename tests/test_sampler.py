"""The order of the data: a pure function of seed and position, well mixed, and the same for any number of workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.contract import Batch, TextFeatures
from orchestration.data.batches import CAPTION, CaptionedPictures, TrainingStream, held_out_captions
from orchestration.data.sampler import SeededOrder, derive_seed, mix
from orchestration.errors import RequestError, RunError
from tests.tiny import held_pictures, tiny_data

seeds = st.integers(0, 2**63 - 1)
quick = settings(deadline=None, max_examples=50)
DATA = tiny_data()
assert DATA.features is not None
FEATURES = DATA.features


def positions(start: int, count: int) -> NDArray[np.int64]:
    return np.arange(start, start + count, dtype=np.int64)


@quick
@given(seed=seeds, size=st.integers(1, 200), epoch=st.integers(0, 10_000))
def test_each_pass_holds_every_item_once(seed: int, size: int, epoch: int) -> None:
    items = SeededOrder(size, seed).items(positions(epoch * size, size))
    assert sorted(items.tolist()) == list(range(size))


@quick
@given(seed=seeds, epoch=st.integers(0, 1000))
def test_passes_and_seeds_differ(seed: int, epoch: int) -> None:
    size = 50
    first, second = (SeededOrder(size, seed).items(positions(turn * size, size)) for turn in (epoch, epoch + 1))
    assert first.tolist() != second.tolist() != list(range(size))
    assert SeededOrder(size, seed ^ 1).items(positions(epoch * size, size)).tolist() != first.tolist()


@quick
@given(
    seed=seeds,
    size=st.integers(1, 40),
    wanted=st.lists(st.integers(0, 500), min_size=1, max_size=60),
    cut=st.integers(0, 60),
)
def test_nothing_is_remembered(seed: int, size: int, wanted: list[int], cut: int) -> None:
    """Any positions, in any order and in any portions, from an old order or a new one."""
    used, asked = SeededOrder(size, seed), np.array(wanted, np.int64)
    whole = used.items(asked)
    portions = np.concatenate([used.items(asked[:cut]), used.items(asked[cut:])])
    single = [int(SeededOrder(size, seed).items(np.array([position]))[0]) for position in wanted]
    assert whole.tolist() == portions.tolist() == single


def test_the_order_is_fixed_for_good() -> None:
    """A change of these numbers changes every recorded run: it needs a reason and a note."""
    assert SeededOrder(8, 7).items(positions(0, 16)).tolist() == [5, 0, 1, 7, 2, 6, 4, 3, 3, 4, 1, 0, 6, 7, 2, 5]


def test_no_two_seeds_streams_or_positions_share_their_bits() -> None:
    """Not even shifted: as seed + 1 read one position earlier, or a pass of one seed as the draws of another."""
    found = {derive_seed(seed, stream, place) for seed in range(9) for stream in range(9) for place in range(9)}
    assert len(found) == 9**3


@quick
@given(seed=seeds, stream=st.integers(0, 2**40), place=st.integers(0, 2**40))
def test_bits_are_those_of_the_published_generator(seed: int, stream: int, place: int) -> None:
    """splitmix64 in whole numbers, its state started at a finalised (seed, stream)."""

    def finalise(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    golden = 0x9E3779B97F4A7C15
    assert finalise((1234567 + golden) % 2**64) == 6457827717110365317  # the first number of seed 1234567
    start = finalise((seed * golden + stream * 0xD1B54A32D192ED03) % 2**64)
    assert int(mix(seed, stream, positions(place, 1))[0]) == finalise((start + (place + 1) * golden) % 2**64)


@quick
@given(seed=seeds, stream=st.integers(0, 2**20), position=st.integers(0, 2**62))
def test_derived_seeds_fit_a_generator(seed: int, stream: int, position: int) -> None:
    derived = derive_seed(seed, stream, position)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (0, 1), (1, 0), (2**63 - 1, 2), (12345, 100)])
def test_bits_are_well_mixed(seed: int, stream: int) -> None:
    """Of 4096 consecutive positions: every bit is set about half of the time, and neighbours share about half."""
    bits = np.unpackbits(mix(seed, stream, positions(0, 4096)).view(np.uint8).reshape(4096, 8), axis=1).astype(float)
    spread = 0.5 / 4096**0.5
    assert abs(bits.mean(0) - 0.5).max() < 5 * spread
    assert abs((bits[1:] == bits[:-1]).mean(0) - 0.5).max() < 5 * spread
    correlation = np.corrcoef(bits.T) - np.eye(64)
    assert abs(correlation).max() < 6 / 4096**0.5


def test_every_item_comes_equally_early() -> None:
    """Over 400 passes of 20 items, mean places agree with a fair shuffle (5 standard errors)."""
    order = SeededOrder(20, 3)
    places = np.array([np.argsort(order.items(positions(turn * 20, 20))) for turn in range(400)])
    standard_error = np.sqrt((20**2 - 1) / 12 / 400)
    assert abs(places.mean(0) - 9.5).max() < 5 * standard_error
    follows = np.mean([(np.diff(order.items(positions(turn * 20, 20))) == 1).mean() for turn in range(400)])
    assert abs(follows - 1 / 20) < 0.02


def whole(batch: Batch) -> tuple[torch.Tensor, TextFeatures]:
    assert batch.images is not None and batch.text is not None
    return batch.images, batch.text


@quick
@given(
    seed=seeds,
    start=st.integers(0, 10_000),
    size=st.integers(1, 6),
    ranks=st.sampled_from([1, 2, 3, 4]),
)
def test_parts_of_ranks_make_the_global_batch(seed: int, start: int, size: int, ranks: int) -> None:
    stream = TrainingStream(DATA, seed, flip=True)
    together = stream.batch(start, ranks * size)
    parts = [TrainingStream(DATA, seed, flip=True).batch(start + rank * size, size) for rank in range(ranks)]
    assert torch.cat([part.image_ids for part in parts]).equal(together.image_ids)
    images, text = whole(together)
    assert torch.cat([whole(part)[0] for part in parts]).equal(images)
    for name in ("words", "lengths", "sentence"):
        assert torch.cat([getattr(whole(part)[1], name) for part in parts]).equal(getattr(text, name))


def owner_of_sentence(data: CaptionedPictures) -> dict[bytes, set[int]]:
    """The images whose captions have these sentence features."""
    owners: dict[bytes, set[int]] = {}
    for image, image_id in enumerate(data.index.image_ids.tolist()):
        for caption in range(data.index.starts[image], data.index.starts[image + 1]):
            owners.setdefault(FEATURES.sentence[FEATURES.rows[caption]].tobytes(), set()).add(image_id)
    return owners


@quick
@given(seed=seeds, start=st.integers(0, 1000))
def test_a_caption_and_its_pixels_belong_to_the_image(seed: int, start: int) -> None:
    batch = TrainingStream(DATA, seed, flip=True).batch(start, 12)
    images, text = whole(batch)
    owners = owner_of_sentence(DATA)
    row_of = {image_id: row for row, image_id in enumerate(DATA.image_ids.tolist())}
    for place, image_id in enumerate(batch.image_ids.tolist()):
        assert image_id in owners[text.sentence[place].numpy().tobytes()]
        pixels = DATA.pixels(np.array([row_of[image_id]]))[0]
        drawn = ((images[place] + 1) * 127.5).round().to(torch.uint8)
        assert drawn.equal(pixels) or drawn.equal(pixels.flip(2))
    assert images.min() >= -1 and images.max() <= 1


def test_words_are_the_captions_own_and_padding_is_zero() -> None:
    captions = FEATURES
    text = captions.take(np.arange(len(DATA.index.texts)))
    assert text.words.shape == (len(DATA.index.texts), captions.longest, captions.dim)
    for caption, row in enumerate(captions.rows):
        length = int(captions.offsets[row + 1] - captions.offsets[row])
        assert text.lengths[caption] == length
        own = torch.from_numpy(captions.words[captions.offsets[row] : captions.offsets[row + 1]].astype(np.float32))
        assert text.words[caption, :length].equal(own)
        assert not text.words[caption, length:].any()
    assert text.padding().equal(torch.arange(captions.longest)[None, :] >= text.lengths[:, None])


def test_every_caption_is_drawn_and_about_equally() -> None:
    stream = TrainingStream(DATA, 5, flip=False)
    passes, owned = 300, np.diff(DATA.index.starts)
    _, text = whole(stream.batch(0, passes * len(DATA)))
    seen: dict[bytes, int] = {}
    for sentence in text.sentence.numpy():
        seen[sentence.tobytes()] = seen.get(sentence.tobytes(), 0) + 1
    assert len(seen) == len(DATA.index.texts)
    for image, count in enumerate(owned.tolist()):
        chance = 1 / count
        for caption in range(DATA.index.starts[image], DATA.index.starts[image + 1]):
            drawn = seen[FEATURES.sentence[FEATURES.rows[caption]].tobytes()]
            assert abs(drawn - passes * chance) <= 5 * (passes * chance * (1 - chance)) ** 0.5


def test_half_of_the_pictures_are_flipped_or_none() -> None:
    count = 2400
    plain, _ = whole(TrainingStream(DATA, 11, flip=False).batch(0, count))
    maybe, _ = whole(TrainingStream(DATA, 11, flip=True).batch(0, count))
    same = (plain == maybe).flatten(1).all(1)
    mirrored = (plain.flip(3) == maybe).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert abs(mirrored.float().mean().item() - 0.5) < 5 * 0.5 / count**0.5


def test_held_out_captions_cover_the_split_before_any_comes_again() -> None:
    size = len(DATA)
    items, captions = held_out_captions(DATA.index, 2 * size + 5, seed=1)
    assert sorted(items[:size].tolist()) == sorted(items[size : 2 * size].tolist()) == list(range(size))
    starts = DATA.index.starts
    assert ((starts[items] <= captions) & (captions < starts[items + 1])).all()
    again = held_out_captions(DATA.index, 7, seed=1)
    assert again[0].tolist() == items[:7].tolist() and again[1].tolist() == captions[:7].tolist()
    assert held_out_captions(DATA.index, 7, seed=2)[0].tolist() != items[:7].tolist()


def test_no_pass_is_ordered_by_the_bits_that_choose_captions() -> None:
    size, seed = len(DATA), 9
    stream = TrainingStream(DATA, seed, flip=False)
    by_caption_bits = np.argsort(mix(seed, CAPTION, positions(0, size)), kind="stable").tolist()
    for turn in range(4):
        assert stream.order.items(positions(turn * size, size)).tolist() != by_caption_bits


def test_data_that_does_not_belong_together_is_refused() -> None:
    with pytest.raises(RunError, match="different data"):
        CaptionedPictures(held_pictures(np.zeros((24, 3, 32, 32), np.uint8), DATA.image_ids + 1), DATA.index)
    starts = DATA.index.starts.copy()
    starts[3] = starts[2]
    with pytest.raises(RequestError, match="image 114 has no caption"):
        CaptionedPictures(DATA.pictures, replace(DATA.index, starts=starts))
    features = replace(FEATURES, rows=FEATURES.rows[1:])
    with pytest.raises(RunError, match="captions and features were prepared from different data"):
        CaptionedPictures(DATA.pictures, DATA.index, features)
    with pytest.raises(RunError, match="no text features were prepared"):
        CaptionedPictures(DATA.pictures, DATA.index).text(np.array([0]))


def test_a_batch_is_sliced_and_moved_whole() -> None:
    batch = TrainingStream(DATA, 0, flip=False).batch(0, 6)
    part = batch[2:5].to(torch.device("cpu"))
    images, text = whole(batch)
    assert part.image_ids.equal(batch.image_ids[2:5])
    assert whole(part)[0].equal(images[2:5]) and whole(part)[1].words.equal(text.words[2:5])
    bare = Batch(batch.image_ids)[1:3]
    assert bare.images is None and bare.text is None and len(bare.image_ids) == 2
