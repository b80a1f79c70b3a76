"""COCO's 80 classes of things, their published ids, and the names that other lists give them."""

from collections.abc import Mapping, Sequence

import torch

from models.detectors.contract import Detections
from models.encoders.image import WeightsMissing

_LISTED = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
NAMES: tuple[str, ...] = tuple(_LISTED.split(", "))
"""COCO's names in the order of its ids, which is the order of 80-way nets and of SOA's labels 0 to 79."""

# Ids that COCO's paper planned and its files never used.
_UNUSED_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
IDS: tuple[int, ...] = tuple(number for number in range(1, 91) if number not in _UNUSED_IDS)
"""`category_id` of each of `NAMES` in COCO's files."""
INDEX_OF_ID: Mapping[int, int] = {number: index for index, number in enumerate(IDS)}

# PASCAL VOC's and darknet's spellings, and British ones.
_SYNONYMS: Mapping[str, str] = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "televisionset": "tv",
    "doughnut": "donut",
    "hairdryer": "hair drier",
    "hairblower": "hair drier",
    "cellphone": "cell phone",
    "mobilephone": "cell phone",
    "fridge": "refrigerator",
    "tennisracquet": "tennis racket",
    "pottedhouseplant": "potted plant",
    "computermouse": "mouse",
    "remotecontrol": "remote",
}


def _bare(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


_INDEX_OF_NAME: Mapping[str, int] = {
    **{_bare(name): index for index, name in enumerate(NAMES)},
    **{other: NAMES.index(name) for other, name in _SYNONYMS.items()},
}


def coco_index(name: str) -> int | None:
    """Place of the class in `NAMES`, whatever its capitals, blanks, dashes or known synonym; None for another."""
    return _INDEX_OF_NAME.get(_bare(name))


def as_coco80(names: Sequence[str]) -> tuple[int, ...]:
    """For each of a detector's classes its place in `NAMES`, -1 for one that is none of COCO's 80.

    Raises WeightsMissing, which names what is missing, where the detector does not know all 80.
    """
    places = [coco_index(name) for name in names]
    missing = [name for index, name in enumerate(NAMES) if index not in places]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise WeightsMissing(
            f"the detector knows {len(names)} classes, {len(missing)} of COCO's 80 are not among them ({shown}): give "
            "a detector trained on COCO, or the file of its class names"
        )
    return tuple(-1 if place is None else place for place in places)


def to_coco80(found: Detections, places: Sequence[int]) -> Detections:
    """Detections with classes as places in `NAMES`; those of other classes are left out. `places`: of `as_coco80`."""
    classes = torch.tensor(places, dtype=torch.int64)[found.classes]
    return Detections(found.boxes, found.scores, classes)[classes >= 0]
