"""The blows themselves: each kills what it is for, sees to it that it comes back, and says when things went on."""

import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from random import Random
from typing import Any

from orchestration.doctor.hands import Place
from orchestration.drill.campaign import Driver, Folder
from orchestration.drill.plan import Kind, Strike
from orchestration.drill.reach import TRAIN_WORKER, TRIAL, Cluster, Victim, wait_until
from orchestration.drill.tracking_server import TrackingServer
from orchestration.errors import RunError

PATIENCE_S = 900.0
POLL_S = 0.05
REPEATS = 4
"""Times the command of a campaign that ended is given again before a drill calls it lost."""
HERE = "this machine"
BEFORE = "its trial ended before"


@dataclass(frozen=True, slots=True)
class Hit:
    """A blow that fell. planned, at: pictures that the trial had seen, as drawn and as it was; lost: those of them that
    are trained again; went_on_s: seconds until the trial had another checkpoint, or MLflow answered."""

    kind: Kind
    trial: int
    planned: int
    at: int
    node: str
    pid: int
    lost: int
    went_on_s: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Hit":
        """From `to_json`."""
        return cls(**{**values, "kind": Kind(values["kind"])})


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a trial is. saved, trained: pictures in its checkpoints and in its record; records: lines of that."""

    when: float
    saved: int
    trained: int
    records: int


Struck = tuple[Moment, Victim, str]
"""When it fell, on whom, and a note."""
Fire = Callable[[], Struck | None]
"""Strikes; None where the victim was gone."""


@dataclass
class Field:
    """Where blows fall: one campaign, its driver, its cluster, and the drill's own MLflow server if it has one.

    bring_back: a command for a node that was lost; seen: told now and then that time passes.
    """

    cluster: Cluster
    driver: Driver
    folder: Folder
    server: TrackingServer | None
    draw: Random
    say: Callable[[str], None]
    bring_back: str | None = None
    seen: Callable[[], None] = lambda: None
    jobs: set[str] = field(default_factory=set)
    repeated: int = 0
    _unseen: str = ""

    def strike(self, one: Strike) -> Hit | str:
        """Wait for the moment, strike, and wait until things went on; why not, where there was nothing to strike."""
        repeated = self.repeated
        aims: dict[Kind, Callable[[int], Fire]] = {
            Kind.WORKER: lambda trial: self._aim_at_process(TRAIN_WORKER, trial),
            Kind.TRIAL: lambda trial: self._aim_at_process(TRIAL, trial),
            Kind.DRIVER: lambda trial: partial(self._driver, trial),
            Kind.NODE: self._aim_at_node,
            Kind.TRACKING: lambda trial: partial(self._tracking, trial),
        }
        struck, self._unseen = None, ""
        while struck is None:
            # Looking for somebody takes longer than a moment lasts.
            self.wait(lambda: self.folder.trained(one.trial) > 0 or self.folder.ended(one.trial))
            fire = aims[one.kind](one.trial)
            self.wait(lambda: self.folder.trained(one.trial) >= one.images or self.folder.ended(one.trial))
            if self.folder.ended(one.trial):
                return self._unseen or BEFORE
            struck = fire()
        moment, victim, note = struck
        lost = 0
        if one.kind is not Kind.TRACKING:
            self.wait(lambda: self.folder.saved(one.trial) > moment.saved or self.folder.ended(one.trial))
            lost = max(0, moment.trained - moment.saved)
        if self.repeated > repeated:
            note = "; ".join(filter(None, [note, "its command ended and was given again"]))
        went_on = time.monotonic() - moment.when
        return Hit(
            one.kind, one.trial, one.images, moment.trained, victim.node, victim.pid, lost, round(went_on, 1), note
        )

    def wait(self, what: Callable[[], bool]) -> None:
        """Until it is true, however often the campaign's command must be given again. Raises RunError when it does not
        come true, as where the campaign is refused or ends otherwise."""
        until, before = time.monotonic() + PATIENCE_S, self.folder.standing
        while not what():
            self.jobs |= self.folder.jobs
            if not self.driver.running:
                if self.driver.code == 0 and what():
                    return
                if self.driver.code in (0, 2) or self.repeated >= REPEATS:
                    raise self.driver.failure()
                self.repeated += 1
                self.driver.start()
            if (standing := self.folder.standing) != before:
                until, before = time.monotonic() + PATIENCE_S, standing
            if time.monotonic() > until:
                raise RunError(
                    f"the drill's campaign has not moved for {PATIENCE_S / 60:g} minutes; what it said is in "
                    f"{self.driver.log}; t2i doctor looks at the cluster"
                )
            self.seen()
            time.sleep(POLL_S)

    def finish(self) -> None:
        """Wait for the campaign's end. Raises RunError when it does not end well."""
        self.wait(lambda: self.driver.code == 0)

    def _moment(self, trial: int) -> Moment:
        saved, folder = self.folder.saved(trial), self.folder
        return Moment(time.monotonic(), saved, folder.trained(trial), folder.records(trial))

    def _aim_at_process(self, kind: str, trial: int) -> Fire:
        """At one of Ray's processes, as soon as there is one."""
        found: list[Victim] = []

        def there() -> bool:
            found[:] = self.cluster.actors(kind, self.jobs)
            return bool(found) or self.folder.ended(trial)

        self.wait(there)
        victim = self.draw.choice(found) if found else None
        self._unseen = "" if found else f"its trial ended, and Ray listed no actor {kind} of it"

        def fire() -> Struck | None:
            moment = self._moment(trial)
            if victim is None or not self.cluster.kill(victim):
                return None
            return moment, victim, f"one of {len(found)}" if len(found) > 1 else ""

        return fire

    def _driver(self, trial: int) -> Struck:
        moment, victim = self._moment(trial), Victim(self.driver.pid, HERE, "")
        self.driver.kill()
        self.driver.start()
        return moment, victim, "the same command again"

    def _aim_at_node(self, trial: int) -> Fire:
        """At a node of this campaign, if one that may be lost has any of it."""
        there = {victim.node_id for victim in self.cluster.actors("", self.jobs)}
        losable = self.cluster.losable()
        place = self.draw.choice([each for each in losable if each.node_id in there] or list(losable))
        return partial(self._node, trial, place, len(self.cluster.nodes()))

    def _node(self, trial: int, place: Place, before: int) -> Struck:
        moment = self._moment(trial)
        self.cluster.kill_node(place)
        if not wait_until(lambda: place.node_id not in self._alive(), PATIENCE_S):
            raise RunError(f"node {place.name} was killed and Ray still counts it as alive: look at it, and repeat")
        if self.bring_back:
            self._bring_back(place.name)
        else:
            self.say(f"node {place.name} ({place.address}) is gone: waiting for whoever starts it again")
        if not wait_until(lambda: len(self._alive()) >= before, PATIENCE_S):
            raise RunError(
                f"node {place.name} ({place.address}) did not come back within {PATIENCE_S / 60:g} minutes: start Ray "
                "on it as it was, or give --bring-back COMMAND, and repeat the drill, which then goes on"
            )
        back = time.monotonic() - moment.when
        self.cluster.reach_all()
        return moment, Victim(0, place.name, place.node_id), f"the node was back after {back:.0f} s"

    def _alive(self) -> set[str]:
        self.seen()
        return {place.node_id for place in self.cluster.nodes()}

    def _bring_back(self, name: str) -> None:
        assert self.bring_back is not None
        mend = f"start node {name} again yourself, and repeat the drill"
        # A pipe would be kept open by a daemon that the command leaves.
        path = self.driver.log.with_name("bring-back.log")
        try:
            with path.open("wb") as log:
                words = shlex.split(self.bring_back)
                code = subprocess.run(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=PATIENCE_S
                ).returncode
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise RunError(f"--bring-back could not be run ({error}): {mend}") from error
        if code:
            said = (path.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise RunError(f"--bring-back ended with exit code {code} ({said}): {mend}")

    def _tracking(self, trial: int) -> Struck:
        """The server is away until something was recorded that it missed."""
        assert self.server is not None
        moment, victim = self._moment(trial), Victim(self.server.pid, HERE, "")
        self.server.kill()
        self.wait(lambda: self.folder.saved(trial) > moment.saved or self.folder.ended(trial))
        queued = max(0, self.folder.records(trial) - moment.records)
        # Nobody waits for it: the campaign goes on meanwhile, and would outrun the next blow.
        self.server.begin()
        return moment, victim, f"{queued} records were kept for it"
