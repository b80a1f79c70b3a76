"""From a finished run to the champion that serving loads, and back to the one before."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestration.champion_contest import Contest, judge_challenger, judge_champion, require_figure
from orchestration.champion_history import (
    Decision,
    Entry,
    Judgement,
    champions,
    next_number,
    now,
    settle,
    write,
)
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.record import MetricRecord, to_json
from orchestration.home import Home
from orchestration.promotion import Comparison, Verdict, weigh
from orchestration.registry import ModelVersion
from orchestration.runs import finished_run
from orchestration.stages import Progress, quiet, short_hash
from orchestration.tracking import Tracker
from orchestration.training.state import Checkpoint, open_checkpoint

PROMOTIONS = "promotions"
CHECKPOINT_TAG = "t2i.checkpoint_digest"
"""Of a version: the digest of its checkpoint's manifest."""
FIGURE_TAG = "t2i.figure."
"""Begins the name of a tag of a version that holds one of its figures."""
HOW_ON = "train further, compare by more --samples, or promote it with --force"
MEND = "mend that, or promote it unjudged with --force"


@dataclass(frozen=True, slots=True)
class Promotion:
    """How a challenge ended. version: the challenger's; champion: who has the alias now; entry: in the history, None
    where nothing had to be decided; records: of challenger, then of champion; sentence: all of it for a person."""

    version: ModelVersion
    champion: ModelVersion
    sentence: str
    entry: Entry | None = None
    comparison: Comparison | None = None
    records: tuple[MetricRecord, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the challenger was judged, and is not the champion."""
        return self.champion.version != self.version.version


@dataclass(frozen=True, slots=True)
class Rollback:
    """champion: who has the alias again; replaced: who had it; passed_over: earlier champions whose checkpoints cannot
    be loaded, and why."""

    champion: ModelVersion
    replaced: int
    passed_over: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What judging came to. why_not: a sentence where the two cannot be compared."""

    comparison: Comparison | None = None
    records: tuple[MetricRecord, ...] = ()
    artifact: str = ""
    why_not: str | None = None

    @property
    def won(self) -> bool:
        return self.comparison is not None and self.comparison.verdict is Verdict.BETTER

    @property
    def told(self) -> str:
        return self.comparison.numbers if self.comparison is not None else self.why_not or ""

    @property
    def judgement(self) -> Judgement | None:
        one = self.comparison
        if one is None:
            return None
        mine, theirs = ((side.value, side.low, side.high) for side in (one.challenger, one.champion))
        return Judgement(
            one.figure,
            one.direction,
            one.verdict,
            mine,
            theirs,
            one.gain,
            one.noise,
            one.seeds,
            one.drawn,
            self.artifact,
        )


def promote(
    tracker: Tracker,
    home: Home,
    checkpoint: Checkpoint,
    folder: Path,
    contest: Contest,
    figures: Mapping[str, float] | None = None,
    progress: Progress = quiet,
) -> Promotion:
    """Register a checkpoint as a version of its system's model, and make it the champion if it is better than the one
    there is by more than the noise, or by force; the first one is champion unjudged.

    folder: its run's. Both are judged with the same seeds and captions; if the champion is another one by then, they
    are judged again. Raises RequestError where they cannot be compared, unless forced; the version and an entry in the
    history are there all the same.
    """
    require_figure(contest.figure)
    run_id = finished_run(tracker, checkpoint, folder)
    version = _registered(tracker, checkpoint, run_id, figures or {})
    while True:
        champion = tracker.champion(version.model)
        outcome = _Outcome()
        if champion is not None and champion.version != version.version:
            outcome = _judge(tracker, home, checkpoint, folder, run_id, version, champion, contest, progress)
        with tracker.deciding(version.model):
            there = tracker.champion(version.model)
            if _number(there) == _number(champion):
                return _decide(tracker, version, there, outcome, contest)


def champion_checkpoint(tracker: Tracker, champion: ModelVersion, home: Home) -> Checkpoint:
    """The champion's checkpoint, on this machine and verified."""
    folder = tracker.fetch(champion, home.root / "champions" / f"{champion.model}-{champion.version}")
    return open_checkpoint(Path(folder))


def rollback(tracker: Tracker, home: Home, model: str, command: str = "") -> Rollback:
    """Give the alias back to the champion before, as often as there is one. One whose checkpoint cannot be loaded is
    passed over. Raises RequestError where there is none."""
    with tracker.deciding(model):
        champion = tracker.champion(model)
        if champion is None:
            raise RequestError(f"model {model!r} has no champion to roll back: promote one with t2i promote RUN")
        entries = settle(tracker, model, champion)
        versions = {version.version: version for version in tracker.versions(model)}
        passed_over: dict[int, str] = {}
        for number in reversed(champions(entries)[:-1]):
            if number == champion.version or number in passed_over:
                continue
            reason = _why_not_loaded(tracker, home, number, versions.get(number))
            if reason is not None:
                passed_over[number] = reason
                continue
            reason = f"in place of version {champion.version}"
            if passed_over:
                reason += f", past {_listed(passed_over)}"
            entry = Entry(
                next_number(entries), Decision.ROLLED_BACK, number, number, champion.version, reason, now(), command
            )
            write(tracker, model, entry)
            tracker.set_champion(model, number)
            return Rollback(versions[number], champion.version, passed_over)
    past = f" whose checkpoint can be loaded ({'; '.join(passed_over.values())})" if passed_over else ""
    raise RequestError(
        f"model {model!r} has no champion before version {champion.version}{past}: promote another run with "
        "t2i promote RUN (t2i history lists the versions)"
    )


def _registered(tracker: Tracker, checkpoint: Checkpoint, run_id: str, figures: Mapping[str, float]) -> ModelVersion:
    experiment = checkpoint.experiment
    tags = {
        CHECKPOINT_TAG: checkpoint.digest,
        "t2i.recipe": experiment.recipe,
        "t2i.identity": experiment.identity,
        "t2i.data_digest": checkpoint.provenance.data_digest,
        "t2i.text_digest": checkpoint.provenance.text_digest,
        "t2i.images_seen": str(checkpoint.images_seen),
        **{f"{FIGURE_TAG}{name}": f"{value:.6g}" for name, value in figures.items()},
    }
    number = tracker.register(experiment.system, run_id, checkpoint.folder, tags)
    return _version(tracker, experiment.system, number)


def _version(tracker: Tracker, model: str, number: int) -> ModelVersion:
    return next(version for version in tracker.versions(model) if version.version == number)


def _number(version: ModelVersion | None) -> int | None:
    return None if version is None else version.version


def _judge(
    tracker: Tracker,
    home: Home,
    checkpoint: Checkpoint,
    folder: Path,
    run_id: str,
    version: ModelVersion,
    champion: ModelVersion,
    contest: Contest,
    progress: Progress,
) -> _Outcome:
    """Judge both, and keep the records with the challenger's run. Raises RequestError where the challenger cannot be
    judged, unless forced."""
    try:
        against = _champion_to_judge(tracker, home, champion, checkpoint)
    except RequestError as error:
        return _Outcome(why_not=str(error))
    try:
        mine = judge_challenger(tracker, home, checkpoint, folder, contest, progress)
    except RequestError as error:
        if contest.force:
            return _Outcome(why_not=str(error))
        raise
    try:
        same = replace(contest, figure=mine[0].figure)
        theirs = judge_champion(home, against, _name(champion), checkpoint.experiment, same, progress)
        comparison = weigh(mine, theirs)
    except RequestError as error:
        return _Outcome(why_not=str(error))
    records = (*mine, *theirs)
    kept = short_hash([comparison.figure, comparison.seeds, comparison.drawn])
    name = f"version-{version.version}-against-{champion.version}-{kept}.jsonl"
    with TemporaryDirectory() as working:
        file = Path(working) / name
        file.write_bytes(to_json(records))
        tracker.log_artifact(run_id, file, PROMOTIONS)
    return _Outcome(comparison, records, f"{PROMOTIONS}/{name}")


def _champion_to_judge(tracker: Tracker, home: Home, champion: ModelVersion, checkpoint: Checkpoint) -> Checkpoint:
    """Raises RequestError for one that is missing or altered, or was trained on other data."""
    try:
        against = champion_checkpoint(tracker, champion, home)
    except (RequestError, RunError) as error:
        raise RequestError(f"the champion cannot be judged: {error}") from error
    mine, theirs = checkpoint.provenance.data_digest, against.provenance.data_digest
    if mine != theirs:
        raise RequestError(
            f"the champion was trained on {against.experiment.data.source} (digest {theirs[:12]}), this run on "
            f"{checkpoint.experiment.data.source} (digest {mine[:12]}), and what draws other pictures is no better or "
            "worse"
        )
    return against


def _name(version: ModelVersion) -> str:
    return f"{version.model} version {version.version}"


def _listed(numbers: Mapping[int, str]) -> str:
    return ", ".join(f"version {number}" for number in numbers)


def _decide(
    tracker: Tracker, version: ModelVersion, champion: ModelVersion | None, outcome: _Outcome, contest: Contest
) -> Promotion:
    """Write the entry and move the alias. To be called while deciding, with the champion that was judged."""
    model = version.model
    if champion is not None and champion.version == version.version:
        settle(tracker, model, champion)
        return Promotion(champion, champion, f"{_name(version)} is the champion already: nothing changes")
    entries = settle(tracker, model, champion)
    if champion is None:
        decision, told, reason = Decision.FIRST, "is the champion, the first one", "there was no champion"
    elif outcome.won or contest.force:
        decision, reason = Decision.PROMOTED, outcome.told
        forced = "" if outcome.won else ", by force"
        told = f"is the champion in place of version {champion.version}{forced}: {outcome.told}"
    else:
        decision, reason = Decision.REFUSED, outcome.told
        how_on = HOW_ON if outcome.comparison is not None else MEND
        told = f"does not replace version {champion.version}: {outcome.told}; {how_on}"
    refused = decision is Decision.REFUSED
    entry = Entry(
        next_number(entries),
        decision,
        version.version,
        champion.version if refused and champion is not None else version.version,
        _number(champion),
        reason,
        now(),
        contest.command,
        forced=decision is Decision.PROMOTED and not outcome.won,
        judgement=outcome.judgement,
    )
    write(tracker, model, entry)
    sentence = f"{_name(version)} {told}"
    if refused and outcome.comparison is None:
        raise RequestError(sentence)
    if not refused:
        tracker.set_champion(model, version.version)
    current = champion if refused and champion is not None else version
    return Promotion(
        _version(tracker, model, version.version),
        _version(tracker, model, current.version),
        sentence,
        entry,
        outcome.comparison,
        outcome.records,
    )


def _why_not_loaded(tracker: Tracker, home: Home, number: int, version: ModelVersion | None) -> str | None:
    if version is None:
        return f"version {number} was deleted"
    try:
        champion_checkpoint(tracker, version, home)
    except (RequestError, RunError) as error:
        return f"version {number}: {error}"
    return None
