"""What a run leaves behind for people: metrics.jsonl and pictures/, in its own folder. MLflow mirrors it."""

import io
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image
from torch import Tensor

from orchestration.evaluation.pixels import to_bytes
from orchestration.stages import write_atomically
from orchestration.training.turn import Writing

METRICS, PICTURES = "metrics.jsonl", "pictures"


class MetricsLine(TypedDict):
    """One line of metrics.jsonl; `time` is in seconds since 1970."""

    images: int
    kimg: float
    time: float
    metrics: dict[str, float]


class Recorder:
    """Appends to a run folder. `resume_at` forgets what was recorded after that many images: it will come again.

    latest: the newest value of each metric, so that nobody has to read the growing file again. writing: all is written
    within it.
    """

    def __init__(self, folder: Path, resume_at: int, writing: Writing = nullcontext) -> None:
        self.folder, self.writing = folder, writing
        folder.mkdir(parents=True, exist_ok=True)
        with writing():
            kept = [line for line in read_metrics(folder) if line["images"] <= resume_at]
            write_atomically(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        self.latest = last_metrics(kept)

    def metrics(self, images_seen: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, on disk when this returns."""
        line: MetricsLine = {
            "images": images_seen,
            "kimg": images_seen / 1000,
            "time": time.time(),
            "metrics": dict(values),
        }
        with self.writing(), (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.latest.update(values)

    def picture(self, images_seen: int, pictures: Tensor, columns: int) -> Path:
        """A grid of pictures (B,3,H,W) in [-1, 1]."""
        path = self.folder / PICTURES / f"kimg-{images_seen / 1000:010.3f}.png"
        content = png_bytes(tile(pictures, columns))
        with self.writing():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)
        return path


def read_metrics(folder: Path) -> list[MetricsLine]:
    """Every whole line of a run's metrics."""
    path = folder / METRICS
    if not path.is_file():
        return []
    lines: list[MetricsLine] = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # cut off in the middle of writing: nothing whole follows
    return lines


def tile(pictures: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """Pictures (B,3,H,W) in [-1, 1] side by side; small ones enlarged by a whole factor so that a person sees them."""
    pixels = to_bytes(pictures).permute(0, 2, 3, 1).cpu().numpy()
    factor = max(1, 96 // pixels.shape[1])
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for index, picture in enumerate(pixels):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet)


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def grid_columns(count: int) -> int:
    """Columns of a grid of `count` pictures, wider than high."""
    return min(count, max(1, round((count * 2) ** 0.5)))


def last_metrics(lines: Sequence[MetricsLine]) -> dict[str, float]:
    """The newest value of each metric."""
    newest: dict[str, float] = {}
    for line in lines:
        newest.update(line["metrics"])
    return newest
