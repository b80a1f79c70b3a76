"""Requests a second of 16 clients, batched against one at a time. Wanted: at least 3 times as many.

Floor: one 32 px picture of the quickstart's generator is about 0.1 GFLOP, and the BERT before it about 0.4 GFLOP.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from timing import report
from tiny_run import HOME, prepared_experiment, trainer

from orchestration.serving import request_image, start_server
from orchestration.training.state import save_checkpoint

CLIENTS, REQUESTS = 16, 160


def main() -> None:
    experiment, prepared = prepared_experiment()
    checkpoint = save_checkpoint(
        trainer(experiment, prepared).state, experiment, prepared.provenance, HOME.root / "checkpoints"
    )
    rates, latencies, cold = {}, {}, {}
    for max_batch in (8, 1):
        start = time.perf_counter()
        with start_server(checkpoint, HOME.root, "xmcgan", "0", port=0, max_batch=max_batch) as server:
            cold[max_batch] = time.perf_counter() - start
            rates[max_batch], latencies[max_batch] = _load(server.url)
    report(
        benchmark="serving",
        batched_per_s=rates[8],
        unbatched_per_s=rates[1],
        ratio=rates[8] / rates[1],
        p50_s=statistics.median(latencies[8]),
        p99_s=sorted(latencies[8])[int(0.99 * REQUESTS)],
        cold_start_s=cold[8],
    )


def _load(url: str) -> tuple[float, list[float]]:
    def request(index: int) -> float:
        start = time.perf_counter()
        request_image(url, f"a red boat on the sea number {index}", seed=index)
        return time.perf_counter() - start

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(request, range(CLIENTS)))
        start = time.perf_counter()
        latencies = list(clients.map(request, range(REQUESTS)))
        return REQUESTS / (time.perf_counter() - start), latencies


if __name__ == "__main__":
    main()
