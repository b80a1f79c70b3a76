"""A small Visual Genome folder in the published layout, and what a refusal must look like."""

import copy
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestration.errors import RequestError

Json = Any


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


def box_json(object_id: int, names: list[str], box: tuple[int, int, int, int]) -> Json:
    x, y, w, h = box
    return {
        "synsets": [f"{names[0]}.n.01"] if names else [],
        "h": h,
        "object_id": object_id,
        "merged_object_ids": [],
        "names": names,
        "w": w,
        "y": y,
        "x": x,
    }


def relationship_json(relationship_id: int, subject: Json, predicate: str, target: Json) -> Json:
    ends = [{key: value for key, value in end.items() if key != "names"} for end in (subject, target)]
    return {
        "predicate": predicate,
        "object": {**ends[1], "name": target["names"][0]},
        "relationship_id": relationship_id,
        "synsets": [],
        "subject": {**ends[0], "name": subject["names"][0]},
    }


def release_json() -> dict[str, Json]:
    """Four pictures: two with the same graph, one without objects, one that only image_data.json lists."""
    clock = box_json(1058498, ["clock", "wall clock"], (421, 91, 79, 339))
    street = box_json(1058508, ["street"], (0, 200, 800, 400))
    clock["merged_object_ids"] = [5046]
    graph = [clock, street]
    ids = (1, 2, 3, 2407890)
    return {
        "image_data": [
            {
                "width": 800,
                "url": f"https://example.org/{'VG_100K' if i == 2 else 'VG_100K_2'}/{i}.jpg",
                "height": 600,
                "image_id": i,
                "coco_id": None,
                "flickr_id": None,
            }
            for i in ids
        ],
        "objects": [
            {"image_id": 1, "objects": graph, "image_url": "https://example.org/VG_100K_2/1.jpg"},
            {"image_id": 2, "objects": copy.deepcopy(graph), "image_url": "https://example.org/VG_100K/2.jpg"},
            {"image_id": 3, "objects": [], "image_url": "https://example.org/VG_100K_2/3.jpg"},
        ],
        "attributes": [
            {"image_id": 1, "attributes": [{**clock, "attributes": ["green", "tall"]}, street]},
            {"image_id": 2, "attributes": [{**street, "attributes": ["wet"]}]},
        ],
        "relationships": [
            {"relationships": [relationship_json(15927, clock, "ON", street)], "image_id": 1},
            {"relationships": [], "image_id": 3},
        ],
    }


NAMES = ("image_data", "objects", "attributes", "relationships")
SPLITS = {"train": [2, 1], "val": [3], "test": [2407890]}


def _jpeg() -> bytes:
    content = BytesIO()
    Image.new("RGB", (80, 60), "green").save(content, "JPEG")
    return content.getvalue()


JPEG = _jpeg()


def write_release(root: Path, content: dict[str, Json] | None = None, splits: Json | None = SPLITS) -> Path:
    content = release_json() if content is None else content
    for name, entries in content.items():
        write_json(root / f"{name}.json", entries)
    if splits is not None:
        write_json(root / "vg_splits.json", splits)
    for entry in content["image_data"]:
        folder = "VG_100K" if entry.get("image_id") == 2 else "VG_100K_2"
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f"{entry.get('image_id')}.jpg").write_bytes(JPEG)
    return root
