"""Noisy labels and HMM tags of a split's narratives: what is stored, what it depends on, and how right it is."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.contract import AdamSettings
from models.encoders.bert import BertSettings
from models.trecs.bert_tagger import BertTaggerConfig
from models.trecs.tagger import TaggerSettings
from orchestration import mapping
from orchestration.data.coco_stuff import LABEL_OF, UNLABELLED
from orchestration.data.hulls import noisy_labels, spoken_phrases
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset, Narrative, Utterance
from orchestration.data.sources import open_source
from orchestration.errors import RequestError
from orchestration.mapping import map_blocks
from orchestration.narratives import corpus as corpus_module
from orchestration.narratives.corpus import ARRAYS, NONE, noisy_labels_stage, open_corpus, word_key
from orchestration.narratives.hmm_tags import (
    FITTED,
    Ensure,
    hmm_stage,
    hmm_tags_stage,
    open_hmm,
    open_tags,
    raw_tags,
)
from orchestration.narratives.settings import NarrativeSettings
from orchestration.narratives.tagged_words import open_tagged_words, tagged_words_stage, tokenizer_stage
from orchestration.narratives.telling import told
from orchestration.stages import Stage, quiet
from tests.data_files import refusal
from tests.narrative_support import (
    CLASSES,
    labelled,
    quarters,
    split_of,
    spoken,
    store_in,
    tagged_by,
    trained,
    without_traces,
)

OWN = NarrativeSettings()
SOME = split_of(
    labelled(5, quarters(), spoken(("In this", None), ("a CAT, sits", "cat"), ("on grass.", "grass"))),
    labelled(6, quarters()),
    labelled(
        9,
        quarters(("dog", "dog", "grass", "grass")),
        spoken(("A dog's", "dog"), ("- grass", "grass")),
        Narrative(2, "no mouse here", (), ()),
    ),
)


def stage_of(dataset: Dataset, **changes: Any) -> Stage:
    return noisy_labels_stage(dataset, CLASSES, OWN.model_copy(update=changes), 1)


def test_a_corpus(tmp_path: Path) -> None:
    """Words, phrases and labels of a narrative; a picture without narratives has none, one without traces no labels."""
    found = open_corpus(store_in(tmp_path)(stage_of(SOME)))
    assert [found.words(place) for place in range(len(found))] == [
        ("In", "this", "a", "CAT,", "sits", "on", "grass."),
        ("A", "dog's", "-", "grass"),
        ("no", "mouse", "here"),
    ]
    assert found.image_ids.tolist() == [5, 9, 9] and found.classes == CLASSES
    assert found.keys == ("a", "cat", "dog's", "grass", "here", "in", "mouse", "no", "on", "sits", "this")
    keys = [found.keys[place] if place >= 0 else None for place in found.key_ids]
    assert keys[:7] == ["in", "this", "a", "cat", "sits", "on", "grass"] and keys[9] is None
    assert found.noisy_labels.tolist() == [-1, -1, 0, 0, 0, 2, 2, 1, 1, 2, 2, -1, -1, -1]
    assert found.phrases.tolist() == [0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 1, 0, 0, 0]
    assert np.split(found.bags, found.bag_starts[1:-1])[0].tolist() == [0, 1, 2, 3]
    assert [bag.tolist() for bag in np.split(found.bags, found.bag_starts[1:-1])[1:]] == [[1, 2], [1, 2]]
    # A large split stays on disk.
    assert all(isinstance(getattr(found, name), np.memmap) for name in ARRAYS)


@pytest.mark.parametrize(
    ("word", "key"), [("Dog's,", "dog's"), ("«T-shirt»", "t-shirt"), ("Straße", "strasse"), ("...", ""), ("_", "")]
)
def test_keys_of_words(word: str, key: str) -> None:
    assert word_key(word) == key


WORDS = st.sampled_from(["a", "Cat.", "cat", "dog,", "-", "naïve", "sky-other", "面"])
points = st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)), max_size=4)


@st.composite
def narratives(draw: st.DrawFn) -> Narrative:
    phrases = draw(st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4), points), min_size=1, max_size=4))
    said = tuple(Utterance(" ".join(words), float(n), n + 0.9) for n, (words, _) in enumerate(phrases))
    traces = tuple(np.array([(x, y, n + 0.5) for x, y in found]).reshape(-1, 3) for n, (_, found) in enumerate(phrases))
    timed = draw(st.booleans())
    caption = " ".join(word for words, _ in phrases for word in words)
    return Narrative(1, caption, said if timed else (), traces if draw(st.booleans()) else ())


maps = st.lists(st.sampled_from([*(LABEL_OF[name] for name in CLASSES), LABEL_OF["car"], UNLABELLED]), min_size=20)


@settings(deadline=None, max_examples=30)
@given(
    told_of=st.lists(st.lists(narratives(), max_size=3), min_size=1, max_size=5),
    pixels=maps,
    block=st.integers(1, 3),
    known_only=st.booleans(),
    elsewhere=st.booleans(),
)
def test_storage_is_faithful(
    told_of: list[list[Narrative]], pixels: list[int], block: int, known_only: bool, elsewhere: bool
) -> None:
    """Whatever the blocks, and whoever computes them: each narrative's labels are those of `noisy_labels`."""
    shown = np.array(pixels[:20], np.uint8).reshape(4, 5)
    dataset = split_of(*(labelled(10 + n, np.roll(shown, n, 1), *each) for n, each in enumerate(told_of)))
    stage = noisy_labels_stage(dataset, CLASSES, NarrativeSettings(known_only=known_only), 2)

    def as_others_do(
        folder: Path,
        count: int,
        size: int,
        make_worker: Any,
        progress: Any,
        workers: int,
        what: str,
        here: Any,
        of: str,
    ) -> list[Path]:
        return map_blocks(folder, count, size, make_worker, progress, 1, what, None if elsewhere else here, of)

    with (
        TemporaryDirectory() as folder,
        patch.object(corpus_module, "BLOCK", block),
        patch.object(mapping, "FEW_JOINED", 0),
        patch.object(mapping, "map_blocks", as_others_do),
    ):
        if not any(told_of):
            assert refusal(lambda: stage.run(Path(folder), quiet)).startswith("no picture of tiny (train) has a narr")
            return
        stage.run(Path(folder), quiet)
        found = open_corpus(Path(folder))
        assert sorted(file.name for file in Path(folder).iterdir()) == sorted(
            ["corpus.json", "keys.json", *(f"{name}.npy" for name in ARRAYS)]
        )
        reader, place = LabelReader(dataset, CLASSES), 0
        for record in dataset.records:
            for each in record.narratives or ():
                labels, _ = reader.read(record)
                own = slice(found.word_starts[place], found.word_starts[place + 1])
                expected = noisy_labels(each, labels, len(CLASSES), known_only=known_only)
                assert found.words(place) == tuple(each.caption.split())
                assert found.noisy_labels[own].tolist() == np.where(expected < len(CLASSES), expected, NONE).tolist()
                bounds = [one.end - one.first for one in spoken_phrases(each)]
                assert found.phrases[own].tolist() == np.repeat(np.arange(len(bounds)), bounds).tolist()
                keys = [found.keys[key] if key >= 0 else "" for key in found.key_ids[own]]
                assert keys == list(map(word_key, each.caption.split()))
                bag = found.bags[found.bag_starts[place] : found.bag_starts[place + 1]].tolist()
                assert bag == sorted(set(labels.ravel().tolist()) - {len(CLASSES)})
                assert found.image_ids[place] == record.image_id
                place += 1
        assert len(found) == place


def test_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrative that is broken stops the stage; after it is mended only its own block is computed."""
    monkeypatch.setattr(corpus_module, "BLOCK", 1)
    looked: list[int] = []
    own_call = corpus_module._Labelling.__call__

    def look(self: Any, items: range) -> Any:
        looked.append(items.start)
        return own_call(self, items)

    monkeypatch.setattr(corpus_module._Labelling, "__call__", look)
    broken = spoken(("a cat", "cat"), ("grass", "grass"))
    broken.traces[1][0, 1] = np.nan
    ill = replace(SOME, records=(*SOME.records[:2], replace(SOME.records[2], narratives=(broken,))))
    said = refusal(lambda: store_in(tmp_path)(stage_of(ill)))
    assert said == ("trace 1 of narrative 1 of image 9 has a point that is no number (point 0); leave that point out.")
    whole = store_in(tmp_path)(stage_of(SOME))
    fresh = store_in(tmp_path / "fresh")(stage_of(SOME))
    assert looked == [0, 1, 2, 2, 0, 1, 2]
    for file in fresh.iterdir():
        assert file.name == "stage.json" or file.read_bytes() == (whole / file.name).read_bytes()


@pytest.mark.parametrize(
    ("narrative", "message"),
    [
        (Narrative(1, " ", (), ()), "narrative 1 of image 7 has no words; write or say what the trace shows."),
        (
            Narrative(1, "a cat", (Utterance("a", 2.0, 3.0), Utterance("cat", 1.0, 4.0)), ()),
            "narrative 1 of image 7: the times run backwards at 'cat', from 2 s to 1 s; give each utterance its start "
            "and end in the order of speech.",
        ),
    ],
)
def test_broken_narratives_are_refused(narrative: Narrative, message: str, tmp_path: Path) -> None:
    assert refusal(lambda: stage_of(split_of(labelled(7, quarters(), narrative))).run(tmp_path, quiet)) == message


def test_odd_traces_are_read(tmp_path: Path) -> None:
    """One point, a line, points outside of the picture, and words without times."""
    place = np.array([[0.25, 0.25, 0.5]])
    odd = [
        Narrative(1, "one point", (Utterance("one point", 0, 1),), (place,)),
        Narrative(1, "a line", (Utterance("a line", 0, 1),), (np.array([[0.6, 0.9, 0.2], [0.9, 0.9, 0.8]]),)),
        Narrative(1, "outside", (Utterance("outside", 0, 1),), (np.array([[1.4, -0.3, 0.5]]),)),
        Narrative(1, "never timed", (), (place,)),
    ]
    stage_of(split_of(labelled(7, quarters(), *odd))).run(tmp_path, quiet)
    assert open_corpus(tmp_path).noisy_labels.tolist() == [0, 0, 3, 3, 1, 0, 0]


def test_a_picture_without_labels_is_refused(tmp_path: Path) -> None:
    record = replace(SOME.records[0], stuff_map=None, stuff=None)
    said = refusal(lambda: stage_of(split_of(record)).run(tmp_path, quiet))
    assert said.startswith("image 5 has no labels: add its COCO-Stuff map")


def test_damaged_corpora_are_refused(tmp_path: Path) -> None:
    stage_of(SOME).run(tmp_path, quiet)
    (tmp_path / "keys.json").write_text("[1")
    assert "keys.json cannot be read" in refusal_of(tmp_path)
    np.save(tmp_path / "bags.npy", np.zeros(3, np.int32))
    (tmp_path / "keys.json").write_text("[]")
    assert "bags.npy has the shape (3,), and by corpus.json it is (B) = (8,)" in refusal_of(tmp_path)
    (tmp_path / "corpus.json").write_text('{"format": 9}')
    assert "corpus.json is of format 9, and this version reads 1" in refusal_of(tmp_path)


def refusal_of(folder: Path) -> str:
    with pytest.raises(RequestError) as caught:
        open_corpus(folder)
    assert str(caught.value).endswith("delete that folder and repeat what wrote it")
    return str(caught.value)


def test_corpus_keys_change_with_what_matters() -> None:
    """Simulated traces change nothing of a split that has its own; the tagger's settings are read later."""
    base = stage_of(SOME).key
    same = [stage_of(SOME, seed=4), stage_of(SOME, tagger=TaggerSettings(iterations=9)), stage_of(SOME, traces="own")]
    other = [stage_of(SOME, min_radius=2.0), stage_of(SOME, known_only=False), stage_of(without_traces(SOME))]
    assert [stage.key for stage in same] == [base] * 3
    assert len({base, *(stage.key for stage in other), noisy_labels_stage(SOME, CLASSES[:3], OWN).key}) == 5
    assert stage_of(SOME).resumable


# The HMM.


class Fitted:
    """Stages over `SOME`."""

    def __init__(self, folder: Path, settings: TaggerSettings | None = None) -> None:
        self.ensure: Ensure = store_in(folder)
        self.settings = settings or TaggerSettings()
        self.corpus = stage_of(SOME)
        self.hmm = hmm_stage(self.corpus, self.ensure, self.settings)
        self.tags = hmm_tags_stage(self.hmm, self.corpus, self.ensure, self.settings)


def test_tags_of_a_split(tmp_path: Path) -> None:
    """Those of the HMM itself, each narrative with its own picture's labels."""
    fitted = Fitted(tmp_path)
    tags, corpus = open_tags(fitted.ensure(fitted.tags)), open_corpus(fitted.ensure(fitted.corpus))
    hmm = open_hmm(fitted.ensure(fitted.hmm), fitted.settings)
    assert len(tags) == 3 and tags.starts.tolist() == corpus.word_starts.tolist()
    bags = [bag.tolist() for bag in np.split(corpus.bags, corpus.bag_starts[1:-1])]
    ours = hmm.tag([corpus.words(place) for place in range(3)], bags)
    assert [tags.take(place).tolist() for place in range(3)] == [one.tolist() for one in ours]
    assert all(set(one.tolist()) <= set(bag) for one, bag in zip(ours, bags, strict=True))
    assert hmm.classes == CLASSES and raw_tags(corpus).take(1).tolist() == [1, 1, 2, 2]


def test_chunks_change_no_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = Fitted(tmp_path)
    whole = open_tags(fitted.ensure(fitted.tags)).tags.tolist()
    monkeypatch.setattr("orchestration.narratives.hmm_tags.CHUNK", 1)
    fitted.tags.run(tmp_path, quiet)
    assert open_tags(tmp_path).tags.tolist() == whole


def test_what_cannot_be_tagged_has_no_tag(tmp_path: Path) -> None:
    """A narrative without a known word, and one of a picture without labels; the others are as they were."""
    fitted = Fitted(tmp_path)
    nothing = np.full((8, 8), UNLABELLED, np.uint8)
    others = split_of(
        labelled(1, quarters(), Narrative(1, "unheard of", (), ()), Narrative(1, "the grass", (), ())),
        labelled(2, nothing, Narrative(1, "a cat", (), ())),
        labelled(3, quarters(("dog",) * 4), Narrative(1, "a dog's -", (), ())),
        split="val",
    )
    asked = hmm_tags_stage(fitted.hmm, stage_of(others), fitted.ensure, fitted.settings)
    tags = open_tags(fitted.ensure(asked))
    assert [tags.take(place).tolist() for place in (0, 2, 3)] == [[-1, -1], [-1, -1], [1, 1, 1]]
    assert (tags.take(1) >= 0).all()


def test_new_narratives_are_tagged(tmp_path: Path) -> None:
    """With all classes; case, punctuation and a word that it does not know are no hindrance."""
    fitted = Fitted(tmp_path, TaggerSettings(transition_power=0.0))
    hmm = open_hmm(fitted.ensure(fitted.hmm), fitted.settings)
    (tags,) = hmm.tag([("Unheard", "CAT!", "grass")])
    assert tags.shape == (3,) and tags.dtype == np.int64 and ((tags >= 0) & (tags < 4)).all()
    assert refusal(lambda: hmm.tag([("grass",), ("unheard", "-")])) == (
        "narrative 2 has no word that the HMM knows; say what the picture shows in words of its training narratives, "
        "or use a BERT tagger."
    )
    assert refusal(lambda: hmm.tag([()])).startswith("narrative 1 has no word that the HMM knows")
    assert refusal(lambda: hmm.tag([("grass",)], [[]])) == (
        "narrative 1 has no label to choose from; give it those of its picture."
    )


def test_an_hmm_without_traces_is_refused(tmp_path: Path) -> None:
    ensure = store_in(tmp_path)
    stage = hmm_stage(stage_of(without_traces(SOME)), ensure, TaggerSettings())
    assert refusal(lambda: ensure(stage)) == (
        "no word of the 3 narratives has a noisy label, and the HMM counts its transitions in those; choose data with "
        "mouse traces, or simulate them with --set narratives.traces=simulated."
    )


CHANGES: dict[str, Any] = {
    "word_weight": "idf",
    "label_weight": "none",
    "label_documents": "bags",
    "idf": "smooth",
    "term_frequency": "count",
    "alignment_words": "tokens",
    "null_word": False,
    "iterations": 6,
    "emission_smoothing": "after",
    "transition_smoothing": "after",
    "add": 0.5,
    "renormalise": False,
    "transition_power": 3.0,
    "within_phrases": False,
    "start": "first",
}


@pytest.mark.parametrize("name", sorted(TaggerSettings.model_fields))
def test_a_setting_is_in_one_key(name: str, tmp_path: Path) -> None:
    """Of the tables where it changes them, of the tags where it is read later; tables are refused with others."""
    base, other = Fitted(tmp_path), Fitted(tmp_path / "other", TaggerSettings(**{name: CHANGES[name]}))
    assert base.tags.key != other.tags.key
    assert (base.hmm.key == other.hmm.key) == (name not in FITTED)
    tables = [
        open_hmm(fitted.ensure(fitted.hmm), fitted.settings).tagger.tables.to_arrays() for fitted in (base, other)
    ]
    if name not in FITTED:
        assert all(np.array_equal(tables[0][array], tables[1][array]) for array in tables[0])
        return
    said = refusal(lambda: open_hmm(base.ensure(base.hmm), other.settings))
    assert said.startswith(f"the HMM in {base.ensure(base.hmm)} was fitted with another {name}: ")
    assert said.endswith("; fit it again, or give it its own.")


def test_a_damaged_hmm_is_refused(tmp_path: Path) -> None:
    fitted = Fitted(tmp_path)
    fitted.hmm.run(tmp_path, quiet)
    (tmp_path / "keys.json").write_text('["a"]')
    with pytest.raises(RequestError, match="cannot be read \\(there are 1 words and 4 classes of other tables\\)"):
        open_hmm(tmp_path, fitted.settings)
    (tmp_path / "tables.safetensors").write_bytes(b"no tables")
    with pytest.raises(RequestError, match="delete that folder and repeat what wrote it"):
        open_hmm(tmp_path, fitted.settings)


# How right each labeler is.

SCENES = "scenes:size=64,train=400,val=100,test=1,things=6,seed=1"
# Emissions are as peaky as a corpus is large: of 400 narratives they yield to transitions long before the power 10.
POWER = 4.0
SCENES_BERT = BertTaggerConfig(
    bert=BertSettings(name="none", width=32, layers=2, heads=2, inner_width=64, pieces=500, positions=64),
    max_pieces=64,
    optimizer=AdamSettings(learning_rate=3e-3, beta_1=0.9, beta_2=0.999),
)


def truths(dataset: Dataset, classes: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each word the class that its utterance ends with, -1 where it names none; and whether the word is of that
    name."""
    truth, names = list[int](), list[bool]()
    for record in dataset.records:
        for narrative in record.narratives or ():
            for said in narrative.utterances:
                words = said.text.rstrip(".").split()
                ends = [len(name.split()) for name in classes]
                found = [n for n, name in enumerate(classes) if words[-ends[n] :] == name.split()]
                length = ends[found[0]] if found else 0
                truth += [found[0] if found else NONE] * len(words)
                names += [False] * (len(words) - length) + [True] * length
    return np.array(truth), np.array(names)


def with_gaps(dataset: Dataset, share: float) -> Dataset:
    """The mouse shows only some of what is said."""
    random = np.random.default_rng(5)
    records = tuple(
        replace(
            record,
            narratives=tuple(
                replace(one, traces=tuple(trace for trace in one.traces if random.random() >= share))
                for one in record.narratives or ()
            ),
        )
        for record in dataset.records
    )
    return replace(dataset, records=records, digest=f"{share:.2f}{dataset.digest[4:]}")


@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_accuracy_of_each_labeler(gaps: float, home: Path, tmp_path: Path) -> None:
    """On held-out scenes, whose truth is known. Counted are the words of names, and all words of the phrases that end
    with one ("a big red car."); a word that a labeler gives no label counts as wrong.

    gaps: the share of phrases that the mouse does not show. In scenes without gaps all that is wrong with raw labels is
    that hulls enclose other things.
    """
    ensure = store_in(tmp_path)
    train, held_out = (with_gaps(told(open_source(SCENES, split, home)), gaps) for split in ("train", "val"))
    classes = LabelReader(train).classes
    settings = TaggerSettings(transition_power=POWER)
    corpora = [noisy_labels_stage(split, classes, OWN, 1) for split in (train, held_out)]
    hmm = hmm_stage(corpora[0], ensure, settings)
    tags = [hmm_tags_stage(hmm, corpus, ensure, settings) for corpus in corpora]
    pieces = tokenizer_stage(corpora[0], ensure, SCENES_BERT.bert, tmp_path)

    def words_of(place: int, taught: Stage | None) -> Any:
        stage = tagged_words_stage(pieces, corpora[place], taught, ensure, 64, SCENES_BERT.excluded, 1)
        return open_tagged_words(ensure(stage))

    found = {
        "raw": open_corpus(ensure(corpora[1])).noisy_labels,
        "hmm": open_tags(ensure(tags[1])).tags,
        "bert_on_raw": tagged_by(trained(words_of(0, None), SCENES_BERT, classes, 250), words_of(1, None)),
        "bert_on_hmm": tagged_by(trained(words_of(0, tags[0]), SCENES_BERT, classes, 250), words_of(1, None)),
    }
    truth, names = truths(held_out, classes)
    of_names = {labeler: float((labels == truth)[names].mean()) for labeler, labels in found.items()}
    of_phrases = {labeler: float((labels == truth)[truth >= 0].mean()) for labeler, labels in found.items()}
    for labeler in found:
        print(f"gaps {gaps:.1f}  {labeler:12} names {of_names[labeler]:.3f}  phrases {of_phrases[labeler]:.3f}")
    assert of_names["raw"] + 0.1 < of_names["bert_on_hmm"] and of_names["bert_on_hmm"] > 0.95
    assert of_names["hmm"] > of_names["raw"] + 0.1
    if gaps:
        assert of_phrases["raw"] + 0.1 < of_phrases["bert_on_hmm"]
