"""The endpoint under load loses a replica: the twin's best checkpoint, served by an application of the drill's own."""

import hashlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from orchestration.campaigns.campaign import Campaign
from orchestration.champions import CHECKPOINT_TAG
from orchestration.drill.reach import REPLICA, Cluster, Victim, wait_until
from orchestration.errors import RunError
from orchestration.tracking import Tracker

APP, PAINTER = "t2i-drill", "painter"
REPLICAS, CLIENTS, SEEDS = 2, 3, 6
PROMPT = "a red boat on the sea"
START_S, BACK_S = 600.0, 600.0
ENDS = ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY")
MORE = 12
"""Answers that are waited for once the replica is replaced."""


@dataclass(frozen=True, slots=True)
class ReplicaHit:
    """How it ended. answers: of the endpoint while it was drilled; wrong: a sentence for each that failed or drew
    another picture."""

    victim: Victim
    after: int
    went_on_s: float
    answers: int
    wrong: tuple[str, ...]


class Clients:
    """Ask an endpoint without a pause, from where it listens. What an answer is: its seed, the sha256 of the PNG or
    None, and what went wrong."""

    def __init__(self, url: str, token: str, model: str) -> None:
        from orchestration.serving.client import T2IClient

        self._client = T2IClient(url, token, timeout=120.0, retries=0)
        self._model = model
        self._answers: list[tuple[int, str | None, str]] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def healthy(self) -> bool:
        """Whether it would draw."""
        return self._client.healthy()

    def ask(self, seed: int) -> tuple[int, str | None, str]:
        """One answer."""
        try:
            picture = self._client.image(PROMPT, seed=seed, model=self._model)
        except Exception as error:
            return seed, None, str(error) or type(error).__name__
        return seed, hashlib.sha256(picture.png).hexdigest(), ""

    def begin(self, clients: int, seeds: int) -> None:
        """So many threads, each with every seed over and over."""

        def work(first: int) -> None:
            seed = first
            while not self._stop.is_set():
                self._answers.append(self.ask(seed % seeds))
                seed += 1

        self._threads = [threading.Thread(target=work, args=(each,), daemon=True) for each in range(clients)]
        for thread in self._threads:
            thread.start()

    def count(self) -> int:
        """Answers so far."""
        return len(self._answers)

    def finish(self) -> list[tuple[int, str | None, str]]:
        """All answers, once every thread has its last."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return list(self._answers)


def drill_replica(cluster: Cluster, campaign: Campaign, tracker: Tracker, draw: Random) -> ReplicaHit:
    """Kill one replica of two at a drawn answer. Raises RunError when the endpoint does not come up, or not back."""
    model = registered(campaign, tracker)
    token = secrets.token_hex(16)
    with endpoint(tracker.home, tracker.uri, model, token) as url:
        clients = cluster.on_head(Clients, url, token, model)
        # A proxy learns of its routes a little after the application runs.
        if not wait_until(lambda: cluster.call(clients.healthy), START_S, every_s=0.5):
            raise RunError(f"the drill's endpoint runs, but {url} on the head does not answer for it")
        before: dict[int, str | None] = {}
        for seed in range(SEEDS):
            _, before[seed], problem = cluster.call(clients.ask, seed)
            if problem:
                raise RunError(f"the drill's endpoint does not draw before anything is killed: {problem}")
        cluster.call(clients.begin, CLIENTS, SEEDS)
        after = draw.randint(5, 30)
        if not wait_until(lambda: cluster.call(clients.count) >= after, BACK_S):
            raise RunError("the drill's endpoint stopped answering before anything was killed: read the log of Serve")
        victim = draw.choice(painters(cluster))
        cluster.kill(victim)
        began, seen = time.monotonic(), cluster.call(clients.count)
        replaced = wait_until(
            lambda: len({*painters(cluster)} - {victim}) == REPLICAS and _drawing() == REPLICAS, BACK_S, every_s=0.5
        )
        went_on = time.monotonic() - began
        wait_until(lambda: cluster.call(clients.count) >= seen + MORE, BACK_S)
        answers = cluster.call(clients.finish)
    wrong = wrong_answers(before, answers)
    if not replaced:
        wrong.append(f"the replica was not replaced within {BACK_S:g} s")
    return ReplicaHit(victim, after, went_on, len(answers), tuple(wrong))


def wrong_answers(before: Mapping[int, str | None], answers: list[tuple[int, str | None, str]]) -> list[str]:
    """A sentence for each answer that failed or has another picture than before."""
    return [
        problem or f"seed {seed} drew another picture than before"
        for seed, digest, problem in answers
        if problem or digest != before[seed]
    ]


def painters(cluster: Cluster) -> list[Victim]:
    """The processes that draw."""
    return cluster.actors(f"{REPLICA}:{APP}:{PAINTER}")


def registered(campaign: Campaign, tracker: Tracker) -> str:
    """The campaign's best checkpoint as MODEL@VERSION of the drill's own registry."""
    best = campaign.best
    checkpoint = campaign.checkpoint(best)
    assert best.run_id is not None
    model = checkpoint.experiment.system
    version = tracker.register(model, best.run_id, checkpoint.folder, {CHECKPOINT_TAG: checkpoint.digest})
    return f"{model}@{version}"


@contextmanager
def endpoint(home: Path, uri: str, model: str, token: str) -> Iterator[str]:
    """The URL, on the head's loopback, of a Serve that is begun for the drill and ends with it."""
    from pydantic import SecretStr
    from ray import serve
    from ray.serve.config import HTTPOptions

    from orchestration.serving.app import application
    from orchestration.serving.settings import ServeSettings

    settings = ServeSettings(
        home=home, tracking_uri=uri, models=(model,), replicas=REPLICAS, cpus=0.1, max_batch=4, timeout_s=120.0
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Serve tells of each of its own steps.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        built = application(settings, SecretStr(token))
        serve.run_many(
            [serve.RunTarget(built, name=APP, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        wait_until(lambda: _status(serve) in ENDS, START_S, every_s=0.5)
        if _status(serve) != "RUNNING":
            raise RunError(f"the drill's endpoint does not come up, it is {_status(serve)}: {_messages(serve)}")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def _drawing() -> int:
    """Replicas that have loaded what they draw with."""
    from ray import serve

    found = serve.status().applications.get(APP)
    states = found.deployments[PAINTER].replica_states if found else {}
    return int(next((count for state, count in states.items() if getattr(state, "value", state) == "RUNNING"), 0))


def _status(serve: Any) -> str:
    found = serve.status().applications.get(APP)
    return str(getattr(found.status, "value", found.status)) if found else "NOT_STARTED"


def _messages(serve: Any) -> str:
    found = serve.status().applications.get(APP)
    texts = [found.message, *(each.message for each in found.deployments.values())] if found else []
    return " ".join(" ".join(texts).split())[-300:] or "it says nothing of it"
