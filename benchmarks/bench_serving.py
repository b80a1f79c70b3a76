"""Requests a second of 16 clients, batched against one at a time. Wanted: at least 3 times as many.

Also latency, what a request costs beside drawing, the time to the first picture, and the memory of a further version.
The net is the quickstart's generator at 32 px, untrained: one picture is about 0.1 GFLOP, and the BERT before it about
0.4 GFLOP. Clients and server share the machine's cores.
"""

import os
import statistics
import time
from collections.abc import Sequence

import torch
from ray import serve
from serving_load import MODEL, PROMPT, VERSIONS, Client, load, resident_mb, served_experiment, settings
from timing import interleaved, report
from tiny_run import HOME

from orchestration.painter import Painter
from orchestration.serving.server import APP_NAME, start_server
from orchestration.training.state import newest_checkpoint

CLIENTS, REQUESTS, ROUNDS, ALONE = 16, 320, 3, 40
MAX_BATCH = 16


def main() -> None:
    experiment = served_experiment()
    start = time.perf_counter()
    with start_server(settings(max_batch=MAX_BATCH), port=0) as server:
        assert Client(server.url).ask(0) == 200
        cold = time.perf_counter() - start
        painter = serve.get_deployment_handle("painter", APP_NAME)
        told = painter.statistics.remote().result()
        one_version = resident_mb(told["pid"])

        loads = {MAX_BATCH: [], 1: []}
        for _ in range(ROUNDS):
            for size, done in loads.items():
                painter.reconfigure.remote({"max_batch": size, "wait_s": 0.01 if size > 1 else 0.0}).result()
                load(server.url, CLIENTS, 2 * CLIENTS)
                done.append(load(server.url, CLIENTS, REQUESTS))
                assert set(done[-1].statuses) == {200}, done[-1].statuses
        painter.reconfigure.remote({"max_batch": MAX_BATCH, "wait_s": 0.01}).result()

        sizes = next(iter(told["sizes"].values()))
        request, bare, allowed = _alone(server.url, sizes)
        with_load = resident_mb(told["pid"])
        assert Client(server.url).ask(1, f"{MODEL}@2") == 200
        two_versions = resident_mb(told["pid"])
    rates = {size: statistics.median(each.rate for each in done) for size, done in loads.items()}
    middle = sorted(loads[MAX_BATCH], key=lambda each: each.rate)[ROUNDS // 2]
    report(
        benchmark="serving",
        net=f"{experiment.recipe}, {experiment.get_system().resolution(experiment.model)} px",
        clients=CLIENTS,
        cores=os.cpu_count(),
        batch_sizes=sizes,
        batched_per_s=rates[MAX_BATCH],
        unbatched_per_s=rates[1],
        ratio=rates[MAX_BATCH] / rates[1],
        net_ratio=allowed,
        p50_s=middle.percentile(0.5),
        p95_s=middle.percentile(0.95),
        p99_s=middle.percentile(0.99),
        alone_s=request,
        bare_s=bare,
        overhead_s=request - bare,
        cold_start_s=cold,
        replica_1_version_mb=one_version,
        replica_after_load_mb=with_load,
        replica_2_versions_mb=two_versions,
    )


def _alone(url: str, sizes: Sequence[int]) -> tuple[float, float, float]:
    """Seconds of a request that has no company, and of drawing the batch that it is padded to in this process; and what
    the net allows: pictures a second in batches of the largest size, over one at a time."""
    checkpoint = newest_checkpoint(VERSIONS / "1")
    assert checkpoint is not None
    painter, client, places = Painter.load(checkpoint.folder, HOME.root), Client(url), iter(range(10_000, 20_000))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def bare(size: int) -> None:
        painter.draw([PROMPT.format(next(places)) for _ in range(size)], list(range(size)))

    try:
        request, padded = interleaved(lambda: client.ask(next(places)), lambda: bare(sizes[0]), ALONE)
        together, single = interleaved(lambda: bare(sizes[-1]), lambda: bare(1), ALONE)
        return request, padded, single * sizes[-1] / together
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
