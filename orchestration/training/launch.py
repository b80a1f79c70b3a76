"""One training run under Ray Train: started, watched, mirrored to MLflow, resumed by the same command."""

import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestration.cluster import ray_cluster, require, require_cluster, signals_kept, wants_gpu
from orchestration.config import Experiment
from orchestration.errors import RequestError, RunError
from orchestration.home import Home, exclusive, found_at, pull
from orchestration.preparation import PART_FIGURES, Preparation
from orchestration.prepared import Prepared
from orchestration.progress import Watcher, default_progress
from orchestration.remote import places
from orchestration.stage_store import PREPARED
from orchestration.stages import Progress, quiet, write_atomically
from orchestration.tracking import Mirror, Tracker
from orchestration.training.recorder import last_metrics, read_metrics
from orchestration.training.state import Checkpoint, newest_checkpoint
from orchestration.training.turn import next_turn
from orchestration.training.worker import CHECKPOINTS, OUTCOME, Job, read_outcome, share_of_cores

EXPERIMENT_FILE = "experiment.json"

CarryOut = Callable[[Job], object]
"""Trains a job to its end; its threads are for the callee to choose."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that reached its end."""

    folder: Path
    run_id: str
    checkpoint: Checkpoint
    figures: Mapping[str, float]


def train(
    experiment: Experiment, home: Home, tracker: Tracker, progress: Progress = quiet, parent: str | None = None
) -> FinishedRun:
    """Prepare, train to the end and track; what is already done is not done again.

    Raises RequestError when the request cannot be met, RunError when training failed or diverged.
    """
    folder = home.runs / experiment.run_name
    if not _has_finished(folder):
        # Not after what may be hours of preparation.
        require_cluster()
    prepared = Preparation(experiment, home, progress, partial(train_part, tracker)).everything()
    return _run(experiment, tracker, progress, prepared, folder, parent, fit)


def train_part(
    tracker: Tracker,
    experiment: Experiment,
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    carry_out: CarryOut | None = None,
) -> Path:
    """Train a part in a run of its own, and return its last checkpoint's folder. Raises as `train` does.

    carry_out: trains it, by default `fit`.
    """
    finished = _run(experiment, tracker, progress, prepared, folder, None, carry_out or fit)
    write_atomically(folder / PART_FIGURES, json.dumps(validation_figures(finished.figures), indent=1))
    return finished.checkpoint.folder


def validation_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Those that say how good the nets are on held-out data."""
    return {name: value for name, value in figures.items() if name.startswith("validation/")}


def _run(
    experiment: Experiment,
    tracker: Tracker,
    progress: Progress,
    prepared: Prepared,
    folder: Path,
    parent: str | None,
    carry_out: CarryOut,
) -> FinishedRun:
    with exclusive(folder):
        write_atomically(folder / EXPERIMENT_FILE, json.dumps(experiment.model_dump(mode="json"), indent=1))
        write_atomically(folder / PREPARED, json.dumps(prepared.to_json(), indent=1))
        run_id = tracker.start_run(
            experiment.system,
            folder.name,
            folder.name,
            experiment.model_dump(mode="json"),
            run_tags(experiment, prepared),
            parent,
        )
        return _train(experiment, tracker, progress, prepared, folder, run_id, carry_out)


def run_tags(experiment: Experiment, prepared: Prepared) -> dict[str, str]:
    """What a run in MLflow is found by."""
    return {
        "t2i.recipe": experiment.recipe,
        "t2i.system": experiment.system,
        "t2i.identity": experiment.identity,
        "t2i.data": experiment.data.source,
        "t2i.data_digest": prepared.provenance.data_digest,
        "t2i.text_digest": prepared.provenance.text_digest,
        "t2i.pretrained_features": pretrained_features(experiment),
        "t2i.protocol": prepared.protocol,
    }


def checkpoint_tags(checkpoint: Checkpoint) -> dict[str, str]:
    """Where a run's checkpoint is and what it is; its files are uploaded when it is registered."""
    return {"t2i.checkpoint": str(checkpoint.folder), "t2i.checkpoint_digest": checkpoint.digest}


def pretrained_features(experiment: Experiment) -> str:
    """The pretrained image net in the loss, "none" if there is none: part of every result."""
    uses = getattr(experiment.model, "uses_pretrained", False)
    return str(experiment.model.pretrained.name) if uses else "none"  # type: ignore[attr-defined]


def _train(
    experiment: Experiment,
    tracker: Tracker,
    progress: Progress,
    prepared: Prepared,
    folder: Path,
    run_id: str,
    carry_out: CarryOut,
) -> FinishedRun:
    if not _has_finished(folder):
        (folder / OUTCOME).unlink(missing_ok=True)
        with Mirror(tracker, run_id, folder), Watcher(folder, experiment.training.kimg, progress):
            try:
                carry_out(Job(experiment, prepared, str(folder), 1, turn=next_turn(folder)))
            except BaseException as error:
                with suppress(RunError):
                    tracker.finish(run_id, "FAILED", str(error) or type(error).__name__)
                raise
    else:
        with suppress(RunError):
            tracker.mirror(run_id, folder)
    outcome = read_outcome(folder)
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    if outcome is None or outcome.status != "finished" or checkpoint is None:
        reason = outcome.reason if outcome else "it ended without an outcome"
        with suppress(RunError):
            tracker.finish(run_id, "FAILED", reason)
        raise RunError(
            f"run {folder.name} did not finish ({reason}): its last whole checkpoint is in {folder / CHECKPOINTS}; "
            "change what made it fail, or repeat the command to go on from there"
        )
    with suppress(RunError):
        tracker.log_tags(run_id, checkpoint_tags(checkpoint))
        tracker.finish(run_id, "FINISHED")
    return FinishedRun(folder, run_id, checkpoint, last_metrics(read_metrics(folder)))


def _has_finished(folder: Path) -> bool:
    """Whether the run in the folder reached its end before."""
    outcome = read_outcome(folder)
    return outcome is not None and outcome.status == "finished"


def fit(job: Job, at_once: int = 1) -> None:
    """Run the job under Ray Train and wait. Workers that die are started again, from the newest checkpoint.

    at_once: so many jobs share a machine's cores, and the cluster where they are ranges. Of a range of workers as many
    run as there is room for; none of that changes the mathematics (`Experiment.world_sizes`). Raises RequestError when
    the cluster has fewer than the fewest, RunError when workers failed, or when those of a range did not come back in
    time.
    """
    resources, sizes = job.experiment.resources, _sizes(job.experiment)
    with ray_cluster(minimum_cpus=sizes[0]) as ray:
        use_gpu = wants_gpu(resources.use_gpu, ray)
        kind, elastic = "GPU" if use_gpu else "CPU", len(sizes) > 1
        asked = f"{sizes[0]}-{sizes[-1]}" if elastic else f"{sizes[0]}"
        wanted = f"--workers {asked}: each needs a {kind}{f', {sizes[0]} at the least,' if elastic else ''}"
        require(ray, kind, sizes[0], wanted, "lower --workers or add machines")
        if at_once > 1:
            # Who came first would take all, and the others would wait.
            share = int(ray.cluster_resources()[kind]) // at_once
            sizes = tuple(size for size in sizes if size <= max(sizes[0], share))
        # Ray's own files are only its bookkeeping; a new name each time, or it would resume its own idea of the run.
        for left_over in Path(job.folder).glob(".ray-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        storage = Path(tempfile.mkdtemp(dir=job.folder, prefix=".ray-"))
        threads = resources.threads or share_of_cores(resources.workers * at_once)
        limit = f"within {resources.wait_minutes:g} minutes" if elastic else "(there is no limit)"
        try:
            with _missing_named(ray, kind, sizes, limit), signals_kept():
                _trainer(job, sizes, use_gpu, threads, storage).fit()
            pull(Path(job.folder), writing=True)
        except Exception as error:
            raise worker_failure(error, Path(job.folder)) from error
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _sizes(experiment: Experiment) -> tuple[int, ...]:
    """The numbers of workers that may run. Raises RequestError where none can: parts have batches of their own."""
    if sizes := experiment.world_sizes:
        return sizes
    resources, training = experiment.resources, experiment.training
    least = "" if resources.min_workers is None else f"{resources.min_workers}-"
    raise RequestError(
        f"{experiment.recipe}: no number of workers of --workers {least}{resources.workers} shares a batch of "
        f"{training.batch_size} in {training.micro_batches} micro-batches evenly: lower --workers"
    )


def _missing_named(ray: Any, kind: str, sizes: tuple[int, ...], limit: str) -> AbstractContextManager[Any]:
    if default_progress() is quiet:
        return nullcontext()
    from orchestration.training.elastic import SaysWhoIsMissing

    advice = f"bring machines back {limit}, or press Ctrl-C and repeat the command later"
    return SaysWhoIsMissing(ray, kind, sizes[0], sizes[-1], advice)


def _trainer(job: Job, sizes: tuple[int, ...], use_gpu: bool, threads: int, storage: Path) -> Any:
    """Ray's trainer of this job. storage: of its bookkeeping."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from orchestration.training.elastic import ElasticTrainer, FollowsCluster

    resources, elastic = job.experiment.resources, len(sizes) > 1
    scaling = ScalingConfig(
        num_workers=(sizes[0], sizes[-1]) if elastic else sizes[0],
        use_gpu=use_gpu,
        resources_per_worker={"CPU": 1, **({"GPU": 1} if use_gpu else {})},
        elastic_resize_monitor_interval_s=60 * resources.grow_minutes,
    )
    make = TorchTrainer
    if elastic:
        policy = FollowsCluster(scaling, sizes, resources.max_failures, 60 * resources.wait_minutes)
        make = partial(ElasticTrainer, policy=policy)
    return make(
        ray_worker,
        train_loop_config=places.told({**job.to_json(), "threads": threads}, Path(job.folder)),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            name=f"{Path(job.folder).name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage),
            # Of a range the policy counts them, anew after every checkpoint.
            failure_config=FailureConfig(max_failures=-1 if elastic else resources.max_failures),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        ),
    )


def ray_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    import ray.train
    import ray.train.torch

    from orchestration.training.worker import train_worker

    train_worker(
        Job.from_json(places.here(config)),
        lambda figures: ray.train.report(dict(figures)),
        ray.train.torch.get_device(),
    )


def worker_failure(error: Exception, folder: Path) -> Exception:
    """What a person is told when workers failed: our own sentence where there is one, else the first line of theirs."""
    # What the controller gave up over stands within its own error.
    error = getattr(error, "controller_failure", None) or error
    failures = getattr(error, "worker_failures", None) or {}
    for failure in (*failures.values(), error):
        # Ray wraps the worker's exception in one that also has the original's type.
        cause = getattr(failure, "cause", None) or failure
        if isinstance(cause, RequestError | RunError):
            return type(cause)(str(cause)) if type(cause) in (RequestError, RunError) else RunError(str(cause))
    first = next(iter(failures.values()), error)
    sentence = (str(first).strip().splitlines() or [type(first).__name__])[-1]
    log = folder / "failure.txt"
    write_atomically(log, str(error))
    return RunError(
        f"a worker failed ({sentence}); the whole story is in {found_at(log)}; repeat the command to go on from the "
        "last checkpoint"
    )
