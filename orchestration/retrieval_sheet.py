"""What RetrieveGAN makes of a scene graph, as a picture (its figure 6): the patches it chose, and what it drew."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from models.blocks.graphs import flatten
from models.blocks.pixels import to_signed
from models.contract import Batch, Graphs
from models.retrievegan.config import RetrieveGANConfig
from models.retrievegan.system import RetrieveGAN
from orchestration.data.batches import CaptionedPictures, held_out_captions
from orchestration.data.graph_reader import GraphReader
from orchestration.data.graph_text import NO_BOX, graph_text
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.errors import RequestError
from orchestration.evaluation.pixels import checked_bytes
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.retrieval_drawing import Candidate, Pixels, Retrieval, Sample, retrieval_sheet
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
    experiment = checkpoint.experiment
    system = experiment.get_system()
    if not isinstance(system, RetrieveGAN):
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
        found = [_retrieved(painter, system, one, seeds) for one in typed]
    else:
        source = f"Graphs of {experiment.data.source}, split {experiment.data.test_split}."
        found = _held_out(painter, system, preparation, held_out, seed, seeds)
    photographs = _photographs(preparation.split(training, reads=frozenset()).open(), found)
    title = f"{folder.name} · {checkpoint.images_seen / 1000:g} kimg · retrieval"
    given = "the graph's own where it has them" if _model(painter).boxes == "given" else "predicted from the graph"
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


def _model(painter: Painter) -> RetrieveGANConfig:
    model = painter.experiment.model
    assert isinstance(model, RetrieveGANConfig)
    return model


def _typed(painter: Painter, text: str, place: int, count: int) -> Batch:
    try:
        return painter.conditions([text])
    except RequestError as error:
        if count == 1:
            raise
        raise RequestError(f"graph {place} of {count}: {error}") from error


def _held_out(
    painter: Painter, system: RetrieveGAN, preparation: Preparation, count: int, seed: int, seeds: Sequence[int]
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
        found.append(_retrieved(painter, system, painter.with_patches(conditions), seeds, *about))
    return found


@torch.inference_mode()
def _retrieved(
    painter: Painter,
    system: RetrieveGAN,
    conditions: Batch,
    seeds: Sequence[int],
    image_id: int | None = None,
    real: Pixels | None = None,
) -> Retrieval:
    """What is made of the one graph in `conditions`."""
    graphs, candidates, finder = conditions.graphs, conditions.candidates, painter.patches
    assert graphs is not None and candidates is not None and finder is not None
    assert isinstance(painter.encoder, GraphReader)
    model, count, bank = _model(painter), int(graphs.counts[0]), finder.bank
    repeated = conditions[torch.zeros(len(seeds), dtype=torch.int64)].to(painter.device)
    drawn = system.retrieve(painter.nets, model, repeated, list(seeds))
    flat = flatten(graphs)
    boxes = drawn.boxes[: len(flat.objects)][flat.objects.to(drawn.boxes.device)].float().cpu()
    if model.boxes == "given":
        own = flat.boxes[flat.objects].float()
        boxes = torch.where((own[:, 2:] > own[:, :2]).all(1, keepdim=True), own, boxes)
    places, shown = candidates.places[0].numpy(), candidates.counts[0].tolist()
    patches = [bank.take(places[thing, : shown[thing]]).permute(0, 2, 3, 1).numpy() for thing in range(count)]
    found = [
        [
            Candidate(patch, int(bank.image_ids[place]), tuple(bank.boxes[place].tolist()))
            for patch, place in zip(patches[thing], places[thing], strict=False)
        ]
        for thing in range(count)
    ]
    pictures = checked_bytes(to_signed(drawn.images).float()).permute(0, 2, 3, 1).cpu().numpy()
    made = []
    for picture, chosen, seed in zip(pictures, drawn.selection.chosen[:, :count].tolist(), seeds, strict=True):
        ids = [found[thing][place].image_id if place >= 0 else None for thing, place in enumerate(chosen)]
        made.append(Sample(seed, picture, chosen, ids))
    graph = _graph_of(graphs, painter.encoder.vocabulary)
    objects, words = _labels(graph), graph_text(graph, painter.encoder.vocabulary)
    edges = [tuple(box) for box in boxes.tolist()]
    return Retrieval(words, objects, list(graph.relationships), found, edges, made, image_id, real)


def _graph_of(graphs: Graphs, vocabulary: GraphVocabulary) -> SceneGraph:
    """The first graph, with its objects in their order and without boxes."""
    numbers = graphs.classes[0, : int(graphs.counts[0])].tolist()
    things = tuple(
        SceneObject(place, vocabulary.objects[number - 1], (), NO_BOX) for place, number in enumerate(numbers)
    )
    links = graphs.relations[0, : int(graphs.links[0])].tolist()
    return SceneGraph(things, tuple((first, vocabulary.relationships[word - 1], last) for first, word, last in links))


def _labels(graph: SceneGraph) -> list[str]:
    """Names as `graph_text` numbers them."""
    said = [end for first, _, last in graph.relationships for end in (first, last)]
    counts: Counter[str] = Counter()
    labels: dict[int, str] = {}
    for place in dict.fromkeys([*said, *range(len(graph.objects))]):
        name = graph.objects[place].name
        counts[name] += 1
        labels[place] = name if counts[name] == 1 else f"{name} {counts[name]}"
    return [labels[place] for place in range(len(graph.objects))]


def _photographs(data: CaptionedPictures, found: Iterable[Retrieval]) -> dict[int, Pixels]:
    """The training pictures (H,W,3) that anything was chosen from, by id."""
    wanted = {chosen for one in found for sample in one.samples for chosen in sample.image_ids if chosen is not None}
    return data.still_of(wanted)
