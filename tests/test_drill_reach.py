"""Who a drill finds on a cluster, from what Ray's state says."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.util import state
from ray.util.state.exception import RayStateApiException

from orchestration.doctor.hands import HEAD
from orchestration.drill import reach
from orchestration.drill.reach import TRAIN_WORKER, TRIAL, OnRay, Victim
from orchestration.errors import RunError

ID = "1a" * 28
NODE = {
    "NodeManagerHostname": "here",
    "NodeManagerAddress": "127.0.0.1",
    "NodeID": ID,
    "Resources": {HEAD: 1.0},
    "Alive": True,
}


def actor(name: str, pid: int, job: str = "01000000", node: str = ID) -> SimpleNamespace:
    return SimpleNamespace(class_name=name, pid=pid, job_id=job, node_id=node)


@pytest.fixture
def cluster() -> OnRay:
    ray = MagicMock()
    ray.nodes.return_value = [NODE]
    ray.get_runtime_context.return_value = SimpleNamespace(gcs_address="127.0.0.1:6379", get_node_id=lambda: ID)
    return OnRay(ray)


def test_actors_are_found_by_their_class_wherever_it_was_made(cluster: OnRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Tune makes a trial's class in a function, and Ray lists it with that before its name."""
    there = [
        actor("wrap_function.<locals>.ImplicitFunc", 3),
        actor("ImplicitFunc", 2),
        actor("ImplicitFunc", 4, job="02000000"),
        actor("ImplicitFunc", 5, node="gone"),
        actor("RayTrainWorker", 6),
        actor("TrainController", 7),
        actor("RayTrainWorker", 0),
    ]
    monkeypatch.setattr(state, "list_actors", lambda **asked: there)
    assert cluster.actors(TRIAL, {"01000000"}) == [Victim(2, "here", ID), Victim(3, "here", ID)]
    assert [victim.pid for victim in cluster.actors(TRAIN_WORKER)] == [6]
    assert [victim.pid for victim in cluster.actors("", {"01000000"})] == [2, 3, 6, 7]


def test_a_head_that_does_not_say_is_asked_again(cluster: OnRay, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [RayStateApiException("busy"), [actor("ImplicitFunc", 2)]]

    def said(**asked: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(state, "list_actors", said)
    monkeypatch.setattr(reach.time, "sleep", lambda seconds: None)
    assert cluster.actors(TRIAL) == [Victim(2, "here", ID)]
    monkeypatch.setattr(reach, "ANSWER_S", 0.0)
    answers[:] = [RayStateApiException("API server\n internal error")] * 2
    with pytest.raises(RunError, match=r"did not list its actors for 0 s \(API server internal error\): see to its"):
        cluster.left_over({"01000000"})
