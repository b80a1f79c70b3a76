"""AttnGAN's words: how a caption becomes word indices. MirrorGAN and CPGAN use the same.

The rules are those of AttnGAN's released code. Index 0 is `<end>`, which pads and is no word of any caption. There is
no index for an unknown word: it is left out. The published word lists have 5,450 entries for CUB and 27,297 for COCO,
`<end>` included, from train and test captions. Their order was the dictionary order of one machine, so published
weights need the published list (`read_word_list`): a list built anew has as many words and other indices.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Tokens
from orchestration.data.json_files import clause, read_bytes
from orchestration.data.records import Dataset
from orchestration.data.sampler import mix
from orchestration.errors import RequestError
from orchestration.stages import Progress, Stage, write_atomically

END = "<end>"
FILE = "vocabulary.json"
FORMAT = 1
VERSION = 1
_WORD = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    r"""The words of a caption: runs of \w in lower case, characters that are not ASCII dropped from them.

    The released code first replaces U+FFFD U+FFFD, which CUB's captions have for broken quotes, by a space. That is no
    rule of its own: U+FFFD is not \w, so it parts words anyway.
    """
    found = (word.encode("ascii", "ignore").decode() for word in _WORD.findall(text.lower()))
    return tuple(word for word in found if word)


def shortened(ids: NDArray[np.int64], longest: int, draw: int | None = None) -> NDArray[np.int64]:
    """At most `longest` of the words of a caption, in their order.

    `draw` (a random number of 64 bits) chooses which, every subset as likely: so does the released code, at test time
    too. Without it the first words are kept, so that an evaluation is repeatable.
    """
    if len(ids) <= longest:
        return ids
    if draw is None:
        return ids[:longest]
    keys = mix(int(draw), 0, np.arange(len(ids)))
    return ids[np.sort(np.argsort(keys, kind="stable")[:longest])]


@dataclass(frozen=True)
class Vocabulary:
    """Words by index; words[0] is `<end>`. Raises ValueError for a list that is no vocabulary."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words or self.words[0] != END:
            raise ValueError(f"its first entry is not {END!r}")
        if len(self.words) == 1:
            raise ValueError(f"it has no word but {END!r}")
        for place, word in enumerate(self.words):
            if len(word.split()) != 1:
                raise ValueError(f"entry {place}, {word[:80]!r}, is not one word")
        if len(self._index) < len(self.words):
            twice = next(word for place, word in enumerate(self.words) if self._index[word] != place)
            raise ValueError(f"{twice!r} is in it twice")

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of every word in order, and of the rules by which a caption becomes words."""
        return hashlib.sha256(json.dumps([VERSION, *self.words]).encode()).hexdigest()

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of a caption that have no index."""
        return tuple(word for word in words(text) if word not in self._index)

    def encode(self, text: str, longest: int | None = None, draw: int | None = None) -> NDArray[np.int64]:
        """(T,) indices of the known words of a caption, in order, `shortened` to `longest`. T may be 0."""
        ids = np.array([self._index[word] for word in words(text) if word in self._index], np.int64)
        return ids if longest is None else shortened(ids, longest, draw)

    def decode(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The words of indices; padding is left out. Raises IndexError for an index that is too large."""
        return tuple(self.words[index] for index in ids if index)

    def tokens(self, texts: Sequence[str], longest: int | None = None, draws: Iterable[int] | None = None) -> Tokens:
        """B captions, encoded and padded to `longest`, or else to the longest of them; one draw each, or none.

        Raises RequestError for a caption without a known word.
        """
        chosen = [None] * len(texts) if draws is None else list(draws)
        rows = [self.encode(text, longest, draw) for text, draw in zip(texts, chosen, strict=True)]
        for text, row in zip(texts, rows, strict=True):
            if not len(row):
                raise RequestError(
                    f"caption {text[:80]!r} has none of the {len(self) - 1} words of the vocabulary; describe the "
                    "picture in words of the captions that were trained on."
                )
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.zeros((len(rows), longest or int(lengths.max(initial=0))), np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        return Tokens(torch.from_numpy(ids), torch.from_numpy(lengths), self.digest)


def build_vocabulary(
    datasets: Iterable[Dataset], min_count: int = 0, progress: Callable[[int, int], None] | None = None
) -> Vocabulary:
    """Every word that the captions have at least `min_count` times, in the order of their characters.

    The order does not depend on that of the data. The published lists are of the train and test captions with
    min_count 0. Raises RequestError when no word is left.
    """
    counts: Counter[str] = Counter()
    splits = list(datasets)
    total, done = sum(len(split.records) for split in splits), 0
    for split in splits:
        for record in split.records:
            for caption in record.captions or ():
                counts.update(words(caption.text))
            done += 1
            if progress is not None and (done % 1000 == 0 or done == total):
                progress(done, total)
    kept = sorted(word for word, count in counts.items() if count >= min_count)
    if not kept:
        where = ", ".join(f"{split.root} ({split.split})" for split in splits) or "no data"
        fault = f"{min_count} times or more" if counts else "in a-z or 0-9"
        raise RequestError(f"there is no word that the captions of {where} have {fault}; use more captions in English.")
    return Vocabulary((END, *kept))


def vocabulary_stage(datasets: Sequence[Dataset], min_count: int = 0) -> Stage:
    """Builds the vocabulary of the datasets' captions, in any order of them, into `vocabulary.json`."""

    def run(folder: Path, progress: Progress) -> None:
        found = build_vocabulary(datasets, min_count, lambda done, total: progress("vocabulary", done, total))
        save_vocabulary(found, folder / FILE)

    digests = sorted(dataset.digest for dataset in datasets)
    inputs = {f"data {place}": digest for place, digest in enumerate(digests)}
    return Stage("vocabulary", VERSION, {"min_count": min_count}, inputs, run)


def word_list_stage(vocabulary: Vocabulary) -> Stage:
    """Keeps a vocabulary that was given as it is, in `vocabulary.json`."""
    return Stage(
        "vocabulary",
        VERSION,
        {"given": True},
        {"words": vocabulary.digest},
        lambda folder, progress: save_vocabulary(vocabulary, folder / FILE),
    )


def save_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Write it as JSON, whole or not at all."""
    content = {"format": FORMAT, "digest": vocabulary.digest, "words": vocabulary.words}
    write_atomically(path, json.dumps(content, indent=0))


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    digest: str
    words: list[str]


def load_vocabulary(path: Path) -> Vocabulary:
    """What `save_vocabulary` wrote. Raises RequestError when it is missing, broken, of another format or changed."""
    content = _decode(path, _File)
    if content.format != FORMAT:
        raise RequestError(
            f"{path} has vocabulary format {content.format}, and this version reads {FORMAT}; build it again."
        )
    vocabulary = _checked(content.words, path)
    if vocabulary.digest != content.digest:
        raise RequestError(
            f"{path} was changed since it was written, or is of other word rules (it has digest "
            f"{vocabulary.digest[:12]} and says {content.digest[:12]}); build it again."
        )
    return vocabulary


def read_word_list(path: Path) -> Vocabulary:
    """A published word list in its published order, so that published weights fit.

    A text file with one word a line, or JSON: a list of words, or an object from index to word (AttnGAN's `ixtoword`).
    `<end>` is first. Raises RequestError.
    """
    if path.suffix in (".pickle", ".pkl"):
        raise RequestError(
            f"{path} is not opened, because a pickle can run any code; where it is trusted, write its list of words "
            f"from index 0 ({END!r}) on to a text file, one a line, and give that."
        )
    if path.suffix != ".json":
        try:
            text = read_bytes(path).decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"{path} is no word list: byte {error.start} is not UTF-8; save it as UTF-8.") from error
        return _checked(text.replace("\r\n", "\n").removesuffix("\n").split("\n"), path)
    listed = _decode(path, list[str] | dict[int, str])
    if isinstance(listed, dict):
        if sorted(listed) != list(range(len(listed))):
            raise RequestError(f"{path} is no word list: its indices are not 0 to {len(listed) - 1}; mend them.")
        listed = [listed[index] for index in range(len(listed))]
    return _checked(listed, path)


def _decode(path: Path, layout: Any) -> Any:
    content = read_bytes(path)
    try:
        return msgspec.json.decode(content, type=layout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{path} is no vocabulary: {clause(content, error)}; fetch or build it again.") from error


def _checked(listed: Sequence[str], path: Path) -> Vocabulary:
    try:
        return Vocabulary(tuple(listed))
    except ValueError as error:
        raise RequestError(f"{path} is no vocabulary: {error}; fetch or build it again.") from error
