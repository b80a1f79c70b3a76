"""The papers' image transforms: geometry, values, and the two halves of each."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.records import ImageRecord
from orchestration.data.transforms import TRANSFORMS, Transform, decode, get_transform, subject_region
from orchestration.errors import RequestError

quick = settings(deadline=None, max_examples=60)
names = st.sampled_from(sorted(TRANSFORMS))
sides = st.integers(2, 90)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def record(width: int, height: int, box: tuple[float, float, float, float] | None = None) -> ImageRecord:
    return ImageRecord(1, Path("a.jpg"), width, height, subject_box=box)


def chw(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture).transpose(2, 0, 1)


def test_xmcgan_squashes_to_the_square() -> None:
    picture = noise(40, 20)
    stored = TRANSFORMS["xmcgan"].store(picture, record(40, 20), 16)
    assert (stored == chw(picture.resize((16, 16), Image.Resampling.BILINEAR))).all()


def test_attngan_keeps_the_aspect_and_a_margin() -> None:
    picture = noise(100, 80)
    stored = TRANSFORMS["attngan"].store(picture, record(100, 80), 64)
    assert stored.shape == (3, 76, 95)
    assert (stored == chw(picture.resize((95, 76), Image.Resampling.BILINEAR))).all()
    assert TRANSFORMS["attngan"].stored_size((0, 0, 80, 101), 256) == (304, 304 * 101 // 80)


def test_spade_squashes_to_286_bicubic() -> None:
    picture = noise(40, 20)
    stored = TRANSFORMS["spade"].store(picture, record(40, 20), 256)
    assert (stored == chw(picture.resize((286, 286), Image.Resampling.BICUBIC))).all()


def test_attngan_cuts_to_the_bird_before_resizing() -> None:
    picture, bird = noise(100, 60), record(100, 60, (10.0, 20.0, 20.0, 30.0))
    # half = int(0.75 * 30) = 22 around (20, 35), clipped on the left.
    assert TRANSFORMS["attngan"].region(bird) == (0, 13, 42, 57)
    stored = TRANSFORMS["attngan"].store(picture, bird, 32)
    wanted = picture.crop((0, 13, 42, 57)).resize((38, 38 * 44 // 42), Image.Resampling.BILINEAR)
    assert (stored == chw(wanted)).all()
    assert TRANSFORMS["xmcgan"].region(bird) == (0, 0, 100, 60)


@quick
@given(box=st.tuples(*[st.floats(-50, 150)] * 2, *[st.floats(0, 200)] * 2), width=st.integers(1, 99), height=sides)
def test_a_bird_is_always_cut_inside_the_picture(
    box: tuple[float, float, float, float], width: int, height: int
) -> None:
    left, top, right, bottom = subject_region(box, width, height)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@quick
@given(
    name=names,
    width=sides,
    height=sides,
    size=st.integers(4, 48),
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
)
def test_every_view_is_a_window_of_what_is_stored(
    name: str, width: int, height: int, size: int, draws: tuple[float, float, float]
) -> None:
    transform, one = TRANSFORMS[name], record(width, height)
    stored = transform.store(noise(width, height), one, size)
    numbers = np.array(draws)
    view = transform.view(stored, size, numbers, flip=True)
    placement = transform.place(one, size, numbers, flip=True)
    assert view.shape == (3, size, size) and view.dtype == np.uint8
    assert placement.stored == (stored.shape[2], stored.shape[1])
    window = stored[:, placement.top : placement.top + size, placement.left : placement.left + size]
    assert (view == (window[:, :, ::-1] if placement.flipped else window)).all()
    assert placement.flipped == (draws[2] >= 0.5)
    assert not transform.place(one, size, numbers, flip=False).flipped


def test_every_cut_is_drawn_equally_often() -> None:
    stored = np.arange(3 * 6 * 8, dtype=np.uint8).reshape(3, 6, 8)
    transform = Transform("test", "", keep_aspect=True)
    seen: dict[int, int] = {}
    for x in (np.arange(300) + 0.5) / 300:
        corner = int(transform.view(stored, 6, np.array([x, 0.0, 0.0]))[0, 0, 0])
        seen[corner] = seen.get(corner, 0) + 1
    assert seen == {0: 100, 1: 100, 2: 100}
    assert transform.view(stored, 6)[0, 0, 0] == 1  # the centre


def test_points_and_boxes_follow_the_pixels() -> None:
    """A white block stays where its box says, through crop to the bird, resize, cut and flip."""
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[40:80, 50:90] = 255
    bird = record(160, 120, (30.0, 20.0, 80.0, 80.0))
    for name in TRANSFORMS:
        transform = TRANSFORMS[name]
        stored = transform.store(Image.fromarray(pixels), bird, 64)
        for draws in (np.array([0.0, 0.99, 0.9]), np.array([0.7, 0.2, 0.1])):
            view = transform.view(stored, 64, draws, flip=True)
            box = transform.place(bird, 64, draws, flip=True).boxes(np.array([[50.0, 40.0, 40.0, 40.0]]))[0]
            rows, columns = np.nonzero(view[0] > 127)
            found = np.array([columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1])
            assert np.abs(found - box).max() <= 1.5, (name, found, box)


def test_values() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    signed = TRANSFORMS["xmcgan"].normalise(pixels)[0, 0, 0]
    assert signed.tolist() == pytest.approx([-1, 128 / 127.5 - 1, 1], abs=1e-6)
    imagenet = TRANSFORMS["sg2im"].normalise(pixels)[0, :, 0, 2]
    assert imagenet.tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert pixels[0, 0, 0].tolist() == [0, 128, 255]


def test_only_sg2im_is_not_flipped() -> None:
    assert [name for name, transform in TRANSFORMS.items() if not transform.flip] == ["sg2im"]


def test_an_unknown_transform_lists_the_known() -> None:
    with pytest.raises(RequestError, match=r"no image transform 'attgan' \(perhaps 'attngan' was meant\); there are x"):
        get_transform("attgan")


def test_grey_palette_transparent_and_cmyk_pictures_become_rgb(tmp_path: Path) -> None:
    for mode, suffix in (("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png")):
        file = tmp_path / f"{mode}.{suffix}"
        noise(5, 4).convert(mode).save(file)
        assert (decode(file).mode, decode(file).size) == ("RGB", (5, 4))


def test_the_exif_orientation_is_ignored(tmp_path: Path) -> None:
    file, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    noise(8, 4).save(file, exif=exif)
    assert decode(file).size == (8, 4)


def test_what_does_not_decode_is_refused_by_name(tmp_path: Path) -> None:
    whole = io.BytesIO()
    noise(30, 30).save(whole, "JPEG")
    for content in (b"", b"no picture", whole.getvalue()[:-40], whole.getvalue()[:100]):
        file = tmp_path / "broken.jpg"
        file.write_bytes(content)
        with pytest.raises(
            RequestError, match=r"picture .*broken\.jpg does not decode \(.*fetch it again or remove it"
        ):
            decode(file)
