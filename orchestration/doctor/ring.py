"""A real all-reduce: among one process a node, or among two on one machine. It travels to nodes, as probes do."""

import time
from datetime import timedelta
from statistics import median
from typing import Any

Values = dict[str, Any]

SIZE = 16 << 20
REPEATS = 5


class Rank:
    """A process that takes part. Rank 0 opens the meeting place."""

    def __init__(self) -> None:
        self._store: Any = None

    def open(self, address: str, ranks: int, timeout_s: float) -> int:
        """Open the meeting place at an address of this node; returns its port."""
        self._store = open_store(address, ranks, timeout_s)
        return int(self._store.port)

    def reduce(self, rank: int, ranks: int, address: str, port: int, backend: str, timeout_s: float) -> Values:
        """Take part; values of Ring but for `backend` and `ranks`."""
        return reduce(rank, ranks, address, port, backend, timeout_s, self._store)


def open_store(address: str, ranks: int, timeout_s: float) -> Any:
    """A meeting place on a free port."""
    import torch

    distributed: Any = torch.distributed
    return distributed.TCPStore(
        address, 0, ranks, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def reduce(rank: int, ranks: int, address: str, port: int, backend: str, timeout_s: float, store: Any = None) -> Values:
    """One rank's part: sums of `SIZE` bytes of float32, the first of them to warm up, the median of the rest timed."""
    import torch

    dist: Any = torch.distributed
    patience = timedelta(seconds=timeout_s)
    if store is None:
        store = dist.TCPStore(address, port, ranks, is_master=False, timeout=patience)
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
    try:
        times, correct = [], True
        for _ in range(REPEATS + 1):
            values = torch.full((SIZE // 4,), float(rank + 1), device=device)
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
            correct &= bool((values == ranks * (ranks + 1) / 2).all())
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return {"size": SIZE, "seconds": median(times[1:]), "correct": correct}


def reduce_here(backend: str, timeout_s: float) -> list[Values | str]:
    """An all-reduce between two new processes on this machine; a string is why one of them failed."""
    import torch.multiprocessing as multiprocessing

    context = multiprocessing.get_context("spawn")
    store = open_store("127.0.0.1", 2, timeout_s)
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=_rank_here, args=(rank, int(store.port), backend, timeout_s, ours), daemon=True)
        for rank, (_, ours) in enumerate(pipes)
    ]
    until = time.monotonic() + timeout_s
    found: list[Values | str] = []
    try:
        for process in processes:
            process.start()
        for (theirs, ours), process in zip(pipes, processes, strict=True):
            ours.close()
            answered = theirs.poll(max(0.0, until - time.monotonic()))
            try:
                found.append(theirs.recv() if answered else f"no answer within {timeout_s:g} s")
            except EOFError:
                process.join(5)
                found.append(f"its process ended with exit code {process.exitcode}")
    finally:
        for process in processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
    return found


def _rank_here(rank: int, port: int, backend: str, timeout_s: float, answer: Any) -> None:
    try:
        if backend == "nccl":
            import torch

            torch.cuda.set_device(rank)
        answer.send(reduce(rank, 2, "127.0.0.1", port, backend, timeout_s))
    except Exception as error:
        answer.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
