"""RetrieveGAN's pre-filter: the 10 nearest patches of a class in banks of growing size, by faiss and by torch.

Features are synthetic: GCN-like, 128 numbers of which 16 are free, passed through a ReLU, around 50 modes a class;
171 classes (COCO with stuff) whose sizes fall as 1/rank, the largest with 17 % of the patches. A query is a patch of
the bank in a block of 1,024 pictures of 6 objects, and patches of its own picture are passed over, as in training.
Each index is tried in a process of its own, interleaved with exact torch search over the same queries, both with one
thread; building is not in the time. Beside it recall@10 against exact, and the memory that building the index takes
beyond the features, which lie in a mapped file.

Wanted: flat finds all, hnsw at least 0.95 of it; time a query grows with the patches and no faster (at most 1.2 times).
Floor: exact search multiplies each query with every patch of its class, 256 operations each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import growth_of_indices, interleaved, report

from orchestration.data.patch_search import ByClass, PatchIndex, PreFilterSettings, recall

CLASSES, WIDTH, FREE, MODES = 171, 128, 16, 50
PICTURE_OBJECTS, BLOCK = 6, 1024
KINDS = ("flat", "ivf", "hnsw")
K = 10


def write_features(folder: Path, patches: int) -> None:
    """features.npy, a chunk at a time, classes.npy and image_ids.npy."""
    draw = np.random.default_rng(0)
    shares = 1 / np.arange(1, CLASSES + 1)
    classes = draw.choice(CLASSES, patches, p=shares / shares.sum()) + 1
    modes = draw.normal(size=(CLASSES + 1, MODES, FREE)).astype(np.float32)
    spread = draw.normal(size=(FREE, WIDTH)).astype(np.float32)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (patches, WIDTH))
    for start in range(0, patches, 50_000):
        some = classes[start : start + 50_000]
        free = modes[some, draw.integers(0, MODES, len(some))]
        free += 0.5 * draw.normal(size=free.shape).astype(np.float32)
        features[start : start + len(some)] = np.maximum(free @ spread, 0)
    features.flush()
    np.save(folder / "classes.npy", classes.astype(np.int64))
    np.save(folder / "image_ids.npy", np.arange(patches, dtype=np.int64) // PICTURE_OBJECTS)


def own_memory_mb() -> float:
    """What this process has beyond mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


def measure_here(folder: Path, kind: str, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    features = np.load(folder / "features.npy", mmap_mode="r")
    classes, image_ids = np.load(folder / "classes.npy"), np.load(folder / "image_ids.npy")

    def index(kind: Any) -> PatchIndex:
        return PatchIndex(features, classes, image_ids, PreFilterSettings(index=kind))

    asked, exact = index(kind), index("exact")
    before, start = own_memory_mb(), time.perf_counter()
    build(asked)
    built, seconds = own_memory_mb(), time.perf_counter() - start
    build(exact)
    first = min(len(classes), BLOCK * PICTURE_OBJECTS)
    rows = slice(0, first)
    queries: tuple[NDArray[Any], ...] = (np.array(features[rows]), classes[rows])
    own, theirs = interleaved(
        lambda: asked.search(queries[0], queries[1], K, image_ids[rows]),
        lambda: exact.search(queries[0], queries[1], K, image_ids[rows]),
        rounds,
    )
    return {
        "build_s": seconds,
        "index_mb": built - before,
        "queries_s": first / own,
        "exact_queries_s": first / theirs,
        "recall": recall(asked, 1000, K, 0),
    }


def build(index: PatchIndex) -> None:
    """All classes, one query each."""
    numbers = np.unique(index.classes)
    firsts = np.array([ByClass(index.classes).places(number)[0] for number in numbers])
    index.search(np.array(index.features[firsts]), numbers, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="patches of a bank")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="indices to try")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)  # folder and kind, in a process of its own
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure_here(Path(asked.here[0]), asked.here[1], asked.rounds)))
        return
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in asked.kinds}
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_features(Path(folder), size)
            for kind in asked.kinds:
                command = [sys.executable, __file__, "--rounds", str(asked.rounds), "--here", folder, kind]
                output = subprocess.run(command, check=True, capture_output=True).stdout
                found[kind].append(json.loads(output))
    report(
        benchmark="prefilter",
        patches=asked.sizes,
        features_mb=[round(size * WIDTH * 4 / 1e6) for size in asked.sizes],
        k=K,
        queries=[min(size, BLOCK * PICTURE_OBJECTS) for size in asked.sizes],
        **growth_of_indices(found, asked.sizes),
    )


if __name__ == "__main__":
    main()
