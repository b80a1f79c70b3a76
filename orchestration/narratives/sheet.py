"""What a run of TReCS makes of narratives, as a picture (its figure 2): every step from words to pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.contract import Batch
from models.trecs.config import TReCSConfig
from orchestration.data.batches import held_out_captions
from orchestration.data.composition import label_maps_of
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset, Narrative
from orchestration.errors import RequestError
from orchestration.evaluation.looking import drawer
from orchestration.evaluation.pixels import checked_bytes
from orchestration.home import Home
from orchestration.narratives.composed import Composed
from orchestration.narratives.composer import Composer
from orchestration.narratives.drawing import Pixels, Shown, narrative_sheet
from orchestration.narratives.narrative_text import read_narrative
from orchestration.narratives.reader import NarrativeReader
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.reasons.narratives import narrative_reasons
from orchestration.runs import find_checkpoint
from orchestration.stages import Progress, quiet, write_atomically
from orchestration.training.recorder import png_bytes


def show_narratives(
    home: Home,
    run: str,
    narratives: Sequence[str],
    path: Path,
    held_out: int = 2,
    samples: int = 3,
    seed: int = 0,
    progress: Progress = quiet,
) -> list[dict[str, Any]]:
    """Draw a PNG: for each narrative its tagged words, its trace with the hulls, what was retrieved, the canvas and
    pictures of `samples` seeds from `seed` on. Returns what is told of each.

    narratives: as prompts; none for `held_out` of the experiment's test split, drawn with `seed`. Raises RequestError,
    also where the run composes nothing.
    """
    checkpoint, folder = find_checkpoint(home, run)
    experiment, model = checkpoint.experiment, checkpoint.experiment.model
    if not isinstance(model, TReCSConfig) or model.masks != "retrieved":
        what = "paints true masks" if isinstance(model, TReCSConfig) else f"is a run of {experiment.system}"
        raise RequestError(f"{run} {what}, and composes nothing: name a run of trecs, or use --what samples")
    seeds = list(range(seed, seed + samples))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    painter = Painter.load(checkpoint.folder, home.root, device)
    preparation = Preparation(experiment, home, progress, encoder=painter.encoder)
    train = preparation.dataset(experiment.data.train_split)
    photographs = preparation.split(train, reads=frozenset()).open()
    told: list[_Told]
    if narratives:
        told, composer = _typed(painter, narratives)
        about = f"Narratives as they were typed; masks are of {experiment.data.source}."
    else:
        dataset = preparation.dataset(experiment.data.test_split)
        told, composer = _held_out(preparation, dataset, held_out, seed)
        about = f"Narratives of {dataset.name} ({experiment.data.source}), split {dataset.split}."
    draw = drawer(experiment, painter.nets, painter.device)
    shown = []
    for one in told:
        labels = label_maps_of([one.composed.canvas] * samples)
        pictures = checked_bytes(draw(Batch(torch.zeros(samples, dtype=torch.int64), labels=labels), seeds))
        shown.append(
            Shown(
                one.composed,
                classes=composer.bank.classes,
                pictures=pictures.permute(0, 2, 3, 1).cpu().numpy(),
                seeds=seeds,
                photographs=photographs.still_of(found.image_id for found in one.composed.retrieved),
                image_id=one.image_id,
                photograph=one.photograph,
                labels=one.labels,
                simulated=one.simulated,
            )
        )
    title = f"{folder.name} · labels by {model.labeler} · k {model.k} · painted by {model.generator}"
    try:
        write_atomically(path, png_bytes(Image.fromarray(narrative_sheet(title, about, shown))))
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}): give another place with --out") from error
    return [_as_json(one) for one in shown]


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """A narrative with all steps, and what it tells of where that is known."""

    composed: Composed
    image_id: int | None = None
    photograph: Pixels | None = None
    labels: NDArray[np.int64] | None = None
    simulated: bool = False


def _typed(painter: Painter, prompts: Sequence[str]) -> tuple[list[_Told], Composer]:
    for prompt in prompts:
        painter.check(prompt)
    reader = painter.encoder
    assert isinstance(reader, NarrativeReader)
    said = [f"narrative {place} of {len(prompts)}" for place in range(1, len(prompts) + 1)]
    narratives = [read_narrative(*pair) for pair in zip(prompts, said, strict=True)]
    return [_Told(composed) for composed in reader.composed(narratives)], reader.composer


def _held_out(preparation: Preparation, dataset: Dataset, count: int, seed: int) -> tuple[list[_Told], Composer]:
    stages = preparation.narratives
    assert stages is not None
    reader = preparation.given_encoder
    composer = reader.composer if isinstance(reader, NarrativeReader) else stages.open_composer()()
    tags = stages.tags(dataset)
    data = preparation.split(dataset, reads=frozenset()).open()
    items, captions = held_out_captions(data.index, min(count, len(data)), seed)
    truth, size = LabelReader(dataset, composer.bank.classes), composer.bank.size
    real = data.pixels(items).permute(0, 2, 3, 1).numpy()
    told = []
    for row, (item, caption) in enumerate(zip(items.tolist(), captions.tolist(), strict=True)):
        record = dataset.records[item]
        narrative: Narrative = (record.narratives or ())[caption - int(data.index.starts[item])]
        [composed] = composer.compose([narrative], [tags.of(caption)], [record.image_id])
        labels, _ = truth.read(record, None, (size, size))
        simulated = stages.settings.traces == "simulated"
        told.append(_Told(composed, record.image_id, real[row], labels.astype(np.int64), simulated))
    return told, composer


def _as_json(one: Shown) -> dict[str, Any]:
    """What the endpoint tells too, without its pictures."""
    told = narrative_reasons(one.composed, one.classes).model_dump(
        mode="json", exclude={"type": True, "canvas": True, "legend": True, "mentions": {"__all__": {"mask", "hull"}}}
    )
    return {"narrative": one.composed.narrative.caption, "image_id": one.image_id, **told}
