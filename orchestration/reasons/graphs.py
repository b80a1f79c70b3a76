"""How a scene graph was read and drawn: its objects' boxes and, where they are drawn from patches, those."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from models.attngan.damsm import evaluating
from models.blocks.graphs import FlatGraphs, flatten
from models.blocks.pixels import to_signed
from models.contract import Batch, Graphs
from models.retrievegan.config import RetrieveGANConfig
from models.retrievegan.system import RetrieveGAN
from models.sg2im.config import Sg2imConfig
from models.sg2im.networks import Generator
from orchestration.data.graph_reader import GraphReader
from orchestration.data.graph_text import NO_BOX, graph_text
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.evaluation.pixels import checked_bytes
from orchestration.reasons.pictures import base64_png
from orchestration.reasons.schema import CandidatePatch, DrawnObject, GraphReasons
from orchestration.retrieval_drawing import Candidate, Pixels, Retrieval, Sample, in_picture

if TYPE_CHECKING:
    from orchestration.painter import Painter

Box = tuple[float, ...]


def graph_reasons(painter: "Painter", prompt: str, seeds: Sequence[int]) -> GraphReasons:
    """Of the graph that a person wrote; seeds: of the pictures. Raises RequestError for one that cannot be drawn."""
    assert isinstance(painter.encoder, GraphReader)
    conditions = painter.conditions([prompt])
    if painter.patches is not None:
        return _of_retrieval(retrieved(painter, conditions, seeds))
    assert conditions.graphs is not None
    graph = graph_of(conditions.graphs, painter.encoder.vocabulary)
    boxes = _predicted(painter, conditions.graphs)
    objects = [
        DrawnObject(name=name, box=in_picture(box), candidates=[], chosen=[None] * len(seeds))
        for name, box in zip(labels_of(graph), boxes, strict=True)
    ]
    words = graph_text(graph, painter.encoder.vocabulary)
    return GraphReasons(text=words, objects=objects, relations=list(graph.relationships))


@torch.inference_mode()
def retrieved(
    painter: "Painter",
    conditions: Batch,
    seeds: Sequence[int],
    image_id: int | None = None,
    real: Pixels | None = None,
) -> Retrieval:
    """What a RetrieveGAN makes of the one graph in `conditions`, one seed after the other, as the painter draws."""
    graphs, candidates, finder, model = conditions.graphs, conditions.candidates, painter.patches, _model(painter)
    assert graphs is not None and candidates is not None and finder is not None
    assert isinstance(painter.encoder, GraphReader)
    count, bank = int(graphs.counts[0]), finder.bank
    places, known = candidates.places[0].numpy(), candidates.counts[0].tolist()
    found: list[list[Candidate]] = []
    for own, number in zip(places[:count], known, strict=False):
        patches = bank.take(own[:number]).permute(0, 2, 3, 1).numpy()
        pairs = zip(patches, own.tolist(), strict=False)
        found.append([Candidate(each, int(bank.image_ids[at]), tuple(bank.boxes[at].tolist())) for each, at in pairs])
    on_device, made, boxes = conditions.to(painter.device), list[Sample](), list[Box]()
    for seed in seeds:
        drawn = RetrieveGAN().retrieve(painter.nets, model, on_device, [seed])
        [picture] = checked_bytes(to_signed(drawn.images).float()).permute(0, 2, 3, 1).cpu().numpy()
        chosen = drawn.selection.chosen[0, :count].tolist()
        ids = [found[thing][place].image_id if place >= 0 else None for thing, place in enumerate(chosen)]
        made.append(Sample(seed, picture, chosen, ids))
        boxes = _drawn_by(drawn.boxes, flatten(graphs), model)
    graph = graph_of(graphs, painter.encoder.vocabulary)
    words = graph_text(graph, painter.encoder.vocabulary)
    return Retrieval(words, labels_of(graph), list(graph.relationships), found, boxes, made, image_id, real)


def _model(painter: "Painter") -> RetrieveGANConfig:
    model = painter.experiment.model
    assert isinstance(model, RetrieveGANConfig)
    return model


def _drawn_by(predicted: Tensor, flat: FlatGraphs, model: RetrieveGANConfig) -> list[Box]:
    """A graph's own boxes where the model draws by them and it has them, else those that are predicted."""
    boxes = predicted.cpu()[flat.objects].float()
    if model.boxes == "given":
        own = flat.boxes[flat.objects].float()
        boxes = torch.where((own[:, 2:] > own[:, :2]).all(1, keepdim=True), own, boxes)
    return [tuple(box) for box in boxes.tolist()]


@torch.inference_mode()
def _predicted(painter: "Painter", graphs: Graphs) -> list[Box]:
    """The boxes that sg2im draws by: of no noise, so they are every seed's."""
    model, flat = painter.experiment.model, flatten(graphs)
    if isinstance(model, Sg2imConfig) and model.boxes == "given":
        boxes = flat.boxes
    else:
        net = cast(Generator, painter.nets["generator"])
        batch = Batch(graphs.counts, graphs=graphs).to(painter.device)
        assert batch.graphs is not None
        with evaluating(net):
            vectors, _ = net.encoder(flatten(batch.graphs))
            boxes = net.box_head(vectors).float().cpu()
    return [tuple(box) for box in boxes[flat.objects].tolist()]


def _of_retrieval(one: Retrieval) -> GraphReasons:
    objects = []
    for thing, (name, box) in enumerate(zip(one.objects, one.boxes, strict=True)):
        shown = one.shown(thing)
        candidates = [
            CandidatePatch(patch=base64_png(found.patch), image=found.image_id, box=in_picture(found.box))
            for found in (one.candidates[thing][place] for place in shown)
        ]
        chosen = [shown.index(place) if place >= 0 else None for place in (each.chosen[thing] for each in one.samples)]
        objects.append(DrawnObject(name=name, box=in_picture(box), candidates=candidates, chosen=chosen))
    return GraphReasons(text=one.words, objects=objects, relations=one.relations)


def graph_of(graphs: Graphs, vocabulary: GraphVocabulary) -> SceneGraph:
    """The first graph, with its objects in their order and without boxes."""
    numbers = graphs.classes[0, : int(graphs.counts[0])].tolist()
    things = tuple(
        SceneObject(place, vocabulary.objects[number - 1], (), NO_BOX) for place, number in enumerate(numbers)
    )
    links = graphs.relations[0, : int(graphs.links[0])].tolist()
    return SceneGraph(things, tuple((first, vocabulary.relationships[word - 1], last) for first, word, last in links))


def labels_of(graph: SceneGraph) -> list[str]:
    """Names as `graph_text` numbers them."""
    said = [end for first, _, last in graph.relationships for end in (first, last)]
    counts: Counter[str] = Counter()
    labels: dict[int, str] = {}
    for place in dict.fromkeys([*said, *range(len(graph.objects))]):
        name = graph.objects[place].name
        counts[name] += 1
        labels[place] = name if counts[name] == 1 else f"{name} {counts[name]}"
    return [labels[place] for place in range(len(graph.objects))]
