"""Segments carried out by Ray Tune, in as many processes at a time as the campaign wants.

Tune only executes: it asks the conductor for the next segment, runs it as a Tune trial of its own, and hands back how
it ended. A process that dies is a segment without an end, which the conductor hands out again. Tune's own state is
thrown away at the end; the ledger is the truth, and a resumed campaign starts a fresh Tune.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from orchestration.campaigns.ledger import Reached, Segment
from orchestration.campaigns.leftovers import Leftovers
from orchestration.campaigns.segments import Given, failed, reached_from_json, run_segment, trial_name
from orchestration.campaigns.settings import CampaignSettings
from orchestration.cluster import head_answers, ray_cluster, require, signals_kept, wants_gpu
from orchestration.errors import RequestError, RunError
from orchestration.home import looking, pull
from orchestration.progress import Say
from orchestration.remote.places import told
from orchestration.stages import Progress, quiet
from orchestration.training.turn import next_turn

__all__ = ["SLOT", "Conducts", "Given", "execute"]

SLOT = "trial_slot"
SEGMENT, WORKERS, TURN, REACHED = "segment", "workers", "turn", "reached"
STORAGE = ".tune-"
FINISHED = "FINISHED"  # as Tune's Searcher.FINISHED

Work = Callable[[Mapping[str, Any]], dict[str, Any]]


class Conducts(Protocol):
    """Who decides what is run: see `orchestration.campaigns.conductor`."""

    @property
    def done(self) -> bool: ...

    def next(self) -> Segment | None: ...

    def ended(self, segment: Segment, reached: Reached) -> None: ...


def execute(
    conductor: Conducts,
    given: Given,
    settings: CampaignSettings,
    progress: Progress = quiet,
    work: Work = run_segment,
    say: Say = lambda _: None,
) -> None:
    """Run segments until the conductor is done. progress: told how many of those begun have ended.

    say: told of machines that are lost and waited for. work: carries one out in another process. Raises RequestError
    when the cluster cannot run one, RunError when the conductor fails, KeyboardInterrupt on Ctrl-C; what was begun then
    stays so, and goes on when it is resumed.
    """
    resources = given.base.resources
    at_once, workers = settings.concurrent, resources.min_workers or resources.workers
    with ray_cluster(at_once * workers, {SLOT: float(at_once)}) as ray:
        require(
            ray,
            SLOT,
            at_once,
            f"{at_once} trials at a time need {at_once} units of the resource {SLOT!r}",
            f"start each node that trains with --resources='{{\"{SLOT}\": N}}', N trials of it at a time",
        )
        leftovers = Leftovers(ray, SLOT)
        desk = Desk(conductor, given, at_once, progress, leftovers, Room(lambda: slots(ray), say), say)
        given = replace(given, at_once=at_once)
        gpu = wants_gpu(given.base.resources.use_gpu, ray)
        of_before = list(given.folder.glob(f"{STORAGE}*"))
        leftovers.remove_folders([left_over.name for left_over in of_before])
        for left_over in of_before:
            # Of a driver that was killed, on this cluster perhaps.
            leftovers.end_watchers(left_over.name.split("-")[1])
            shutil.rmtree(left_over, ignore_errors=True)
        storage = Path(tempfile.mkdtemp(prefix=f"{STORAGE}{leftovers.job}-", dir=given.folder.absolute()))
        try:
            with signals_kept(), _tune_quiet():
                _tune(desk, given, gpu, work, storage)
        finally:
            leftovers.clear()
            leftovers.remove_folders([storage.name])
            shutil.rmtree(storage, ignore_errors=True)
    if desk.error is not None:
        raise desk.error
    if not desk.finished:
        raise KeyboardInterrupt


class Desk:
    """Between Tune and the conductor: who asks gets a segment, and says here how it ended."""

    def __init__(
        self,
        conductor: Conducts,
        given: Given,
        at_once: int,
        progress: Progress,
        leftovers: Leftovers | None = None,
        room: "Room | None" = None,
        say: Say = lambda _: None,
    ) -> None:
        self.conductor, self.given, self.at_once, self.progress = conductor, given, at_once, progress
        self.leftovers, self.room, self.say = leftovers, room, say
        self.out: dict[str, Segment] = {}
        self.begun = 0
        self.finished = False
        self.error: Exception | None = None
        self._nothing_new = False

    def ask(self, key: str) -> dict[str, Any] | str | None:
        """A segment for whoever has this key, None to ask again later, FINISHED at the end.

        Raises what the conductor raised, then or before.
        """
        if self.error is not None:
            raise self.error
        if self.leftovers:
            self.leftovers.look()
        if self.room:
            self.room.look(len(self.out))
        # Tune asks ten times a second; the conductor's answer changes only when a segment ends.
        if len(self.out) >= self.at_once or (self.out and self._nothing_new):
            return None
        try:
            segment = self.conductor.next()
            if segment is None and not self.out and not self.conductor.done:
                raise RunError("the campaign is not done and nothing is left to run: this is a fault; keep its folder")
        except Exception as error:
            self.error = error
            raise
        if segment is None:
            self._nothing_new, self.finished = True, not self.out
            return FINISHED if self.finished else None
        self.out[key] = segment
        self.begun += 1
        # Another driver's may be the last turn, on a machine whose clock is ahead.
        turn = next_turn(looking(self.given.trial_folder(segment.trial))())
        return {SEGMENT: json.dumps(asdict(segment)), WORKERS: self._workers(segment), TURN: list(turn)}

    def _workers(self, segment: Segment) -> int:
        try:
            return self.given.experiment(segment).resources.workers
        except RequestError:
            return 1  # who carries it out says what is wrong

    def ended(self, key: str, result: Mapping[str, Any] | None) -> None:
        """The segment of this key ended with a result, or its process died. Raises nothing: Tune would go on."""
        segment = self.out.pop(key, None)
        if segment is None:
            return
        self._nothing_new = False
        try:
            if result and REACHED in result:
                pull(self.given.trial_folder(segment.trial))
                reached = reached_from_json(json.loads(result[REACHED]))
            else:
                if self.leftovers and self._workers(segment) > 1:
                    self.leftovers.suspect(not any(self._workers(other) > 1 for other in self.out.values()))
                pull(self.given.trial_folder(segment.trial))
                reached = failed(self.given.trial_folder(segment.trial), "its process died: killed, or out of memory")
                self.say(
                    f"{trial_name(segment.trial)} lost its process: killed, out of memory, or its machine is gone or "
                    "cut off; it goes on from its last checkpoint, unless that has happened too often"
                )
            self.conductor.ended(segment, reached)
            self.progress("segments", self.begun - len(self.out), self.begun)
        except Exception as error:
            self.error = self.error or error


class Room:
    """Says when fewer trials have room than are begun. slots: how many have, None when nobody knows."""

    def __init__(self, slots: Callable[[], int | None], say: Say, every_s: float = 5.0) -> None:
        self.slots, self.say, self.every_s = slots, say, every_s
        self._next_look, self._waiting = 0.0, False

    def look(self, begun: int) -> None:
        """Look now and then; to be called often."""
        if time.monotonic() < self._next_look:
            return
        have = self.slots()
        self._next_look = time.monotonic() + self.every_s
        if have is None:
            return
        waiting = have < begun
        if waiting and not self._waiting:
            self.say(
                f"waiting for a machine: {begun} trials are begun and the cluster has room for {have}: bring machines "
                "back, or wait until others have ended"
            )
        elif self._waiting and not waiting:
            self.say("no trial waits for a machine any more")
        self._waiting = waiting


def slots(ray: Any) -> int | None:
    """How many trials the cluster has room for, whether they run or not; None when its head does not answer."""
    try:
        return int(ray.cluster_resources().get(SLOT, 0)) if head_answers(ray) else None
    except Exception:
        return None


def _tune(desk: Desk, given: Given, gpu: bool, work: Work, storage: Path) -> None:
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    class AsksDesk(Searcher):
        """Tune's side of the desk. Tune stores its searchers: nothing of this one is kept."""

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            return desk.ask(trial_id)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            desk.ended(trial_id, result)

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

        def __reduce__(self) -> tuple[Any, ...]:
            return Searcher, ()

    def resources(config: Mapping[str, Any]) -> Any:
        """One worker trains in the trial's own process; more get a Ray Train group beside it."""
        own = {"CPU": 1.0, **({"GPU": 1.0} if gpu else {})} if config[WORKERS] == 1 else {}
        return tune.PlacementGroupFactory([{SLOT: 1.0, **own}])

    def name_of(trial: Any) -> str:
        return f"segment-{trial.trial_id}"

    tune.Tuner(
        tune.with_resources(
            tune.with_parameters(carry_out, told=told(given.to_json(), given.folder), work=work), resources
        ),
        tune_config=tune.TuneConfig(
            search_alg=AsksDesk(),
            scheduler=FIFOScheduler(),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    ).fit()


def carry_out(config: dict[str, Any], told: dict[str, Any], work: Work) -> dict[str, str]:
    """What a Tune trial runs."""
    given = {**told, SEGMENT: json.loads(config[SEGMENT]), TURN: config[TURN]}
    return {REACHED: json.dumps(work(given))}


@contextmanager
def _tune_quiet() -> Iterator[None]:
    """What Tune would say of failures is said by the ledger."""
    log = logging.getLogger("ray.tune")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
