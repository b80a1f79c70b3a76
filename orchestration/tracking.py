"""MLflow, in one place: a mirror of what the run folders hold, which are the truth.

A run folder's `metrics.jsonl` is read from where the last reading ended, and what MLflow has already is not sent again:
repeating any call changes nothing, so a tracker that was down for an hour is made up for by the next call.
"""

import json
import logging
import math
import posixpath
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal

from orchestration.errors import RequestError, RunError
from orchestration.registry import ModelVersion, Registry, every, quoted
from orchestration.stages import short_hash

__all__ = ["Mirror", "ModelVersion", "RunSummary", "Tracker", "flatten"]

KEY_TAG = "t2i.key"
PARENT_TAG = "mlflow.parentRunId"
MIRRORED_TAG = "t2i.mirrored_images"
NONFINITE_TAG = "t2i.nonfinite_values"
REASON_TAG = "t2i.reason"
CHANGED_TAG = "t2i.changed."

METRICS = "metrics.jsonl"
EXPERIMENT = "experiment.json"
PICTURES = "pictures"
KIMG = "kimg"

# MLflow's limits: characters of a name, of a value (a tag's is 8000), and metrics of one request beside two tags.
NAME_LENGTH, VALUE_LENGTH, BATCH = 250, 6000, 998
# Half of what it allows: 100 values of the greatest length can be more bytes than a request may have.
PARAMS_AT_ONCE = 50

NO_TAGS: Mapping[str, str] = MappingProxyType({})
Status = Literal["FINISHED", "FAILED", "KILLED"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as MLflow shows it. `metrics` are the latest values."""

    run_id: str
    name: str
    key: str | None
    parent: str | None
    status: str
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested JSON as dotted parameters, with names and values that MLflow accepts.

    Strings stay as they are, all else is written as JSON. A value over 6000 characters is cut and ends with its hash;
    two names that would become one are told apart by a hash.
    """
    flat: dict[str, str] = {}
    for path, value in _leaves(values, ()):
        name = _safe_name(".".join(path))
        if name in flat:
            name = _safe_name(f"{name}-{short_hash(list(path))}")
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        flat[name] = _safe_value(text)
    return flat


class Tracker(Registry):
    """Runs, their metrics and files, and the model registry, at one tracking URI.

    Every method raises RunError, with one sentence, when MLflow cannot be reached or fails; repeating the call is safe.
    """

    def __init__(self, home: Path, uri: str | None = None) -> None:
        """home: the state folder. uri: an http(s) server or a database; none: `sqlite:///<home>/mlflow.db`.

        Raises RequestError for a URI that MLflow cannot use. Nothing is contacted here.
        """
        super().__init__(home, uri)
        self._tails: dict[tuple[str, Path], _Tail] = {}
        self._uploaded: dict[str, set[str]] = {}
        self._mirroring = threading.Lock()

    def start_run(
        self,
        experiment: str,
        name: str,
        key: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] = NO_TAGS,
        parent: str | None = None,
    ) -> str:
        """The id of the one run of `experiment` that carries `key`: continued if it exists, else created.

        params: nested JSON, logged once. A parameter that has another value already keeps it, and the new value becomes
        the tag `t2i.changed.<name>`. parent: the id of the run it is shown under.
        """
        tags = {**tags, KEY_TAG: key} if parent is None else {**tags, KEY_TAG: key, PARENT_TAG: parent}
        with self._talk(f"starting run {name}") as client, self._locked("runs"):
            experiment_id = self._experiment_id(client, experiment)
            found = _runs_of(client, experiment_id, key)
            if found:
                client.update_run(found[0].info.run_id, status="RUNNING")
                if REASON_TAG in found[0].data.tags:
                    client.delete_tag(found[0].info.run_id, REASON_TAG)
            else:
                client.create_run(experiment_id, run_name=name, tags={KEY_TAG: key})
                found = _runs_of(client, experiment_id, key)
            run, *doubles = found
            # A request that timed out and was repeated, or another machine at the same moment, may have made one.
            for double in doubles:
                client.delete_run(double.info.run_id)
            _log_params(client, run, flatten(params), tags)
            return str(run.info.run_id)

    def mirror(self, run_id: str, folder: Path) -> int:
        """Sends what is new in a run folder; returns how many points of `metrics.jsonl` that was.

        A point is sent with step = images, and `kimg` beside its metrics. New are the points with more images than the
        last one sent, and the metrics that this last one lacked. Values that are not finite are left out and counted in
        the tag `t2i.nonfinite_values`. Pictures and `experiment.json` are sent once. Nothing is ever sent twice.
        """
        with self._mirroring:
            pushed = self._mirror_metrics(run_id, folder)
            self._mirror_files(run_id, folder)
            return pushed

    def finish(self, run_id: str, status: Status, reason: str | None = None) -> None:
        """Ends a run; `reason`, a sentence, becomes the tag `t2i.reason`."""
        with self._talk(f"finishing run {run_id}") as client:
            if reason is not None:
                client.set_tag(run_id, REASON_TAG, _safe_value(reason))
            client.set_terminated(run_id, status)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], images: int) -> None:
        """Metrics at step `images`, beside those of the run folder.

        A value that this step has already is not repeated; values that are not finite are left out.
        """
        finite, _ = _split_finite(metrics)
        with self._talk(f"sending metrics of run {run_id}") as client:
            there = {name: _values_at(client, run_id, name, images) for name in finite}
            fresh = {name: value for name, value in finite.items() if value not in there[name]}
            for part in _parts([(name, value, time.time(), images) for name, value in fresh.items()], BATCH):
                client.log_batch(run_id, metrics=_metrics(part))

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a run, in place of those of the same name."""
        with self._talk(f"setting tags of run {run_id}") as client:
            client.log_batch(run_id, tags=_run_tags(tags))

    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None = None) -> None:
        """Uploads a file, or every file of a folder, to the run's `artifact_path`. RequestError if it is absent."""
        if not path.exists():
            raise RequestError(f"there is no {path} to upload: name a file or a folder that exists")
        with self._talk(f"uploading {path.name}") as client:
            upload = client.log_artifacts if path.is_dir() else client.log_artifact
            upload(run_id, str(path), artifact_path)

    def run_summaries(self, experiment: str) -> list[RunSummary]:
        """Every run of an experiment, oldest first; empty for an experiment that does not exist."""
        with self._talk(f"listing the runs of {experiment}") as client:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                return []
            runs = every(
                client.search_runs, experiment_ids=[found.experiment_id], order_by=["attributes.start_time ASC"]
            )
            return [_summary(run) for run in runs]

    def run_summary(self, run_id: str) -> RunSummary:
        """One run. Raises RequestError when there is none of that id."""
        with self._talk(f"looking up run {run_id}") as client:
            return _summary(client.get_run(run_id))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Every value of a metric, with the images at which it was recorded, in their order."""
        with self._talk(f"looking up {metric} of run {run_id}") as client:
            return sorted((each.step, each.value) for each in client.get_metric_history(run_id, metric))

    def _experiment_id(self, client: Any, name: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=self._artifact_location(name)))
        if found.lifecycle_stage != "active":
            raise RequestError(
                f"experiment {name!r} was deleted in MLflow at {self.uri}: restore it there or choose another name"
            )
        return str(found.experiment_id)

    def _mirror_metrics(self, run_id: str, folder: Path) -> int:
        tail = self._tails.setdefault((run_id, folder), _Tail(folder / METRICS))
        points, end = tail.read()
        if points:
            with self._talk(f"sending metrics of run {run_id}") as client:
                run = client.get_run(run_id)
                mark = _mark(run)
                at_mark = {name for point in points if point.images == mark for name in (*point.metrics, KIMG)}
                sent = {name for name in at_mark if _values_at(client, run_id, name, mark)}
                points = _fresh(points, mark, sent)
                _send(client, run, points)
        tail.end = end
        return len(points)

    def _mirror_files(self, run_id: str, folder: Path) -> None:
        files = {EXPERIMENT: folder / EXPERIMENT} if (folder / EXPERIMENT).is_file() else {}
        for path in sorted((folder / PICTURES).glob("[!.]*.png")):
            files[f"{PICTURES}/{path.name}"] = path
        if files.keys() <= self._uploaded.get(run_id, set()):
            return
        with self._talk(f"uploading pictures of run {run_id}") as client:
            if run_id not in self._uploaded:
                there = [*client.list_artifacts(run_id), *client.list_artifacts(run_id, PICTURES)]
                self._uploaded[run_id] = {each.path for each in there}
            for name, path in files.items():
                if name not in self._uploaded[run_id]:
                    client.log_artifact(run_id, str(path), posixpath.dirname(name) or None)
                    self._uploaded[run_id].add(name)


class Mirror:
    """A thread that keeps calling `Tracker.mirror` while the body runs, and once more at its end.

    Nothing that tracking does can end the body: the last failure is kept in `error` (none once all is sent), a warning
    is logged at the first failure of a row, and the wait doubles up to a minute. `pushed` counts the points sent.
    """

    LONGEST_WAIT_S = 60.0
    # After this a server that neither answers nor refuses no longer holds up the end of the run.
    PATIENCE_S = 90.0

    def __init__(self, tracker: Tracker, run_id: str, folder: Path, every_s: float = 2.0) -> None:
        self.error: Exception | None = None
        self.pushed = 0
        self._tracker, self._run_id, self._folder, self._every_s = tracker, run_id, folder, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="t2i-mirror", daemon=True)

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self.PATIENCE_S)
        if self._thread.is_alive():
            self.error = TimeoutError(
                f"MLflow at {self._tracker.uri} does not answer; {self._folder} is mirrored later"
            )
            log.warning("%s", self.error)

    def _work(self) -> None:
        wait = self._every_s
        while not self._stop.wait(wait):
            self._once()
            wait = self._every_s if self.error is None else min(2 * wait, max(self.LONGEST_WAIT_S, self._every_s))
        self._once()

    def _once(self) -> None:
        try:
            self.pushed += self._tracker.mirror(self._run_id, self._folder)
        except Exception as error:
            if self.error is None:
                log.warning("the run goes on without tracking, which is tried again later: %s", error)
            self.error = error
        else:
            if self.error is not None:
                log.info("tracking has caught up with %s", self._folder)
            self.error = None


@dataclass(frozen=True, slots=True)
class _Point:
    images: int
    time: float  # seconds, Unix
    metrics: dict[str, float]
    nonfinite: int


@dataclass(slots=True)
class _Tail:
    """Reads what a file has gained. `end`: the offset after the last line that was sent, and that line."""

    path: Path
    end: tuple[int, bytes] = field(default=(0, b""))

    def read(self) -> tuple[list[_Point], tuple[int, bytes]]:
        """The points of the complete lines after `end`, and the end they lead to.

        A trainer that resumes cuts the file and writes on: if the last line has moved, all is read again.
        """
        offset, last = self.end
        try:
            with self.path.open("rb") as file:
                file.seek(offset - len(last))
                if file.read(len(last)) != last:
                    offset, last = 0, b""
                    file.seek(0)
                complete, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return [], (0, b"")
        except OSError as error:
            raise RunError(f"{self.path} cannot be read ({error.strerror}): mend that and repeat") from error
        if not newline:
            return [], (offset, last)
        lines = complete.split(b"\n")
        points = [point for line in lines if line and (point := self._parse(line)) is not None]
        return points, (offset + len(complete) + 1, lines[-1] + b"\n")

    def _parse(self, line: bytes) -> _Point | None:
        try:
            value = json.loads(line)
            metrics, nonfinite = _split_finite(value["metrics"])
            point = _Point(int(value["images"]), float(value["time"]), metrics, nonfinite)
            if 0 <= point.images < 2**53 and 0 <= point.time < 2**43:
                return point
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            pass
        # Refused here: MLflow would refuse the whole request, and so every later one.
        log.warning("%s holds a line that is no point and is not mirrored: %.80r", self.path, line)
        return None


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, str(name)))
    else:
        yield path, value


def _safe_name(name: str) -> str:
    """A name MLflow accepts for parameters, metrics and tags: no odd characters, and a normal path in itself."""
    name = re.sub(r"[^\w.\- /]", "_", name)
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        name = "_" + name.replace("/", "_")
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 17]}-{short_hash(name)}"


def _safe_value(text: str) -> str:
    # Lone surrogates are no UTF-8, and PostgreSQL stores no NUL.
    text = text.encode("utf-8", "replace").decode().replace("\0", "?")
    return text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 20]} ...{short_hash(text)}"


def _split_finite(metrics: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """The finite values under names MLflow accepts, and how many were not finite. `kimg` is not theirs to set."""
    finite, nonfinite = {}, 0
    for name, value in metrics.items():
        number = math.nan if value is None else float(value)
        if not math.isfinite(number):
            nonfinite += 1
        elif name != KIMG:
            finite[_safe_name(name)] = number
    return finite, nonfinite


def _mark(run: Any) -> int:
    """Images of the last point sent, or -1. The metric is written together with the point; the tag may lag behind."""
    kimg = run.data.metrics.get(KIMG)
    return max(int(run.data.tags.get(MIRRORED_TAG, -1)), -1 if kimg is None else round(kimg * 1000))


def _fresh(points: list[_Point], mark: int, sent: set[str]) -> list[_Point]:
    """The points, with `kimg`, that come after `mark`, and what metrics the point at `mark` has beside those `sent`."""
    fresh = []
    for point in points:
        if point.images < mark:
            continue
        if point.images > mark:
            mark, sent = point.images, set()
        metrics = {**point.metrics, KIMG: point.images / 1000}
        metrics = {name: value for name, value in metrics.items() if name not in sent}
        sent = sent | metrics.keys()
        if metrics:
            fresh.append(_Point(point.images, point.time, metrics, point.nonfinite))
    return fresh


def _send(client: Any, run: Any, points: list[_Point]) -> None:
    """A point is not divided between requests if it fits one: a crash between two leaves none half sent."""
    nonfinite = int(run.data.tags.get(NONFINITE_TAG, 0))
    while points:
        count = size = 0
        while count < len(points) and (not count or size + len(points[count].metrics) <= BATCH):
            size += len(points[count].metrics)
            count += 1
        batch, points = points[:count], points[count:]
        nonfinite += sum(point.nonfinite for point in batch)
        tags = {MIRRORED_TAG: str(batch[-1].images), **({NONFINITE_TAG: str(nonfinite)} if nonfinite else {})}
        values = [(name, value, point.time, point.images) for point in batch for name, value in point.metrics.items()]
        for part in _parts(values, BATCH):
            client.log_batch(run.info.run_id, metrics=_metrics(part), tags=_run_tags(tags))


def _values_at(client: Any, run_id: str, name: str, images: int) -> set[float]:
    return {each.value for each in client.get_metric_history(run_id, name) if each.step == images}


def _runs_of(client: Any, experiment_id: str, key: str) -> list[Any]:
    """The runs that carry a key, oldest first."""
    return every(
        client.search_runs,
        experiment_ids=[experiment_id],
        filter_string=f"tags.`{KEY_TAG}` = {quoted(key)}",
        order_by=["attributes.start_time ASC"],
    )


def _log_params(client: Any, run: Any, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    known, run_id = run.data.params, run.info.run_id
    tags = dict(tags)
    for name, value in params.items():
        changed = _safe_name(CHANGED_TAG + name)
        if known.get(name, value) != value:
            tags[changed] = value
        elif changed in run.data.tags:
            client.delete_tag(run_id, changed)
    new = [Param(name, value) for name, value in params.items() if name not in known]
    for part in _parts(new, PARAMS_AT_ONCE):
        client.log_batch(run_id, params=part)
    client.log_batch(run_id, tags=_run_tags(tags))


def _metrics(values: list[tuple[str, float, float, int]]) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, value, round(seconds * 1000), step) for name, value, seconds, step in values]


def _run_tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(_safe_name(name), _safe_value(str(value))) for name, value in tags.items()]


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _summary(run: Any) -> RunSummary:
    tags = run.data.tags
    return RunSummary(
        run_id=run.info.run_id,
        name=run.info.run_name,
        key=tags.get(KEY_TAG),
        parent=tags.get(PARENT_TAG),
        status=run.info.status,
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
        tags=dict(tags),
    )
