"""The drill from its first step to its last: the twin, the campaign that is hit, the endpoint that is, the verdict."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.campaigns.campaign import read_campaign
from orchestration.campaigns.execution import SLOT
from orchestration.drill.campaign import Driver, Folder, read_json
from orchestration.drill.comparing import Difference, differences, ledger_of, unrecorded
from orchestration.drill.plan import KIMG, Kind, Plan
from orchestration.drill.reach import ADDRESS, Cluster, wait_until
from orchestration.drill.replica import ReplicaHit, drill_replica
from orchestration.drill.striking import Field, Hit
from orchestration.drill.tracking_server import TrackingServer
from orchestration.errors import RequestError, RunError
from orchestration.home import Home, exclusive
from orchestration.stages import Progress, write_atomically
from orchestration.tracking import Tracker

DRILLS, JOURNAL = "drills", "drill.json"
CLEAN_S = 60.0

Say = Callable[[str], None]


@dataclass
class Report:
    """What a drill found. twin, drilled: the ledgers by trial, as in `ledger_of`; missed: blows that did not fall, and
    why; skipped: kinds that cannot be done here, and why; unrecorded, left_over, unserved: sentences, [] where
    all is well."""

    plan: Plan
    objective: str = ""
    hits: list[Hit] = field(default_factory=list)
    missed: dict[Kind, str] = field(default_factory=dict)
    skipped: dict[Kind, str] = field(default_factory=dict)
    twin: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    drilled: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    unrecorded: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    replica: ReplicaHit | None = None
    unserved: list[str] = field(default_factory=list)
    kept: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def differences(self) -> list[Difference]:
        """Between the two ledgers."""
        return differences(self.twin, self.drilled) if self.plan.in_campaign else []

    @property
    def faults(self) -> list[str]:
        """A sentence for each thing that is not as it would be without a drill."""
        return [
            *(f"{each}" for each in self.differences),
            *(f"{kind} was not hit: {why}" for kind, why in self.missed.items()),
            *(f"MLflow: {each}" for each in self.unrecorded),
            *(f"left over on the cluster: {each}" for each in self.left_over),
            *(f"endpoint: {each}" for each in (*self.unserved, *(self.replica.wrong if self.replica else ()))),
        ]


class Drill:
    """One drill in HOME/drills, which is a home of its own: nothing else of the user's is written."""

    def __init__(
        self, plan: Plan, home: Home, cluster: Cluster, say: Say, progress: Progress, bring_back: str | None = None
    ) -> None:
        self.plan, self.cluster, self.say, self.progress, self.bring_back = plan, cluster, say, progress, bring_back
        self.home = Home(home.root / DRILLS)
        self.folder = self.home.root / plan.name
        self.campaign = Folder(self.home.campaigns / plan.name)
        self.twin = Folder(self.home.campaigns / plan.twin)

    def run(self, keep: bool = False) -> Report:
        """All of it. Raises RequestError where it cannot be done here, RunError when something did not go on; what
        there is then is kept, and the same drill goes on from it."""
        report = Report(self.plan)
        with exclusive(self.folder):
            self._timed(report, "twin", self._run_twin)
            calm = read_campaign(self.twin.path)
            report.objective, report.twin = calm.objective, ledger_of(self.twin.path)
            if self.plan.in_campaign:
                self._timed(report, "campaign", lambda: self._run_campaign(report))
            if Kind.REPLICA in self.plan.kinds:
                self.progress("drill: endpoint", 0, 1)
                self._timed(report, "endpoint", lambda: self._drill_replica(report))
                self.progress("drill: endpoint", 1, 1)
        if keep or report.faults:
            report.kept = self.campaign.path if self.plan.in_campaign else None
        else:
            shutil.rmtree(self.campaign.path, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        return report

    def _timed(self, report: Report, what: str, step: Callable[[], None]) -> None:
        began = time.monotonic()
        step()
        report.seconds[what] = round(time.monotonic() - began, 1)

    def _driver(self, name: str, uri: str | None, log: str) -> Driver:
        tracking = ["--mlflow-uri", uri] if uri else []
        words = [*self.plan.words, "--name", name, "--home", str(self.home.root), *tracking, "--json"]
        return Driver(words, {ADDRESS: self.cluster.address}, self.folder / log)

    def _run_twin(self) -> None:
        driver = self._driver(self.plan.twin, None, "twin.log")
        field = Field(self.cluster, driver, self.twin, None, self.plan.draw("twin"), self.say)
        field.seen = self._seen("drill: undisturbed twin", self.twin)
        # Nothing kills it: where it ends, there is something else to mend first.
        field.repeated = 10_000
        self._with(driver, field.finish)

    def _run_campaign(self, report: Report) -> None:
        done = self._journal()
        server = TrackingServer(self.folder) if Kind.TRACKING in self.plan.kinds else None
        uri = server.uri if server else f"sqlite:///{self.folder.absolute() / 'mlflow.db'}"
        driver = self._driver(self.plan.name, uri, "campaign.log")
        # Which process is hit is drawn anew for each blow, so that a drill that goes on hits the same.
        field = Field(self.cluster, driver, self.campaign, server, self.plan.draw("victims"), self.say, self.bring_back)
        try:
            if server:
                server.start()
            self._with(driver, lambda: self._strike(field, report, done))
            if server:
                server.wait()
            report.drilled = ledger_of(self.campaign.path)
            system = read_campaign(self.campaign.path).plan.base.system
            tracker = Tracker(self.folder, uri)
            report.unrecorded = unrecorded(self.campaign.path, tracker, system, self.plan.trials)
            # The same drill again is another one.
            (self.folder / JOURNAL).unlink()
        finally:
            if server:
                server.kill()
        if not wait_until(lambda: not self.cluster.left_over(field.jobs), CLEAN_S, every_s=1.0):
            report.left_over = self.cluster.left_over(field.jobs)

    def _strike(self, field: Field, report: Report, done: list[Hit]) -> None:
        struck = {hit.kind for hit in done}
        report.hits = list(done)
        for strike in self.plan.strikes():
            if strike.kind in struck:
                continue
            field.seen = self._seen(f"drill: {strike.kind}", self.campaign)
            field.draw = self.plan.draw(f"victim {strike.kind}")
            hit = field.strike(strike)
            if isinstance(hit, str):
                report.missed[strike.kind] = hit
                continue
            report.hits.append(hit)
            self._keep(report.hits)
            self.say(f"{hit.kind}: went on after {hit.went_on_s:.0f} s")
        field.seen = self._seen("drill: to the end", self.campaign)
        field.finish()

    def _with(self, driver: Driver, work: Callable[[], None]) -> None:
        """Work while the driver runs; it is ended with it, whatever happens."""
        driver.start()
        try:
            work()
        finally:
            driver.end()

    def _drill_replica(self, report: Report) -> None:
        campaign, tracker = read_campaign(self.twin.path), Tracker(self.home.root)
        try:
            report.replica = drill_replica(self.cluster, campaign, tracker, self.plan.draw("replica"))
        except (RequestError, RunError) as error:
            # What the campaign came to is told all the same.
            report.unserved = [str(error)]

    def _seen(self, what: str, folder: Folder) -> Callable[[], None]:
        last = [0.0]

        def seen() -> None:
            if time.monotonic() - last[0] >= 1.0:
                last[0] = time.monotonic()
                done = sum(folder.trained(trial) for trial in range(self.plan.trials))
                self.progress(what, done, round(KIMG * 1000) * self.plan.trials)

        return seen

    def _journal(self) -> list[Hit]:
        """What fell before the drill was cut off; nothing of a campaign that is there otherwise is kept."""
        found = read_json(self.folder / JOURNAL)
        if isinstance(found, list) and self.campaign.begun:
            with suppress(TypeError, KeyError, ValueError):
                return [Hit.of(values) for values in found]
        shutil.rmtree(self.campaign.path, ignore_errors=True)
        for path in self.folder.glob("mlflow.db*"):
            path.unlink()
        self._keep([])
        return []

    def _keep(self, hits: list[Hit]) -> None:
        write_atomically(self.folder / JOURNAL, json.dumps([hit.to_json() for hit in hits], indent=1))


def impossible(cluster: Cluster, plan: Plan) -> dict[Kind, str]:
    """Kinds of the plan that cannot be done on this cluster, and why."""
    found = {}
    if Kind.WORKER in plan.kinds and cluster.units("CPU") < plan.workers:
        found[Kind.WORKER] = f"a group of {plan.workers} needs {plan.workers} CPUs, and the cluster has fewer"
    if Kind.NODE in plan.kinds and not cluster.losable():
        nodes = len(cluster.nodes())
        found[Kind.NODE] = (
            "the cluster has one node" if nodes == 1 else f"of {nodes} nodes none is without head and driver"
        )
    if Kind.REPLICA in plan.kinds and cluster.serves():
        found[Kind.REPLICA] = "Ray Serve runs on the cluster already, and what it serves is not touched"
    return found


def possible(cluster: Cluster, plan: Plan, asked: bool) -> tuple[Plan, dict[Kind, str]]:
    """The plan without what cannot be done here, and why not. asked: its kinds were named, so that all must be done.

    Raises RequestError where one that was asked for cannot be done, and where nothing is left.
    """
    if cluster.units(SLOT) < 1:
        raise RequestError(
            f"no node of the cluster has the resource {SLOT!r}, which a trial needs: start each node that trains with "
            f"--resources='{{\"{SLOT}\": N}}', N trials of it at a time"
        )
    why = impossible(cluster, plan)
    left = tuple(kind for kind in plan.kinds if kind not in why)
    if why and (asked or not left):
        kind, reason = next(iter(why.items()))
        raise RequestError(f"--kill {kind} cannot be done here: {reason}; leave it out")
    return Plan(plan.seed, plan.trials, left), why


def failed(report: Report) -> RunError:
    """For a drill that found something."""
    faults = report.faults
    kept = f"; all is kept in {report.kept}" if report.kept else ""
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return RunError(f"the drill found that killing changes something ({faults[0]}{more}){kept}")
