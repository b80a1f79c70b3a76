"""Captions as word indices, by the rules of AttnGAN's released code."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestration.data.records import Caption, Dataset, ImageRecord
from orchestration.data.vocabulary import (
    END,
    FILE,
    Vocabulary,
    build_vocabulary,
    load_vocabulary,
    read_word_list,
    save_vocabulary,
    shortened,
    vocabulary_stage,
    words,
)
from orchestration.errors import RequestError
from orchestration.stages import ensure

quick = settings(deadline=None, max_examples=200)
some_words = st.lists(st.from_regex(r"[a-z0-9_]{1,6}", fullmatch=True), min_size=1, max_size=20, unique=True)
any_bits = st.integers(0, 2**64 - 1)
BIRDS = Vocabulary((END, "a", "bird", "black", "is", "red", "small", "the", "with"))


def dataset(*captions: Sequence[str], split: str = "train", digest: str = "d") -> Dataset:
    """An image for each list of captions."""
    records = tuple(
        ImageRecord(
            image, Path("a.jpg"), 8, 8, captions=tuple(Caption(n, text) for n, text in enumerate(texts)) or None
        )
        for image, texts in enumerate(captions)
    )
    return Dataset("tiny", split, Path("/data"), records, frozenset({"images", "captions"}), digest)


def refusal(call: Callable[[], object]) -> str:
    """The message of the RequestError that `call` must end in: one line, one sentence."""
    with pytest.raises(RequestError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("This bird has a BLACK crown, and a white belly.", "this bird has a black crown and a white belly"),
        ("blue-grey wings; it's 12cm", "blue grey wings it s 12cm"),
        ("the bird\ufffd\ufffds bill is \ufffd\ufffdlong\ufffd\ufffd", "the bird s bill is long"),
        ("one\ufffdtwo", "one two"),
        ("a café, naïve œuvre", "a caf nave uvre"),
        ("größer als 5 µm", "grer als 5 m"),
        ("two_words\tand\nmore", "two_words and more"),
        ("猫が二匹 and a dog", "and a dog"),
        ("a–b", "a b"),
        ("K İ", "k i"),  # the Kelvin sign is a k in lower case, and a dotted capital I is an i
        ("  ", ""),
        ("?!", ""),
    ],
)
def test_words(text: str, wanted: str) -> None:
    assert words(text) == tuple(wanted.split())


@quick
@given(text=st.text())
def test_words_of_words_are_the_same_words(text: str) -> None:
    found = words(text)
    assert words(" ".join(found)) == found
    assert words("\ufffd\ufffd".join(found)) == found
    assert all(word.isascii() and word == word.lower() and word.replace("_", "a").isalnum() for word in found)


@quick
@given(known=some_words, data=st.data())
def test_encoding_and_decoding_is_a_round_trip(known: list[str], data: st.DataObject) -> None:
    vocabulary = Vocabulary((END, *known))
    said = data.draw(st.lists(st.sampled_from(known), max_size=30))
    ids = vocabulary.encode(" ".join(said))
    assert ids.dtype == np.int64 and vocabulary.decode(ids) == tuple(said)
    assert not len(ids) or 0 < ids.min() <= ids.max() < len(vocabulary)
    assert vocabulary.unknown(" ".join(said)) == ()


@quick
@given(text=st.text("abirdlcksw ,.", max_size=40))
def test_unknown_words_are_left_out_and_named(text: str) -> None:
    known = BIRDS.decode(BIRDS.encode(text))
    assert known == tuple(word for word in words(text) if word in BIRDS.words)
    assert sorted(known + BIRDS.unknown(text)) == sorted(words(text))


def test_the_end_and_padding_are_no_words() -> None:
    assert BIRDS.encode(f"a {END} bird").tolist() == [1, 2]  # "end" is a word that is unknown here
    assert BIRDS.decode([1, 0, 2, 0]) == ("a", "bird")


@quick
@given(known=some_words, data=st.data())
def test_the_digest_changes_with_any_word_and_any_order(known: list[str], data: st.DataObject) -> None:
    assume(len(known) > 1)
    digest = Vocabulary((END, *known)).digest
    assert Vocabulary((END, *known)).digest == digest
    one, other = data.draw(st.lists(st.integers(0, len(known) - 1), min_size=2, max_size=2, unique=True))
    swapped = list(known)
    swapped[one], swapped[other] = known[other], known[one]
    renamed = [word + "x" * 7 if place == one else word for place, word in enumerate(known)]
    joined = [known[0] + known[1], *known[2:]]
    assert len({digest, *(Vocabulary((END, *kind)).digest for kind in (swapped, renamed, known[1:], joined))}) == 5


@quick
@given(length=st.integers(0, 12), longest=st.integers(1, 12), draw=any_bits)
def test_a_longer_caption_keeps_a_subset_in_order(length: int, longest: int, draw: int) -> None:
    ids = np.arange(1, length + 1)
    first, drawn = shortened(ids, longest), shortened(ids, longest, draw)
    assert first.tolist() == ids[:longest].tolist()
    assert len(drawn) == min(length, longest) and len(set(drawn)) == len(drawn)
    assert drawn.tolist() == sorted(drawn) and set(drawn) <= set(ids)
    assert (shortened(ids, longest, draw) == drawn).all()


def test_every_subset_is_as_likely() -> None:
    ids, draws = np.arange(5), 6000
    counts = dict.fromkeys(combinations(range(5), 2), 0)
    for draw in range(draws):
        one, other = shortened(ids, 2, draw).tolist()
        counts[one, other] += 1
    expected = draws / len(counts)
    # Chi-squared with 9 degrees of freedom: 27.9 is passed once in a thousand.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 27.9


def test_what_checkpoints_and_runs_rest_on_is_fixed_for_good() -> None:
    """Another digest refuses every old checkpoint; another subset changes every recorded run."""
    assert BIRDS.digest.startswith("5fd0557856f9a0a4")
    assert [shortened(np.arange(9), 4, draw).tolist() for draw in (0, 1, 2**64 - 1)] == [
        [2, 4, 6, 8],
        [2, 5, 7, 8],
        [1, 2, 4, 7],
    ]


def test_encode_shortens_what_is_known() -> None:
    text = "the unknown small bird is red"
    assert BIRDS.encode(text, 2).tolist() == [7, 6]
    known = BIRDS.encode(text)
    assert BIRDS.encode(text, 3, 11).tolist() == shortened(known, 3, 11).tolist()
    assert BIRDS.encode(text, 5, 11).tolist() == known.tolist()


def test_tokens_are_padded_with_zeros() -> None:
    texts = ["a small bird", "a bird", "the red bird is small"]
    tokens = BIRDS.tokens(texts)
    assert tokens.ids.tolist() == [[1, 6, 2, 0, 0], [1, 2, 0, 0, 0], [7, 5, 2, 4, 6]]
    assert tokens.lengths.tolist() == [3, 2, 5] and tokens.vocabulary == BIRDS.digest
    assert str(tokens.ids.dtype) == str(tokens.lengths.dtype) == "torch.int64"
    assert BIRDS.tokens(texts, 7).ids.shape == (3, 7)
    short = BIRDS.tokens(texts, 3, [1, 2, 3])
    assert short.lengths.tolist() == [3, 2, 3]
    assert short.ids[2].tolist() == BIRDS.encode(texts[2], 3, 3).tolist()
    with pytest.raises(ValueError):
        BIRDS.tokens(texts, 3, [1, 2])


@pytest.mark.parametrize("text", ["", "?!", "猫", "purple whale"])
def test_a_caption_without_a_known_word_is_refused(text: str) -> None:
    sentence = refusal(lambda: BIRDS.tokens(["a bird", text]))
    assert f"caption {text!r} has none of the 8 words of the vocabulary" in sentence


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ((), "its first entry is not '<end>'"),
        (("a", END), "its first entry is not '<end>'"),
        ((END,), "no word but '<end>'"),
        ((END, "a", ""), "entry 2, '', is not one word"),
        ((END, "1 a"), "entry 1, '1 a', is not one word"),
        ((END, "a", "b", "a"), "'a' is in it twice"),
        ((END, "a", END), "'<end>' is in it twice"),
    ],
)
def test_lists_that_are_no_vocabulary(tmp_path: Path, listed: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        Vocabulary(listed)
    file = tmp_path / "words.json"
    file.write_text(json.dumps(listed))
    assert wanted in refusal(lambda: read_word_list(file))


def test_every_word_of_all_captions_in_order() -> None:
    train = dataset(["A small bird.", "the Bird is red"], [])
    test = dataset(["a café"], split="test")
    found = build_vocabulary([train, test])
    assert found.words == (END, "a", "bird", "caf", "is", "red", "small", "the")
    assert build_vocabulary([test, train]) == found
    assert build_vocabulary([train, test], min_count=2).words == (END, "a", "bird")
    told: list[tuple[int, int]] = []
    build_vocabulary([train, test], progress=lambda *report: told.append(report))
    assert told == [(3, 3)]


@pytest.mark.parametrize(
    ("captions", "min_count", "wanted"),
    [
        (["猫が二匹", "?"], 0, "no word that the captions of /data (train) have in a-z or 0-9"),
        (["a bird"], 2, "have 2 times or more"),
    ],
)
def test_captions_without_words_are_refused(captions: list[str], min_count: int, wanted: str) -> None:
    assert wanted in refusal(lambda: build_vocabulary([dataset(captions)], min_count))


@quick
@given(captions=st.lists(st.text("abc ", min_size=1), min_size=1, max_size=6))
def test_a_built_vocabulary_knows_its_captions(captions: list[str]) -> None:
    assume(any(words(caption) for caption in captions))
    found = build_vocabulary([dataset(captions)])
    for caption in captions:
        assert found.decode(found.encode(caption)) == words(caption)


def test_the_stage(tmp_path: Path) -> None:
    train, test = dataset(["a bird"], digest="one"), dataset(["red"], split="test", digest="two")
    stage = vocabulary_stage([train, test])
    found = load_vocabulary(ensure(stage, tmp_path) / FILE)
    assert found == build_vocabulary([train, test])
    assert vocabulary_stage([test, train]).key == stage.key
    for other in (
        vocabulary_stage([train]),
        vocabulary_stage([train, replace(test, digest="three")]),
        vocabulary_stage([train, test], min_count=1),
    ):
        assert other.key != stage.key


def test_saved_and_loaded(tmp_path: Path) -> None:
    file = tmp_path / FILE
    save_vocabulary(BIRDS, file)
    assert load_vocabulary(file) == BIRDS
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"bird"', '"fish"', "was changed since it was written"),
        ('"a",\n"bird"', '"bird",\n"a"', "was changed since it was written"),
        ('"red"', '"bird"', "'bird' is in it twice"),
        ('"format": 1', '"format": 2', "has vocabulary format 2, and this version reads 1"),
        ('"digest"', '"sum"', "unknown field `sum`"),
        ('"red"', "7", "words[5]: expected `str`, got `int`"),
        ("]", "", "no vocabulary"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, old: str, new: str, wanted: str) -> None:
    file = tmp_path / FILE
    save_vocabulary(BIRDS, file)
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    assert wanted in refusal(lambda: load_vocabulary(file))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'["<end>", "a"]', b'{"words": '])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert "is no vocabulary" in refusal(lambda: load_vocabulary(tmp_path / FILE))
    assert "cannot be read" in refusal(lambda: load_vocabulary(tmp_path / "absent.json"))


PUBLISHED = ["<end>", "raining", "yellow", "four", "beak"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(PUBLISHED)),
        ("ixtoword.json", json.dumps({str(place): PUBLISHED[place] for place in (3, 0, 4, 2, 1)})),
        ("words.txt", "\n".join(PUBLISHED)),
        ("words.txt", "\r\n".join(PUBLISHED) + "\r\n"),
    ],
)
def test_a_published_list_keeps_its_order(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    found = read_word_list(tmp_path / name)
    assert list(found.words) == PUBLISHED
    assert found.encode("a yellow beak").tolist() == [2, 4]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("captions.pickle", b"cos\nsystem\n(S'false'\ntR.", "is not opened, because a pickle can run any code"),
        ("captions.pkl", b"", "is not opened, because a pickle can run any code"),
        ("words.txt", b"<end>\n\xff\n", "byte 6 is not UTF-8"),
        ("words.txt", b"", "its first entry is not '<end>'"),
        ("words.txt", b"<end>\na\n\nb\n", "entry 2, '', is not one word"),
        ("words.txt", b"0 <end>\n1 a\n", "its first entry is not '<end>'"),
        ("words.json", b'{"0": "<end>", "2": "a"}', "its indices are not 0 to 1"),
        ("words.json", b'{"<end>": 0, "a": 1}', "is no vocabulary"),
        ("words.json", b'["<end>", 7]', "expected `str`, got `int`"),
        ("words.json", b'["<end>"', "cut short"),
    ],
)
def test_a_published_list_that_is_broken_is_refused(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert wanted in refusal(lambda: read_word_list(tmp_path / name))


def test_real_captions(shared_data: Path) -> None:
    captions = json.loads((shared_data / "coco-mini" / "annotations" / "captions_val2017.json").read_text())[
        "annotations"
    ]
    texts = [entry["caption"] for entry in captions]
    found = build_vocabulary([dataset(texts)])
    assert 500 < len(found) < 3000 and {"a", "man", "street"} <= set(found.words)
    tokens = found.tokens(texts, 20)
    assert tokens.ids.shape == (len(texts), 20) and int(tokens.lengths.min()) > 2
