"""One segment of a trial, in a worker process: its folder made ready, its training, and what the ledger is told of it.

A trial's folder is a run's folder as training writes it, and in it `rungs/step-NNN`: the checkpoint that segment ended
at. Rungs are what the ledger speaks of. They are links to the same files as the run's own checkpoints, so they cost
nothing while both exist, and neither `keep_checkpoints` nor a copy from another trial takes one away that is needed.
"""

import gc
import json
import logging
import os
import shutil
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orchestration.campaigns.ledger import Reached, Segment, SegmentState, Trial
from orchestration.campaigns.points import trial_experiment
from orchestration.config import Experiment, parse_experiment
from orchestration.errors import RequestError, RunError
from orchestration.home import Home, copy_of, found_at
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.remote import places
from orchestration.stage_store import PREPARED
from orchestration.stages import file_sha256, write_atomically
from orchestration.tracking import Mirror, Tracker
from orchestration.training.launch import EXPERIMENT_FILE, fit, run_tags, train_part, validation_figures
from orchestration.training.recorder import Recorder, read_metrics
from orchestration.training.state import MANIFEST, UNFINISHED, Checkpoint, newest_checkpoint, open_checkpoint
from orchestration.training.turn import Order, Superseded, Turn, Writing
from orchestration.training.worker import CHECKPOINTS, OUTCOME, Job, read_outcome, share_of_cores, train_worker
from search_spaces.space import Space, Value

TRIALS, RUNGS = "trials", "rungs"
BEGUN, FAILURE = "segment.json", "failure.txt"
VALUES = "values/"
STATES = {
    "finished": SegmentState.REACHED,
    "paused": SegmentState.REACHED,
    "diverged": SegmentState.DIVERGED,
    "collapsed": SegmentState.COLLAPSED,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Given:
    """What all segments of a campaign are given; crosses process borders as JSON.

    folder: the campaign's; parent: its run in MLflow; name: the campaign's, by default its folder's; at_once: so many
    segments share a machine's cores.
    """

    base: Experiment
    space: Space
    prepared: Prepared
    folder: Path
    parent: str
    home: Path
    uri: str | None
    name: str = ""
    at_once: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base.model_dump(mode="json"),
            "space": self.space.model_dump(mode="json"),
            "prepared": self.prepared.to_json(),
            "folder": str(self.folder.absolute()),
            "parent": self.parent,
            "home": str(self.home.absolute()),
            "uri": self.uri,
            "name": self.name or self.folder.absolute().name,
            "at_once": self.at_once,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Given":
        return cls(
            parse_experiment(values["base"]),
            Space.model_validate(values["space"]),
            Prepared.from_json(values["prepared"]),
            Path(values["folder"]),
            values["parent"],
            Path(values["home"]),
            values["uri"],
            values["name"],
            values["at_once"],
        )

    def experiment(self, segment: Segment) -> Experiment:
        """The experiment of a segment's values. Raises RequestError when they make none."""
        return trial_experiment(self.base, self.space, segment.values)

    def trial_folder(self, number: int) -> Path:
        """Where a trial's run is."""
        return self.folder / TRIALS / trial_name(number)


@dataclass(frozen=True, slots=True)
class Begun:
    """What a trial's folder says of the segment that was begun in it last, so that it goes on after a kill.

    images: those seen at its begin.
    """

    step: int
    images: int
    donor_digest: str | None
    identity: str
    run_id: str | None = None


def trial_name(number: int) -> str:
    """Of a trial's folder, and of its run in MLflow."""
    return Trial(number, {}, "").name


def segment_from_json(values: Mapping[str, Any]) -> Segment:
    """From `asdict(segment)` as JSON."""
    return Segment(**{**values, "state": SegmentState(values["state"])})


def reached_from_json(values: Mapping[str, Any]) -> Reached:
    """From what `run_segment` returns."""
    return Reached(**{**values, "state": SegmentState(values["state"])})


def run_segment(given: Mapping[str, Any]) -> dict[str, Any]:
    """Train one segment; what was begun before a kill goes on. Whatever goes wrong is a `Reached` with the reason.

    given: `Given.to_json()`, as "segment" `asdict(segment)`, and as "turn" the driver's `next_turn`, by default the one
    after the folder's. Returns `asdict(Reached)`.
    """
    segment = segment_from_json(given["segment"])
    turn: Turn | None = None
    folder = Given.from_json(given).trial_folder(segment.trial)
    try:
        told = Given.from_json(places.here(given))
        folder = told.trial_folder(segment.trial)
        under = tuple(given.get("turn", ()))
        with taking(folder, places.written_here(given), under):
            turn = Turn.take(folder, under)
            try:
                reached = _run(told, segment, turn)
            except (RequestError, RunError):
                raise
            except Exception:
                _keep_story(folder, turn)  # before it is published
                raise
    except (RequestError, RunError) as error:
        if isinstance(error, Superseded):
            log.warning("%s", error)  # nobody hears what is returned
        reached = failed(folder, str(error))
    except Exception as error:
        sentence = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        _keep_story(folder, turn)  # of what failed around it too
        reached = failed(folder, f"{sentence} (the whole story is in {found_at(folder / FAILURE)})")
    finally:
        # The process may be used again: nets are cycles, and a compiler counts how often it met the same code.
        gc.collect()
        if given["base"]["resources"].get("compile"):
            torch.compiler.reset()
    return asdict(reached)


def _keep_story(folder: Path, turn: Turn | None) -> None:
    """What went wrong, as Python tells it, beside the trial."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(RunError), turn.writing() if turn else nullcontext():
        write_atomically(folder / FAILURE, traceback.format_exc())


@contextmanager
def taking(folder: Path, driver_is_here: bool, under: Order = ()) -> Iterator[None]:
    """What other machines published of a trial is fetched first, and what it has become is published at the end, also
    where it failed.

    driver_is_here: the driver reads the same folder, and publishes at its own end what could not be. RunError else.
    under: the driver's turn; Superseded when it is over.
    """
    copy = copy_of(folder)
    if copy is None:
        yield
        return
    from orchestration.remote.following import take_under

    take_under(copy, folder, under)
    try:
        yield
    except Superseded:
        raise  # the folder is another process's
    except Exception:
        with suppress(OSError, RunError):
            copy.push(folder)
        raise
    try:
        copy.insist(copy.push, folder, "published")
    except RunError as error:
        if not driver_is_here:
            raise
        log.warning("%s", error)


def fetch_rung(rungs: Path, digest: str | None) -> None:
    """A donor's checkpoint may have been made on another machine."""
    copy = copy_of(rungs)
    if copy is None or digest is None or any(file_sha256(rung / MANIFEST) == digest for rung in _whole(rungs)):
        return
    copy.insist(lambda parent: copy.fetch_checkpoint_with(parent, digest), rungs, "fetched")


def _whole(rungs: Path) -> list[Path]:
    return [rung for rung in sorted(rungs.glob("step-*")) if (rung / MANIFEST).is_file()]


def failed(folder: Path, reason: str) -> Reached:
    """A segment in this trial's folder has no end; what is known is told."""
    begun, (kimg, figures) = _read_begun(folder), _stands(folder)
    run_id, identity = (begun.run_id, begun.identity) if begun else (None, None)
    return Reached(SegmentState.FAILED, kimg, figures, None, None, run_id, identity, reason)


def _run(given: Given, segment: Segment, turn: Turn) -> Reached:
    folder = turn.folder
    experiment = given.experiment(segment)
    tracker = Tracker(given.home, given.uri)
    prepared = _prepared(given, experiment, tracker)
    with turn.writing():
        write_atomically(folder / EXPERIMENT_FILE, json.dumps(experiment.model_dump(mode="json"), indent=1))
        write_atomically(folder / PREPARED, json.dumps(prepared.to_json(), indent=1))
        (folder / OUTCOME).unlink(missing_ok=True)
    begun = make_ready(given, segment, folder, experiment.identity, turn.writing)
    start = partial(_start_run, tracker, given, segment, turn, experiment, prepared)
    begun = start(begun)
    with Mirror(tracker, begun.run_id, folder) if begun.run_id else nullcontext():
        train_here_or_there(
            Job(experiment, prepared, str(folder), 1, segment.until_kimg, stop_on_collapse=True, turn=turn.order),
            given.at_once,
        )
    if begun.run_id is None:
        # MLflow was away when it began; what the folder holds is sent now, or by whoever mirrors it next.
        begun = start(begun)
        if begun.run_id:
            with Mirror(tracker, begun.run_id, folder):
                pass
    return _reached(segment, turn, begun)


def train_here_or_there(job: Job, at_once: int) -> None:
    """Train a job of one worker in this process, of more in a group of Ray Train."""
    resources = job.experiment.resources
    if resources.workers > 1:
        fit(job, at_once)
        return
    threads = resources.threads or share_of_cores(at_once)
    # A part that is trained on the way takes the same device, and no more of the cluster than its trial has.
    gpu = torch.cuda.is_available() and resources.use_gpu is not False
    train_worker(replace(job, threads=threads), lambda figures: None, torch.device("cuda" if gpu else "cpu"))


def _prepared(given: Given, experiment: Experiment, tracker: Tracker) -> Prepared:
    """What is made ready before the trial: the campaign's, or its own where something early is varied."""
    if experiment.reads_as == given.base.reads_as:
        return given.prepared
    carry_out = partial(train_here_or_there, at_once=given.at_once)
    return Preparation(
        experiment, Home(given.home), train_part=partial(train_part, tracker, carry_out=carry_out)
    ).everything()


def _start_run(
    tracker: Tracker,
    given: Given,
    segment: Segment,
    turn: Turn,
    experiment: Experiment,
    prepared: Prepared,
    begun: Begun,
) -> Begun:
    """The trial's run in MLflow is found by its key or made; where MLflow is away, the training goes on without."""
    name = trial_name(segment.trial)
    try:
        run_id = tracker.start_run(
            experiment.system,
            name,
            f"{given.name}-{name}",
            experiment.model_dump(mode="json"),
            {**run_tags(experiment, prepared), "t2i.kind": "trial"},
            given.parent,
        )
    except RunError:
        return begun
    begun = replace(begun, run_id=run_id)
    with turn.writing():
        write_atomically(turn.folder / BEGUN, json.dumps(asdict(begun)))
    return begun


def make_ready(given: Given, segment: Segment, folder: Path, identity: str, writing: Writing = nullcontext) -> Begun:
    """The trial's newest checkpoint becomes the one that the segment begins from, unless it has got further already.

    That is the trial's own at the rung before, or its donor's, which takes that one's place. Repeating it after a kill
    at any moment ends the same. writing: what changes the folder is done within it, and no checkpoint is read or copied
    there. Raises RunError when that checkpoint is not there as the ledger knows it.
    """
    known, newest = _read_begun(folder), newest_checkpoint(folder / CHECKPOINTS)
    if (
        known is not None
        and (known.step, known.donor_digest, known.identity) == (segment.step, segment.donor_digest, identity)
        and (newest.images_seen if newest else 0) >= known.images
    ):
        return known
    source = _source(given, segment, folder)
    if source is None or newest is None or newest.digest != source.digest:
        _place(source, folder / CHECKPOINTS, writing)
    images = source.images_seen if source else 0
    numbers = {name: float(value) for name, value in segment.values.items() if _is_number(value)}
    begun = Begun(segment.step, images, segment.donor_digest, identity, known.run_id if known else None)
    with writing():
        if numbers:
            Recorder(folder, images).metrics(images, {VALUES + name: value for name, value in numbers.items()})
        for step in range(segment.step - 1):
            shutil.rmtree(_rung(folder, step), ignore_errors=True)
        write_atomically(folder / BEGUN, json.dumps(asdict(begun)))
    return begun


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _source(given: Given, segment: Segment, folder: Path) -> Checkpoint | None:
    """The checkpoint a segment begins from, verified; None for the first one of a trial."""
    if segment.donor is None:
        if segment.step == 0:
            return None
        rung = _rung(folder, segment.step - 1)
        if not rung.is_dir():
            raise RunError(f"{trial_name(segment.trial)} lacks the checkpoint {rung} that it goes on from: restore it")
        return open_checkpoint(rung)
    rungs = given.trial_folder(segment.donor) / RUNGS
    fetch_rung(rungs, segment.donor_digest)
    for rung in _whole(rungs):
        if file_sha256(rung / MANIFEST) == segment.donor_digest:
            return open_checkpoint(rung)
    raise RunError(
        f"{trial_name(segment.trial)} goes on from {trial_name(segment.donor)}'s checkpoint with digest "
        f"{(segment.donor_digest or 'none')[:12]}, and {rungs} has none with it: restore that checkpoint"
    )


def _place(source: Checkpoint | None, parent: Path, writing: Writing) -> None:
    """`parent` holds a copy of the source as its only checkpoint: no other can be gone back to by mistake."""
    if source is not None:
        _copy(source.folder, parent / f"kimg-{source.images_seen / 1000:010.3f}", "kimg-*", writing)
        return
    with writing():
        for old in parent.glob("kimg-*"):
            shutil.rmtree(old)


def _copy(source: Path, target: Path, replaced: str, writing: Writing) -> None:
    """Whole or not at all, instead of what beside it is called like `replaced`. Checkpoints never change, so where the
    filesystem has links the files are shared; where it has none copying takes long, and nobody waits for it."""
    with writing():
        target.parent.mkdir(parents=True, exist_ok=True)
        for half_written in target.parent.glob(f"{UNFINISHED}*"):
            shutil.rmtree(half_written, ignore_errors=True)
    working = target.parent / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(source, working, copy_function=_link)
        with writing():
            for old in target.parent.glob(replaced):
                shutil.rmtree(old)
            working.replace(target)
    except OSError:
        with writing():
            pass  # whoever has taken the folder over has swept away what was half written: that is the reason
        raise
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _rung(folder: Path, step: int) -> Path:
    return folder / RUNGS / f"step-{step:03d}"


def _reached(segment: Segment, turn: Turn, begun: Begun) -> Reached:
    """What came of the training; the checkpoint it ended at becomes the trial's rung."""
    folder = turn.folder
    outcome = read_outcome(folder)
    if outcome is None:
        return failed(folder, "its training ended without an outcome")
    state, kimg = STATES[outcome.status], outcome.images_seen / 1000
    _, figures = _stands(folder)
    about = (begun.run_id, begun.identity, outcome.reason)
    if state != SegmentState.REACHED:
        return Reached(state, kimg, figures, None, None, *about)
    newest = newest_checkpoint(folder / CHECKPOINTS)
    if newest is None or newest.images_seen != outcome.images_seen:
        return failed(folder, f"it ended at {kimg:g} kimg and left no whole checkpoint there")
    rung = _rung(folder, segment.step)
    _copy(newest.folder, rung, rung.name, turn.writing)
    relative = rung.relative_to(folder.parent.parent)
    return Reached(state, kimg, figures, str(relative), newest.digest, *about)


def _stands(folder: Path) -> tuple[float, dict[str, float]]:
    """The kimg that a run's record reaches, and the figures of its last judging."""
    lines = read_metrics(folder)
    judged = [line for line in lines if validation_figures(line["metrics"])]
    last = judged[-1]["images"] if judged else -1
    figures = {
        name: value
        for line in judged
        if line["images"] == last
        for name, value in validation_figures(line["metrics"]).items()
    }
    return (lines[-1]["kimg"] if lines else 0.0), figures


def _read_begun(folder: Path) -> Begun | None:
    try:
        return Begun(**json.loads((folder / BEGUN).read_text()))
    except (OSError, ValueError, TypeError):
        return None
