"""Pictures for people: what a checkpoint draws, the training pictures nearest to that, and metrics against kimg."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from orchestration.config import Experiment, parse_experiment
from orchestration.data.batches import CaptionedPictures, held_out_captions
from orchestration.data.lettering import FINE, HEADING, INK, PAPER, QUIET, SMALL, Colour, Word, font, text_block
from orchestration.data.panels import enlarged
from orchestration.data.sources import SCENES, parse_source
from orchestration.errors import RequestError
from orchestration.evaluation.feature_views import FEATURES, open_feature_view
from orchestration.evaluation.looking import Looking, RealPictures, drawer, drawn_by, read_seen
from orchestration.evaluation.neighbours import Neighbours, neighbours
from orchestration.evaluation.plans import CAPTIONS, Plan, one_a_caption, real_images
from orchestration.evaluation.tables import better
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.readers import checkpoint_encoder, vocabulary_digest
from orchestration.requirements import choose_protocol
from orchestration.runs import find_checkpoint
from orchestration.stages import Progress, ensure, quiet, write_atomically
from orchestration.training.launch import EXPERIMENT_FILE
from orchestration.training.recorder import METRICS, MetricsLine, png_bytes, read_metrics
from orchestration.training.state import Checkpoint, load_for_sampling

TILE, CAPTION_WIDTH, GAP, MARGIN, BELOW = 128, 190, 6, 14, 17
TWO_COLUMNS_FROM, WIDEST = 7, 1800
SUSPICIOUS: Colour = (214, 39, 40)
VALIDATION = "validation/"

Pictures = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture (S,S,3), what stands below it, and the colour of its frame."""

    pixels: Pictures
    below: str = ""
    frame: Colour | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A caption and the pictures beside it; the first stands a little apart."""

    caption: str
    tiles: Sequence[Tile]


def picture_sheet(title: str, about: str, heads: Sequence[str], lines: Sequence[Line]) -> Image.Image:
    """Captions with their pictures, one below the other, many of them in two columns.

    heads: above each picture. Small pictures are enlarged by whole pixels.
    """
    across = len(heads)
    block = CAPTION_WIDTH + across * (TILE + GAP) + 2 * GAP
    row = TILE + GAP + (BELOW if any(tile.below for line in lines for tile in line.tiles) else 2)
    columns = 2 if len(lines) >= TWO_COLUMNS_FROM and 2 * block + 3 * MARGIN <= WIDEST else 1
    deep = -(-len(lines) // columns)
    width = max(2 * MARGIN + columns * block + (columns - 1) * MARGIN, 560)
    told = text_block([Word(word, QUIET) for word in about.split()], (width - 2 * MARGIN) * FINE)
    top = MARGIN + 26 + told.height // FINE + 24
    sheet = Image.new("RGB", (width * FINE, (top + deep * row + MARGIN) * FINE), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN * FINE, MARGIN * FINE), title, fill=INK, font=font(HEADING))
    sheet.paste(told, (MARGIN * FINE, (MARGIN + 24) * FINE))

    def left_of(column: int, place: int) -> int:
        start = MARGIN + column * (block + MARGIN) + CAPTION_WIDTH
        return start + place * (TILE + GAP) + (GAP if place else 0)

    for column in range(columns):
        for place, head in enumerate(heads):
            pen.text((left_of(column, place) * FINE, (top - 17) * FINE), head, fill=QUIET, font=font(SMALL))
    for number, line in enumerate(lines):
        column, y = number // deep, top + number % deep * row
        words = [Word(word) for word in line.caption.split()]
        caption = text_block(words, (CAPTION_WIDTH - 2 * GAP) * FINE, lines=7)
        sheet.paste(caption, ((MARGIN + column * (block + MARGIN)) * FINE, y * FINE))
        for place, tile in enumerate(line.tiles):
            _put(sheet, pen, tile, left_of(column, place) * FINE, y * FINE)
    return sheet.reduce(FINE)


def _put(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    side = TILE * FINE
    sheet.paste(enlarged(Image.fromarray(tile.pixels), side), (x, y))
    if tile.frame is not None:
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline=tile.frame, width=3 * FINE)
    pen.text((x, y + side + FINE), tile.below, fill=tile.frame or QUIET, font=font(SMALL))


class _Gallery:
    """A checkpoint ready to draw captions of its experiment's test split."""

    def __init__(self, checkpoint: Checkpoint, home: Home, progress: Progress) -> None:
        self.experiment, self.home, self.progress = checkpoint.experiment, home, progress
        encoder = checkpoint_encoder(checkpoint, home)
        self.preparation = Preparation(self.experiment, home, progress, encoder=encoder)
        dataset = self.preparation.dataset(self.experiment.data.test_split)
        self.data = self.preparation.split(dataset, reads=self.preparation.drawn_from).open()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        nets = load_for_sampling(checkpoint, self.device, vocabulary_digest(encoder))
        self._take = drawn_by(drawer(self.experiment, nets, self.device))
        run, seen = checkpoint.folder.parent.parent.name, checkpoint.images_seen / 1000
        self.title = f"{run} · {seen:g} kimg"
        self.about = f"Captions of {self.experiment.data.source}, split {dataset.split}."

    def draw(self, plan: Plan) -> torch.Tensor:
        """uint8 (B,3,H,W)."""
        return self._take(self.data, plan, np.arange(len(plan)))

    def texts(self, plan: Plan) -> list[str]:
        """The captions of a plan."""
        return [self.data.index.texts[caption] for caption in plan.captions]


def _channels_last(pictures: torch.Tensor) -> Pictures:
    pixels: Pictures = pictures.permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def show_samples(
    checkpoint: Checkpoint,
    home: Home,
    path: Path,
    captions: int = 12,
    samples: int = 3,
    seed: int = 0,
    progress: Progress = quiet,
) -> list[str]:
    """Draw a PNG: for each held-out caption the real picture and one for each of `samples` seeds, from `seed` on.

    A column has one seed: what its pictures share comes from the noise. Captions are drawn from the experiment's test
    split with `seed`. Returns them. Raises RequestError.
    """
    gallery = _Gallery(checkpoint, home, progress)
    items, chosen = held_out_captions(gallery.data.index, captions, seed)
    seeds = range(seed, seed + samples)
    plans = [Plan(CAPTIONS, items, chosen, np.arange(captions), np.full(captions, each, np.int64)) for each in seeds]
    real = _channels_last(gallery.data.pixels(items))
    drawn = [_channels_last(gallery.draw(plan)) for plan in plans]
    lines = [
        Line(text, [Tile(real[row], frame=INK), *(Tile(pictures[row]) for pictures in drawn)])
        for row, text in enumerate(gallery.texts(plans[0]))
    ]
    about = f"{gallery.about} Framed: the real picture. A column has the same noise."
    sheet = picture_sheet(gallery.title, about, ["real", *(f"seed {each}" for each in seeds)], lines)
    _write(path, png_bytes(sheet))
    return [line.caption for line in lines]


@dataclass(frozen=True, slots=True)
class Found:
    """A caption and the training pictures nearest to what was drawn for it, nearest first.

    suspicious: nearer to the first of them than that one is to any other training picture (Alaa et al., 2022).
    """

    caption: str
    image_ids: list[int]
    distances: list[float]
    suspicious: bool


def show_neighbours(
    checkpoint: Checkpoint,
    home: Home,
    path: Path,
    captions: int = 6,
    nearest: int = 5,
    seed: int = 0,
    net: str | None = None,
    weights: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Progress = quiet,
) -> list[Found]:
    """Draw a PNG: for each held-out caption a picture drawn and the `nearest` training pictures, with distances.

    net: the feature net, None for that of the experiment's evaluation; weights: paths by net. Features of all training
    pictures are kept as a stage. Raises RequestError.
    """
    net = net or choose_protocol(checkpoint.experiment)
    if net == "none":
        raise RequestError("evaluation.protocol is none: name a feature net with --net, such as efficientnet-lite0")
    gallery = _Gallery(checkpoint, home, progress)
    plan = one_a_caption(gallery.data.index, captions, seed)
    pictures = gallery.draw(plan)
    training, features, view = _training_features(gallery, net, weights or {}, workers)
    array = view.look(pictures, plan.asked(gallery.data, np.arange(captions)))[f"{net}/{FEATURES}"]
    near = neighbours(torch.from_numpy(array), features, nearest)
    suspicious = _suspicious(near, features)
    drawn, texts, found = _channels_last(pictures), gallery.texts(plan), []
    lines = []
    for row, (places, distances) in enumerate(zip(near.indices.numpy(), near.distances.tolist(), strict=True)):
        real = _channels_last(training.pixels(places))
        mark = Tile(drawn[row], "suspiciously near", SUSPICIOUS) if suspicious[row] else Tile(drawn[row], frame=INK)
        beside = [Tile(pixels, f"{distance:.3g}") for pixels, distance in zip(real, distances, strict=True)]
        lines.append(Line(texts[row], [mark, *beside]))
        found.append(Found(texts[row], training.image_ids[places].tolist(), distances, suspicious[row]))
    about = (
        f"{gallery.about} Framed: drawn. Beside it the nearest of {len(training):,} training pictures, by Euclidean "
        f"distance of {net} features. Red: nearer to the first than that one is to any other training picture."
    )
    heads = ["drawn", "nearest", *(f"number {place}" for place in range(2, nearest + 1))]
    _write(path, png_bytes(picture_sheet(gallery.title, about, heads, lines)))
    return found


def _suspicious(near: Neighbours, features: torch.Tensor) -> list[bool]:
    first = near.indices[:, 0]
    if len(features) < 2:
        return [False] * len(first)
    between = neighbours(features[first], features, itself=first).distances[:, 0]
    return (near.distances[:, 0] < between).tolist()


def _training_features(
    gallery: _Gallery, net: str, weights: Mapping[str, str], workers: int | None
) -> tuple[CaptionedPictures, torch.Tensor, Any]:
    """The training pictures, their features (N,F), and the view that saw them."""
    experiment, preparation = gallery.experiment, gallery.preparation
    scenes = parse_source(experiment.data.source).kind == SCENES
    judge = preparation.judge(net) if scenes else None
    opened = partial(open_feature_view, net, {**experiment.resources.weights, **weights}.get(net), judge)
    view = opened(gallery.device)
    dataset = preparation.dataset(experiment.data.train_split)
    split = preparation.split(dataset, reads=frozenset())
    data, options = split.open(), preparation.shard_options(dataset)
    plan = real_images(data.index, len(data))
    looking = Looking(RealPictures(), split, plan, {net: opened}, gallery.device.type)
    # As an evaluation of that split names it, so that they share it.
    made_ready = f"{options.transform} {options.size} centre"
    inputs = {"pictures": "real still", "data": dataset.digest, "as": made_ready}
    stage = looking.stage("real", inputs, {net: view}, 1 if gallery.device.type == "cuda" else workers)
    folder = ensure(stage, gallery.home.stages, gallery.progress)
    arrays = [seen[f"{net}/{FEATURES}"] for seen in read_seen(folder, data, plan)]
    return data, torch.from_numpy(np.concatenate(arrays)), view


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure of a run while it trained: value, low, high at each of `kimg`; NaN where there is no interval."""

    run: str
    kimg: list[float]
    value: list[float]
    low: list[float]
    high: list[float]


def show_curve(home: Home, runs: Sequence[str], path: Path, figure: str = "fid") -> tuple[str, list[Curve]]:
    """Draw a PNG: a figure of each run's validation against kimg, with its 95 % interval.

    runs: names or folders; figure: METRIC, or METRIC/PROTOCOL. Returns the whole name and the curves. Raises
    RequestError: figures of two protocols, data or numbers of pictures do not share an axis.
    """
    found = list(dict.fromkeys(_find_run(home, run).resolve() for run in runs))
    names = [folder.name for folder in found]
    folders = {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in found}
    recorded = {name: read_metrics(folder) for name, folder in folders.items()}
    name = choose_figure(recorded, figure)
    _check_conditions(folders)
    curves = [curve_of(run, lines, name) for run, lines in recorded.items()]
    _write(path, draw_curves(curves, name))
    return name, curves


def _find_run(home: Home, run: str) -> Path:
    for folder in (Path(run), home.runs / run):
        if (folder / METRICS).is_file():
            return folder
    return find_checkpoint(home, run)[1]


def choose_figure(recorded: Mapping[str, Sequence[MetricsLine]], wanted: str) -> str:
    """METRIC/PROTOCOL, the one that every run was validated by. Raises RequestError where there are none or two."""
    names: dict[str, list[str]] = {}
    for run, lines in recorded.items():
        keys = dict.fromkeys(
            key.removeprefix(VALIDATION) for line in lines for key in line["metrics"] if _is_plain(key)
        )
        names[run] = [key for key in keys if wanted in (key, key.partition("/")[0])]
        if not names[run]:
            have = ", ".join(keys) or "none yet"
            raise RequestError(f"{run} was not validated by {wanted!r}: its figures are {have}")
    every = list(dict.fromkeys(key for found in names.values() for key in found))
    shared = [key for key in every if all(key in found for found in names.values())]
    if len(every) == 1:
        return every[0]
    of = "; ".join(f"{run}: {', '.join(found)}" for run, found in names.items())
    hint = f", such as {shared[0]}" if shared else "" if len(recorded) == 1 else ", and runs that share it"
    raise RequestError(
        f"{wanted!r} stands for {len(every)} protocols, and two do not share an axis ({of}): name one with --figure "
        f"METRIC/PROTOCOL{hint}"
    )


def _is_plain(key: str) -> bool:
    """Whether a validation figure is one by itself, and no bound or detail of another."""
    metric = key.removeprefix(VALIDATION).partition("/")[0]
    return key.startswith(VALIDATION) and not metric.endswith(("_low", "_high"))


def curve_of(run: str, lines: Sequence[MetricsLine], figure: str) -> Curve:
    """One run's curve of METRIC/PROTOCOL."""
    metric, _, protocol = figure.partition("/")
    points = [(line["kimg"], line["metrics"]) for line in lines if VALIDATION + figure in line["metrics"]]

    def column(name: str) -> list[float]:
        return [values.get(f"{VALIDATION}{name}/{protocol}", math.nan) for _, values in points]

    return Curve(run, [kimg for kimg, _ in points], *map(column, (metric, f"{metric}_low", f"{metric}_high")))


def _check_conditions(folders: Mapping[str, Path]) -> None:
    """Raises RequestError for runs that were validated on other data or from other numbers of pictures."""
    known = {run: _conditions(_experiment(folder)) for run, folder in folders.items() if _has_experiment(folder)}
    for run, conditions in list(known.items())[1:]:
        first = next(iter(known))
        for what, value in conditions.items():
            if value != known[first][what]:
                raise RequestError(
                    f"{first} and {run} do not share an axis: their {what} differs ({known[first][what]} and {value})"
                )


def _has_experiment(folder: Path) -> bool:
    return (folder / EXPERIMENT_FILE).is_file()


def _experiment(folder: Path) -> Experiment:
    try:
        values = json.loads((folder / EXPERIMENT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder / EXPERIMENT_FILE} cannot be read: train the run again") from error
    return parse_experiment(values)


def _conditions(experiment: Experiment) -> dict[str, Any]:
    data, evaluation, trainable = experiment.data, experiment.evaluation, experiment.trainable
    source = parse_source(data.source)
    options = source.argument if source.kind == SCENES else Path(source.argument).expanduser().absolute()
    transform = trainable.transform if data.transform == "auto" else data.transform
    return {
        "data": f"{source.kind}:{options}",
        "split": data.validation_split,
        "number of pictures drawn": evaluation.samples,
        "kind of real pictures": evaluation.real,
        "way the pictures were made ready": f"{transform} {trainable.resolution(experiment.model)}",
    }


def draw_curves(curves: Sequence[Curve], figure: str) -> bytes:
    """A PNG of curves of one figure, each with its interval as a band. Raises RequestError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError(f"curves need matplotlib, and {error}: install matplotlib") from error
    drawing = Figure(figsize=(9, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    for curve in curves:
        # Many points are a line, few are points too.
        (line,) = axes.plot(curve.kimg, curve.value, lw=1.8, marker="o", ms=4 if len(curve.kimg) <= 40 else 0)
        line.set_label(curve.run)
        axes.fill_between(curve.kimg, curve.low, curve.high, color=line.get_color(), alpha=0.16, lw=0)
        if len(curve.kimg) == 1:
            axes.vlines(curve.kimg, curve.low, curve.high, color=line.get_color(), alpha=0.4, lw=4)
    direction = better(figure.partition("/")[0])
    axes.set_title(f"{figure} on the validation split", loc="left", fontsize=12)
    axes.set_xlabel("kimg (thousands of real pictures seen in training)")
    axes.set_ylabel(figure + (f"   ({direction} is better)" if direction else ""))
    axes.grid(color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    axes.legend(title="band: 95 % interval", frameon=False, fontsize=9, title_fontsize=8, alignment="left")
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png")
    return buffer.getvalue()


def _write(path: Path, png: bytes) -> None:
    try:
        write_atomically(path, png)
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}): give another place with --out") from error
