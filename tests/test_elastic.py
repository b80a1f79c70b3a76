"""A number of workers that changes: what sizes there are, who decides when, and that the end is the same.

`python -m tests.test_elastic FOLDER RANK` is what each of two processes runs.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import ray
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, RunningState
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from models.parallel import OneRank, Ranks, current_ranks
from orchestration.config import Experiment
from orchestration.errors import RequestError, RunError
from orchestration.options import WorkerCount, chosen_experiment, worker_assignments
from orchestration.training import elastic, launch
from orchestration.training.elastic import FollowsCluster, room_for
from orchestration.training.launch import worker_failure
from orchestration.training.recorder import read_metrics
from orchestration.training.state import checkpoint_folders, open_checkpoint, restore, save_checkpoint
from orchestration.training.worker import CHECKPOINTS, SAVED, Job, train_worker
from tests.contract.conftest import LEARNING
from tests.contract.test_world_size import TOLERANCE, differences
from tests.tiny import (
    CPU,
    PROVENANCE,
    float64,
    small_pretrained_nets,
    tensors_of,
    tiny_experiment,
    tiny_job,
    tiny_trainer,
)

BASE = chosen_experiment("xmcgan_scenes32", None, [], None)
REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
WHOLE = ("attngan", "xmcgan", "retrievegan")
"""Those that train as a run does, with its checkpoints found on disk; all others by their trainer."""
FLOAT32_TOLERANCE = 2e-3
"""Of weights after three steps in single precision, relative to the largest of their net: two orders of a sum differ in
the 7th digit, and Adam's first steps, which divide a gradient by its own size, make the most of it."""


# Sizes.


def ranged(fewest: int | None, most: int, batch: int = 16, micro: int = 1) -> Experiment:
    changes = {"training.batch_size": batch, "training.micro_batches": micro}
    return BASE.replace(changes | {"resources.workers": most, "resources.min_workers": fewest})


@pytest.mark.parametrize(
    ("fewest", "most", "batch", "micro", "sizes"),
    [
        (None, 4, 16, 1, (4,)),
        (1, 4, 16, 1, (1, 2, 4)),
        (2, 8, 16, 1, (2, 4, 8)),
        (1, 4, 24, 2, (1, 2, 3, 4)),
        (4, 4, 16, 1, (4,)),
        (1, 6, 36, 3, (1, 2, 3, 4, 6)),
    ],
)
def test_only_sizes_that_share_the_batch_evenly(
    fewest: int | None, most: int, batch: int, micro: int, sizes: tuple[int, ...]
) -> None:
    assert ranged(fewest, most, batch, micro).world_sizes == sizes


@settings(deadline=None, max_examples=40)
@given(fewest=st.integers(1, 12), most=st.integers(1, 12), share=st.integers(1, 6), micro=st.integers(1, 3))
def test_a_range_is_refused_or_both_its_ends_are_sizes(fewest: int, most: int, share: int, micro: int) -> None:
    batch = 2 * share * most * micro
    try:
        found = ranged(fewest, most, batch, micro).world_sizes
    except RequestError as error:
        assert batch // micro % fewest or fewest > most
        assert f"min_workers {fewest} is none of" in str(error)
        return
    assert (found[0], found[-1]) == (fewest, most) and list(found) == sorted(found)
    assert all(batch % (micro * size) == 0 for size in found)


@pytest.mark.parametrize(
    ("fewest", "most", "says"),
    [
        (3, 4, "min_workers 3 is none of the numbers of workers up to 4 that share a batch of 16 evenly: make it one "
        "of 1, 2, 4"),
        (5, 4, "min_workers 5 is none of"),
        (0, 4, "resources.min_workers: input should be greater than or equal to 1, not 0"),
        (1, 5, "cannot be divided among 5 workers"),
    ],
)  # fmt: skip
def test_a_wrong_range_is_a_sentence(fewest: int, most: int, says: str) -> None:
    with pytest.raises(RequestError) as refusal:
        ranged(fewest, most)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_number_of_workers_is_no_part_of_what_an_experiment_is() -> None:
    others = [ranged(None, 1), ranged(None, 8), ranged(2, 4)]
    others.append(BASE.replace({"training.batch_size": 16, "resources.grow_minutes": 9, "resources.wait_minutes": 1}))
    for name in ("identity", "reads_as", "run_name"):
        assert len({getattr(other, name) for other in others}) == 1
    assert ranged(2, 4).identity != ranged(2, 4, 32).identity


def test_a_part_whose_batch_no_number_shares_is_a_sentence() -> None:
    """Its own batch is checked when it is trained: it comes with the settings of what it is a part of."""
    part = ranged(3, 3, 24).model_copy(update={"training": BASE.training.model_copy(update={"batch_size": 16})})
    with pytest.raises(RequestError, match=r"--workers 3-3 shares a batch of 16 in 1 micro-batches evenly"):
        launch.fit(Job(part, None, "nowhere", 1))  # type: ignore[arg-type]


# The option.


def test_workers_are_a_number_or_a_range() -> None:
    option = WorkerCount()
    assert option.convert("3", None, None) == 3
    assert option.convert(" 1 - 4 ", None, None) == option.convert("1-4", None, None) == (1, 4)
    assert option.convert((1, 4), None, None) == (1, 4)
    assert worker_assignments(None) == []
    experiment = chosen_experiment("xmcgan_scenes32", None, [], (2, 8))
    assert (experiment.resources.min_workers, experiment.resources.workers) == (2, 8)
    assert chosen_experiment("xmcgan_scenes32", None, [], 2).resources.min_workers is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4-1", "4-1 is no range of workers: write the fewest, at least 1, then the most, such as 1-4"),
        ("0-2", "0-2 is no range of workers"),
        ("0", "0 is not in the range"),
        ("-2", "-2 is not in the range"),
        ("1-", "'1-' is not a valid integer range"),
        ("1-2-3", "'1-2-3' is not a valid integer range"),
        ("two", "'two' is not a valid integer range"),
        ("", "'' is not a valid integer range"),
    ],
)
def test_other_numbers_of_workers_are_refused(text: str, says: str) -> None:
    with pytest.raises(click.BadParameter) as refusal:
        WorkerCount().convert(text, None, None)
    assert says in refusal.value.message


@settings(deadline=None, max_examples=100)
@given(st.text(st.sampled_from("0123456789- ²x"), max_size=6))
def test_any_text_is_workers_or_is_refused(text: str) -> None:
    try:
        found = WorkerCount().convert(text, None, None)
    except click.BadParameter as refusal:
        assert refusal.message
        return
    fewest, most = found if isinstance(found, tuple) else (found, found)
    assert isinstance(fewest, int) and isinstance(most, int) and 1 <= fewest <= most


# Who decides.


class FakeCluster:
    """What a policy sees of a cluster: nodes, and how many CPUs are free on each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: dict[str, float]) -> None:
        self.free, self.dead, self.clock = free, set[str](), 100.0
        self.places: dict[str, str] = {}
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(
            ray._private.state,
            "available_resources_per_node",
            lambda: {name: {"CPU": count, "memory": 1e9} for name, count in self.free.items() if count},
        )
        monkeypatch.setattr(elastic, "_answers", lambda node: node["NodeID"] not in self.dead)
        monkeypatch.setattr(time, "sleep", self.wait)
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)

    def nodes(self) -> list[dict[str, object]]:
        one = {"Alive": True, "NodeManagerPort": 1}
        return [{**one, "NodeID": name, "NodeManagerAddress": self.places.get(name, name)} for name in self.free]

    def wait(self, seconds: float) -> None:
        self.clock += seconds


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(FollowsCluster, "_maybe_send_resource_request", lambda self: None)
    return FakeCluster(monkeypatch, {"a": 1.0, "b": 1.0})


def policy(sizes: tuple[int, ...] = (1, 2), failures: int = 1, wait_s: float = 30.0) -> FollowsCluster:
    scaling = ScalingConfig(
        num_workers=(sizes[0], sizes[-1]), resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=60
    )
    return FollowsCluster(scaling, sizes, failures, wait_s)


def chosen(decision: Any) -> int | None:
    """So many workers, None for no change."""
    assert isinstance(decision, NoopDecision | ResizeDecision)
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


def begin(follows: FollowsCluster, looks: int = 100) -> int:
    """How many it starts with, asked as Ray asks."""
    for _ in range(looks):
        if (size := chosen(follows.make_decision_for_non_running_worker_group())) is not None:
            follows.after_controller_state_update(None, RunningState())
            return size
    raise AssertionError("it never starts")


def running(follows: FollowsCluster, nodes: str, since: float, report: Mapping[str, float] | None) -> int | None:
    """What it makes of workers on these nodes, and what the first of them reports."""
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=name)) for name in nodes]
    state = SimpleNamespace(workers=workers, num_workers=len(workers), start_time=since)
    status = SimpleNamespace(training_report=report and SimpleNamespace(metrics=report))
    return chosen(follows.make_decision_for_running_worker_group(state, SimpleNamespace(worker_statuses={0: status})))


def fails(follows: FollowsCluster, error: Exception | None = None) -> None:
    error = error or WorkerGroupError("lost", {1: RuntimeError("a connection was lost")})
    follows.after_controller_state_update(RunningState(), restarting := RestartingState(training_failed_error=error))
    follows.after_controller_state_update(restarting, restarting)  # Ray repeats the state while nothing is decided


SAVE, JUDGED = {"kimg": 0.2, SAVED: 0.2}, {"kimg": 0.2, SAVED: 0.1}


def test_it_starts_with_all_at_once_and_with_fewer_after_a_while(cluster: FakeCluster) -> None:
    assert begin(policy(), looks=1) == 2 and cluster.clock == 100
    cluster.free["b"] = 0.0
    assert begin(policy()) == 1 and cluster.clock == 100 + elastic.SETTLE_S


def test_a_size_that_does_not_share_the_batch_is_not_taken(cluster: FakeCluster) -> None:
    cluster.free = dict.fromkeys("abc", 1.0)
    follows = policy((1, 2, 4))
    assert begin(follows) == 2
    cluster.free = {"a": 0.0, "b": 0.0, "c": 1.0}
    cluster.wait(100)
    assert running(follows, "ab", 100, SAVE) is None
    cluster.free["d"] = 1.5
    assert running(follows, "ab", 100, SAVE) == 4


def test_a_machine_that_does_not_answer_is_not_counted(cluster: FakeCluster) -> None:
    """Its workers held what is free again on the others; Ray says for a while that it is alive and free."""
    follows = policy()
    begin(follows)
    cluster.free = {"a": 0.0, "b": 1.0}
    assert running(follows, "ab", cluster.clock, None) is None
    cluster.dead.add("b")
    fails(follows)
    assert begin(follows) == 1
    assert running(follows, "a", cluster.clock, None) is None


@pytest.mark.parametrize(("nodes", "old"), [("abcd", 0.0), ("abc", 1.0)])
def test_a_machine_back_before_its_end_was_noticed_is_counted_once(
    cluster: FakeCluster, nodes: str, old: float
) -> None:
    """Ray then knows it twice, and says of the one that is gone that it is as it was."""
    follows = policy()
    cluster.free = {"a": 0.0, "b": 0.0, "c": 0.0, "d": old, "d again": 1.0}
    cluster.places = {"d again": "d"}
    assert running(follows, nodes, cluster.clock, None) is None
    assert follows._room() == 4


def test_it_says_in_rays_log_why_it_does_not_grow(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    follows = policy()
    cluster.free["b"] = 0.0
    with caplog.at_level(logging.INFO, "ray.train.elastic"):
        begin(follows)
        since = cluster.clock
        cluster.wait(60)
        for free in (0.0, 0.0, 1.0):
            cluster.free = {"a": 0.0, "b": free}
            running(follows, "a", since, SAVE)
    said = [f"1 of 2 workers run, and there is room for {room}" for room in (1, 2)]
    assert caplog.messages == ["1 of 2 workers are started", *said, "2 of 2 workers are started"]


def test_workers_that_fail_before_anybody_looked_still_hold_their_place(cluster: FakeCluster) -> None:
    follows = policy()
    begin(follows)
    cluster.free = {"a": 0.0, "b": 0.0}
    fails(follows)
    assert begin(follows, looks=1) == 2
    follows.after_controller_state_update(None, ReschedulingState(training_failed_error=ControllerError(OSError())))
    with pytest.raises(ControllerError):
        begin(follows)


def test_it_grows_right_after_a_checkpoint_and_not_too_often(cluster: FakeCluster) -> None:
    follows = policy()
    cluster.free["b"] = 0.0
    begin(follows)
    since = cluster.clock
    cluster.free = {"a": 0.0, "b": 1.0}
    assert running(follows, "a", since, SAVE) is None, "it has just started"
    cluster.wait(60)
    assert running(follows, "a", since, None) is None and running(follows, "a", since, JUDGED) is None
    assert running(follows, "a", since, SAVE) == 2
    cluster.free["b"] = 0.0
    assert running(policy(), "a", since, SAVE) is None, "there is no room"


def test_failures_count_until_the_next_checkpoint(cluster: FakeCluster) -> None:
    follows = policy(failures=1)
    begin(follows)
    fails(follows)
    begin(follows)
    running(follows, "ab", cluster.clock, SAVE)
    fails(follows)
    begin(follows)
    fails(follows, PreemptionError(SimpleNamespace(preempted_ranks=[1])))  # type: ignore[arg-type]
    begin(follows)
    fails(follows)
    with pytest.raises(ControllerError) as gave_up:
        begin(follows)
    assert isinstance(gave_up.value.controller_failure, WorkerGroupError)


def test_it_waits_for_its_fewest_no_longer_than_it_says(cluster: FakeCluster, tmp_path: Path) -> None:
    follows = policy((2, 4), wait_s=120)
    cluster.free["b"] = 0.0
    with pytest.raises(ControllerError) as gave_up:
        begin(follows, looks=1000)
    assert 220 < cluster.clock <= 222
    told = worker_failure(gave_up.value, tmp_path)
    assert type(told) is RunError and str(told) == (
        "2 workers at the least were waited for 2 minutes, and the cluster has room for 1: bring machines back or "
        "lower --workers, and repeat the command to go on from the last checkpoint"
    )
    assert not list(tmp_path.iterdir())
    cluster.free["b"] = 1.0
    assert begin(policy((2, 4))) == 2


def test_workers_that_failed_too_often_are_told_of_as_ever(tmp_path: Path) -> None:
    lost = ControllerError(WorkerGroupError("lost", {1: RuntimeError("first line\nthe connection was lost")}))
    told = worker_failure(lost, tmp_path)
    assert str(told).startswith("a worker failed (the connection was lost); the whole story is in ")
    ours = ControllerError(WorkerGroupError("ours", {0: RunError("the disk is full: free some")}))
    assert str(worker_failure(ours, tmp_path)) == "the disk is full: free some"


@pytest.mark.parametrize(
    ("free", "each", "room"),
    [
        ([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 0.5, "GPU": 4.0}], {"CPU": 1.0, "GPU": 1.0}, 1),
        ([{"CPU": 2.5}, {}, {"CPU": 1.0}], {"CPU": 1.0}, 3),
        ([], {"CPU": 1.0}, 0),
    ],
)
def test_room_is_counted_on_each_machine(free: list[dict[str, float]], each: dict[str, float], room: int) -> None:
    assert room_for(free, each) == room


def test_only_nodes_that_can_be_reached_answer() -> None:
    with socket.socket() as listening, socket.socket() as bound:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        bound.bind(("127.0.0.1", 0))
        nodes = [
            {"NodeID": name, "Alive": alive, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": one.getsockname()[1]}
            for name, alive, one in (("up", True, listening), ("gone", True, bound), ("told", False, listening))
        ]
        assert elastic.answering(nodes) == {"up": f"127.0.0.1:{listening.getsockname()[1]}"}


def test_ray_makes_its_trainer_as_this_one_expects() -> None:
    """`ElasticTrainer` replaces two of its methods; a Ray that has others would train with its own policy."""
    assert issubclass(elastic.ElasticTrainer, DataParallelTrainer)
    for name in ("_initialize_and_run_controller", "_register_sigint_handler"):
        assert callable(getattr(DataParallelTrainer, name))
    assert "_initialize_and_run_controller" in DataParallelTrainer.fit.__code__.co_names
    assert "scaling_policy" in str(DataParallelTrainer.fit.__code__.co_consts)


@pytest.mark.parametrize(("workers", "fewest"), [((3, 6), "3"), (3, None)])
def test_fewer_machines_than_the_fewest_are_a_sentence_with_the_sum(
    workers: Any, fewest: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def small(**_: object) -> Iterator[Any]:
        yield SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})

    monkeypatch.setattr(launch, "ray_cluster", small)
    experiment = chosen_experiment("xmcgan_scenes32", None, ["training.batch_size=36"], workers)
    with pytest.raises(RequestError) as refusal:
        launch.fit(Job(experiment, None, "nowhere", 1))  # type: ignore[arg-type]
    wanted = "--workers 3-6: each needs a CPU, 3 at the least," if fewest else "--workers 3: each needs a CPU"
    assert str(refusal.value) == f"{wanted} and the cluster has 2: lower --workers or add machines"


@pytest.mark.parametrize(("at_once", "sizes"), [(1, (1, 2, 4, 8)), (2, (1, 2, 4)), (5, (1,)), (20, (1,))])
def test_jobs_at_once_share_the_cluster(
    at_once: int, sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def cluster(**_: object) -> Iterator[Any]:
        yield SimpleNamespace(cluster_resources=lambda: {"CPU": 9.0})

    made: list[tuple[int, ...]] = []

    def make(job: Job, sizes: tuple[int, ...], *_: object) -> Any:
        made.append(sizes)
        return SimpleNamespace(fit=lambda: None)

    monkeypatch.setattr(launch, "ray_cluster", cluster)
    monkeypatch.setattr(launch, "_trainer", make)
    launch.fit(Job(ranged(1, 8), None, str(tmp_path), 1), at_once)  # type: ignore[arg-type]
    assert made == [sizes] and not list(tmp_path.iterdir())


# The end is the same.

STEPS = 3  # by two workers, one and two


def whole_run(name: str) -> Experiment:
    """A run of `STEPS` iterations with a checkpoint after each."""
    step = tiny_trainer(tiny_experiment(name)).images_per_iteration / 1000
    lengths = {"kimg": STEPS * step, "log_kimg": step, "checkpoint_kimg": step, "picture_kimg": 100.0}
    return tiny_experiment(name, **{f"training__{field}": value for field, value in lengths.items()})


def stretch(job: Job, steps: int) -> Job:
    whole = job.experiment.training.kimg
    return Job(job.experiment, job.prepared, job.folder, 1, whole * steps / STEPS)


def go_on(name: str, folder: Path, ranks: Ranks, iterations: int) -> None:
    """From the newest checkpoint in the folder, if any, to another one: written by rank 0."""
    with float64(), small_pretrained_nets():
        trainer = tiny_trainer(tiny_experiment(name), ranks)
        if there := checkpoint_folders(folder):
            restore(open_checkpoint(there[-1]), trainer.state)
        for _ in range(iterations):
            trainer.iteration()
        if ranks.rank == 0:
            save_checkpoint(trainer.state, trainer.experiment, PROVENANCE, folder)


def main(folder: Path, rank: int) -> None:
    """Two workers, one, two: each time from the newest checkpoints, of which another process knows nothing."""
    torch.set_num_threads(1)
    jobs = [Job.from_json(values) for values in json.loads((folder / "jobs.json").read_text())]
    reached = 0
    for turn, (size, steps) in enumerate(((2, 1), (1, 1), (2, 1))):
        reached += steps
        alone = size == 1
        if not alone:
            meeting = f"file://{folder / f'meeting-point-{turn}'}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        if not alone or rank == 0:
            for name in LEARNING:
                go_on(name, folder / "trainers" / name, OneRank() if alone else current_ranks(), steps)
            with small_pretrained_nets():
                for job in jobs:
                    train_worker(stretch(job, reached), lambda _: None, CPU)
        if not alone:
            dist.destroy_process_group()
        elif rank == 0:
            (folder / "alone").touch()
        while alone and not (folder / "alone").exists():
            time.sleep(0.05)


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two, one and two workers trained everything; calm/NAME is the same by one worker."""
    folder = tmp_path_factory.mktemp("changing")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with small_pretrained_nets():
        jobs = [tiny_job(folder / name, whole_run(name)) for name in WHOLE]
        (folder / "jobs.json").write_text(json.dumps([job.to_json() for job in jobs]))
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.test_elastic", str(folder), str(rank)],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            for name in LEARNING:
                go_on(name, folder / "calm" / name, OneRank(), STEPS)
            for name in WHOLE:
                assert train_worker(tiny_job(folder / "calm-runs" / name, whole_run(name)), lambda _: None, CPU)
            for process in processes:
                _, err = process.communicate(timeout=PATIENCE_S)
                assert process.returncode == 0, err[-3000:]
        finally:
            for process in processes:
                process.kill()
                process.wait()
            torch.set_num_threads(before)
    return folder


def weights(experiment: Experiment, folder: Path) -> dict[str, torch.Tensor]:
    """Everything that training changed, of the newest checkpoint."""
    trainer = tiny_trainer(experiment)
    restore(open_checkpoint(checkpoint_folders(folder)[-1]), trainer.state)
    assert trainer.state.images_seen == STEPS * trainer.images_per_iteration
    return {f"after/{name}": value for name, value in tensors_of(trainer).items()}


@pytest.mark.parametrize("name", LEARNING)
def test_two_workers_one_and_two_end_as_one(name: str, changing: Path) -> None:
    """Nets, averages, statistics and optimizers, in double precision."""
    with float64(), small_pretrained_nets():
        found, wanted = (weights(tiny_experiment(name), changing / kind / name) for kind in ("trainers", "calm"))
    assert max(differences(found, wanted).values()) <= TOLERANCE


@pytest.mark.parametrize("name", WHOLE)
def test_a_run_of_two_workers_one_and_two_ends_as_one(name: str, changing: Path) -> None:
    """Its checkpoints found on disk, in single precision; the record is whole and says how many there were."""
    runs = changing / name / "run", changing / "calm-runs" / name / "run"
    with small_pretrained_nets():
        found, wanted = (weights(whole_run(name), run / CHECKPOINTS) for run in runs)
    nets = [key for key in found if key.startswith("after/net/")]
    far = differences({key: found[key] for key in nets}, {key: wanted[key] for key in nets})
    assert 0 < max(far.values()) <= FLOAT32_TOLERANCE
    lines = [line for line in read_metrics(runs[0]) if "speed/workers" in line["metrics"]]
    assert [line["metrics"]["speed/workers"] for line in lines] == [2, 1, 2]
    assert [line["images"] for line in lines] == sorted({line["images"] for line in lines})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
