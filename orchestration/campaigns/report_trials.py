"""What a trial left behind for people, read for the report: curves, pictures, times. Damage is told, never raised."""

import base64
import io
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from orchestration.campaigns.settings import CampaignSettings
from orchestration.campaigns.standing import Standing, standing
from orchestration.training.recorder import METRICS, PICTURES, MetricsLine, read_metrics

WIDEST, KEPT_BYTES, LARGEST_BYTES, LARGEST_PIXELS = 960, 300_000, 64_000_000, 100_000_000
SPEED = "speed/images_per_second"


@dataclass(frozen=True, slots=True)
class Picture:
    """A grid that a run drew, as a data URI; or why there is none, in words."""

    uri: str = ""
    width: int = 0
    height: int = 0
    kimg: float = 0.0
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """curves: kimg and value, by objective; seconds: of training, with judging and saving, without what was repeated
    after a crash; began, ended: first and last record, in UTC, "" if there is none; damage: what could not be read."""

    folder: Path
    curves: dict[str, list[tuple[float, Standing]]] = field(default_factory=dict)
    seconds: float = 0.0
    began: str = ""
    ended: str = ""
    damage: str = ""

    def picture(self) -> Picture:
        """The newest grid, small enough for a page."""
        grids = sorted((self.folder / PICTURES).glob("kimg-*.png"))
        if not grids:
            return Picture(missing="no picture was drawn")
        try:
            return _embedded(grids[-1])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return Picture(missing=f"{grids[-1].name} cannot be read ({type(error).__name__})")


def read_record(folder: Path, settings: CampaignSettings) -> Record:
    """The record of the run in `folder`, of which nothing need be there."""
    try:
        lines = [line for line in read_metrics(folder) if _is_whole(line)]
    except (OSError, ValueError) as error:
        return Record(folder, damage=f"{METRICS} cannot be read ({type(error).__name__})")
    curves: dict[str, list[tuple[float, Standing]]] = {}
    for objective in settings.objectives:
        points = [(line["kimg"], standing(line["metrics"], objective.figure)) for line in lines]
        curves[objective.figure] = [(kimg, reached) for kimg, reached in points if reached is not None]
    times = sorted(line["time"] for line in lines)
    return Record(
        folder, curves, _seconds(lines), _as_date(times[0]) if times else "", _as_date(times[-1]) if times else ""
    )


def _is_whole(line: MetricsLine) -> bool:
    try:
        numbers = [line["images"], line["kimg"], line["time"], *line["metrics"].values()]
    except (TypeError, KeyError, AttributeError):
        return False
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return False
    return all(math.isfinite(number) for number in numbers[:3])


def _seconds(lines: list[MetricsLine]) -> float:
    """Pictures between two entries of speed, by that speed: the clock of the run, whatever it waited in between. Of a
    run that trained nothing, from its first record to its last."""
    if lines and not any(line["images"] for line in lines):
        return max(line["time"] for line in lines) - min(line["time"] for line in lines)
    seconds, before = 0.0, 0
    for line in lines:
        speed = line["metrics"].get(SPEED)
        if speed is not None:
            if speed > 0:
                seconds += max(line["images"] - before, 0) / speed
            before = line["images"]
    return seconds


def _as_date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return "an impossible time"


def _embedded(path: Path) -> Picture:
    """The picture as it is when it is small, otherwise made narrower or stored with some loss."""
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError("too large for a page")
    data, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.width * image.height > LARGEST_PIXELS:
            raise ValueError("too large for a page")
        image.load()
        if image.width > WIDEST or len(data) > KEPT_BYTES:
            small = image.convert("RGB")
            small.thumbnail((WIDEST, WIDEST * 4), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=85)
            data, kind = buffer.getvalue(), "jpeg"
        width, height = image.width, image.height
    kimg = float(path.stem.removeprefix("kimg-"))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", width, height, kimg)
