"""A long load at 80 % of what the endpoint can do: is anything lost, does anything grow?

Requests are due at a fixed rate, and their time counts from when they were due: a server that stalls cannot hide it.
Prints one JSON line with the memory of every process at the start, each minute and the end. Not run by `make bench`.

    python benchmarks/soak_serving.py --minutes 10
"""

import argparse
import json
import os
import threading

from serving_load import load, served_experiment, serving_processes, settings

from orchestration.serving.server import start_server

CLIENTS, SHARE = 64, 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the load  [default: 10]")
    parser.add_argument("--replicas", type=int, default=1, help="processes that draw  [default: 1]")
    given = parser.parse_args()
    served_experiment()
    with start_server(settings(replicas=given.replicas), port=0) as server:
        load(server.url, 16, 64)
        capacity = load(server.url, 16, seconds=min(15.0, 60 * given.minutes))
        memory = [serving_processes(os.getpid())]
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(60):
                memory.append(serving_processes(os.getpid()))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        done = load(server.url, CLIENTS, seconds=60 * given.minutes, rate=SHARE * capacity.rate)
        stop.set()
        watching.join()
        memory.append(serving_processes(os.getpid()))
    figures = {
        "soak": "serving",
        "minutes": given.minutes,
        "capacity_per_s": round(capacity.rate, 1),
        "due_per_s": round(SHARE * capacity.rate, 1),
        "requests": len(done.seconds),
        "per_s": round(done.rate, 1),
        "statuses": {str(status): count for status, count in sorted(done.statuses.items())},
        "5xx": sum(count for status, count in done.statuses.items() if status >= 500),
        "broken_connections": done.statuses[0],
        "p50_s": round(done.percentile(0.5), 4),
        "p99_s": round(done.percentile(0.99), 4),
        "longest_s": round(max(done.seconds), 4),
        # A process that was started or ended in between lacks figures.
        "resident_mb": {name: [each.get(name) for each in memory] for name in sorted(set().union(*memory))},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
