"""Judging a checkpoint, or the real pictures themselves, by several metrics at once, on any number of workers.

Pictures are drawn once for all metrics that look at them. What was seen is kept as stages: of real pictures under the
data's digest, so that every evaluation on that data shares it; of pictures drawn under the checkpoint's, so that an
evaluation that was killed goes on, and one that is repeated draws nothing.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures
from orchestration.data.records import Dataset
from orchestration.data.sampler import derive_seed
from orchestration.data.word_encoder import WordEncoder
from orchestration.errors import RequestError
from orchestration.evaluation.catalogue import Context, open_metrics
from orchestration.evaluation.looking import Checkpointed, Looking, RealPictures, Source, Untrained, read_seen
from orchestration.evaluation.metric import Metric, OpenView, Seen, View
from orchestration.evaluation.plans import (
    CAPTIONS,
    EVERY_CAPTION,
    REAL_STREAM,
    REPEATS,
    Plan,
    every_caption,
    one_a_caption,
    real_images,
    repeats,
)
from orchestration.evaluation.record import Judged, MetricRecord, to_json
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.prepared import PreparedSplit
from orchestration.readers import Reader, checkpoint_encoder, vocabulary_digest
from orchestration.runs import find_checkpoint, finished_run
from orchestration.stages import Progress, ensure, quiet, short_hash, write_atomically
from orchestration.tracking import Tracker
from orchestration.training.state import Checkpoint, Provenance, check_provenance

SAMPLES = 30_000
REPEATED_CAPTIONS, TIMES = 200, 5
EVALUATIONS = "evaluations"
REAL_ROW, UNTRAINED_ROW = "real pictures", "untrained"


@dataclass(frozen=True, slots=True)
class Request:
    """What to judge by.

    metrics: METRIC or METRIC/PROTOCOL, empty for those that the data and the system allow; samples: captions, one
    picture each; real: at most so many real pictures, None for as many as drawn; weights: paths by view; workers:
    processes, None for every core.
    """

    metrics: Sequence[str] = ()
    split: str | None = None
    source: str | None = None
    samples: int = SAMPLES
    real: int | None = None
    seed: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    workers: int | None = None


BANKED = {"candidates": "patches", "canvases": "masks"}
"""What is read that comes from training pictures, and of what."""


class Evaluation:
    """One split, ready to judge checkpoints of one experiment on it. Raises RequestError before any long work."""

    def __init__(
        self, experiment: Experiment, home: Home, request: Request, encoder: Reader, progress: Progress = quiet
    ) -> None:
        self.trained = Preparation(experiment, home, progress, encoder=encoder)
        elsewhere = request.source not in (None, experiment.data.source)
        if elsewhere and (kept := self.trained.drawn_from & BANKED.keys()):
            raise RequestError(
                f"{experiment.system} draws from {BANKED[min(kept)]} of {experiment.data.source}, and other data is "
                "not made ready for that: judge it without --data"
            )
        if request.source is not None:
            experiment = experiment.replace({"data.source": request.source})
        self.experiment, self.home, self.request, self.progress = experiment, home, request, progress
        self.encoder = encoder
        self.seed = experiment.evaluation.seed if request.seed is None else request.seed
        self.preparation = Preparation(experiment, home, progress, encoder=encoder)
        self.dataset: Dataset = self.preparation.dataset(request.split or experiment.data.test_split)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._views: dict[str, OpenView] = {}
        self._opened: dict[str, View] = {}

    @cached_property
    def split(self) -> PreparedSplit:
        """Pixels and captions."""
        return self.preparation.split(self.dataset, reads=self.preparation.drawn_from)

    @cached_property
    def data(self) -> CaptionedPictures:
        """The split, opened."""
        return self.split.open()

    def context(self) -> Context:
        """What metrics are opened with."""
        weights = {**self.experiment.resources.weights, **self.request.weights}
        index, samples = self.data.index, self.request.samples
        matcher = self.encoder.folder if isinstance(self.encoder, WordEncoder) else None
        return Context(
            self.experiment, self.preparation, self.split, index, self.seed, samples, weights, matcher, self.trained
        )

    def checkpoint(self, checkpoint: Checkpoint, run: str) -> list[MetricRecord]:
        """Judge a checkpoint. Raises RequestError for one of another text encoder."""
        vocabulary = vocabulary_digest(self.encoder)
        # Other data may be judged, another text encoder would only seem to work.
        check_provenance(checkpoint, Provenance(checkpoint.provenance.data_digest, self.encoder.digest, vocabulary))
        return self._judge(Checkpointed(checkpoint.folder, vocabulary), checkpoint.digest, run, checkpoint.images_seen)

    def untrained(self) -> list[MetricRecord]:
        """Judge the nets before the first step."""
        source = Untrained(self.experiment, self.preparation.given)
        return self._judge(source, f"untrained-{self.experiment.identity}", UNTRAINED_ROW, 0)

    def real(self) -> list[MetricRecord]:
        """Judge the real pictures as if they had been drawn: the papers' row of real images."""
        return self._judge(RealPictures(), "", REAL_ROW, 0)

    def _judge(self, source: Source, digest: str, run: str, images_seen: int) -> list[MetricRecord]:
        started = time.perf_counter()
        context = self.context()
        metrics = open_metrics(self.request.metrics, context)
        self._open(context.views)
        for name in dict.fromkeys(metric.plan for metric in metrics if metric.looks_at):
            self._look(source, digest, self._plan(name, context), [metric for metric in metrics if metric.plan == name])
        self._look_at_real(metrics)
        results = [(metric, result) for metric in metrics for result in metric.compute()]
        seconds = time.perf_counter() - started
        judged = self._judged(run, digest, images_seen)
        return [MetricRecord.of(result, judged, self._views_of(metric), seconds) for metric, result in results]

    def _open(self, views: Mapping[str, OpenView]) -> None:
        """Open what is not open yet: weights that are missing are said before anything is drawn."""
        for name in views.keys() - self._opened.keys():
            self._opened[name] = views[name](torch.device(self.device))
        self._views = dict(views)

    def _plan(self, name: str, context: Context) -> Plan:
        samples = self.request.samples
        if name == CAPTIONS:
            return one_a_caption(self.data.index, samples, self.seed)
        if name == REPEATS:
            captions = min(REPEATED_CAPTIONS, max(2, samples // TIMES))
            return repeats(self.data.index, captions, TIMES, self.seed)
        return context.labels_plan()

    def _look(self, source: Source, digest: str, plan: Plan, metrics: Sequence[Metric]) -> None:
        """Have these metrics' views look at the pictures of a plan, and the metrics add up what they saw."""
        names = sorted(frozenset().union(*(metric.looks_at for metric in metrics)))
        inputs = {"pictures": digest or "real", "data": self.dataset.digest, "text": self.encoder.digest}
        for seen in self._seen("drawn", source, plan, names, inputs):
            for metric in metrics:
                metric.update(seen)

    def _look_at_real(self, metrics: Sequence[Metric]) -> None:
        """The same of real pictures, each view by itself: other metrics will ask for other views."""
        settings, most = self.experiment.evaluation, self.request.real or self.request.samples
        source = RealPictures(derive_seed(settings.seed, REAL_STREAM) if settings.real == "drawn" else None)
        for every in (False, True):
            chosen = [metric for metric in metrics if metric.looks_at_real and (metric.plan == EVERY_CAPTION) == every]
            plan = every_caption(self.data.index) if every else real_images(self.data.index, most)
            for view in sorted(frozenset().union(*(metric.looks_at_real for metric in chosen))):
                inputs = {"pictures": f"real {settings.real}", "data": self.dataset.digest}
                for seen in self._seen("real", source, plan, [view], inputs):
                    for metric in chosen:
                        if view in metric.looks_at_real:
                            metric.update_real(seen)

    def _seen(
        self, name: str, source: Source, plan: Plan, views: Sequence[str], inputs: dict[str, str]
    ) -> Iterator[Seen]:
        looking = Looking(source, self.split, plan, {view: self._views[view] for view in views}, self.device)
        workers = 1 if self.device == "cuda" else self.request.workers
        stage = looking.stage(name, {**inputs, "as": self._made_ready}, self._opened, workers)
        return read_seen(ensure(stage, self.home.stages, self.progress), self.data, plan)

    @cached_property
    def _made_ready(self) -> str:
        options = self.preparation.shard_options(self.dataset)
        cut = "centre" if self.experiment.evaluation.real == "still" else "drawn"
        return f"{options.transform} {options.size} {cut}"

    def _views_of(self, metric: Metric) -> list[View]:
        return [self._opened[name] for name in sorted(metric.looks_at | metric.looks_at_real)]

    def _judged(self, run: str, digest: str, images_seen: int) -> Judged:
        experiment = self.experiment
        return Judged(
            experiment.system,
            experiment.recipe,
            run,
            digest,
            images_seen / 1000,
            experiment.data.source,
            self.dataset.digest,
            self.dataset.split,
            self._made_ready,
            self.seed,
        )


def judge_runs(
    home: Home,
    tracker: Tracker,
    runs: Sequence[str],
    request: Request,
    seeds: int = 1,
    untrained: bool = False,
    real_row: bool = False,
    progress: Progress = quiet,
) -> dict[str, list[MetricRecord]]:
    """The records of each run (by name or folder) with so many sampling seeds, kept beside the run and in MLflow.

    untrained, real_row: the first run's net before training, and the real pictures, are judged too. Raises
    RequestError, for a wrong name before anything is judged.
    """
    found = [find_checkpoint(home, run) for run in runs]
    rows: dict[str, list[MetricRecord]] = {}
    for place, (checkpoint, folder) in enumerate(found):
        encoder = checkpoint_encoder(checkpoint, home)
        for step in range(seeds):
            seed = (checkpoint.experiment.evaluation.seed if request.seed is None else request.seed) + step
            evaluation = Evaluation(checkpoint.experiment, home, replace(request, seed=seed), encoder, progress)
            if real_row and place == 0:
                rows.setdefault(REAL_ROW, []).extend(evaluation.real())
            if untrained and place == 0:
                rows.setdefault(UNTRAINED_ROW, []).extend(evaluation.untrained())
            records = evaluation.checkpoint(checkpoint, folder.name)
            rows.setdefault(folder.name, []).extend(records)
            keep(tracker, home, checkpoint, folder, records)
    return rows


def keep(
    tracker: Tracker, home: Home, checkpoint: Checkpoint, folder: Path, records: Sequence[MetricRecord]
) -> Path | None:
    """Write the records beside a run of this home, and send them to MLflow; None for a checkpoint of elsewhere."""
    if not folder.resolve().is_relative_to(home.runs.resolve()):
        return None
    first = records[0].judged
    name = short_hash([first.checkpoint, first.data_digest, first.split, first.seed, [r.figure for r in records]])
    file = folder / EVALUATIONS / f"{first.split}-{first.seed}-{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, to_json(records))
    run_id = finished_run(tracker, checkpoint, folder)
    figures = {f"{first.split}/{record.figure}": record.value for record in records}
    tracker.log_metrics(run_id, figures, checkpoint.images_seen)
    tracker.log_artifact(run_id, file, EVALUATIONS)
    return file
