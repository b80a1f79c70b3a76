"""Work over data by Ray Data: shards as tasks, and whatever loads a net once as a pool of actors."""

import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from orchestration.cluster import ray_cluster
from orchestration.data.shard_form import ShardSummary
from orchestration.data.shard_work import Runner, Unit, Work
from orchestration.errors import RequestError, RunError

_RETRIES = 3  # of a task that dies; Ray Data by itself would never give up
_ENDING_S = 5.0
_OUTCOMES = {"request": RequestError, "run": RunError}

Task = Callable[[int], str]
"""Does one piece of the work and answers for it."""
Failed = Callable[[str], str]
"""The sentence about work that failed, from a reason."""


class TaskDied(Exception):
    """A process died at its work, with Ray's first line about it."""

    def after(self, times: int) -> str:
        """The reason why it is not tried again."""
        return f"a task died {times} times, which a lack of memory can cause; Ray says {self}"


def ray_data_runner(workers: int | None = None) -> Runner:
    """Runs shards as Ray Data tasks of one core, at most `workers` at a time, on the cluster that is joined or started.

    A task that dies is run again by Ray. What a task refuses or fails with comes back as its own sentence.
    """

    def run(work: Work, units: Sequence[Unit], finished: Callable[[Unit, ShardSummary], None]) -> None:
        failed = partial(_failed, work.folder)

        def heard(place: int, answer: str) -> None:
            finished(units[place], msgspec.json.decode(answer, type=ShardSummary))

        with ray_cluster(minimum_cpus=workers or 1):
            tasks = {
                "fn_args": (partial(_make_shard, work, tuple(units)), failed),
                "concurrency": workers and min(workers, len(units)),
                "max_retries": _RETRIES,
            }
            try:
                _run(_answer, tasks, len(units), heard)
            except TaskDied as error:
                raise RunError(failed(error.after(_RETRIES + 1))) from error

    return run


def run_in_actors(
    make_task: Callable[[], Task], count: int, workers: int, failed: Failed, heard: Callable[[int, str], None]
) -> None:
    """Do pieces 0 to count-1 in `workers` actors of one core of the joined cluster, each of which makes its task once.

    `heard` gets each piece with its answer, in any order. Raises RequestError and RunError as they were raised in an
    actor, RunError with `failed` of the reason for any other error, TaskDied when an actor dies.
    """
    # Ray would say on standard error that it cannot restart actors of Ray Data for certain: it shall not try.
    actors = {"fn_constructor_args": (make_task, failed), "concurrency": (1, workers, workers), "max_restarts": 0}
    _run(_Actor, actors, count, heard)


def free_cores() -> int | None:
    """Cores of the Ray cluster that this process has joined and that nobody uses now; None where it has joined none.

    Actors of finished work end a little later: it waits some seconds for them.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    gc.collect()  # actors of failed work live on in a knot of Ray Data's objects
    until = time.monotonic() + _ENDING_S
    while (free := _cores(ray.available_resources())) < _cores(ray.cluster_resources()) and time.monotonic() < until:
        time.sleep(0.1)
    return free


def _cores(resources: dict[str, float]) -> int:
    return int(resources.get("CPU", 0))


def _run(function: Any, options: dict[str, Any], count: int, heard: Callable[[int, str], None]) -> None:
    """`function` over the places of all pieces, as one Ray Data batch each."""
    from ray import data
    from ray.exceptions import RayError

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # No task of its own makes these rows: it would wait for ever for a core that the actors have.
    source = data.from_items([{"id": place} for place in range(count)], override_num_blocks=count)
    with warnings.catch_warnings():
        # Ray means to name every such option; the number of retries has no name of its own yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        answers = source.map_batches(function, batch_size=1, num_cpus=1, **options)
    try:
        for row in answers.iter_rows():
            if row["fault"]:
                raise _OUTCOMES[row["fault"]](row["answer"])
            heard(row["id"], row["answer"])
    except RayError as error:
        raise TaskDied(_first_line(error)) from error


class _Actor:
    """One process of a pool."""

    def __init__(self, make_task: Callable[[], Task], failed: Failed) -> None:
        self.make_task, self.failed = make_task, failed
        self.task: Task | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        return _answer(rows, self._do, self.failed)

    def _do(self, place: int) -> str:
        if self.task is None:  # not in the constructor: Ray wraps what that raises
            self.task = self.make_task()
        return self.task(place)


def _answer(rows: dict[str, Any], task: Task, failed: Failed) -> dict[str, Any]:
    """One Ray Data batch: places of pieces to their answers, or the sentence of an error."""
    faults, answers = [], []
    for place in rows["id"]:
        fault, answer = "", ""
        try:
            answer = task(int(place))
        except RequestError as error:
            fault, answer = "request", str(error)
        except RunError as error:
            fault, answer = "run", str(error)
        except Exception as error:  # Ray would send its whole traceback
            fault, answer = "run", failed(f"{type(error).__name__}: {_first_line(error)}")
        faults.append(fault)
        answers.append(answer)
    return {"id": rows["id"], "fault": faults, "answer": answers}


def _make_shard(work: Work, units: Sequence[Unit], place: int) -> str:
    return msgspec.json.encode(work(units[place])).decode()


def _failed(folder: Path, reason: str) -> str:
    return f"preparing {folder} failed ({reason}); run the same command again: it goes on where it stopped."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no more is known"
