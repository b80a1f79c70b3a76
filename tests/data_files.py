"""Makers of tiny data sets in published COCO layout, and what tests of readers share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from orchestration.data.coco import read_coco
from orchestration.data.problems import Findings, Kind
from orchestration.data.records import Dataset
from orchestration.errors import RequestError

Json = dict[str, Any]

WIDTH, HEIGHT = 8, 6


def refusal(call: Callable[[], object]) -> str:
    """The message of the RequestError that `call` must end in: one line, one sentence."""
    with pytest.raises(RequestError) as caught:
        call()
    return sentence(str(caught.value))


def sentence(message: str) -> str:
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    return message


def write_json(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def write_lines(file: Path, lines: Sequence[Json]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def picture(file: Path, mode: str = "RGB", colour: int | tuple[int, ...] = 0) -> Path:
    """8 pixels wide, 6 high."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (WIDTH, HEIGHT), colour).save(file)
    return file


def image_json(image_id: int) -> Json:
    return {"id": image_id, "file_name": f"{image_id:012d}.png", "width": WIDTH, "height": HEIGHT, "license": 1}


def rle(mask: NDArray[np.bool_]) -> Json:
    """COCO's compressed RLE of a mask (H,W)."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def captions_json(ids: Sequence[int] = (4, 2, 9)) -> Json:
    """Captions 10 to 14 of the first two images, in turn; the others have none."""
    owners = [*ids[:2], *ids[:2], ids[0]]
    return {
        "images": [image_json(image_id) for image_id in ids],
        "annotations": [
            {"id": 10 + n, "image_id": owner, "caption": f"a picture of {owner}, again {n} "}
            for n, owner in enumerate(owners)
        ],
    }


def instances_json(ids: Sequence[int] = (4, 2)) -> Json:
    """One cat in the first image, a triangle."""
    cat = {"segmentation": [[0, 0, 4, 0, 4, 3]], "area": 6.0, "iscrowd": 0, "bbox": [0, 0, 4, 3.5]}
    return {
        "images": [image_json(image_id) for image_id in ids],
        "annotations": [{**cat, "id": 1, "image_id": ids[0], "category_id": 17}],
        "categories": [{"id": 17, "name": "cat", "supercategory": "animal"}],
    }


def stuff_json(ids: Sequence[int] = (4,)) -> Json:
    """Grass in the left half of the first image, "other" in the right half, as COCO-Stuff publishes it."""
    left = np.zeros((HEIGHT, WIDTH), bool)
    left[:, : WIDTH // 2] = True
    regions = [(left, 124, [0, 0, 4, 6]), (~left, 183, [4, 0, 4, 6])]
    return {
        "images": [image_json(image_id) for image_id in ids],
        "annotations": [
            {
                "id": 20 + n,
                "image_id": ids[0],
                "category_id": category,
                "segmentation": rle(mask),
                "area": 24.0,
                "bbox": box,
                "iscrowd": 0,
            }
            for n, (mask, category, box) in enumerate(regions)
        ],
        "categories": [{"id": 124, "name": "grass"}, {"id": 183, "name": "other"}],
    }


def panoptic_json(image_id: int = 2) -> Json:
    """One image, all of it segment 197,121 (1 + 256 x 2 + 65536 x 3), a merged kind of grass."""
    segment = {"id": 197_121, "category_id": 193, "iscrowd": 0, "bbox": [0, 0, 8, 6], "area": 48}
    return {
        "images": [image_json(image_id)],
        "annotations": [{"image_id": image_id, "file_name": f"{image_id:012d}.png", "segments_info": [segment]}],
        "categories": [{"id": 17, "name": "cat", "isthing": 1}, {"id": 193, "name": "grass-merged", "isthing": 0}],
    }


def write_panoptic(root: Path, tag: str = "train2017", image_id: int = 2) -> None:
    write_json(root / f"annotations/panoptic_{tag}.json", panoptic_json(image_id))
    picture(root / f"annotations/panoptic_{tag}/{image_id:012d}.png", "RGB", (1, 2, 3))


def make_coco(root: Path, split: str = "train", year: int = 2017) -> Path:
    """Captions and pictures of three images, in the order 4, 2, 9; the last has no caption."""
    captions = captions_json()
    write_json(root / f"annotations/captions_{split}{year}.json", captions)
    for image in captions["images"]:
        picture(root / f"{split}{year}" / image["file_name"], "RGB", (image["id"], 0, 0))
    return root


def table(root: Path, name: str, tag: str = "train2017") -> Path:
    return root / f"annotations/{name}_{tag}.json"


def graph_json(image_id: int) -> Json:
    cat = {"object_id": 7, "names": ["cat"], "attributes": ["grey"], "x": 1, "y": 2, "w": 3, "h": 4}
    return {"image_id": image_id, "objects": [cat], "relationships": []}


def told(root: Path) -> tuple[Dataset, dict[Kind, list[str]]]:
    """The split as it is read when nothing is refused, and what was said."""
    findings = Findings(examples_kept=100)
    dataset = read_coco(root, "train", findings)
    for said in findings.examples.values():
        for each in said:
            sentence(each)
    return dataset, findings.examples
