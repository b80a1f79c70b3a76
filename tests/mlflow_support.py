"""What the tests of tracking and of the registry share."""

import json
from pathlib import Path
from typing import Any

from orchestration.tracking import Tracker


def client_of(tracker: Tracker) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracker.uri)


def history(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    """(images, value) in the order in which they were sent."""
    return [(each.step, each.value) for each in client_of(tracker).get_metric_history(run_id, name)]


def tags_of(tracker: Tracker, run_id: str) -> dict[str, str]:
    return dict(client_of(tracker).get_run(run_id).data.tags)


def line(images: int, at: float = 0.0, **metrics: Any) -> bytes:
    point = {"images": images, "kimg": images / 1000, "time": 1.7e9 + images + at, "metrics": metrics}
    return json.dumps(point).encode() + b"\n"


def write_points(folder: Path, steps: Any, at: float = 0.0) -> bytes:
    """Points whose loss is their images; `at` tells a replay from what it replays."""
    data = b"".join(line(images, at, loss=float(images)) for images in steps)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_bytes(data)
    return data


def losses(steps: Any) -> list[tuple[int, float]]:
    return [(images, float(images)) for images in steps]
