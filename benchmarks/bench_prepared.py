"""Prepared pictures against published files that are decoded at each access, images a second; memory; time to open.

Photographs: the first argument's folder of JPEGs (default ../shared/data/coco-mini), else generated ones of COCO's
size. Memory is the growth of proportional set size (PSS) when processes open one prepared split and read all of it:
shared pages count once, so 4 processes should need little more than 1. The synthetic records carry what COCO's do.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import interleaved, report

from orchestration.data.records import Caption, Dataset, ImageRecord, Instance, carried
from orchestration.data.shard_form import Codec
from orchestration.data.shards import ShardOptions, Shards, open_shards, write_shards

BATCH = 16
ROUNDS = 30
MEMORY_IMAGES = 6000


def main() -> None:
    default = Path(__file__).parents[2] / "shared" / "data" / "coco-mini"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        found = photographs(folder if folder.is_dir() else generate_photographs(scratch / "photographs"))
        figures: dict[str, Any] = {"photographs": len(found.records), "threads": torch.get_num_threads()}
        for size in (64, 256):
            figures |= speeds(found, size, scratch)
        figures |= memory(scratch)
        for count in (12_000, 118_000):
            figures |= opening(count, scratch)
    report(benchmark="prepared", **figures)


def photographs(folder: Path) -> Dataset:
    records = []
    for place, file in enumerate(sorted(folder.rglob("*.jpg"))):
        with Image.open(file) as picture:
            records.append(ImageRecord(place, file, *picture.size))
    return Dataset("coco", "train", folder, tuple(records), carried(records), "0" * 64)


def generate_photographs(folder: Path, count: int = 64) -> Path:
    """Noise of all scales compresses about as a photograph does."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for place in range(count):
        layers = [draw.normal(128, 128 / scale, (480 * scale // 64, 640 * scale // 64, 3)) for scale in (2, 8, 32, 64)]
        mixed = sum(
            np.asarray(Image.fromarray(layer.clip(0, 255).astype(np.uint8)).resize((640, 480)), np.float64)
            for layer in layers
        )
        Image.fromarray((mixed / len(layers)).astype(np.uint8)).save(folder / f"{place}.jpg", quality=90)
    return folder


def speeds(data: Dataset, size: int, scratch: Path) -> dict[str, float]:
    """Images a second of shuffled batches, and bytes an image, of each way to keep them."""
    codecs: Sequence[Codec] = ("raw", "png", "none")
    folders = {codec: scratch / f"{codec}-{size}" for codec in codecs}
    opened: dict[str, Shards] = {}
    for codec, folder in folders.items():
        opened[codec] = open_shards(write_shards(data, ShardOptions("attngan", size, codec), folder))
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, len(data.records), BATCH) for _ in range(2 * ROUNDS + 2)]

    def read(shards: Shards) -> None:
        np.stack([picture[:, :size, :size] for picture in shards.pictures(batches[draw.integers(len(batches))])])

    figures: dict[str, float] = {}
    for codec in ("raw", "png"):
        seconds, published = interleaved(lambda codec=codec: read(opened[codec]), lambda: read(opened["none"]), ROUNDS)
        figures |= {
            f"{codec}_{size}px_images_per_s": BATCH / seconds,
            f"{codec}_{size}px_ratio": published / seconds,
            f"{codec}_{size}px_bytes": float(sum(e.bytes for e in opened[codec].manifest.shards) / len(data.records)),
            f"published_{size}px_images_per_s": BATCH / published,
        }
    return figures


def memory(scratch: Path) -> dict[str, float]:
    """Growth of the PSS of 1 and of 4 processes together, MB, over a raw split that all read whole."""
    data = synthetic(MEMORY_IMAGES, scratch / "memory-pictures")
    folder = write_shards(data, ShardOptions("xmcgan", 64, "raw"), scratch / "memory")
    size = sum(file.stat().st_size for file in folder.glob("*.arrow"))
    grown = {count: _together(count, folder) for count in (1, 4)}
    return {
        "split_mb": size / 1e6,
        "pss_1_process_mb": grown[1] / 1e6,
        "pss_4_processes_mb": grown[4] / 1e6,
        "pss_ratio": grown[4] / grown[1],
    }


def _together(count: int, folder: Path) -> int:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(count), context.SimpleQueue()
    processes = [context.Process(target=_read_all, args=(folder, barrier, answers)) for _ in range(count)]
    for process in processes:
        process.start()
    grown = sum(answers.get() for _ in processes)
    for process in processes:
        process.join()
    return grown


def _read_all(folder: Path, barrier: Barrier, answers: Any) -> None:
    np.zeros(1).sum()
    barrier.wait()
    before = _pss()
    barrier.wait()
    shards = open_shards(folder)
    seen = sum(int(shards.pictures([row])[0].max()) for row in range(len(shards)))
    barrier.wait()
    after = _pss()
    barrier.wait()
    answers.put(after - before if seen else 0)


def _pss() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process has")


def opening(count: int, scratch: Path) -> dict[str, float]:
    """Seconds to write, to open and to look through a split of `count` records, and microseconds for one record."""
    data = synthetic(count, scratch / f"opening-pictures-{count}")
    start = time.perf_counter()
    folder = write_shards(data, ShardOptions("xmcgan", 256, "none"), scratch / f"opening-{count}")
    written = time.perf_counter() - start
    start = time.perf_counter()
    shards = open_shards(folder)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    assert sum(len(record.captions or ()) for record in shards.records) == 5 * count
    through = time.perf_counter() - start
    start = time.perf_counter()
    for row in range(0, count, count // 100):
        shards.records[row]
    one = (time.perf_counter() - start) / 100
    name = f"{count // 1000}k"
    return {
        f"{name}_shards": len(shards.manifest.shards),
        f"{name}_write_s": written,
        f"{name}_open_s": opened,
        f"{name}_read_all_s": through,
        f"{name}_one_record_us": one * 1e6,
    }


def synthetic(count: int, folder: Path) -> Dataset:
    """Records as rich as COCO's: 5 captions, 7 things with polygons. One small picture stands for all."""
    folder.mkdir()
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "one.png")
    outline = json.dumps([np.linspace(0, 8, 40).round(2).tolist()]).encode()
    things = tuple(Instance("dog", 18, (1.0, 1.0, 4.0, 5.0), outline, 17.5, False) for _ in range(7))
    captions = tuple(Caption(place, "a brown dog that lies on a green field near a tree") for place in range(5))
    records = [
        ImageRecord(place, folder / "one.png", 8, 8, captions=captions, instances=things) for place in range(count)
    ]
    return Dataset("coco", "train", folder, tuple(records), carried(records[:1]), "1" * 64)


if __name__ == "__main__":
    main()
