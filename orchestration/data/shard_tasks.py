"""Shards written by Ray Data tasks."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestration.cluster import ray_cluster
from orchestration.data.shard_form import ShardSummary
from orchestration.data.shard_work import Runner, Unit, Work
from orchestration.errors import RequestError, RunError

_RETRIES = 3  # of a task that dies; Ray Data by itself would never give up
_OUTCOMES = {"request": RequestError, "run": RunError}


def ray_data_runner(workers: int | None = None) -> Runner:
    """Runs shards as Ray Data tasks of one core, at most `workers` at a time, on the cluster that is joined or started.

    A task that dies is run again by Ray. What a task refuses or fails with comes back as its own sentence.
    """

    def run(work: Work, units: Sequence[Unit], finished: Callable[[Unit, ShardSummary], None]) -> None:
        with ray_cluster(minimum_cpus=workers or 1):
            from ray import data
            from ray.exceptions import RayError

            context = data.DataContext.get_current()
            context.enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            source = data.range(len(units), override_num_blocks=len(units))
            with warnings.catch_warnings():
                # Ray means to name every such option; the number of retries has no name of its own yet.
                warnings.simplefilter("ignore", DeprecationWarning)
                tasks = source.map_batches(
                    _run_units,
                    fn_args=(work, tuple(units)),
                    batch_size=1,
                    num_cpus=1,
                    concurrency=workers and min(workers, len(units)),
                    max_retries=_RETRIES,
                )
            try:
                for row in tasks.iter_rows():
                    if row["fault"]:
                        raise _OUTCOMES[row["fault"]](row["answer"])
                    finished(units[row["id"]], msgspec.json.decode(row["answer"], type=ShardSummary))
            except RayError as error:
                reason = (
                    f"a task died {_RETRIES + 1} times, which a lack of memory can cause; Ray says {_first_line(error)}"
                )
                raise RunError(_failed(work.folder, reason)) from error

    return run


def _run_units(rows: dict[str, Any], work: Work, units: Sequence[Unit]) -> dict[str, Any]:
    """One Ray Data batch: places of units to their summaries, or the sentence of an error."""
    faults, answers = [], []
    for place in rows["id"]:
        fault, answer = "", ""
        try:
            answer = msgspec.json.encode(work(units[place])).decode()
        except RequestError as error:
            fault, answer = "request", str(error)
        except RunError as error:
            fault, answer = "run", str(error)
        except Exception as error:  # Ray would send its whole traceback
            fault, answer = "run", _failed(work.folder, f"{type(error).__name__}: {_first_line(error)}")
        faults.append(fault)
        answers.append(answer)
    return {"id": rows["id"], "fault": faults, "answer": answers}


def _failed(folder: Path, reason: str) -> str:
    return f"preparing {folder} failed ({reason}); run the same command again: it goes on where it stopped."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no more is known"
