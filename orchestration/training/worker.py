"""What one worker does, with or without Ray around it."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock

from models.contract import Batch, Nets
from models.parallel import Ranks, current_ranks
from orchestration.config import Experiment, parse_experiment
from orchestration.data.batches import TrainingStream, held_out_captions
from orchestration.data.sampler import derive_seed
from orchestration.evaluation.collapse import Collapsed, Ending, collapse_reason, end_together
from orchestration.evaluation.judging import BrokenPictures, Judge, Verdict
from orchestration.evaluation.looking import drawer
from orchestration.home import copy_of, publishing
from orchestration.prepared import Prepared
from orchestration.requirements import PART_PROTOCOL
from orchestration.stages import file_sha256, write_atomically
from orchestration.training.loop import Cadence, Diverged, Trainer, run
from orchestration.training.recorder import Recorder, grid_columns, read_metrics
from orchestration.training.state import (
    MANIFEST,
    UNFINISHED,
    TrainingState,
    check_provenance,
    initial_state,
    newest_checkpoint,
    open_checkpoint,
    restore,
    save_checkpoint,
)
from orchestration.training.turn import Order, Turn, Writing

CHECKPOINTS, OUTCOME = "checkpoints", "outcome.json"
SAVED = "checkpoint_kimg"  # beside "kimg" in every report: where the newest checkpoint is
GRID_PICTURES, GRID_SEED = 32, 4321

Report = Callable[[Mapping[str, float]], None]
"""Told the figures at every evaluation and checkpoint, on every rank (only rank 0's are complete)."""


@dataclass(frozen=True, slots=True)
class Job:
    """All a worker needs; crosses process borders as JSON.

    until_kimg: where this stretch of the training ends, None for the experiment's whole length. stop_on_collapse: end
    where all pictures drawn are nearly one, as campaigns do. turn: of whoever has it carried out; () for a new one.
    """

    experiment: Experiment
    prepared: Prepared
    folder: str
    threads: int
    until_kimg: float | None = None
    stop_on_collapse: bool = False
    turn: Order = ()

    @property
    def whole(self) -> bool:
        """Whether it trains to the end."""
        end = self.experiment.training.kimg
        return self.until_kimg is None or round(self.until_kimg * 1000) >= round(end * 1000)

    @property
    def stretch(self) -> Experiment:
        """The experiment, no longer than this stretch: a step depends on the images seen, never on how many will be."""
        if self.whole:
            return self.experiment
        training = self.experiment.training.model_copy(update={"kimg": self.until_kimg})
        return self.experiment.model_copy(update={"training": training})

    def to_json(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment.model_dump(mode="json"),
            "prepared": self.prepared.to_json(),
            "folder": self.folder,
            "threads": self.threads,
            "until_kimg": self.until_kimg,
            "stop_on_collapse": self.stop_on_collapse,
            "turn": list(self.turn),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Job":
        return cls(
            parse_experiment(values["experiment"]),
            Prepared.from_json(values["prepared"]),
            values["folder"],
            values["threads"],
            values.get("until_kimg"),
            values.get("stop_on_collapse", False),
            tuple(values.get("turn", ())),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: "finished", "paused" at the end of a stretch, "diverged" or "collapsed" with the reason."""

    status: str
    reason: str
    images_seen: int


def read_outcome(folder: Path) -> Outcome | None:
    """How the run in `folder` ended, if it did."""
    try:
        return Outcome(**json.loads((folder / OUTCOME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def train_worker(job: Job, report: Report, device: torch.device) -> Outcome:
    """Train from the newest verified checkpoint to the stretch's end, or to divergence. Every rank calls it.

    Raises Superseded when another process has begun to train in the job's folder meanwhile, RunError when what was
    left cannot be published.
    """
    torch.set_num_threads(job.threads)
    ranks, folder = current_ranks(), Path(job.folder)
    if ranks.rank != 0:
        return _train(job, report, device, ranks)
    with publishing(folder, job.turn) as saved:
        # Workers may outlive the process that started them, and a machine that was given up: two never write one run.
        return _train(job, report, device, ranks, saved, Turn.take(folder, job.turn).writing)


def _nothing() -> None:
    pass


def _train(
    job: Job,
    report: Report,
    device: torch.device,
    ranks: Ranks,
    saved: Callable[[], None] = _nothing,
    writing: Writing = nullcontext,
) -> Outcome:
    session = Session(job, device, ranks, report, saved, writing)
    try:
        run(session.trainer, session.after_iteration)
        session.finish()
        outcome = Outcome("finished" if job.whole else "paused", "", session.state.images_seen)
    except Diverged as error:
        # The averaged gradient is the same on all ranks, so all of them arrive here.
        outcome = Outcome("diverged", error.reason, session.state.images_seen)
    except Collapsed as error:
        outcome = Outcome("collapsed", error.reason, session.state.images_seen)
    if ranks.rank == 0:
        with writing():
            write_atomically(Path(job.folder) / OUTCOME, json.dumps(asdict(outcome)))
    return outcome


class Session:
    """One worker's part of one run: the trainer and what is due at which point.

    saved: called after a checkpoint. writing: all that is written is, within it.
    """

    def __init__(
        self,
        job: Job,
        device: torch.device,
        ranks: Ranks,
        report: Report,
        saved: Callable[[], None] = _nothing,
        writing: Writing = nullcontext,
    ) -> None:
        self.job, self.device, self.ranks, self.report = job, device, ranks, report
        self.saved, self.writing = saved, writing
        self.experiment, self.folder = job.experiment, Path(job.folder)
        self.first = ranks.rank == 0
        training = self.experiment.training
        stream = TrainingStream(
            job.prepared.train.open(),
            derive_seed(training.seed, 0),
            self.experiment.data.flip,
            stride=training.batch_size,
        )
        self.state: TrainingState = initial_state(self.experiment, device, job.prepared.given)
        self._resume()
        if self.experiment.resources.compile:
            for name in self.state.optimizers:
                self.state.nets[name].compile()
        self.trainer = Trainer(job.stretch, self.state, stream, device, ranks)
        self.logging = _cadence(training.log_kimg)
        self.drawing = _cadence(training.picture_kimg)
        self.saving = _cadence(training.checkpoint_kimg)
        every = self.experiment.evaluation.every_kimg
        self.judging = _cadence(every) if every else None
        self.judge: Judgement | None = None
        self.recorder = Recorder(self.folder, self.state.images_seen, writing) if self.first else None
        self.drawn_at = -1
        self.judged_at = _last_judged(self.folder) if self.first else -1
        self.clock, self.clock_images = time.perf_counter(), self.state.images_seen
        if self.state.images_seen == 0:
            self._draw_grid()

    def _resume(self) -> None:
        """Every rank restores the checkpoint that rank 0 found whole."""
        self.saved_at = -1
        parent = self.folder / CHECKPOINTS
        chosen: list[tuple[str, str] | None] = [None]
        if self.first:
            for half_written in parent.glob(f"{UNFINISHED}*"):
                shutil.rmtree(half_written, ignore_errors=True)
            newest = newest_checkpoint(parent)
            chosen = [(newest.folder.name, newest.digest) if newest else None]
        if self.ranks.size > 1:
            dist.broadcast_object_list(chosen)
        if chosen[0] is not None:
            name, digest = chosen[0]
            if not self.first:
                _have(parent / name, digest)
            checkpoint = open_checkpoint(parent / name)
            check_provenance(checkpoint, self.job.prepared.provenance)
            restore(checkpoint, self.state)
            self.saved_at = checkpoint.images_seen

    def after_iteration(self, before: int, after: int) -> None:
        """Record, draw, judge and save what is due between these numbers of images seen."""
        if self.logging.due(before, after):
            self._log()
        if self.drawing.due(before, after):
            self._draw_grid()
        judged = self.judging is not None and self.judging.due(before, after)
        if judged:
            self._end_together(self._judge())
        if self.saving.due(before, after):
            self._save()
        if judged or self.saving.due(before, after):
            self._tell()

    def finish(self) -> None:
        """The last record, grid, verdict and checkpoint; a finished stretch that is run again adds nothing."""
        total, end = self.state.images_seen, "finished" if self.job.whole else "paused"
        recorded = self.first and any(
            line["images"] == total and end in line["metrics"] for line in read_metrics(self.folder)
        )
        ending = None
        if not recorded:
            self._log()
            if self.drawn_at != total:
                self._draw_grid()
            if self.judged_at != total:
                ending = self._judge()
        # Every rank is here, whether it has anything to record or not.
        self._end_together(ending)
        # Where nothing was trained all is recorded at 0, and a lost checkpoint takes none of it back.
        if self.saved_at != total:
            self._save()
        if not recorded and self.recorder:
            self.recorder.metrics(total, {end: 1.0})
        # On every rank, always: Ray Train waits until all have reported.
        self._tell()

    def _log(self) -> None:
        values = self.trainer.means.take(self.ranks)
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        images, self.clock_images = self.state.images_seen - self.clock_images, self.state.images_seen
        if self.recorder and values:
            values["speed/images_per_second"] = images / max(seconds, 1e-9)
            values["speed/workers"] = float(self.ranks.size)
            self.recorder.metrics(self.state.images_seen, values)

    def _draw_grid(self) -> None:
        """A fixed set of held-out captions with fixed noise, so that grids can be compared over time."""
        self.drawn_at = self.state.images_seen
        if not self.recorder or not self.experiment.draws:
            return
        draw = drawer(self.experiment, self.state.sampling_nets(), self.device)
        pictures = draw(self._grid_conditions, [GRID_SEED + index for index in range(GRID_PICTURES)])
        self.recorder.picture(self.state.images_seen, pictures, grid_columns(GRID_PICTURES))

    @cached_property
    def _grid_conditions(self) -> Batch:
        """What the grid's pictures are drawn from: the same for every grid."""
        data = self.job.prepared.validation.open()
        return data.without_pixels(*held_out_captions(data.index, GRID_PICTURES, GRID_SEED))

    def _judge(self) -> Ending | None:
        """Judge and record; what the verdict says of the training's end, if anything."""
        self.judged_at = self.state.images_seen
        if not self.recorder or self.job.prepared.protocol == "none":
            return None
        if self.judge is None:
            self.judge = make_judge(self.experiment, self.job.prepared, self.device)
        try:
            verdict = self.judge(self.state.sampling_nets())
        except BrokenPictures as error:
            return Diverged(str(error), self.state.kimg, "nan")
        self.recorder.metrics(self.state.images_seen, {f"validation/{k}": v for k, v in verdict.figures.items()})
        if not self.job.stop_on_collapse:
            return None
        reason = collapse_reason(line["metrics"] for line in read_metrics(self.folder))
        return Collapsed(reason, self.state.kimg) if reason is not None else None

    def _end_together(self, ending: Ending | None) -> None:
        if self.job.prepared.protocol != "none":
            end_together(ending, self.ranks, self.device, self.state.kimg)

    def _save(self) -> None:
        self.saved_at = self.state.images_seen
        if self.first:
            prepared = self.job.prepared
            text = Path(prepared.text) if prepared.text else None
            parent = self.folder / CHECKPOINTS
            save_checkpoint(self.state, self.experiment, prepared.provenance, parent, text, self.writing)
            self.saved()

    def _tell(self) -> None:
        figures = self.recorder.latest if self.recorder else {}
        self.report({**figures, "kimg": self.state.kimg, SAVED: self.saved_at / 1000})


def _have(checkpoint: Path, digest: str) -> None:
    """On another machine than rank 0 its checkpoint is fetched, once for all ranks there."""
    copy = copy_of(checkpoint)
    if copy is None:
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(checkpoint.parent / ".fetching.lock"):
        there = checkpoint / MANIFEST
        if not there.is_file() or file_sha256(there) != digest:
            copy.insist(copy.fetch_checkpoint, checkpoint, "fetched")


Judgement = Callable[[Nets], Verdict]


def make_judge(experiment: Experiment, prepared: Prepared, device: torch.device) -> Judgement:
    """What judges the nets of a run while it trains, on its validation split."""
    settings, split = experiment.evaluation, prepared.validation
    if prepared.protocol == PART_PROTOCOL:
        from orchestration.evaluation.parts import PartJudge

        return PartJudge(experiment, split, settings.samples, settings.seed, device)
    weights = experiment.resources.weights.get(prepared.protocol)
    judge = Judge(
        prepared.protocol, split, prepared.judge, settings.samples, settings.seed, device, settings.real, weights
    )
    return lambda nets: judge(drawer(experiment, nets, device))


def _last_judged(folder: Path) -> int:
    """Images seen at the newest recorded verdict, -1 if there is none."""
    judged = [
        line["images"]
        for line in read_metrics(folder)
        if any(name.startswith("validation/") for name in line["metrics"])
    ]
    return max(judged, default=-1)


def _cadence(kimg: float) -> Cadence:
    return Cadence(max(1, round(kimg * 1000)))


def share_of_cores(workers: int) -> int:
    """CPU threads for each of so many workers on this machine: more would fight for the same cores."""
    return max(1, (os.cpu_count() or 1) // workers)
