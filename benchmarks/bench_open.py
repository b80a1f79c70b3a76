"""Opening a COCO folder with captions and instances, at 12,000 and at 118,287 images (COCO-17 train).

Wanted: time and memory that grow with the images and no faster (growth ratio at most 1.2), and well under 2 GB.
Floor: the annotations are about 3.4 KB an image; they are read twice, once to be decoded and once for the digest.

The folders are synthetic: 5 captions and 7 polygons of 23 points an image, as COCO-17 has on average, and pictures that
are empty files, since opening looks at their sizes only. Each size is opened in a process of its own.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import report

from orchestration.data.coco import read_coco

SIZES = (12_000, 118_287)
_CAPTION = "A bicycle replica with a clock as the front wheel."


def write_folder(root: Path, images: int) -> None:
    """A folder in COCO's layout, written line by line so that this process stays small."""
    chance = random.Random(0)
    shapes = [json.dumps([[round(chance.random() * 480, 2) for _ in range(46)]]) for _ in range(500)]
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    listing = ",".join(
        f'{{"id":{i},"file_name":"{i:012d}.jpg","width":640,"height":480,"license":1,"date_captured":"2013-11-14"}}'
        for i in range(images)
    )
    for i in range(images):
        (root / "train2017" / f"{i:012d}.jpg").touch()
    with (root / "annotations/captions_train2017.json").open("w") as file:
        file.write(f'{{"images":[{listing}],"annotations":[')
        for i in range(5 * images):
            file.write(f'{"," * (i > 0)}{{"id":{i},"image_id":{i // 5},"caption":"{_CAPTION}"}}')
        file.write("]}")
    with (root / "annotations/instances_train2017.json").open("w") as file:
        file.write(f'{{"images":[{listing}],"categories":[{{"id":1,"name":"person"}}],"annotations":[')
        for i in range(7 * images):
            file.write(
                f'{"," * (i > 0)}{{"id":{i},"image_id":{i // 7},"category_id":1,"bbox":[1.5,2.5,100.25,100.5],'
                f'"area":702.1057,"iscrowd":0,"segmentation":{shapes[i % len(shapes)]}}}'
            )
        file.write("]}")


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def open_here(root: Path) -> None:
    """One JSON line: seconds, and the process's memory before and at its peak."""
    before = peak_mb()
    start = time.perf_counter()
    dataset = read_coco(root, "train")
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "before_mb": before, "peak_mb": peak_mb(), "images": len(dataset.records)}))


def measure(images: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coco"
        write_folder(root, images)
        command = [sys.executable, __file__, str(root)]
        found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
    assert all(each["images"] == images for each in found)
    return min(found, key=lambda each: float(each["seconds"]))


def main() -> None:
    small, large = (measure(images) for images in SIZES)
    report(
        benchmark="open",
        images=list(SIZES),
        seconds=[round(small["seconds"], 3), round(large["seconds"], 3)],
        before_mb=large["before_mb"],
        peak_mb=[round(small["peak_mb"]), round(large["peak_mb"])],
        images_per_s=SIZES[1] / large["seconds"],
        growth_ratio=large["seconds"] / small["seconds"] / (SIZES[1] / SIZES[0]),
    )


if __name__ == "__main__":
    open_here(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
