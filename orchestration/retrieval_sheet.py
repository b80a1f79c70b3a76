"""What RetrieveGAN makes of a scene graph, as a picture (its figure 6): the patches it chose, and what it drew."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from models.contract import Batch
from models.retrievegan.config import RetrieveGANConfig
from models.retrievegan.system import RetrieveGAN
from orchestration.data.batches import CaptionedPictures, held_out_captions
from orchestration.data.graph_reader import GraphReader
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.reasons.graphs import retrieved
from orchestration.retrieval_drawing import Pixels, Retrieval, retrieval_sheet
from orchestration.runs import find_checkpoint
from orchestration.stages import Progress, quiet, write_atomically
from orchestration.training.recorder import png_bytes


def show_retrieval(
    home: Home,
    run: str,
    graphs: Sequence[str],
    path: Path,
    held_out: int = 4,
    samples: int = 3,
    seed: int = 0,
    progress: Progress = quiet,
) -> list[Retrieval]:
    """Draw a PNG: for each graph its objects' candidates, what was chosen of them with each of `samples` seeds from
    `seed` on, the photographs that is from, the boxes and the pictures.

    graphs: in words or JSON; none for `held_out` of the experiment's test split, drawn with `seed`. Raises
    RequestError, also where the run draws from no patches, or its bank is gone.
    """
    checkpoint, folder = find_checkpoint(home, run)
    experiment, model = checkpoint.experiment, checkpoint.experiment.model
    if not isinstance(model, RetrieveGANConfig):
        raise RequestError(
            f"{run} is a run of {experiment.system}, which retrieves no patches: name a run of {RetrieveGAN.name}, or "
            "use --what samples"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    painter = Painter.load(checkpoint.folder, home.root, device)
    assert isinstance(painter.encoder, GraphReader) and painter.patches is not None
    typed = [_typed(painter, text, place, len(graphs)) for place, text in enumerate(graphs, 1)]
    preparation = Preparation(experiment, home, progress, encoder=painter.encoder)
    training = preparation.dataset(experiment.data.train_split)
    painter.patches.bank.check_of(data=training.digest)
    seeds = range(seed, seed + samples)
    if graphs:
        source = f"Graphs in the words of {experiment.data.source}."
        found = [retrieved(painter, one, seeds) for one in typed]
    else:
        source = f"Graphs of {experiment.data.source}, split {experiment.data.test_split}."
        found = _held_out(painter, preparation, held_out, seed, seeds)
    photographs = _photographs(preparation.split(training, reads=frozenset()).open(), found)
    title = f"{folder.name} · {checkpoint.images_seen / 1000:g} kimg · retrieval"
    given = "the graph's own where it has them" if model.boxes == "given" else "predicted from the graph"
    about = (
        f"{source} Each object is drawn from one patch of its class out of the training pictures. Framed: the "
        "candidate that was chosen, with the seeds that chose it below; beside it the photograph that it was cut from. "
        f"Boxes are {given}."
    )
    sheet = retrieval_sheet(title, about, found, photographs)
    try:
        write_atomically(path, png_bytes(sheet))
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}): give another place with --out") from error
    return found


def _typed(painter: Painter, text: str, place: int, count: int) -> Batch:
    try:
        return painter.conditions([text])
    except RequestError as error:
        if count == 1:
            raise
        raise RequestError(f"graph {place} of {count}: {error}") from error


def _held_out(
    painter: Painter, preparation: Preparation, count: int, seed: int, seeds: Sequence[int]
) -> list[Retrieval]:
    dataset = preparation.dataset(preparation.experiment.data.test_split)
    data = preparation.split(dataset, reads=frozenset({"graphs"})).open()
    assert data.graphs is not None
    items, _ = held_out_captions(data.index, min(count, len(data)), seed)
    real = data.pixels(items).permute(0, 2, 3, 1).numpy()
    found = []
    for row, item in enumerate(items):
        conditions = Batch(torch.from_numpy(data.image_ids[[item]]), graphs=data.graphs.take(items[row : row + 1]))
        about = int(data.image_ids[item]), real[row]
        found.append(retrieved(painter, painter.with_patches(conditions), seeds, *about))
    return found


def _photographs(data: CaptionedPictures, found: Iterable[Retrieval]) -> dict[int, Pixels]:
    """The training pictures (H,W,3) that anything was chosen from, by id."""
    wanted = {chosen for one in found for sample in one.samples for chosen in sample.image_ids if chosen is not None}
    return data.still_of(wanted)
