"""Small data sets made by hand, for the tests of the prepared form."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from orchestration.data.records import (
    Caption,
    Dataset,
    ImageRecord,
    Instance,
    Narrative,
    Panoptic,
    PanopticSegment,
    Utterance,
    carried,
)
from orchestration.data.shard_form import Codec, ShardOptions
from orchestration.data.transforms import get_transform

DIGEST = "0123456789abcdef" * 4
ROWS = 4  # images a shard of `small_shards`


def small_shards(transform: str = "xmcgan", codec: Codec = "raw", size: int = 16) -> ShardOptions:
    """Options with few images a shard."""
    side = int(size * get_transform(transform).margin)
    return ShardOptions(transform, size, codec, ROWS * 3 * side * side)


def make_dataset(root: Path, count: int = 10, seed: int = 0) -> Dataset:
    """`count` noise pictures of different sizes, with captions, things, maps and narratives here and there."""
    draw = np.random.default_rng(seed)
    (root / "pictures").mkdir(parents=True)
    records = []
    for place in range(count):
        width, height = (int(side) for side in draw.integers(20, 60, 2))
        file = root / "pictures" / f"{place:03d}.png"
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
        records.append(
            ImageRecord(
                image_id=3 * place + 1,
                file=file,
                width=width,
                height=height,
                captions=(Caption(place, f"picture {place}"), Caption(place + 100, "a noisy – thing")),
                subject_box=(2.0, 3.0, 12.5, 9.0) if place % 2 else None,
                instances=(Instance("noise", 7, (1.0, 2.0, 3.5, 4.25), b"[[1.0,2.0,3.0,2.0,3.0,4.0]]", 6.5, False),)
                * (place % 3),
                stuff_map=_map_file(root / f"stuff-{place}.png") if place % 4 == 1 else None,
                panoptic=Panoptic(
                    _map_file(root / f"panoptic-{place}.png"),
                    (PanopticSegment(5, "noise", 7, True, (0.0, 0.0, 2.0, 2.0), 4.0, False),),
                )
                if place % 4 == 2
                else None,
                narratives=(
                    Narrative(
                        9, "some noise", (Utterance("some", 0.25, 0.5),), (draw.normal(size=(5, 3)),), ("a", "b")
                    ),
                )
                if place % 5 == 0
                else None,
            )
        )
    return Dataset("coco", "train", root, tuple(records), carried(records), DIGEST)


def _map_file(file: Path) -> Path:
    content = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).save(content, "PNG")
    file.write_bytes(content.getvalue())
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a prepared split but its lock."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}
