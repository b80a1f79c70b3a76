"""What tests of the endpoint share: a backend of three models without any network, and a real server in a thread."""

import asyncio
import base64
import hashlib
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray

from orchestration.data.graph_text import graph_text, read_graph
from orchestration.data.records import SceneGraph
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.errors import RequestError
from orchestration.narratives.narrative_text import EXAMPLE, read_narrative
from orchestration.serving.backend import IN_WORDS, Job, Painted, kinds_in_words
from orchestration.serving.pictures import encode_png, image_id, picture_metadata
from orchestration.serving.replies import (
    CandidatePatch,
    DataLineage,
    DrawnObject,
    Edges,
    GraphReasons,
    GraphWords,
    LegendEntry,
    Lineage,
    Mentioned,
    ModelIdentity,
    ModelsReply,
    NarrativeReasons,
    PromptReasons,
    ReadWord,
    Reasons,
    RetrievedPicture,
    ServedModel,
    TaggedWord,
)
from orchestration.serving.requests import ServeError

VOCABULARY = GraphVocabulary(
    ("sheep", "tree", "grass", "sky", "traffic light"), (), ("left of", "right of", "above", "below", "on")
)
CLASSES = {"dog": "#4060c0", "grass": "#40a040", "sky": "#a0c0f0", "tree": "#206020"}
UNKNOWN_WORDS = frozenset({"xyzzy", "日本"})
"""Words that the fake's "painter" says it does not know."""


def identity(name: str, version: str) -> ModelIdentity:
    """Of a fake model; another version is another checkpoint."""
    return ModelIdentity(
        name=name, version=version, checkpoint_digest=hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    )


MODELS: Mapping[str, ServedModel] = {
    "painter": ServedModel(
        **identity("painter", "3").model_dump(),
        system="xmcgan",
        recipe="tiny-xmcgan",
        resolution=64,
        accepts=["prompt"],
        truncation=True,
        examples={"prompt": "a red boat on the sea"},
        aliases=["champion"],
        warm=["2"],
    ),
    "teller": ServedModel(
        **identity("teller", "1").model_dump(),
        system="trecs",
        recipe="tiny-trecs",
        resolution=64,
        accepts=["narrative", "prompt"],
        truncation=False,
        examples={"narrative": EXAMPLE, "prompt": "a dog on grass"},
        aliases=["champion"],
    ),
    "grapher": ServedModel(
        **identity("grapher", "2").model_dump(),
        system="retrievegan",
        recipe="tiny-retrievegan",
        resolution=64,
        accepts=["graph"],
        truncation=True,
        examples={"graph": "sheep left of tree and sky above tree"},
        graph=GraphWords(objects=list(VOCABULARY.objects), relations=list(VOCABULARY.relationships)),
        aliases=["champion"],
        note="version 3 was refused since its files were altered: register it again",
    ),
}
DEFAULT = {"prompt": "painter", "narrative": "teller", "graph": "grapher"}


class FakeBackend:
    """Draws coloured squares that are a function of model, text, seed and truncation, as a real one would draw.

    jobs: all that reached it. failure: raised by every drawing; wait_s: before each; empty: whether nothing is served
    yet; side: of the pictures, in pixels.
    """

    def __init__(
        self, failure: Exception | None = None, wait_s: float = 0.0, empty: bool = False, side: int = 16
    ) -> None:
        self.failure, self.wait_s, self.empty, self.side = failure, wait_s, empty, side
        self.jobs: list[Job] = []
        self.unfinished = 0
        self._issued: dict[str, ModelIdentity] = {}

    async def paint(self, job: Job) -> Painted:
        """See `Backend`. Raises unknown_model, wrong_input, wrong_field (truncation) and wrong_prompt."""
        self.jobs.append(job)
        self.unfinished += 1
        try:
            await asyncio.sleep(self.wait_s)
        finally:
            self.unfinished -= 1
        if self.failure:
            raise self.failure
        model = self._model(job)
        graph = _check_text(job)
        name = identity(model.name, model.version)
        ids = [image_id(name.checkpoint_digest, job.kind, job.text, seed, job.truncation) for seed in job.seeds]
        self._issued.update(dict.fromkeys(ids, name))
        pictures = []
        for seed, image in zip(job.seeds, ids, strict=True):
            pixels = colours(f"{name.checkpoint_digest} {job.truncation} {seed} {job.text}", self.side)
            told = picture_metadata(job.kind, job.text, seed, job.truncation, name, image)
            pictures.append(encode_png(pixels, told))
        reasons = _reasons(job, graph) if job.explain else None
        return Painted(name, pictures, ids, reasons, batched=len(pictures), seconds=0.001)

    async def models(self) -> ModelsReply:
        """See `Backend`."""
        if self.empty:
            return ModelsReply(models=[], default={})
        return ModelsReply(models=list(MODELS.values()), default=DEFAULT)

    async def lineage(self, image: str) -> Lineage:
        """See `Backend`; only of pictures that this backend drew."""
        if image not in self._issued:
            raise ServeError("unknown_image", "no picture of this server has this id: copy it from a reply")
        model = self._issued[image]
        served = MODELS[model.name]
        return Lineage(
            image=image,
            model=model.name,
            versions=[int(model.version)],
            champion=model.version == served.version,
            checkpoint_digest=model.checkpoint_digest,
            system=served.system,
            recipe=served.recipe,
            experiment="0123456789abcdef" * 4,
            images_seen=12_800,
            data=DataLineage(source="scenes:64", digest="fe" * 32),
            text_digest="ab" * 32,
            run="7d" * 16,
            run_name="quiet-run",
            campaign="sweep-1",
            trial="4",
            figures={"fid/efficientnet-lite0": 31.25},
            history=[f"version {model.version} became champion"],
        )

    def _model(self, job: Job) -> ServedModel:
        if self.empty:
            raise ServeError("not_ready", "no model is loaded yet: repeat in a moment", {"Retry-After": "1"})
        name, _, version = (job.model or DEFAULT[job.kind]).partition("@")
        model = MODELS.get(name)
        if model is None or version not in ("", "champion", model.version, *model.warm):
            raise ServeError("unknown_model", "there is no such model: GET /v1/models lists those that draw")
        if job.kind not in model.accepts:
            raise ServeError(
                "wrong_input", f"{name} draws {kinds_in_words(model.accepts)} and not {IN_WORDS[job.kind]}: send that"
            )
        if job.truncation is not None and not model.truncation:
            raise ServeError("wrong_field", f"{name} draws without a latent: leave truncation out", field="truncation")
        return model if version in ("", "champion") else model.model_copy(update={"version": version})


def colours(key: str, side: int) -> NDArray[np.uint8]:
    """(side,side,3) squares of colours that are a function of the key."""
    digest = np.frombuffer(hashlib.sha256(key.encode("utf-8", "replace")).digest() * 2, np.uint8)
    squares = digest[:48].reshape(4, 4, 3)
    return np.kron(squares, np.ones((-(-side // 4), -(-side // 4), 1), np.uint8))[:side, :side]


@contextmanager
def serve_in_thread(app: Any) -> Iterator[str]:
    """The base URL of the application behind a real server on a free loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def _check_text(job: Job) -> SceneGraph | None:
    try:
        if job.kind == "graph":
            return read_graph(job.text, VOCABULARY)
        if job.kind == "narrative":
            read_narrative(job.text)
    except RequestError as error:
        raise ServeError("wrong_prompt", str(error)) from None
    return None


def _reasons(job: Job, graph: SceneGraph | None) -> Reasons:
    if graph is not None:
        return _graph_reasons(graph, job.seeds)
    if job.kind == "narrative":
        return _narrative_reasons(job.text)
    words = [ReadWord(word=word, known=word not in UNKNOWN_WORDS) for word in job.text.split()]
    return PromptReasons(words=words)


def _narrative_reasons(text: str) -> NarrativeReasons:
    narrative = read_narrative(text)
    names = list(CLASSES)
    tagged = []
    for word in narrative.caption.split():
        plain = re.sub(r"\W", "", word.lower())
        known = plain if plain in CLASSES else names[len(plain) % len(names)]
        tagged.append(TaggedWord(word=word, tag=known))
    mentions, first = [], 0
    for tag, run in groupby(tagged, key=lambda each: each.tag):
        words = [each.word for each in run]
        thing = tag == "dog"
        traced = bool(narrative.traces)
        mentions.append(
            Mentioned(
                words=" ".join(words),
                first=first,
                end=first + len(words),
                tag=tag,
                thing=thing,
                image=100 + first if thing and traced else None,
                iou=0.5 if thing and traced else None,
                why="the best fit of 3 masks" if thing and traced else "no trace says where it is",
                mask=_drawn(f"mask {tag}") if thing and traced else None,
                hull=_drawn(f"hull {tag}") if traced else None,
            )
        )
        first += len(words)
    used = {each.tag for each in tagged}
    return NarrativeReasons(
        words=tagged,
        mentions=mentions,
        retrieved=[RetrievedPicture(image=100 + place, score=0.9 - place / 10) for place in range(3)],
        stuff=100,
        stuff_fit=0.4 if narrative.traces else None,
        canvas=_drawn("canvas " + text),
        legend=[LegendEntry(label=tag, colour=colour) for tag, colour in CLASSES.items() if tag in used],
    )


def _graph_reasons(graph: SceneGraph, seeds: Sequence[int]) -> GraphReasons:
    said: dict[str, int] = {}
    objects = []
    for place, thing in enumerate(graph.objects):
        said[thing.name] = said.get(thing.name, 0) + 1
        name = thing.name if said[thing.name] == 1 else f"{thing.name} {said[thing.name]}"
        x, y, width, height = thing.box
        box: Edges = (x, y, x + width, y + height) if width else (0.1 * (place % 6), 0.2, 0.1 * (place % 6) + 0.3, 0.6)
        candidates = [
            CandidatePatch(patch=_drawn(f"{thing.name} {k}"), image=200 + k, box=(0.1, 0.1, 0.5, 0.5)) for k in range(3)
        ]
        chosen: list[int | None] = [(seed + place) % 3 for seed in seeds]
        objects.append(DrawnObject(name=name, box=box, candidates=candidates, chosen=chosen))
    return GraphReasons(text=graph_text(graph, VOCABULARY), objects=objects, relations=list(graph.relationships))


def _drawn(key: str) -> str:
    return base64.b64encode(encode_png(colours(key, 32), {})).decode()
