"""What is published about the pictures of one split, file by file."""

import json
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from orchestration.data.scenes.chance import below
from orchestration.data.scenes.compose import Scene
from orchestration.data.scenes.draw import Drawing
from orchestration.data.scenes.geometry import relation
from orchestration.data.scenes.language import Seen, captions, seen
from orchestration.data.scenes.narrative import narrate
from orchestration.data.scenes.options import ScenesOptions
from orchestration.data.scenes.vocabulary import (
    BACKGROUNDS,
    OTHER_ID,
    OTHER_NAME,
    THINGS,
    stuff_id,
    thing_id,
)

Json = dict[str, Any]


class SplitAnnotations:
    """Collects the annotations of a split picture by picture. `first_id` keeps image ids apart between splits."""

    def __init__(self, split: str, options: ScenesOptions, first_id: int) -> None:
        self._split = split
        self._options = options
        self._next_image = first_id
        self._images: list[Json] = []
        self._captions: list[Json] = []
        self._instances: list[Json] = []
        self._stuff: list[Json] = []
        self._graphs: list[Json] = []
        self._narratives: list[Json] = []
        # Ids of annotations, objects and relationships start far apart between splits.
        self._next_id = 100 * first_id

    def add(self, rng: Random, scene: Scene, drawing: Drawing) -> tuple[Image.Image, str]:
        """Describe one picture; returns its COCO-Stuff pixel map (label = category id - 1) and its file name."""
        image_id, side = self._next_image, self._options.size
        self._next_image += 1
        file_name = f"{image_id:012d}.png"
        self._images.append({"id": image_id, "file_name": file_name, "height": side, "width": side})
        regions = _regions(drawing.labels, len(scene.objects))
        objects = [seen(placed, region["bbox"]) for placed, region in zip(scene.objects, regions[1:], strict=False)]
        for text in captions(rng, objects, scene.background):
            self._captions.append({"image_id": image_id, "id": self._new_id(), "caption": text})
        for placed, region in zip(scene.objects, regions[1:], strict=False):
            self._instances.append(self._region(image_id, thing_id(placed.thing), region))
        self._stuff.append(self._region(image_id, stuff_id(scene.background), regions[0]))
        self._stuff.append(self._region(image_id, OTHER_ID, regions[-1]))
        self._graphs.append(self._graph(rng, image_id, objects, scene.background))
        self._narratives.append(
            {
                "dataset_id": f"scenes_{self._split}2017",
                "image_id": str(image_id),
                "annotator_id": below(rng, 10),
                **narrate(rng, objects, scene.background, drawing.labels),
            }
        )
        ids = [stuff_id(scene.background), *(thing_id(placed.thing) for placed in scene.objects)]
        return Image.fromarray(np.array([i - 1 for i in ids], dtype=np.uint8)[drawing.labels]), file_name

    def files(self) -> dict[str, str]:
        """File name -> text, in the published layouts."""
        year = f"{self._split}2017"
        info = {"description": f"Generated scenes, {self._split}", "version": "1.0", "year": 2017}
        head = {"info": info, "licenses": [], "images": self._images}
        things = [
            {"supercategory": thing.supercategory, "id": thing_id(index), "name": thing.name}
            for index, thing in enumerate(THINGS[: self._options.things])
        ]
        stuff = [
            {"supercategory": background.supercategory, "id": stuff_id(index), "name": background.name}
            for index, background in enumerate(BACKGROUNDS[: self._options.backgrounds])
        ]
        other = {"supercategory": OTHER_NAME, "id": OTHER_ID, "name": OTHER_NAME}
        tables = {
            f"captions_{year}.json": {**head, "annotations": self._captions},
            f"instances_{year}.json": {**head, "annotations": self._instances, "categories": things},
            f"stuff_{year}.json": {**head, "annotations": self._stuff, "categories": [*stuff, other]},
            f"scene_graphs_{year}.json": self._graphs,
        }
        lines = "".join(json.dumps(narrative) + "\n" for narrative in self._narratives)
        return {
            **{name: json.dumps(table) for name, table in tables.items()},
            f"scenes_{self._split}_localized_narratives.jsonl": lines,
        }

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _region(self, image_id: int, category_id: int, region: Json) -> Json:
        return {**region, "iscrowd": 0, "image_id": image_id, "category_id": category_id, "id": self._new_id()}

    def _graph(self, rng: Random, image_id: int, objects: list[Seen], background: int) -> Json:
        """Visual Genome's scene graph: the things, main one first, then the background; one relation a pair."""
        side, stuff = self._options.size, BACKGROUNDS[background]
        nodes = [(each.thing, [each.colour, each.size], each.box) for each in objects]
        nodes.append((stuff.name, [stuff.colour], (0, 0, side, side)))
        ids = [self._new_id() for _ in nodes]
        relationships = []
        for first in range(len(nodes)):
            for second in range(first + 1, len(nodes)):
                subject, other = (first, second) if rng.random() < 0.5 else (second, first)
                relationships.append(
                    {
                        "relationship_id": self._new_id(),
                        "predicate": relation(nodes[subject][2], nodes[other][2]),
                        "subject_id": ids[subject],
                        "object_id": ids[other],
                        "synsets": [],
                    }
                )
        return {
            "image_id": image_id,
            "objects": [
                {
                    "object_id": object_id,
                    "x": box[0],
                    "y": box[1],
                    "w": box[2],
                    "h": box[3],
                    "names": [name],
                    "attributes": attributes,
                    "synsets": [],
                }
                for object_id, (name, attributes, box) in zip(ids, nodes, strict=True)
            ],
            "relationships": relationships,
        }


def _regions(labels: NDArray[np.uint8], count: int) -> list[Json]:
    """Mask (COCO's compressed RLE), area and box of the background, each object, and all objects together."""
    masks = [labels == k for k in range(count + 1)]
    masks.append(~masks[0])
    codes = coco_mask.encode(np.asfortranarray(np.stack(masks, axis=-1), dtype=np.uint8))
    areas, boxes = coco_mask.area(codes).tolist(), coco_mask.toBbox(codes).astype(int).tolist()
    return [
        {
            "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
            "area": area,
            "bbox": tuple(box),
        }
        for code, area, box in zip(codes, areas, boxes, strict=True)
    ]
