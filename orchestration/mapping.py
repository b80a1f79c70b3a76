"""Stages that only map over data: items in blocks, each kept once it is done, in this process or by Ray Data.

`map_blocks` computes what is missing, so a stage that was killed goes on. The blocks are fixed and every worker
computes with one thread, so the bytes depend neither on the number of workers nor on that of the machine's cores.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.parallel import one_thread
from orchestration.cluster import ray_cluster
from orchestration.data.shard_tasks import Failed, TaskDied, free_cores, run_in_actors
from orchestration.errors import RequestError, RunError
from orchestration.stages import Progress, hidden_sibling, write_atomically

FEW, FEW_JOINED = 20, 8
"""Up to so many missing blocks are computed here, sooner than Ray starts, or its workers on a joined cluster."""
DEATHS = 4
"""So often a worker may die, as one does for want of memory, unless many blocks are finished between."""
_ABOUT = "block"  # one entry: safetensors writes several in any order

Worker = Callable[[range], Mapping[str, NDArray[Any]]]
"""Computes the named arrays of some items, the same whoever asks and whatever was asked before."""
MakeWorker = Callable[[], Worker]
"""Makes a process's worker, nets and all. Ray sends it to other processes."""


def map_blocks(
    folder: Path,
    count: int,
    block: int,
    make_worker: MakeWorker,
    progress: Progress,
    workers: int | None = None,
    what: str = "mapping",
    here: MakeWorker | None = None,
    identity: str = "",
) -> list[Path]:
    """Compute items 0 to count-1, `block` at a time (some seconds of work), and return the blocks' files in order.

    Each file holds a worker's arrays and is written whole or not at all. One that is there is read and kept if it is
    as it was written, of the same items and `identity` (a digest of what a worker depends on), so a repeat goes on.
    folder: of these blocks alone; on a cluster of several machines all must see it. workers: at most so many processes,
    None for every free core; few blocks are computed here. what: said to `progress` with (items done, count). here:
    makes the worker of this process where that is cheaper. Raises RequestError and RunError as a worker raises them,
    RunError for all else that fails in another process, and OSError for a file that cannot be written here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blocks = _Blocks(folder.resolve(), count, block, identity)  # the whole path: workers have another current folder
    blocks.clear()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        missing = [index for index, whole in enumerate(pool.map(blocks.whole, range(len(blocks)))) if not whole]
    done = count - sum(len(blocks.items(index)) for index in missing)

    def finished(index: int) -> None:
        nonlocal done
        done += len(blocks.items(index))
        progress(what, done, count)

    if missing:
        progress(what, done, count)
        with _processes(len(missing), workers) as processes:
            if processes > 1:
                _map_elsewhere(blocks, missing, make_worker, processes, partial(_failed, what, folder), finished)
            else:
                with one_thread():
                    worker = (here or make_worker)()
                    for index in missing:
                        blocks.write(index, worker(blocks.items(index)))
                        finished(index)
    return [blocks.file(index) for index in range(len(blocks))]


def read_block(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of one block. Raises RequestError when they are not as they were written."""
    try:
        return _read(file)[1]
    except _UNREADABLE as error:
        raise RequestError(
            f"block {file} cannot be read ({str(error) or type(error).__name__}): delete it and repeat what wrote it"
        ) from error


def join_blocks(files: Sequence[Path], name: str, out: Path) -> None:
    """Write the array `name` of all blocks, one after the other along the first axis, to the .npy file `out`.

    One block at a time is in memory. Raises RequestError for a damaged block.
    """
    rows, first = 0, read_block(files[0])[name]
    for file in files:
        with safe_open(file, "numpy") as opened:
            rows += opened.get_slice(name).get_shape()[0]
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": (rows, *first.shape[1:])}
    temporary = hidden_sibling(out)
    try:
        with temporary.open("xb") as output:
            np.lib.format.write_array_header_1_0(output, header)
            for file in files:
                output.write(np.ascontiguousarray(read_block(file)[name]).data)
            output.flush()
            os.fsync(output.fileno())
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Where which items are kept."""

    folder: Path
    count: int
    size: int
    identity: str

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def items(self, index: int) -> range:
        return range(index * self.size, min((index + 1) * self.size, self.count))

    def file(self, index: int) -> Path:
        return self.folder / f"block-{index:06d}.safetensors"

    def clear(self) -> None:
        """Remove what is no block of these: half-written ones of a killed process, those of another division."""
        wanted = {self.file(index).name for index in range(len(self))}
        for pattern in (".block-*", "block-*"):
            for path in self.folder.glob(pattern):
                if path.name not in wanted:
                    path.unlink(missing_ok=True)

    def whole(self, index: int) -> bool:
        try:
            about, _ = _read(self.file(index))
        except _UNREADABLE:
            return False
        return {**about, "sha256": ""} == self._about(index, "")

    def write(self, index: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        about = self._about(index, _digest(plain))
        write_atomically(self.file(index), save(plain, {_ABOUT: json.dumps(about)}))

    def _about(self, index: int, sha256: str) -> dict[str, Any]:
        items = self.items(index)
        return {"items": [items.start, items.stop], "identity": self.identity, "sha256": sha256}


def _map_elsewhere(
    blocks: _Blocks,
    missing: Sequence[int],
    make_worker: MakeWorker,
    processes: int,
    failed: Failed,
    finished: Callable[[int], None],
) -> None:
    """In actors; when one dies, what is missing then is computed by new ones."""
    deaths = 0
    while missing:
        found = set[int]()

        def heard(place: int, answer: str) -> None:
            found.add(missing[place])  # noqa: B023
            finished(missing[place])  # noqa: B023

        try:
            make_task = partial(_Task, blocks, tuple(missing), make_worker)
            run_in_actors(make_task, len(missing), min(processes, len(missing)), failed, heard)
        except TaskDied as error:
            # A block that kills whoever computes it is among the first each time.
            deaths = deaths + 1 if len(found) < 10 * processes else 1
            if deaths == DEATHS:
                raise RunError(failed(error.after(deaths))) from error
        missing = [index for index in missing if index not in found]
        if missing:
            processes = min(processes, max(1, free_cores() or 1))  # a machine may be gone


class _Task:
    """What an actor does: it has one worker, and writes the blocks that it is given."""

    def __init__(self, blocks: _Blocks, missing: Sequence[int], make_worker: MakeWorker) -> None:
        self.blocks, self.missing, self.worker = blocks, missing, make_worker()

    def __call__(self, place: int) -> str:
        index = self.missing[place]
        with one_thread():
            self.blocks.write(index, self.worker(self.blocks.items(index)))
        return ""


@contextmanager
def _processes(missing: int, workers: int | None) -> Iterator[int]:
    """How many processes compute that many blocks; for more than one, Ray is joined or started meanwhile."""
    free = free_cores()
    if free is None and not os.environ.get("RAY_ADDRESS"):
        free_here = max(os.cpu_count() or 1, workers or 1)
    else:
        free_here = missing if free is None else free  # a cluster's cores are known once it is joined
    few = FEW if free is None else FEW_JOINED
    if missing <= few or min(free_here, workers or missing, missing) < 2:
        yield 1
        return
    with ray_cluster(minimum_cpus=workers or 1):
        yield max(1, min(free_cores() or 1, workers or missing, missing))


_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What a block says of itself, and its arrays. Raises one of _UNREADABLE when it is not as it was written."""
    with safe_open(file, "numpy") as opened:
        about = json.loads((opened.metadata() or {})[_ABOUT])
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if _digest(arrays) != about["sha256"]:
        raise ValueError("its sha256 differs")
    return about, arrays


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _failed(what: str, folder: Path, reason: str) -> str:
    return f"{what} failed in {folder} ({reason}); run the same command again: it goes on where it stopped."
