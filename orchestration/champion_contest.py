"""Challenger and champion judged by one figure, for the same captions with the same noise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.evaluation.catalogue import FAMILIES
from orchestration.evaluation.evaluate import Evaluation, Request, keep
from orchestration.evaluation.feature_views import NETS
from orchestration.evaluation.record import MetricRecord
from orchestration.evaluation.tables import better
from orchestration.home import Home
from orchestration.readers import checkpoint_encoder
from orchestration.stages import Progress
from orchestration.tracking import Tracker
from orchestration.training.state import Checkpoint

PRIMARY = "fid"
SEEDS = 3
ALONGSIDE = {"precision": "coverage", "density": "coverage", "inception_score": "is"}
"""Figures that another metric of the catalogue gives."""


@dataclass(frozen=True, slots=True)
class Contest:
    """How a challenger is judged against the champion.

    figure: METRIC or METRIC/PROTOCOL; samples: captions, None for as many as the challenger's experiment is judged by;
    seeds: so many sampling seeds; weights: paths by view; workers: processes, None for every core; force: promote
    whatever comes of it; command: for the history.
    """

    figure: str = PRIMARY
    samples: int | None = None
    seeds: int = SEEDS
    weights: Mapping[str, str] = field(default_factory=dict)
    workers: int | None = None
    force: bool = False
    command: str = ""


def require_figure(figure: str) -> None:
    """Raises RequestError for one that no metric gives, or by which nothing is better."""
    name = figure.partition("/")[0]
    family = _family(figure)
    if family not in FAMILIES:
        known = sorted({*(metric for metric in FAMILIES if better(metric)), *ALONGSIDE, "soa_c", "soa_i"})
        raise RequestError(f"--figure {figure!r} is none: there are {', '.join(known)}, each with or without /PROTOCOL")
    if name not in ("is", "soa") and better(name) is None:
        raise RequestError(f"--figure {figure}: neither more nor less of it is better by itself, name another")


def judge_challenger(
    tracker: Tracker, home: Home, checkpoint: Checkpoint, folder: Path, contest: Contest, progress: Progress
) -> list[MetricRecord]:
    """A record a seed, on the test split that its experiment names. They stay beside its run and in MLflow too.

    Raises RequestError where it cannot be judged.
    """
    experiment = checkpoint.experiment
    if not experiment.draws:
        raise RequestError(f"{experiment.system} draws no pictures that could be judged: promote it with --force")
    found = []
    for evaluation in _evaluations(checkpoint, experiment, home, contest, progress):
        records = evaluation.checkpoint(checkpoint, folder.name)
        found.append(_chosen(records, contest.figure))
        keep(tracker, home, checkpoint, folder, records)
    return found


def judge_champion(
    home: Home, champion: Checkpoint, name: str, challenger: Experiment, contest: Contest, progress: Progress
) -> list[MetricRecord]:
    """A record a seed, on the challenger's test split. contest: with the figure's full name, as the plain one may mean
    another net to another experiment."""
    return [
        _chosen(evaluation.checkpoint(champion, name), contest.figure)
        for evaluation in _evaluations(champion, challenger, home, contest, progress)
    ]


def _evaluations(
    checkpoint: Checkpoint, challenger: Experiment, home: Home, contest: Contest, progress: Progress
) -> Iterator[Evaluation]:
    """One a seed; data, captions, seeds and weights are the challenger's."""
    encoder, judging = checkpoint_encoder(checkpoint, home), challenger.evaluation
    for step in range(contest.seeds):
        request = Request(
            [_metric(contest.figure)],
            challenger.data.test_split,
            challenger.data.source,
            contest.samples or judging.samples,
            seed=judging.seed + step,
            weights={**challenger.resources.weights, **contest.weights},
            workers=contest.workers,
        )
        yield Evaluation(checkpoint.experiment, home, request, encoder, progress)


def _family(figure: str) -> str:
    """The metric of the catalogue that gives a figure."""
    name, _, protocol = figure.partition("/")
    if name == "recall" and protocol in NETS:
        return "coverage"
    return "soa" if name.startswith(("soa_c", "soa_i")) else ALONGSIDE.get(name, name)


def _metric(figure: str) -> str:
    """A figure as `t2i evaluate --metrics` takes it."""
    family, protocol = _family(figure), figure.partition("/")[2]
    if family == "r_precision":
        protocol = "/".join(part for part in protocol.split("/") if not part.startswith("top-"))
    # The other metrics' protocols say which of their figures it is, or follow from the weights.
    named = family in ("fid", "kid", "coverage", "is", "r_precision")
    return f"{family}/{protocol}" if named and protocol else family


def _chosen(records: Sequence[MetricRecord], figure: str) -> MetricRecord:
    """The one record of that figure."""
    name, slash, protocol = figure.partition("/")
    name = "inception_score" if name == "is" else name
    found = [record for record in records if record.figure == f"{name}{slash}{protocol}"]
    found = found or [record for record in records if record.metric == name]
    if len(found) == 1:
        return found[0]
    told = ", ".join(record.figure for record in records)
    raise RequestError(f"--figure {figure} is {'several figures' if found else 'not there'}: name one of {told}")
