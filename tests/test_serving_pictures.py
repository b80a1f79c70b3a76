"""PNG files that say what they are, and the ids of pictures."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestration.errors import RequestError
from orchestration.serving.pictures import IMAGE_ID, LONG, encode_png, image_id, picture_metadata, read_metadata
from orchestration.serving.replies import ModelIdentity

MODEL = ModelIdentity(name="bird", version="3", checkpoint_digest="cd" * 32)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(prompt=TEXT | TEXT.map(lambda text: (text or "a") * LONG), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=60)
def test_metadata_round_trip(prompt: str, seed: int) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    metadata = picture_metadata("prompt", prompt, seed, None, MODEL, "id")
    png = encode_png(pixels, metadata)
    assert read_metadata(png) == metadata
    assert png == encode_png(pixels, metadata)


def test_a_long_text_is_compressed() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    trace = '{"x":0.25,"y":0.75,"t":1.5},' * 10_000
    png = encode_png(pixels, {"prompt": trace})
    assert len(png) < len(trace) / 20 and read_metadata(png) == {"prompt": trace}


def test_a_file_holds_the_pixels_and_nothing_unsaid() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    png = encode_png(pixels, picture_metadata("prompt", "a bird", 1, 0.5, MODEL, "id"))
    kinds, data, place = [], b"", 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kinds.append(png[place + 4 : place + 8])
        data += png[place + 8 : place + 8 + length] if kinds[-1] == b"IDAT" else b""
        place += length + 12
    texts = read_metadata(png)
    software = texts.pop("Software")
    assert set(kinds) == {b"IHDR", b"tEXt", b"IDAT", b"IEND"} and kinds.count(b"tEXt") == len(texts) + 1
    assert software.startswith("t2i") and texts == {
        "kind": "prompt",
        "prompt": "a bird",
        "seed": "1",
        "truncation": "0.5",
        "model": "bird",
        "version": "3",
        "checkpoint_digest": "cd" * 32,
        "image": "id",
    }
    assert len(zlib.decompress(data)) == 5 * (1 + 4 * 3)
    assert (np.asarray(Image.open(io.BytesIO(png))) == pixels).all()


@given(junk=st.binary(max_size=60))
@settings(deadline=None, max_examples=50)
def test_what_is_no_png_is_refused(junk: bytes) -> None:
    whole = encode_png(np.zeros((2, 2, 3), np.uint8), {"prompt": "a"})
    for data in (junk, whole[:20] + junk):
        with pytest.raises(RequestError, match="no PNG"):
            read_metadata(data)


def test_a_picture_has_the_id_of_what_it_is_drawn_from() -> None:
    asked = ("ab" * 32, "prompt", "a bird", 7, None)
    known = image_id(*asked)
    assert IMAGE_ID.fullmatch(known) and known == image_id(*asked) and known.startswith("ab" * 8)
    others = [
        ("cd" * 32, *asked[1:]),
        (asked[0], "narrative", *asked[2:]),
        (*asked[:2], "a fish", 7, None),
        (*asked[:3], 8, None),
        (*asked[:4], 0.5),
    ]
    assert len({known, *(image_id(*other) for other in others)}) == 6
