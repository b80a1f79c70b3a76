"""From a picture back to what it was made with: registered version, training run, trial, data."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.champion_history import read_history
from orchestration.champions import CHECKPOINT_TAG, FIGURE_TAG
from orchestration.errors import RequestError, RunError
from orchestration.home import Home
from orchestration.registry import CHAMPION, ModelVersion
from orchestration.serving.pictures import IMAGE_ID
from orchestration.serving.replies import DataLineage, Lineage
from orchestration.serving.requests import ServeError
from orchestration.stages import file_sha256
from orchestration.tracking import RunSummary, Tracker
from orchestration.training.state import MANIFEST

UNKNOWN = "unknown"
# A trial's run has the key CAMPAIGN-trial-0003, whoever began it; that of any other run ends in a hash.
_TRIAL_KEY = re.compile(r"(.+)-(trial-\d+)")

logger = logging.getLogger(__name__)


def trace(tracker: Tracker, home: Home, image: str) -> Lineage:
    """The lineage of a picture, by its id. Nothing is fetched, and no checkpoint is verified.

    Raises ServeError: `unknown_image` for what is no id, or for a checkpoint that is not registered; `not_ready` while
    the registry cannot be reached.
    """
    if not IMAGE_ID.fullmatch(image):
        raise ServeError(
            "unknown_image",
            f"{image[:40]!a} is no id of a picture: send two groups of 16 hex digits, as in X-Image-Id or in the PNG's "
            "text `image`",
        )
    start = image.partition("-")[0]
    try:
        versions = _of_checkpoint(tracker, start)
        if not versions:
            raise ServeError(
                "unknown_image",
                f"no registered checkpoint has a digest that begins with {start}: it was deleted, or another server "
                "drew the picture, so ask that one",
            )
        return _lineage(tracker, home, image, versions)
    except RunError as error:
        # The sentence names addresses that are none of a client's business.
        logger.warning("the lineage of a picture could not be read: %s", error)
        message = "the registry of models cannot be reached: repeat the request in a minute"
        raise ServeError("not_ready", message, {"Retry-After": "30"}) from None


def _of_checkpoint(tracker: Tracker, start: str) -> list[ModelVersion]:
    """The versions of one model that are the checkpoint whose digest begins so, oldest first."""
    for model in tracker.models():
        found = [each for each in tracker.versions(model) if each.tags.get(CHECKPOINT_TAG, "").startswith(start)]
        if found:
            return found
    return []


def _lineage(tracker: Tracker, home: Home, image: str, versions: Sequence[ModelVersion]) -> Lineage:
    newest = versions[-1]
    tags, numbers = newest.tags, [each.version for each in versions]
    run, manifest = _run(tracker, newest), _manifest(tracker, home, newest)
    campaign, trial = _trial(run)
    return Lineage(
        image=image,
        model=newest.model,
        versions=numbers,
        champion=tracker.aliased(newest.model).get(CHAMPION) in numbers,
        checkpoint_digest=tags[CHECKPOINT_TAG],
        # A model is named after the system that its versions are of.
        system=newest.model,
        recipe=tags.get("t2i.recipe", UNKNOWN),
        experiment=tags.get("t2i.identity", UNKNOWN),
        images_seen=_whole(tags.get("t2i.images_seen", "")),
        data=DataLineage(source=_source(manifest, run), digest=tags.get("t2i.data_digest", UNKNOWN)),
        text_digest=tags.get("t2i.text_digest", UNKNOWN),
        run=newest.run_id,
        run_name=UNKNOWN if run is None else run.name,
        campaign=campaign,
        trial=trial,
        figures=_figures(tags),
        history=_history(tracker.versions(newest.model), numbers),
    )


def _run(tracker: Tracker, version: ModelVersion) -> RunSummary | None:
    """None for one that was deleted for good."""
    try:
        return tracker.run_summary(version.run_id)
    except RequestError:
        return None


def _manifest(tracker: Tracker, home: Home, version: ModelVersion) -> Mapping[str, Any]:
    """The checkpoint's manifest, if it is on this machine and as it was registered; else empty."""
    folder = tracker.folder_here(version)
    fetched = (home.root / "champions" / f"{version.model}-{version.version}").glob(f"[!.]*/{MANIFEST}")
    for path in [*([] if folder is None else [folder / MANIFEST]), *fetched]:
        try:
            if file_sha256(path) == version.tags[CHECKPOINT_TAG]:
                return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
    return {}


def _source(manifest: Mapping[str, Any], run: RunSummary | None) -> str:
    """What the data is called: by the checkpoint, else by its run."""
    try:
        return str(manifest["experiment"]["data"]["source"])
    except (KeyError, TypeError):
        pass
    return UNKNOWN if run is None else run.params.get("data.source", UNKNOWN)


def _trial(run: RunSummary | None) -> tuple[str | None, str | None]:
    found = _TRIAL_KEY.fullmatch(run.key or "") if run is not None else None
    return (found[1], found[2]) if found else (None, None)


def _figures(tags: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for name, value in sorted(tags.items()):
        if name.startswith(FIGURE_TAG):
            number = _number(value)
            if math.isfinite(number):
                found[name.removeprefix(FIGURE_TAG)] = number
    return found


def _history(versions: Sequence[ModelVersion], numbers: Sequence[int]) -> list[str]:
    try:
        return [entry.line.strip() for entry in read_history(versions) if entry.version in numbers]
    except RequestError as error:
        return [str(error)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0
