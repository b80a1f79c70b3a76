"""Word pieces, the tagged words of a split as they are stored, and how a trained tagger tags new narratives."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from models.contract import Batch
from models.encoders.bert import own_tokenizer
from models.parts import PART
from models.trecs.bert_tagger import NET, BertTagger
from orchestration.errors import RequestError
from orchestration.narratives import tagged_words as tagged_words_module
from orchestration.narratives import tagging as tagging_module
from orchestration.narratives.corpus import noisy_labels_stage
from orchestration.narratives.settings import NarrativeSettings
from orchestration.narratives.tagged_words import (
    MARKS,
    TOKENIZER,
    StoredTaggedWords,
    cut,
    open_tagged_words,
    tagged_words_stage,
    tokenizer_stage,
    windows,
)
from orchestration.narratives.tagging import open_tagger
from orchestration.stages import quiet
from orchestration.training.state import LABELS
from tests.data_files import refusal
from tests.narrative_support import (
    BERT,
    CLASSES,
    SHORT,
    SMALL,
    TOKENS,
    WORDS,
    bert_at,
    bert_copy,
    built,
    labelled,
    quarters,
    saved_bert,
    split_of,
    spoken,
    store_in,
    stored_pieces,
    stored_words,
    tagged_by,
)

# Word pieces.


def test_own_word_pieces() -> None:
    """Whole words where they are frequent enough, else letters; the same whatever the order of the words."""
    again = own_tokenizer(dict(sorted(WORDS.items(), reverse=True)), BERT.pieces)
    assert again.to_str() == TOKENS.to_str() and TOKENS.get_vocab_size() <= BERT.pieces
    (found,) = cut(TOKENS, [["Grass,", "cats", "面", "\u200d", "big"]], 20)
    assert [TOKENS.id_to_token(piece) for piece in found.ids] == ["grass", ",", "cat", "##s", "[UNK]", "big"]
    assert found.sizes.tolist() == [2, 2, 1, 0, 1]
    (short,) = cut(TOKENS, [["-" * 30, "cat"]], 5)
    assert short.sizes.tolist() == [5, 1] and len(short.ids) == 6
    assert own_tokenizer(WORDS, 10).get_vocab_size() == 10


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=40), longest=st.integers(6, 15))
def test_windows_cover_all_words(sizes: list[int], longest: int) -> None:
    """Whole words in stretches that fit, each as long as can be; each begins within the one before or at its end."""
    counts = np.array(sizes)
    found = windows(counts, longest)
    assert found[0][0] == 0 and found[-1][1] == len(sizes)
    for first, end in found:
        assert first < end and counts[first:end].sum() <= longest
        assert end == len(sizes) or counts[first : end + 1].sum() > longest
    for (first, end), (after, last) in pairwise(found):
        assert first < after <= end < last


SPLIT = split_of(
    labelled(5, quarters(), spoken(("In this", None), ("a big cat,", "cat"), ("on green grass.", "grass"))),
    labelled(9, quarters(("dog", "other", "grass", "grass")[:1] * 4), spoken(("A dog", "dog"), ("and grass", "dog"))),
)


def test_tagged_words_of_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks; each word's label at its first piece; batches are padded to a multiple of some pieces."""
    ensure = store_in(tmp_path)
    corpus = noisy_labels_stage(SPLIT, CLASSES, NarrativeSettings(), 1)
    pieces = tokenizer_stage(corpus, ensure, BERT, tmp_path)
    monkeypatch.setattr(tagged_words_module, "BLOCK", 1)
    folder = ensure(tagged_words_stage(pieces, corpus, None, ensure, 32, (), 1))
    stored = open_tagged_words(folder)
    assert sorted(file.name for file in folder.iterdir() if file.suffix != ".npy") == [
        "stage.json",
        "tagged_words.json",
    ]
    tokenizer = published_file(ensure(pieces) / TOKENIZER)
    words = [["In", "this", "a", "big", "cat,", "on", "green", "grass."], ["A", "dog", "and", "grass"]]
    expected = stored_pieces(tokenizer, words, [[-1, -1, 0, 0, 0, 2, 2, 2], [1, 1, 1, 1]], 32)
    for name in ("pieces", "first", "labels", "starts"):
        assert getattr(stored, name).tolist() == getattr(expected, name).tolist(), name
    assert len(stored) == 2 and stored.longest == 12
    batch = stored.take(np.array([1, 0, 1]))
    assert batch.pieces.shape == (3, 12) and batch.counts.tolist() == [6, 12, 6]
    assert batch.pieces[0, 6:].eq(0).all() and batch.labels[0, 6:].eq(-1).all() and not batch.first[0, 6:].any()
    assert [stored_of(count, longest) for count, longest in ((5, 40), (17, 40), (33, 40), (40, 40))] == [16, 32, 40, 40]


def stored_of(count: int, longest: int) -> int:
    stored = StoredTaggedWords(
        np.zeros(count, np.int32), np.zeros(count, bool), np.zeros(count, np.int32), np.array([0, count]), longest
    )
    return stored.take(np.array([0])).pieces.shape[1]


def published_file(file: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def test_long_narratives_and_excluded_classes(tmp_path: Path) -> None:
    """Whole words are kept, and no label of an excluded class."""
    ensure = store_in(tmp_path)
    corpus = noisy_labels_stage(SPLIT, CLASSES, NarrativeSettings(), 1)
    pieces = tokenizer_stage(corpus, ensure, BERT, tmp_path)
    short = open_tagged_words(ensure(tagged_words_stage(pieces, corpus, None, ensure, 7, ("grass",), 1)))
    assert short.longest == 6 and np.diff(short.starts).tolist() == [6, 6], "the fifth word would be cut in two"
    assert short.labels[short.first].tolist() == [-1, -1, 0, 0, 1, 1, 1, 1]
    whole = open_tagged_words(ensure(tagged_words_stage(pieces, corpus, None, ensure, 32, ("grass",), 1)))
    assert whole.labels[whole.first].tolist() == [-1, -1, 0, 0, 0, -1, -1, -1, 1, 1, 1, 1]


def test_keys_of_tagged_words(tmp_path: Path) -> None:
    ensure = store_in(tmp_path)
    corpus, other = (noisy_labels_stage(SPLIT, names, NarrativeSettings()) for names in (CLASSES, CLASSES[:3]))
    pieces = tokenizer_stage(corpus, ensure, BERT, tmp_path)

    def key(**changes: Any) -> str:
        asked: dict[str, Any] = {"tokenizer": pieces, "corpus": corpus, "tags": None, "ensure": ensure}
        asked |= {"max_pieces": 32, "excluded": ("a", "b"), "processes": 1}
        return tagged_words_stage(**(asked | changes)).key

    fewer = tokenizer_stage(corpus, ensure, BERT.model_copy(update={"pieces": 60}), tmp_path)
    changes: list[dict[str, Any]] = [
        {"corpus": other},
        {"tags": other},
        {"max_pieces": 31},
        {"excluded": ()},
        {"tokenizer": fewer},
    ]
    assert len({key(), *(key(**change) for change in changes)}) == 6
    assert key(processes=4) == key(excluded=("b", "a")) == key()
    same = tokenizer_stage(corpus, ensure, BERT.model_copy(update={"layers": 1}), tmp_path)
    assert same.key == pieces.key


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_bert(tmp_path_factory.mktemp("bert"))


def test_the_tokenizer_of_a_published_bert(bert: Path, tmp_path: Path) -> None:
    """Its key is that of what it is, wherever it lies; one with more pieces than the net is refused."""
    ensure = store_in(tmp_path / "stages")
    corpus = noisy_labels_stage(SPLIT, CLASSES, NarrativeSettings())
    stage = tokenizer_stage(corpus, ensure, bert_at(bert), tmp_path)
    (tmp_path / "copy").mkdir()
    assert tokenizer_stage(corpus, ensure, bert_at(bert_copy(bert, tmp_path / "copy")), tmp_path).key == stage.key
    assert published_file(ensure(stage) / TOKENIZER).get_vocab() == TOKENS.get_vocab()
    with pytest.raises(RequestError, match="has 114 word pieces, and bert.pieces is 60: set bert.pieces=114"):
        tokenizer_stage(corpus, ensure, bert_at(bert, pieces=60), tmp_path)
    with pytest.raises(RequestError, match="bert.name: there is no folder"):
        tokenizer_stage(corpus, ensure, bert_at(bert / "gone"), tmp_path)


def test_damaged_tagged_words_are_refused(tmp_path: Path) -> None:
    ensure = store_in(tmp_path)
    corpus = noisy_labels_stage(SPLIT, CLASSES, NarrativeSettings(), 1)
    pieces = tokenizer_stage(corpus, ensure, BERT, tmp_path)
    (tmp_path / "words").mkdir()
    tagged_words_stage(pieces, corpus, None, ensure, 32, (), 1).run(tmp_path / "words", quiet)
    np.save(tmp_path / "words" / "first.npy", np.zeros(3, bool))
    with pytest.raises(RequestError, match="first.npy has the shape .* delete that folder and repeat what wrote it"):
        open_tagged_words(tmp_path / "words")
    (tmp_path / "words" / "labels.npy").unlink()
    with pytest.raises(RequestError, match="labels.npy is missing"):
        open_tagged_words(tmp_path / "words")


# New narratives.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """That of a trained part, as its stage leaves it."""
    save_file(built().state_dict(), tmp_path / f"{NET}.safetensors")
    described = {"system": "bert_tagger", "model": SMALL.model_dump(mode="json")}
    (tmp_path / PART).write_text(json.dumps(described))
    (tmp_path / TOKENIZER).write_text(TOKENS.to_str())
    (tmp_path / LABELS).write_text(json.dumps({"classes": CLASSES}))
    return tmp_path


def test_new_narratives_are_tagged_as_in_training(folder: Path) -> None:
    """Each by itself or all at once; a word without pieces has the tag of the one before it."""
    tagger = open_tagger(folder)
    assert tagger.classes == CLASSES and not tagger.net.training
    found = tagger.tag(SHORT)
    stored = stored_words(SHORT[:1] + SHORT[2:], [[0] * 3, [0] * 6])
    assert np.concatenate([found[0], found[2]]).tolist() == tagged_by({NET: built()}, stored).tolist()
    for words, tags in zip(SHORT, found, strict=True):
        assert tagger.tag([words])[0].tolist() == tags.tolist()
        assert tags.shape == (len(words),) and tags.dtype == np.int64 and (tags >= 0).all()
    assert found[1][1] == found[1][0]
    assert tagger.tag([["\u200d", "cat"]])[0].tolist() == tagger.tag([["cat"]])[0].tolist() * 2


def test_long_narratives_are_tagged_in_stretches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 words; each has its tag from the stretch in which it is farthest from where it is cut."""
    tagger = open_tagger(folder)
    draw = np.random.default_rng(0)
    words = draw.choice(sorted(WORDS), 500).tolist()
    words[7] = "-" * 200 + "cat"
    (found,) = tagger.tag([words])
    assert found.shape == (500,) and (found >= 0).all()
    (one,) = cut(TOKENS, [words], SMALL.max_pieces - MARKS)
    stretches = windows(one.sizes, SMALL.max_pieces - MARKS)
    assert len(stretches) > 20
    places = []
    for place in range(500):
        depths = []
        for first, end in stretches:
            if first <= place < end:
                left = one.sizes[first:place].sum() if first else np.inf
                right = one.sizes[place + 1 : end].sum() if end < 500 else np.inf
                depths.append((min(left, right), -first))
        places.append(1 + one.sizes[-max(depths)[1] : place].sum())
    monkeypatch.setattr(tagging_module, "BATCH", 1)
    assert tagger.tag([words, SHORT[0]])[0].tolist() == found.tolist()

    def place_in_its_stretch(part: BertTagger, nets: Any, batch: Batch) -> Tensor:
        assert batch.tagged is not None
        return torch.arange(batch.tagged.pieces.shape[1])[None]

    monkeypatch.setattr(BertTagger, "tag", place_in_its_stretch)
    assert tagger.tag([words])[0].tolist() == places


@pytest.mark.parametrize("words", [[], ["-", "...", "_"]])
def test_nothing_to_tag(folder: Path, words: list[str]) -> None:
    assert refusal(lambda: open_tagger(folder).tag([["cat"], words])) == (
        "narrative 2 has no word with a letter or digit; write or say what the picture shows."
    )


def test_excluded_classes_stay_excluded(folder: Path) -> None:
    names = ("background", "dog", "other", "cat")
    net = built(names=names)
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([90.0, 0.0, 50.0, 1.0]))
    save_file(net.state_dict(), folder / f"{NET}.safetensors")
    (folder / LABELS).write_text(json.dumps({"classes": names}))
    assert {tag for tags in open_tagger(folder).tag(SHORT) for tag in tags.tolist()} <= {1, 3}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (PART, '{"system": "damsm", "model": {}}', "it is of the part damsm"),
        (PART, None, "No such file"),
        (TOKENIZER, "{", "tokenizer.json cannot be read"),
        (LABELS, '{"classes": ["cat"]}', "size mismatch for head.weight"),
        (LABELS, None, "the names of labels in .* cannot be read"),
        (f"{NET}.safetensors", "", "the tagger in .* cannot be read .*restore the folder, or train the part again"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, file: str, content: str | None, message: str) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(RequestError, match=message) as caught:
        open_tagger(folder)
    assert "\n" not in str(caught.value)
