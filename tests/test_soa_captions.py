"""Captions by label: the words that name a label, the released list, and plans of what is drawn."""

import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.detectors.coco import NAMES
from orchestration.data.coco import read_coco
from orchestration.data.features import CaptionIndex, open_caption_index, write_caption_index
from orchestration.errors import RequestError
from orchestration.evaluation.soa_captions import (
    PERSON,
    WORDS,
    CaptionSet,
    Counts,
    captions_by_words,
    labels_of,
    labels_plan,
    matched_to,
    published_captions,
)

Line = dict[str, Any]


def index_of(*images: tuple[str, ...]) -> CaptionIndex:
    """Images 100, 101, ... with these captions."""
    ids = np.arange(100, 100 + len(images))
    starts = np.cumsum([0, *(len(captions) for captions in images)])
    return CaptionIndex(ids, ids, starts, tuple(text for captions in images for text in captions))


def pairs_of(*counts: tuple[str, int]) -> CaptionSet:
    """So many captions of each label, in COCO's order."""
    names = [name for name, count in counts for _ in range(count)]
    labels = np.array([NAMES.index(name) for name in names], np.int64)
    return CaptionSet(tuple(names), labels, np.arange(len(names)), np.arange(len(names)) + 1000, "words")


def line(caption: int = 1, label: int = 1, name: str = "bicycle", text: str = "A bike.") -> Line:
    return {"label": label, "name": name, "idx": [5, 1], "image_id": 40 + caption, "id": caption, "caption": text}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: Line | str, name: str = "captions.jsonl") -> Path:
        text = "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in lines)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def refused(call: Callable[[], object], *said: str) -> None:
    with pytest.raises(RequestError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message, message


class TestWords:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("A man rides a bike.", ["person", "bicycle"]),
            ("A man rides a dirt bike.", ["person", "motorcycle"]),
            ("A dog begs for a hot dog", ["dog", "hot dog"]),
            ("Two HOT-DOGS on a plate", ["hot dog"]),
            ("A bear beside teddy bears", ["bear", "teddy bear"]),
            ("teddy bears", ["teddy bear"]),
            ("A mouse nibbles at a computer mouse", ["mouse"]),
            ("A mouse nibbles", []),
            ("an orange shirt and two oranges", ["orange"]),
            ("Benches, knives and wine glasses", ["bench", "wine glass", "knife"]),
            ("The wind strains at a woven scarf; it struck noon.", []),
            ("a train car and a car", ["car", "train"]),
            ("a microwave oven in a toaster oven", ["microwave", "oven", "toaster"]),
            ("An Apple computer", []),
            ("a snow man with a tie", ["tie"]),
            ("a baseball bat hits the ball", ["sports ball", "baseball bat"]),
            ("", []),
        ],
    )
    def test_what_a_caption_names(self, text: str, names: list[str]) -> None:
        assert sorted(labels_of(text)) == sorted(NAMES.index(name) for name in names)

    def test_every_label_has_words_and_no_other_has(self) -> None:
        named = re.findall(r"^(\w[\w ]*):", WORDS, re.MULTILINE)
        assert named == list(NAMES)
        # By its own name each is named, but for these: fruit and animal need more words, and skis are not alone.
        others = {"mouse": "computer mouse", "orange": "oranges"}
        for label, name in enumerate(NAMES):
            assert label in labels_of(f"There is {others.get(name, name)} here")

    @given(st.text(max_size=60))
    @settings(deadline=None, max_examples=100)
    def test_any_text_can_be_read(self, text: str) -> None:
        # Whatever stands around a thing's name, it is named, and nothing is named twice.
        found = labels_of(f"{text} . giraffe ! {text}")
        assert NAMES.index("giraffe") in found
        assert list(found) == sorted(set(found))

    def test_captions_of_a_split(self) -> None:
        found = captions_by_words(index_of(("A cat on a bed.", "Nothing"), ("Two cats", "A man")))
        assert [NAMES[label] for label in found.labels] == ["person", "cat", "cat", "bed"]
        assert found.texts == ("A man", "A cat on a bed.", "Two cats", "A cat on a bed.")
        assert found.rows.tolist() == [3, 0, 2, 0]
        assert found.image_ids.tolist() == [101, 100, 101, 100]
        assert found.counts[NAMES.index("cat")] == 2
        assert found.counts.sum() == len(found) == 4
        assert len(found.without_captions) == 77
        assert "zebra" in found.without_captions

    def test_a_split_that_names_nothing(self) -> None:
        found = captions_by_words(index_of(("A red circle",), ()))
        assert len(found) == 0
        assert found.without_captions == NAMES
        refused(lambda: labels_plan(found, seed=0), "no caption names any of COCO's 80 things")

    def test_it_finds_what_was_released(self, shared_data: Path) -> None:
        """99.7 % of the released pairs of caption and label; what it finds besides is at a caption's end, or spelled in
        a way that the release passes over, but for 0.4 %."""
        released = published_captions(shared_data / "soa-captions" / "soa_captions.jsonl.gz")
        assert released.without_captions == ("person",)
        by_text: dict[str, set[int]] = {}
        for text, label in zip(released.texts, released.labels.tolist(), strict=True):
            by_text.setdefault(text, set()).add(label)
        found = {text: set(labels_of(text)) - {PERSON} for text in by_text}
        hits = sum(len(found[text] & labels) for text, labels in by_text.items())
        released_pairs = sum(map(len, by_text.values()))
        print(f"of {released_pairs} released pairs {hits} are found ({hits / released_pairs:.4f})")
        assert hits / released_pairs > 0.995
        # Without what the release's search cannot see: a name that no blank follows, and spellings that are ours.
        ours = re.compile(r"(motorcycle|plane|cellphone|cellphones|television|racquet|doughnut)\w* ")
        extra = sum(len(found[text] - labels) for text, labels in by_text.items())
        seen = 0
        for text, labels in by_text.items():
            inner = re.sub(r"\w+(?=\W*$|[^\w ])", "", ours.sub("", text.lower()))
            seen += len((set(labels_of(inner)) - {PERSON}) - labels)
        print(f"besides {extra}, of which {seen} ({seen / released_pairs:.4f}) by a name that a blank follows")
        assert seen / released_pairs < 0.01


class TestPublished:
    def test_captions_come_in_the_order_of_labels(self, write: Callable[..., Path]) -> None:
        lines = [line(7, 79, "toothbrush", "A toothbrush "), line(9), "", line(3), line(3, 4, "plane", "A jet")]
        for name in ("captions.jsonl", "captions.jsonl.gz"):
            found = published_captions(write(*lines, name=name))
            assert found.labels.tolist() == [1, 1, 4, 79]
            assert found.texts == ("A bike.", "A bike.", "A jet", "A toothbrush ")
            assert found.image_ids.tolist() == [43, 49, 43, 47]
            assert found.rows.tolist() == [0, 1, 2, 3]
            assert found.source == "published"
            assert "person" in found.without_captions

    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            ([line(), "{"], "line 2, is no caption of a label"),
            ([line(), {"label": 1}], "missing required field"),
            ([line() | {"label": "1"}], "Expected `int`"),
            (["[]"], "Expected `object`"),
            ([line(1, 80, "eighty")], "line 1, has the unknown label 80; labels are 0 to 79"),
            ([line(1, -1, "minus")], "unknown label -1"),
            ([line(), line(2, 1, "wheel")], "line 2, calls label 1 'wheel', but it was 'bicycle' before"),
            ([line(1, 1, "car")], "calls label 1 'car', but car is label 2; number labels in COCO's order"),
            ([line(1, 2, "Motor Bike")], "motorcycle is label 3"),
            ([line(text="  ")], "line 1, has an empty caption"),
            ([line(), line()], "line 2, lists caption 1 of label 1 (bicycle) a second time"),
            ([], "holds no captions"),
            (["", "  "], "holds no captions"),
        ],
    )
    def test_broken_files(self, write: Callable[..., Path], lines: list[Line | str], said: str) -> None:
        path = write(*lines)
        refused(lambda: published_captions(path), str(path), said)

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        refused(lambda: published_captions(tmp_path / "none.jsonl"), "none.jsonl cannot be read")
        refused(lambda: published_captions(tmp_path), "cannot be read")
        whole = gzip.compress(json.dumps(line()).encode())
        broken = bytearray(whole)
        broken[10:20] = b"\xff" * 10
        for name, content in (("plain", b"text"), ("cut", whole[:-9]), ("broken", bytes(broken))):
            path = tmp_path / f"{name}.gz"
            path.write_bytes(content)
            refused(lambda path=path: published_captions(path), f"{name}.gz cannot be read")  # type: ignore[misc]
        latin = tmp_path / "latin.jsonl"
        latin.write_bytes(json.dumps(line(text="caf@")).encode().replace(b"@", b"\xe9"))
        refused(lambda: published_captions(latin), "line 1, is no caption of a label")

    @given(st.binary(max_size=80))
    @settings(deadline=None, max_examples=100)
    def test_any_bytes_are_refused_in_a_sentence(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.jsonl")
            path.write_bytes(content)
            refused(lambda: published_captions(path), "x.jsonl")


class TestMatched:
    def test_the_same_image_and_words(self, write: Callable[..., Path]) -> None:
        lines = [line(60, text="A bike"), line(61, text="A BIKE! "), line(61, 2, "car", "A bike!"), line(59, text="no")]
        released = published_captions(write(*lines))
        found = matched_to(released, index_of(("a cat", "a bike"), ("a bike.",)))
        assert found.labels.tolist() == [1, 1, 2]
        assert found.rows.tolist() == [1, 2, 2]
        assert found.image_ids.tolist() == [100, 101, 101]
        assert found.texts == ("A bike", "A BIKE! ", "A bike!")
        assert found.source == "published"
        refused(
            lambda: matched_to(released, index_of(("a cat",), ("a dog",))),
            "none of the 4 captions by label is among the 2 of the split",
        )

    def test_real_captions(self, shared_data: Path, tmp_path: Path) -> None:
        released = published_captions(shared_data / "soa-captions" / "soa_captions.jsonl.gz")
        write_caption_index(read_coco(shared_data / "coco-mini", "val"), tmp_path)
        index = open_caption_index(tmp_path)
        found, own = matched_to(released, index), captions_by_words(index)
        pairs = [set(zip(part.rows.tolist(), part.labels.tolist(), strict=True)) for part in (found, own)]
        print(f"{len(found)} released pairs are in coco-mini, {len(own)} by words; {len(pairs[0] & pairs[1])} in both")
        assert len(pairs[0] & pairs[1]) > 0.97 * len(pairs[0])


class TestPlan:
    def test_three_pictures_a_caption_and_one_for_a_person(self) -> None:
        plan = labels_plan(pairs_of(("person", 3), ("cat", 2)), seed=0)
        assert plan.labels.tolist() == [PERSON] * 3 + [NAMES.index("cat")] * 6
        assert plan.pairs.tolist() == [0, 1, 2, 3, 3, 3, 4, 4, 4]
        assert plan.captions.tolist() == [1000, 1001, 1002, 1003, 1003, 1003, 1004, 1004, 1004]
        assert plan.protocol == "words/hinz"

    def test_of_persons_only_so_many_at_random(self) -> None:
        captions = pairs_of(("person", 31_000))
        plan = labels_plan(captions, seed=0)
        assert len(plan) == len(set(plan.pairs.tolist())) == 30_000
        assert not np.array_equal(plan.pairs, np.arange(30_000))

    def test_a_limit_of_captions(self) -> None:
        captions = pairs_of(("person", 9), ("cat", 9), ("vase", 2))
        plan = labels_plan(captions, Counts(limit=4), seed=3)
        assert np.bincount(plan.labels)[[0, 15, 75]].tolist() == [4, 12, 6]
        assert plan.protocol == "words/hinz-limit-4"
        again = labels_plan(captions, Counts(limit=4), seed=3)
        other = labels_plan(captions, Counts(limit=4), seed=4)
        assert np.array_equal(plan.pairs, again.pairs)
        assert not np.array_equal(plan.pairs, other.pairs)
        # What a label gets does not hang on the others.
        alone = labels_plan(pairs_of(("cat", 9)), Counts(limit=4), seed=3)
        assert np.array_equal(plan.pairs[plan.labels == 15] - 9, alone.pairs)

    def test_a_random_sample(self) -> None:
        captions = pairs_of(("person", 40), ("cat", 20))
        plan = labels_plan(captions, Counts(sample=30), seed=1)
        assert len(plan) == len(set(plan.pairs.tolist())) == 30
        assert set(plan.labels.tolist()) == {PERSON, 15}
        assert plan.protocol == "words/random-30"
        refused(lambda: labels_plan(captions, Counts(sample=61), seed=1), "61 captions", "only 60 pairs")

    def test_names_of_counts(self) -> None:
        assert Counts().name == "hinz"
        assert Counts(images=1).name == "hinz-images-1"
        assert Counts(limit=5, images=2, person_captions=7).name == "hinz-limit-5-images-2-person-7"

    @pytest.mark.parametrize("field", ["images", "person_captions", "limit", "sample"])
    def test_counts_below_one(self, field: str) -> None:
        refused(lambda: Counts(**{field: 0}), f"{field} is 0, but must be 1 or more")

    def test_a_limit_and_a_sample(self) -> None:
        refused(lambda: Counts(limit=1, sample=1), "exclude each other")
