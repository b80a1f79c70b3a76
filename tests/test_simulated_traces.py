"""Simulated traces: where the tags say, in the order of the words, the same for the same seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.hulls import spoken_phrases, tagged_phrases
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset, Narrative
from orchestration.data.sources import open_source
from orchestration.narratives.corpus import noisy_labels_stage, open_corpus
from orchestration.narratives.settings import NarrativeSettings
from orchestration.narratives.simulated import POINTS_A_WORD, SECONDS_A_WORD, simulate_traces, simulated, tag_name
from orchestration.narratives.telling import told
from orchestration.stages import quiet
from tests.data_files import refusal
from tests.narrative_support import CLASSES, labelled, quarters, split_of, spoken

SIMULATED = NarrativeSettings(traces="simulated")
TAGGED = Narrative(1, "a cat sits on the grass", (), (), ("cat", "cat", "cat", "grass", "grass", "grass"))
LABELS = np.arange(4).reshape(2, 2).repeat(4, 0).repeat(4, 1)
"""The four classes, one a quarter."""


def drawn(narrative: Narrative, seed: int = 0, image_id: int = 7, place: int = 0) -> Narrative:
    return simulated(narrative, LABELS, CLASSES, seed, image_id, place)


def test_the_mouse_is_where_the_tags_say() -> None:
    found = drawn(TAGGED)
    assert [(said.text, said.start, said.end) for said in found.utterances] == [
        ("a cat sits", 0.0, 3 * SECONDS_A_WORD),
        ("on the grass", 3 * SECONDS_A_WORD, 6 * SECONDS_A_WORD),
    ]
    assert found.caption == TAGGED.caption and found.tags == TAGGED.tags
    cat, grass = spoken_phrases(found)
    assert len(cat.points) == len(grass.points) == 3 * POINTS_A_WORD
    assert (cat.points < 0.5).all() and (grass.points[:, 0] < 0.5).all() and (grass.points[:, 1] > 0.5).all()
    cat, grass = tagged_phrases(found, TAGGED.tags or ())
    assert len(cat.points) == len(grass.points) == 3 * POINTS_A_WORD


@settings(deadline=None, max_examples=60)
@given(
    tags=st.lists(st.sampled_from(["cat", "dog", "grass", "sky-other", "elephant"]), min_size=1, max_size=12),
    pixels=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_point_is_inside_its_tag(tags: list[str], pixels: list[int], seed: int) -> None:
    """A tag that the picture does not show shows nothing; times rise, and are those of the words."""
    labels = np.array(pixels).reshape(3, 4)
    found = simulated(Narrative(1, "w " * len(tags), (), (), tuple(tags)), labels, CLASSES, seed, 7, 0)
    assert len(found.traces) == len(found.utterances)
    for said, trace in zip(found.utterances, found.traces, strict=True):
        tag = tags[round(said.start / SECONDS_A_WORD)]
        shown = tag in CLASSES and (labels == CLASSES.index(tag)).any()
        assert len(trace) == (POINTS_A_WORD * len(said.text.split()) if shown else 0)
        columns, rows = (trace[:, :2] * (4, 3)).astype(int).T
        assert all(labels[row, column] == CLASSES.index(tag) for row, column in zip(rows, columns, strict=True))
        assert (np.diff(trace[:, 2]) > 0).all()
        assert len(trace) == 0 or said.start < trace[0, 2] < trace[-1, 2] < said.end


def test_a_hand_moves_smoothly() -> None:
    """Much less than between points drawn by chance."""
    narrative = Narrative(1, "word " * 10, (), (), ("cat",) * 10)
    labels = np.zeros((50, 50), np.int64)
    points = simulated(narrative, labels, CLASSES, 3, 7, 0).traces[0][:, :2]
    shuffled = np.random.default_rng(0).permutation(points)
    path, random = (np.linalg.norm(np.diff(one, axis=0), axis=1).sum() for one in (points, shuffled))
    assert path < 0.5 * random


def test_seeds() -> None:
    """The same for the same seed, picture and place; another for another of these."""
    first = drawn(TAGGED).traces
    assert all(np.array_equal(one, other) for one, other in zip(first, drawn(TAGGED).traces, strict=True))
    for other in (drawn(TAGGED, seed=1), drawn(TAGGED, image_id=8), drawn(TAGGED, place=1)):
        assert not np.array_equal(first[0], other.traces[0])


def test_a_tag_for_each_word() -> None:
    said = refusal(lambda: drawn(replace(TAGGED, tags=("cat",))))
    assert said == "the narrative has 6 words and 1 tags; give one tag for each word."
    ill = split_of(labelled(5, quarters(), TAGGED, replace(TAGGED, tags=("cat",))))
    said = refusal(lambda: simulate_traces(ill, SIMULATED))
    assert said == "narrative 2 of image 5 has 6 words and 1 tags; give one tag for each word."


def test_only_what_lacks_traces_gets_some() -> None:
    own, bare = spoken(("a cat", "cat")), Narrative(1, "no tags", (), ())
    unlabelled = replace(labelled(8, quarters(), TAGGED), stuff_map=None, stuff=None)
    dataset = told(split_of(labelled(5, quarters(), own, TAGGED, bare), labelled(6, quarters()), unlabelled))
    found = simulate_traces(dataset, SIMULATED)
    kept, drawn_one, still_bare = found.records[0].narratives or ()
    assert kept is own and still_bare is bare
    assert len(drawn_one.traces) == 2 and drawn_one.traces[-1].shape == (9, 3)
    assert [trace.shape for trace in drawn_one.traces[:1]] == [(9, 3)]
    expected = drawn_of(dataset, 0, 1)
    assert all(np.array_equal(one, other) for one, other in zip(drawn_one.traces, expected.traces, strict=True))
    assert drawn_one.utterances == expected.utterances
    assert found.records[1] is dataset.records[1], "without labels nothing can be shown"
    assert "traces" in found.carries and found.name == "tiny, simulated traces"
    assert found.digest != dataset.digest and found.records[0].captions == dataset.records[0].captions


def drawn_of(dataset: Dataset, picture: int, place: int) -> Narrative:
    record, reader = dataset.records[picture], LabelReader(dataset)
    labels, _ = reader.read(record)
    assert record.narratives is not None
    return simulated(record.narratives[place], labels, reader.classes, 0, record.image_id, place)


def test_digests() -> None:
    """Once simulated, the same data set; untouched where nothing is asked for, or wanted."""
    dataset = split_of(labelled(5, quarters(), TAGGED))
    found = simulate_traces(dataset, SIMULATED)
    assert simulate_traces(found, SIMULATED) is found
    assert simulate_traces(dataset, SIMULATED).digest == found.digest
    assert simulate_traces(dataset, SIMULATED.model_copy(update={"seed": 1})).digest != found.digest
    assert simulate_traces(dataset, NarrativeSettings()) is dataset
    spoken_only = split_of(labelled(5, quarters(), spoken(("a cat", "cat"))))
    assert simulate_traces(spoken_only, SIMULATED) is spoken_only


def test_noisy_labels_of_simulated_traces(tmp_path: Path) -> None:
    """They are the tags, where the picture shows them, and none without being asked for."""
    dataset = split_of(labelled(5, quarters(), TAGGED, replace(TAGGED, tags=("elephant",) * 3 + ("grass",) * 3)))
    for chosen, expected in (
        (SIMULATED, [0, 0, 0, 2, 2, 2, -1, -1, -1, 2, 2, 2]),
        (NarrativeSettings(), [-1] * 12),
    ):
        folder = tmp_path / chosen.traces
        folder.mkdir()
        noisy_labels_stage(dataset, CLASSES, chosen, 1).run(folder, quiet)
        assert open_corpus(folder).noisy_labels.tolist() == expected


def test_released_tags(shared_data: Path, tmp_path: Path) -> None:
    """Pictures of COCO with narratives that TReCS released: nearly all words of a tag that is shown get it back."""
    root = shared_data / "coco-mini"
    if not root.is_dir():
        pytest.skip(f"no pictures of COCO at {root}")
    whole = open_source(f"coco:{root}", "val", tmp_path).having({"narratives", "labels"})
    dataset = told(whole)
    classes = LabelReader(dataset).classes
    noisy_labels_stage(dataset, classes, SIMULATED, 1).run(tmp_path, quiet)
    corpus = open_corpus(tmp_path)
    assert len(corpus) >= 20 and corpus.image_ids.tolist() == [
        record.image_id for record in dataset.records for _ in record.narratives or ()
    ]
    numbers = {tag_name(name): number for number, name in enumerate(classes)}
    tags = [narrative.tags or () for record in dataset.records for narrative in record.narratives or ()]
    flat = np.array([numbers[tag] for one in tags for tag in one])
    bags = np.split(corpus.bags, corpus.bag_starts[1:-1])
    shown = np.concatenate([np.isin([numbers[tag] for tag in one], bag) for one, bag in zip(tags, bags, strict=True)])
    assert shown.mean() > 0.9
    assert (corpus.noisy_labels[~shown] == -1).all()
    agreement = (corpus.noisy_labels == flat)[shown].mean()
    print(f"{shown.mean():.2f} of {len(flat)} released tags are shown; {agreement:.2f} of these come back")
    assert agreement > 0.7  # hulls enclose other things too
