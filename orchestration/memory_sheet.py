"""What a memory knows of a word, as a picture: the regions it remembers, and the words that are like it."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.cpgan.memory import Memory, entries_of
from orchestration.config import Experiment, parse_experiment
from orchestration.data.batches import CaptionedPictures
from orchestration.data.lettering import FINE, PAPER, Colour
from orchestration.data.panels import enlarged
from orchestration.data.vocabulary import Vocabulary, load_vocabulary
from orchestration.data.word_encoder import VOCABULARY
from orchestration.errors import RequestError
from orchestration.evaluation.sheets import TILE, Line, Tile, picture_sheet
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.stages import Progress, is_finished, quiet, write_atomically
from orchestration.training.launch import EXPERIMENT_FILE
from orchestration.training.recorder import png_bytes

FOUND: Colour = (230, 60, 20)
LEAST_CUT = 8  # px: smaller boxes are shown with what is around them
NEAR = 5


@dataclass(frozen=True, slots=True)
class Region:
    """One region that a word means: of which image, where (x0, y0, x1, y1 in [0, 1] of its centre), and how much."""

    image_id: int
    box: tuple[float, ...]
    attention: float


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a word. pictures: how many have it; nearest: words and the cosine of their memories."""

    word: str
    pictures: int
    regions: list[Region]
    nearest: list[tuple[str, float]]


class MemoryTable:
    """The memory that a stage gathered, in its folder. Raises RequestError when it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.vocabulary: Vocabulary = load_vocabulary(folder / VOCABULARY)
        try:
            self.kept: dict[str, Tensor] = load_file(folder / f"{Memory.name}.safetensors")
            self.memory, self.pictures = self.kept["memory"], self.kept["pictures"]
        except (OSError, SafetensorError, KeyError) as error:
            raise RequestError(
                f"the memory in {folder} cannot be read ({error}): t2i stages drop {folder.name}, and the next "
                "training gathers it anew"
            ) from error
        if len(self.memory) != len(self.vocabulary):
            raise RequestError(
                f"the memory in {folder} has {len(self.memory)} rows and the vocabulary beside it "
                f"{len(self.vocabulary)} words, so it is of another vocabulary: t2i stages drop {folder.name}, and the "
                "next training gathers it anew"
            )

    def index(self, word: str) -> int:
        """Where the word is. Raises RequestError with near words where the vocabulary lacks it."""
        known = self.vocabulary.words[1:]
        if word not in known:
            near = difflib.get_close_matches(word, known, n=NEAR, cutoff=0.6)
            most = [self.vocabulary.words[place] for place in self.pictures.argsort(descending=True)[:NEAR].tolist()]
            hint = f"near it are {', '.join(near)}" if near else f"name one of the captions', such as {', '.join(most)}"
            raise RequestError(f"the memory's vocabulary has no word {word!r}: {hint}")
        return self.vocabulary.words.index(word)

    def nearest(self, index: int, count: int) -> list[tuple[str, float]]:
        """The words whose memories are most like this word's, among those that were seen, and the cosines."""
        if not self.pictures[index]:
            return []
        others = (self.pictures > 0).nonzero()[:, 0]
        others = others[others != index]
        likeness = torch.cosine_similarity(self.memory[others], self.memory[index][None], dim=1)
        best = likeness.argsort(descending=True, stable=True)[:count]
        return [(self.vocabulary.words[int(others[place])], float(likeness[place])) for place in best]


def find_memory(home: Home, run: str, progress: Progress = quiet) -> tuple[Path, CaptionedPictures, Experiment]:
    """The memory that a run is built on, the pictures it was gathered from, and the run's experiment.

    run: its name or folder, or a checkpoint's folder. Raises RequestError, also where it was not gathered yet.
    """
    experiment = _experiment_of(home, run)
    names = [name for name, stage in experiment.stages.items() if stage.system == Memory.name]
    if not names:
        raise RequestError(
            f"{run} is built without a memory ({experiment.system}): name a run of cpgan, or of its damsm"
        )
    preparation = Preparation(experiment, home, progress)
    name = preparation.part_stage(names[0]).folder_name
    if not is_finished(home.stages / name):
        raise RequestError(f"the memory of {run} ({name}) is not gathered yet: t2i train {experiment.recipe} does that")
    below = preparation.below(names[0])
    dataset = below.dataset(experiment.data.train_split)
    return preparation.part(names[0]), below.split(dataset, reads=frozenset()).open(), experiment


def _experiment_of(home: Home, run: str) -> Experiment:
    given = Path(run)
    for folder in (home.runs / run, given, given.resolve().parent.parent):
        try:
            values: Any = json.loads((folder / EXPERIMENT_FILE).read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise RequestError(f"{folder / EXPERIMENT_FILE} cannot be read: train the run again") from error
        return parse_experiment(values)
    known = sorted(path.name for path in home.runs.glob("*") if (path / EXPERIMENT_FILE).is_file()) or ["none yet"]
    raise RequestError(f"there is no run {run!r}: give a run ({', '.join(known)}) or its folder")


def show_memory(
    home: Home,
    run: str,
    words: Sequence[str],
    path: Path,
    regions: int = 4,
    nearest: int = NEAR,
    progress: Progress = quiet,
) -> list[Known]:
    """Draw a PNG: for each word the regions that it means most, in their pictures and cut out, and words like it.

    Words that the captions never had are said so. Raises RequestError for a word that the vocabulary lacks.
    """
    if not words:
        raise RequestError("--what memory shows words: name some after the run, as in t2i show RUN bird red")
    folder, data, experiment = find_memory(home, run, progress)
    table = MemoryTable(folder)
    indices = {word: table.index(word) for word in dict.fromkeys(word.lower() for word in words)}
    found, lines = [], []
    for word, index in indices.items():
        entries = {name: column[:regions] for name, column in entries_of(table.kept, index).items()}
        items = entries["items"].numpy()
        if len(items) and items.max() >= len(data):
            raise RequestError(
                f"the memory in {folder} is of other pictures than {experiment.data.source}: train again"
            )
        boxes = [tuple(box) for box in entries["boxes"].tolist()]
        shown = [
            Region(int(image_id), box, attention)
            for image_id, box, attention in zip(
                data.image_ids[items], boxes, entries["attention"].tolist(), strict=True
            )
        ]
        known = Known(word, int(table.pictures[index]), shown, table.nearest(index, nearest))
        pictures = data.pixels(items).permute(0, 2, 3, 1).numpy() if len(items) else np.zeros((0, 1, 1, 3), np.uint8)
        tiles = [tile for picture, one in zip(pictures, shown, strict=True) for tile in _tiles(picture, one)]
        found.append(known)
        lines.append(Line(_said(known), tiles))
    about = (
        f"What each word looks like across the training pictures of {experiment.data.source}: the regions that the "
        "captioner attended to most where captions have the word, in their pictures and cut out, and the words whose "
        "memories are nearest, by cosine."
    )
    heads = [head for place in range(1, regions + 1) for head in (f"region {place}", "cut out")]
    sheet = picture_sheet(f"{run} · memory", about, heads, lines)
    try:
        write_atomically(path, png_bytes(sheet))
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}): give another place with --out") from error
    return found


def _said(known: Known) -> str:
    if not known.pictures:
        return f"{known.word}: never seen in a training picture; it shares the memory of all such words"
    near = ", ".join(f"{word} {likeness:.2f}" for word, likeness in known.nearest)
    return f"{known.word}: in {known.pictures:,} picture{'s' * (known.pictures > 1)}" + (
        f"; near {near}" if near else ""
    )


def _tiles(picture: NDArray[np.uint8], region: Region) -> tuple[Tile, Tile]:
    """The picture (S,S,3) with the region's box, and the region."""
    size, side = len(picture), TILE * FINE
    whole = enlarged(Image.fromarray(picture), side)
    x0, y0, x1, y1 = (round(edge * (side - 1)) for edge in region.box)
    pen = ImageDraw.Draw(whole)
    for colour, line in ((PAPER, 3 * FINE), (FOUND, 2 * FINE)):  # seen on any ground
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=line)
    left, right = _cut(region.box[0] * size, region.box[2] * size, size)
    top, bottom = _cut(region.box[1] * size, region.box[3] * size, size)
    part = Image.fromarray(picture[top:bottom, left:right])
    resample = Image.Resampling.NEAREST if max(part.size) < side else Image.Resampling.LANCZOS
    cut = ImageOps.pad(part, (side, side), resample, PAPER)
    return (
        Tile(np.asarray(whole), f"image {region.image_id}"),
        Tile(np.asarray(cut), f"attention {region.attention:.2f}"),
    )


def _cut(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last pixel, the last one outside; at least LEAST_CUT apart where there are so many."""
    least = min(LEAST_CUT, size)
    if high - low < least:
        low = min(max(0.0, (low + high - least) / 2), size - least)
        high = low + least
    return int(low), min(size, max(int(np.ceil(high)), int(low) + 1))
