"""TReCS's retrieval (section 2.2) in indexes of growing size: the 10 pictures that fit a narrative best.

Embeddings are synthetic: 256 numbers of length 1 around 2,000 modes, of which 32 are free (--dim gives another width;
the paper's is 2,048); a query is one of the pictures' modes with noise of its own. Each index is tried in a process of
its own, interleaved with exact torch search over the same queries, both with one thread; building is not in the time.
Beside it recall@10 against exact, the seconds of building, and the memory that the index takes beyond the embeddings,
which lie in a mapped file.

Wanted: flat finds all, hnsw at least 0.95 of it; hnsw's time a query grows with less than half of the pictures' growth.
Floor: flat and exact multiply each query with every embedding, 2 x D operations each; growth_ratio is the growth of the
time a query over that of the pictures, 1 where it is in proportion. 1,000,000 takes minutes.
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
from bench_prefilter import own_memory_mb
from numpy.typing import NDArray
from timing import growth_of_indices, interleaved, report

from orchestration.data.vector_search import IndexSettings, ProductIndex

MODES, FREE, QUERIES, K = 2000, 32, 200, 10
KINDS = ("flat", "ivf", "hnsw")


def drawn(draw: np.random.Generator, count: int, dim: int, noise: float) -> NDArray[np.float32]:
    """(count,dim) of length 1; modes and the free directions are always the same."""
    fixed = np.random.default_rng(7)
    modes = fixed.standard_normal((MODES, FREE)).astype(np.float32)
    spread = fixed.standard_normal((FREE, dim)).astype(np.float32)
    free = modes[draw.integers(0, MODES, count)] + noise * draw.standard_normal((count, FREE)).astype(np.float32)
    found = free @ spread
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32)


def write_embeddings(file: Path, count: int, dim: int) -> None:
    draw = np.random.default_rng(0)
    embeddings = np.lib.format.open_memmap(file, "w+", np.float32, (count, dim))
    for start in range(0, count, 50_000):
        embeddings[start : start + 50_000] = drawn(draw, min(50_000, count - start), dim, 0.5)
    embeddings.flush()


def measure_here(file: Path, kind: Any, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    embeddings = np.load(file, mmap_mode="r")
    queries = drawn(np.random.default_rng(1), QUERIES, embeddings.shape[1], 0.7)
    exact = ProductIndex(embeddings, IndexSettings(index="exact"))
    before, start = own_memory_mb(), time.perf_counter()
    asked = ProductIndex(embeddings, IndexSettings(index=kind))
    seconds, built = time.perf_counter() - start, own_memory_mb()
    found, wanted = asked.search(queries, K)[0], exact.search(queries, K)[0]
    own, theirs = interleaved(lambda: asked.search(queries, K), lambda: exact.search(queries, K), rounds)
    return {
        "build_s": seconds,
        "index_mb": built - before,
        "queries_s": QUERIES / own,
        "exact_queries_s": QUERIES / theirs,
        "recall": float((found[:, :, None] == wanted[:, None, :]).any(2).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="pictures of an index")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="indices to try")
    parser.add_argument("--dim", type=int, default=256, help="width of embeddings")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)  # file and kind, in a process of its own
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure_here(Path(asked.here[0]), asked.here[1], asked.rounds)))
        return
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in asked.kinds}
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "embeddings.npy"
            write_embeddings(file, size, asked.dim)
            for kind in asked.kinds:
                command = [sys.executable, __file__, "--rounds", str(asked.rounds), "--here", str(file), kind]
                found[kind].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    report(
        benchmark="index_growth",
        pictures=asked.sizes,
        dim=asked.dim,
        embeddings_mb=[round(size * asked.dim * 4 / 1e6) for size in asked.sizes],
        k=K,
        **growth_of_indices(found, asked.sizes),
    )


if __name__ == "__main__":
    main()
