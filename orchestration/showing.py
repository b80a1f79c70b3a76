"""Pictures for people: what a checkpoint draws for held-out captions, beside the real pictures they describe."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from orchestration.data.batches import held_out_captions
from orchestration.evaluation.distances import to_bytes
from orchestration.evaluation.judging import drawer
from orchestration.home import Home
from orchestration.painter import checkpoint_encoder, vocabulary_digest
from orchestration.preparation import Preparation
from orchestration.stages import Progress, quiet, write_atomically
from orchestration.training.recorder import png_bytes
from orchestration.training.state import Checkpoint, load_for_sampling

TILE, TEXT_HEIGHT, GAP = 128, 44, 4


def show_checkpoint(
    checkpoint: Checkpoint,
    home: Home,
    path: Path,
    captions: int = 12,
    samples: int = 3,
    seed: int = 0,
    progress: Progress = quiet,
) -> list[str]:
    """Draw a sheet to `path` (PNG): for each held-out caption the real picture and `samples` drawn ones.

    Captions are drawn from the experiment's test split with the seed. Returns them. Raises RequestError.
    """
    experiment = checkpoint.experiment
    encoder = checkpoint_encoder(checkpoint, home)
    preparation = Preparation(experiment, home, progress, encoder=encoder)
    dataset = preparation.dataset(experiment.data.test_split)
    data = preparation.split(dataset, reads=frozenset({"features"})).open()
    items, chosen = held_out_captions(data.index, captions, seed)
    real = data.pixels(items)
    device = torch.device("cpu")
    draw = drawer(experiment, load_for_sampling(checkpoint, device, vocabulary_digest(encoder)), device)
    text = data.text(chosen)
    drawn = [
        to_bytes(draw(text, [seed + 1000 * sample + index for index in range(captions)])) for sample in range(samples)
    ]
    rows = torch.stack([real, *drawn], 1).permute(0, 1, 3, 4, 2).numpy()
    texts = [data.index.texts[caption] for caption in chosen]
    write_atomically(path, png_bytes(caption_sheet(rows, texts)))
    return texts


def caption_sheet(rows: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], texts: list[str]) -> Image.Image:
    """(N,K,H,W,3) pictures as N cells of K pictures, the first framed as the real one, each cell over its caption."""
    count, across = rows.shape[:2]
    columns = 2 if count > 3 else 1
    cell_width, cell_height = across * TILE + (across + 1) * GAP, TILE + TEXT_HEIGHT
    lines = -(-count // columns)
    sheet = Image.new("RGB", (columns * (cell_width + 3 * GAP), lines * cell_height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (pictures, text) in enumerate(zip(rows, texts, strict=True)):
        left, top = index % columns * (cell_width + 3 * GAP) + GAP, index // columns * cell_height + GAP
        for place, pixels in enumerate(pictures):
            image = Image.fromarray(pixels)
            enlarge = Image.Resampling.NEAREST if image.width < TILE else Image.Resampling.LANCZOS
            x = left + place * (TILE + GAP)
            sheet.paste(image.resize((TILE, TILE), enlarge), (x, top))
            if place == 0:
                pen.rectangle((x, top, x + TILE - 1, top + TILE - 1), outline="black", width=2)
        wrapped = textwrap.fill(text, across * TILE // 7, max_lines=2, placeholder=" ...")
        pen.multiline_text((left, top + TILE + 4), wrapped, fill="black")
    return sheet
