"""The training pictures in the dual encoder's space, and the search for those that fit a narrative best.

TReCS (Koh et al., 2021) section 2.2: the k training pictures that best match the narrative. A folder holds
retrieval_index.json (`About`), embeddings (N,D) float32 and image_ids (N,) int64. Two vectors fit as well as their
inner product says, whatever the dual encoder was trained to compare by.
"""

import hashlib
import json
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.contract import Nets, TextFeatures
from models.encoders.image import WeightsMissing
from models.encoders.trunk import RANDOM
from models.parts import PART, part_settings
from models.trecs.dual_encoder import IMAGE, TEXT, DualEncoder, DualEncoderConfig, TextTower
from orchestration.data.array_files import map_arrays, read_about
from orchestration.data.batches import CaptionedPictures
from orchestration.data.vector_search import IndexSettings, ProductIndex
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, map_blocks
from orchestration.narratives.composed import Found
from orchestration.stages import Progress, Stage, file_sha256, short_hash, write_atomically

VERSION = 1
FORMAT = 1
ABOUT = "retrieval_index.json"
BLOCK = 256  # pictures between two files
BATCH = 32  # pictures that are encoded at once
ARRAYS: Mapping[str, tuple[str, str]] = {"embeddings": ("float32", "N,D"), "image_ids": ("int64", "N")}
"""Type and shape of each array."""
_AGAIN = "delete that folder and repeat what wrote it"

EXACT = IndexSettings(index="exact")
"""How it is searched unless it is told: all is found, nothing is copied into memory, and many narratives at once are
searched faster than by faiss's flat index."""

ReadTexts = Callable[[Sequence[str]], TextFeatures]
"""A frozen text encoder, such as `models.encoders.text.TextEncoder`."""


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What retrieval_index.json says.

    data: digest of the pictures' data; encoder: digest of the dual encoder; dim: D; pictures: N; settings: the
    `IndexSettings` that it is searched with, unless others are asked for.
    """

    format: int
    data: str
    encoder: str
    dim: int
    pictures: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class OpenedDualEncoder:
    """A trained dual encoder in a part's folder, whose nets are opened when they are first needed, frozen."""

    folder: Path
    config: DualEncoderConfig
    device: str = "cpu"

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of its settings and both towers' files."""
        files = [file_sha256(self.folder / f"{name}.safetensors") for name in (TEXT, IMAGE)]
        return hashlib.sha256(json.dumps([self.config.model_dump(mode="json"), files]).encode()).hexdigest()

    @cached_property
    def text_nets(self) -> Nets:
        """What reads narratives: it needs no net of pictures."""
        return {TEXT: self._loaded(TextTower(self.config), TEXT)}

    @cached_property
    def image_nets(self) -> Nets:
        """What looks at pictures. Raises RequestError where it needs a pretrained net that is not here."""
        config = self.config
        if config.fine_tuned:  # its weights are in the tower's file, and the pretrained ones need not be here
            config = config.model_copy(update={"trunk": config.trunk.model_copy(update={"weights": RANDOM})})
        try:
            nets = DualEncoder().build(config)
        except WeightsMissing as error:
            raise RequestError(f"the dual encoder in {self.folder}: {error}") from error
        nets[IMAGE] = self._loaded(nets[IMAGE], IMAGE)
        return {name: net.to(self.device).eval() for name, net in nets.items() if name != TEXT}

    def texts(self, text: TextFeatures) -> NDArray[np.float32]:
        """(B,D) of B narratives. Raises RequestError for features of another width than it was trained on."""
        if text.words.shape[2] != self.config.text_dim:
            raise RequestError(
                f"the dual encoder in {self.folder} reads text features of {self.config.text_dim} numbers, and these "
                f"have {text.words.shape[2]}: choose the text encoder that it was trained with"
            )
        moved = TextFeatures(*(part.to(self.device) for part in (text.words, text.lengths, text.sentence)))
        return _numbers(DualEncoder().embed_captions(self.text_nets, moved))

    def pictures(self, images: Tensor) -> NDArray[np.float32]:
        """(B,D) of pictures (B,3,H,W) in [-1, 1]."""
        return _numbers(DualEncoder().embed_images(self.image_nets, images.to(self.device)))

    def _loaded(self, net: nn.Module, name: str) -> nn.Module:
        try:
            net.load_state_dict(load_file(self.folder / f"{name}.safetensors"))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(
                f"{self.folder / f'{name}.safetensors'} is not the net that {PART} describes ({reason}): restore that "
                "folder, or train the dual encoder again"
            ) from error
        return net.requires_grad_(False).to(self.device).eval()


def _numbers(vectors: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = vectors.float().cpu().numpy()
    return found


def open_dual_encoder(folder: Path, device: str = "cpu") -> OpenedDualEncoder:
    """The dual encoder in a trained part's folder. Raises RequestError where it is not that of such a part."""
    try:
        config = part_settings(folder, DualEncoder.name, DualEncoderConfig)
        missing = [name for name in (TEXT, IMAGE) if not (folder / f"{name}.safetensors").is_file()]
        if missing:
            raise ValueError(f"{missing[0]}.safetensors is missing")
    except ValueError as error:
        raise RequestError(
            f"{folder} does not hold a dual encoder ({error}): restore that folder, or train it again"
        ) from error
    return OpenedDualEncoder(folder, config, device)


class OpenSplit(Protocol):
    """Opens a prepared split in any process."""

    def open(self) -> CaptionedPictures: ...


class PictureSource(Protocol):
    """A split's pictures as a dual encoder sees them; what is said of a picture does not depend on the others."""

    @property
    def encoder(self) -> str:
        """Digest of the dual encoder."""
        ...

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(N,)"""
        ...

    def __call__(self, items: range) -> NDArray[np.float32]:
        """(len(items),D): the embeddings of some pictures."""
        ...


OpenPictures = Callable[[], PictureSource]
"""Opens a source in any process: a class or function of a module, or a `partial` of one."""


class EncodedPictures:
    """The whole pictures of a prepared split through the dual encoder in a part's folder: a `PictureSource`."""

    def __init__(self, split: OpenSplit, folder: Path, device: str = "cpu") -> None:
        self.data, self.dual = split.open(), open_dual_encoder(folder, device)

    @property
    def encoder(self) -> str:
        return self.dual.digest

    @property
    def image_ids(self) -> NDArray[np.int64]:
        return self.data.image_ids

    def __call__(self, items: range) -> NDArray[np.float32]:
        found = []
        for start in range(items.start, items.stop, BATCH):
            some = np.arange(start, min(start + BATCH, items.stop), dtype=np.int64)
            found.append(self.dual.pictures(self.data.pictures.transform.normalise(self.data.pixels(some))))
        return np.concatenate(found)


def retrieval_index_stage(
    inputs: Mapping[str, str],
    data: str,
    source: Callable[[], OpenPictures],
    settings: IndexSettings | None = None,
    processes: Callable[[], int | None] = lambda: 1,
) -> Stage:
    """The stage that writes what `Retriever.open` reads.

    inputs: what the pictures and the dual encoder depend on; data: digest of the pictures' data; source, processes:
    asked when it runs, once the dual encoder is trained, for how pictures are opened and for `map_blocks`' workers.
    `run` raises as `write_retrieval_index` does.
    """
    chosen = settings or EXACT

    def run(folder: Path, progress: Progress) -> None:
        write_retrieval_index(folder, source(), data, chosen, progress, processes())

    told = chosen.model_dump(mode="json")
    return Stage("retrieval-index", VERSION, told, {"data": data, **inputs}, run, resumable=True)


class _Encoding:
    """Pictures of a block to their embeddings."""

    def __init__(self, source: PictureSource) -> None:
        self.source = source

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        embeddings, image_ids = self.source(items), self.source.image_ids[items.start : items.stop]
        broken = np.flatnonzero(~np.isfinite(embeddings).all(1))
        if len(broken):
            raise RequestError(
                f"the dual encoder {self.source.encoder[:12]} gives NaN or infinity for image {image_ids[broken[0]]}: "
                "train it anew, with a lower learning rate"
            )
        return {"embeddings": embeddings.astype(np.float32), "image_ids": image_ids.astype(np.int64)}


def _open_encoding(open_pictures: OpenPictures, encoder: str) -> _Encoding:
    """In another process, where the weights may be other ones."""
    source = open_pictures()
    if source.encoder != encoder:
        raise RequestError(
            f"the dual encoder on {socket.gethostname()} is not the one that the command was started with: put the "
            "same weights on every machine"
        )
    return _Encoding(source)


def write_retrieval_index(
    folder: Path,
    open_pictures: OpenPictures,
    data: str,
    settings: IndexSettings,
    progress: Progress,
    workers: int | None = 1,
) -> None:
    """Embed all pictures of a source; repeated after a kill, it goes on.

    data: digest of the pictures' data; workers: as `map_blocks`' says. Raises RequestError for embeddings that are no
    numbers and without pictures, RunError for what fails in another process.
    """
    for left_over in folder.glob(".*.npy-*"):  # of a killed process
        left_over.unlink()
    source, blocks = open_pictures(), folder / "blocks"
    count, identity = len(source.image_ids), short_hash([VERSION, data, source.encoder])
    elsewhere, here = partial(_open_encoding, open_pictures, source.encoder), partial(_Encoding, source)
    files = map_blocks(blocks, count, BLOCK, elsewhere, progress, workers, "retrieval index", here, identity)
    if not files:
        raise RequestError("there are no pictures to retrieve: choose a split that has some")
    for name in ARRAYS:
        join_blocks(files, name, folder / f"{name}.npy")
    dim = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False).shape[1]
    about = About(FORMAT, data, source.encoder, dim, count, settings.model_dump(mode="json"))
    write_atomically(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about)))
    shutil.rmtree(blocks)


class Retriever:
    """Finds the pictures that fit narratives best."""

    def __init__(
        self,
        index: ProductIndex,
        image_ids: NDArray[np.int64],
        embed: Callable[[Sequence[str]], NDArray[np.float32]],
        places: NDArray[np.int64] | None = None,
    ) -> None:
        """image_ids: (N,) of the index's vectors, each once; embed: B narratives to (B,D); places: (N,) what is told
        of each vector, none: its own place."""
        self.index, self.image_ids, self.embed = index, image_ids, embed
        self.places = np.arange(len(index)) if places is None else places
        self._rows = {image_id: row for row, image_id in enumerate(image_ids.tolist())}

    @classmethod
    def open(
        cls,
        index_folder: Path,
        encoder_folder: Path,
        text_encoder: ReadTexts,
        device: str = "cpu",
        settings: IndexSettings | None = None,
        of: NDArray[np.int64] | None = None,
    ) -> "Retriever":
        """What the stage wrote, for narratives that the dual encoder in a folder reads.

        settings: how it is searched, instead of those that it was written with. of: (M,) image ids, such as the mask
        bank's: only these pictures are found, and places are those among them. Raises RequestError for what cannot be
        read, for an index of another encoder, and where it has none of these pictures.
        """
        about = read_about(index_folder / ABOUT, About, FORMAT, "a retrieval index", _AGAIN)
        arrays = map_arrays(index_folder, ARRAYS, {"N": about.pictures, "D": about.dim}, ABOUT, _AGAIN)
        dual = open_dual_encoder(encoder_folder, device)
        if dual.digest != about.encoder:
            raise RequestError(
                f"{index_folder} is an index of another encoder: its pictures were embedded by the dual encoder "
                f"{about.encoder[:12]}, and {encoder_folder} holds {dual.digest[:12]}; build the index with this one"
            )
        try:
            chosen = settings or IndexSettings.model_validate(about.settings)
        except ValueError as error:
            raise RequestError(f"{index_folder / ABOUT} has settings that cannot be: {_AGAIN}") from error
        embeddings, image_ids, places = arrays["embeddings"], np.array(arrays["image_ids"]), None
        if of is not None and not np.array_equal(of, image_ids):
            there, rows, places = np.intersect1d(image_ids, of, return_indices=True)
            if not len(there):
                raise RequestError(
                    f"none of the {len(of)} pictures that masks are taken from is in {index_folder}: build both of one "
                    "split"
                )
            order = np.argsort(places)
            embeddings, image_ids, places = embeddings[rows[order]], image_ids[rows[order]], places[order]
        # One by one: in a larger batch numbers may be rounded otherwise, and another picture be the nearest.
        embed = lambda texts: np.concatenate([dual.texts(text_encoder([text])) for text in texts])  # noqa: E731
        return cls(ProductIndex(embeddings, chosen), image_ids, embed, places)

    def __len__(self) -> int:
        return len(self.index)

    def search(self, texts: Sequence[str], k: int, not_image_ids: Sequence[int] | None = None) -> list[list[Found]]:
        """The k pictures that fit each narrative best, the best first; all where there are fewer. Of those that fit as
        well, the one at the lower place.

        not_image_ids: for each narrative a picture that is passed over, such as its own. Raises RequestError for k
        below 1 and for a narrative whose embedding is no number.
        """
        if not texts:
            return []
        passed = None
        if not_image_ids is not None:
            passed = np.array([self._rows.get(image_id, -1) for image_id in not_image_ids], np.int64)
        rows, scores = self.index.search(self.embed(texts), min(k, len(self)), passed)
        return [
            [
                Found(int(self.places[row]), int(self.image_ids[row]), score)
                for row, score in zip(own, fits, strict=True)
                if row >= 0
            ]
            for own, fits in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
