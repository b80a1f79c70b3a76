"""The sheet of a narrative: its words, trace, masks, label map and pictures, in one colour a mention."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.trecs.config import TReCSConfig
from orchestration.data import lettering, panels
from orchestration.data.lettering import FINE, INK, PAPER, QUIET, SMALL, TEXT, Colour, Word
from orchestration.data.overlays import colour_of
from orchestration.narratives import drawing
from orchestration.narratives.composed import Composed, Found
from orchestration.narratives.composer import NOT_IN_BANK, NOT_IN_STUFF, NOT_RETRIEVED, NOT_SHOWN, Composer
from orchestration.narratives.drawing import PICTURE, RETRIEVED, Shown, narrative_sheet
from orchestration.narratives.regions import UNKNOWN, class_colour, mixed
from tests.composing_support import Told, bank_of, narrative, silent

CLASSES = ("cat", "dog", "grass", "sky", "sand")
CAT, DOG, GRASS, SKY, SAND, NONE = range(6)
S = 32
GREY, GREEN = (90, 90, 90), (10, 200, 30)
SAID = narrative(
    ("a cat", [(0.2, 0.3), (0.4, 0.6)]),
    ("on grass", [(0.1, 0.9), (0.9, 0.7), (0.5, 0.9)]),
    ("and", [(0.5, 0.5), (0.6, 0.1)]),
    ("a cat", [(0.7, 0.7), (0.9, 0.9)]),
    ("a dog", [(0.3, 0.1)]),
    ("some sand", [(0.7, 0.2)]),
    ("that cat", []),
)
TAGS = np.array([CAT, CAT, GRASS, GRASS, NONE, CAT, CAT, DOG, DOG, SAND, SAND, CAT, CAT])


def plain(colour: Colour, wide: int = 16, high: int = 16) -> NDArray[np.uint8]:
    return np.full((high, wide, 3), colour, np.uint8)


def count_of(page: Image.Image | NDArray[np.uint8], colour: Colour) -> int:
    return int((np.asarray(page) == np.array(colour, np.uint8)).all(2).sum())


def bank(count: int) -> Any:
    """Pictures with sky over grass and a cat, which is elsewhere in every second one."""
    labels, instances = np.full((S, S), GRASS), np.zeros((S, S), np.int64)
    labels[:16] = SKY
    maps = []
    for place in range(count):
        cat = (slice(4, 20), slice(4, 14)) if place % 2 else (slice(20, 30), slice(20, 30))
        pair = labels.copy(), instances.copy()
        pair[0][cat], pair[1][cat] = CAT, 1
        maps.append(pair)
    return bank_of(maps, CLASSES, (False, False, True, True, True))


def composed(said: Any = SAID, count: int = 3, tags: NDArray[np.int64] = TAGS) -> Composed:
    found = bank(count)
    (one,) = Composer(found, Told(found), TReCSConfig(resolution=32, k=max(count, 1))).compose([said], [tags])
    return one


def shown(one: Composed | None = None, **changes: Any) -> Shown:
    made = one or composed()
    photographs = {found.image_id: plain(GREY) for found in made.retrieved}
    return replace(Shown(made, CLASSES, np.stack([plain(GREEN)] * 2), (4, 5), photographs), **changes)


def nothing_found(one: Composed) -> Composed:
    unknown = np.full((S, S), NONE)
    mentions = tuple(replace(each, choice=None, why=NOT_RETRIEVED) for each in one.mentions)
    canvas = replace(one.canvas, labels=unknown, instances=np.zeros_like(unknown), stuff=unknown)
    return replace(one, mentions=mentions, retrieved=(), stuff=None, stuff_fit=0.0, canvas=canvas)


def test_the_mentions_that_the_tests_draw() -> None:
    whys = [each.why for each in composed().mentions]
    assert whys == ["", "", "", NOT_IN_BANK, NOT_IN_STUFF, NOT_SHOWN]


class TestWords:
    def test_in_the_colour_of_their_mention_pale_where_it_is_not_drawn(self) -> None:
        page = drawing._words(shown(), 1000)
        for place, each in enumerate(shown().composed.mentions):
            ground = lettering.line_height(SMALL) * lettering.width_of(f"{place + 1}", SMALL)
            assert count_of(page, mixed(colour_of(place), 0.25)) > ground
            assert (count_of(page, mixed(colour_of(place), 0.3)) > ground) == bool(each.why)

    def test_a_mention_that_goes_on_in_the_next_line_is_numbered_there(self) -> None:
        one = shown(composed(narrative(("a very big cat", [(0.5, 0.5)])), tags=np.full(4, CAT)))
        placed = drawing._placed(one, round(lettering.width_of("a very big ")))
        assert [(word.line, word.tag, word.joined) for word in placed] == [
            (0, "1 cat", False),
            (0, "", True),
            (0, "", True),
            (1, "1", False),
        ]

    @settings(deadline=None, max_examples=40)
    @given(data=st.data(), width=st.integers(100, 900))
    def test_neither_words_nor_tags_meet(self, data: st.DataObject, width: int) -> None:
        words = data.draw(
            st.lists(st.sampled_from(["a", "and", "cat", "something", "w" * 90]), min_size=1, max_size=60)
        )
        tags = np.array(data.draw(st.lists(st.integers(0, NONE), min_size=len(words), max_size=len(words))))
        one = shown(
            composed(narrative((" ".join(words), [(0.5, 0.5)])), tags=tags), classes=("long " * 9, *CLASSES[1:])
        )
        placed = drawing._placed(one, width)
        assert len(placed) == len(words)
        for line in range(placed[-1].line + 1):
            row = [word for word in placed if word.line == line]
            spans = [(word.left, word.right) for word in row]
            named = [(word.left, word.left + drawing._tag_width(word.tag)) for word in row if word.tag]
            for ends in (spans, named):
                assert all(0 <= left < right <= width + 1 for left, right in ends)
                assert all(before[1] <= after[0] for before, after in pairwise(ends))
        starts = {each.phrase.first for each in one.composed.mentions}
        assert starts <= {place for place, word in enumerate(placed) if word.tag}


class TestTrace:
    def test_every_part_has_the_colour_of_what_is_told_meanwhile(self) -> None:
        page = Image.new("RGB", (200, 200), PAPER)
        drawing._draw_traces(page, shown())
        for x, y, colour in ((0.3, 0.45, colour_of(0)), (0.5, 0.8, colour_of(1)), (0.55, 0.3, QUIET)):
            assert page.getpixel((round(x * 199), round(y * 199))) == colour
        assert count_of(page, colour_of(5)) == 0

    def test_points_outside_are_at_the_edge(self) -> None:
        page = Image.new("RGB", (100, 100), PAPER)
        drawing._draw_traces(page, shown(composed(narrative(("a", [(0.0, -5.0), (9.0, 1.0)])), tags=np.array([CAT]))))
        assert page.getpixel((50, 50)) == colour_of(0)
        assert count_of(page, colour_of(0)) > 90 * drawing.LINE

    def test_a_stroke_goes_on_from_one_mention_to_the_next(self) -> None:
        page = Image.new("RGB", (100, 100), PAPER)
        stroke = np.array([[0.1, 0.1, 0.5], [0.1, 0.9, 0.9], [0.9, 0.9, 1.5]])
        drawing._draw_traces(page, shown(composed(replace(SAID, traces=[stroke]))))
        assert (page.getpixel((10, 50)), page.getpixel((50, 89))) == (colour_of(0), colour_of(1))

    def test_hulls_are_outlined(self) -> None:
        hull = np.zeros((8, 16), np.bool_)
        hull[2:5, 3:9] = True
        corners = drawing._outline(hull, (32, 32))
        assert set(corners) == {(6, 8), (18, 8), (18, 20), (6, 20)}
        assert drawing._outline(np.zeros((8, 16), np.bool_), (32, 32)) == []
        panel = drawing._trace(shown())
        drawn = [count_of(panel, colour_of(place)) > 200 for place in range(6)]
        assert drawn == [True] * 5 + [False]  # the last has no trace

    def test_over_the_photograph_in_its_shape(self) -> None:
        over, empty = (drawing._trace(shown(photograph=own)) for own in (plain(GREY, 40, 20), None))
        assert empty.height - over.height == drawing.TRACE // 2
        faded = round(0.4 * GREY[0] + 0.6 * 255)
        assert count_of(over, (faded, faded, faded)) > 1000

    def test_a_narrative_without_times_is_grey(self) -> None:
        page = Image.new("RGB", (100, 100), PAPER)
        drawing._draw_traces(page, shown(composed(replace(SAID, utterances=()))))
        assert count_of(page, QUIET) > 100 and not any(count_of(page, colour_of(place)) for place in range(6))


class TestRetrieved:
    def test_masks_are_outlined_where_they_were_taken(self) -> None:
        one = shown()
        choices = [each.choice for each in one.composed.mentions]
        assert [choice and choice.picture for choice in choices] == [1, None, 0, None, None, None]
        first, second, third = (drawing._retrieved_panel(one, place) for place in range(3))
        marked = [[count_of(page, colour_of(place)) > 100 for place in (0, 2)] for page in (first, second, third)]
        assert marked == [[False, True], [True, False], [False, False]]

    def test_a_mask_is_tinted_inside_and_untouched_outside(self) -> None:
        page = Image.fromarray(plain(GREY, 64, 64))
        mask = np.zeros((16, 16), np.bool_)
        mask[4:12, 4:12] = True
        drawing._paint(page, mask, GREEN)
        inside, outside = page.getpixel((32, 32)), page.getpixel((16 - drawing.LINE - 1, 32))
        assert inside not in (GREY, GREEN) and outside == GREY
        assert page.getpixel((16, 32)) == GREEN and page.getpixel((16 - drawing.LINE, 32)) == PAPER

    def test_the_picture_of_the_stuff_is_framed(self) -> None:
        one = shown()
        framed = [count_of(drawing._retrieved_panel(one, place), INK) > 4 * PICTURE for place in range(3)]
        assert framed == [place == one.composed.stuff for place in range(3)]

    def test_many_are_left_out_but_for_those_that_are_used(self) -> None:
        one = composed(count=RETRIEVED + 5)
        assert len(drawing._retrieved(shown(one))) == RETRIEVED + 1
        used = replace(one, stuff=RETRIEVED + 2)
        assert len(drawing._retrieved(shown(used))) == RETRIEVED + 2
        cat = one.mentions[0]
        assert cat.choice is not None
        further = replace(cat, choice=replace(cat.choice, picture=RETRIEVED + 3))
        assert len(drawing._retrieved(shown(replace(used, mentions=(further, *used.mentions[1:]))))) == RETRIEVED + 3
        assert len(drawing._retrieved(shown(composed(count=2)))) == 2

    def test_without_its_picture_the_masks_are_shown(self) -> None:
        bare = drawing._retrieved_panel(shown(photographs={}), 1)
        assert count_of(bare, GREY) < 50 and count_of(bare, colour_of(0)) > 100

    def test_how_well_masks_fit_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        monkeypatch.setattr(
            drawing, "panel", lambda title, page, below=(): told.extend([title, *(w.text for w in below)])
        )
        one = shown().composed
        assert one.stuff == 1 and one.mentions[0].choice is not None
        drawing._retrieved_panel(shown(), 1)
        assert told[:2] == ["2. image 101   score -1", f"1 cat  IoU {one.mentions[0].choice.iou:.2f}"]
        assert told[2] == f"stuff, mean IoU {one.stuff_fit:.2f}" and one.stuff_fit > 0.05
        told.clear()
        drawing._retrieved_panel(shown(composed(silent(SAID))), 0)
        assert told[1:] == ["1 cat  the largest", "3 cat  the largest", "6 cat  the largest", "stuff"]


class TestMaps:
    def test_stuff_has_the_colour_of_its_mention_and_things_that_of_theirs(self) -> None:
        one = shown()
        stuff, things, whole = drawing._maps(one)
        sky = class_colour(one.composed, SKY, CLASSES)
        seen = [
            [count_of(page, each) > 100 for each in (colour_of(0), colour_of(2), colour_of(1), sky)]
            for page in (stuff, things, whole)
        ]
        assert seen == [[False, False, True, True], [True, True, False, False], [True, True, True, True]]
        assert sky not in [colour_of(place) for place in range(6)]

    def test_pasted_things_are_numbered_as_they_are_mentioned(self) -> None:
        labels, second = np.full((S, S), GRASS), np.zeros((S, S), np.int64)
        second[8:24, 8:24] = 2
        page = drawing._map_panel(shown(), "", labels, second, bare=False)
        assert (count_of(page, colour_of(0)), count_of(page, colour_of(2)) > PICTURE**2 / 8) == (0, True)

    def test_what_nobody_knows(self) -> None:
        stuff, things, whole = drawing._maps(shown(nothing_found(composed())))
        assert count_of(stuff, UNKNOWN) > 0.8 * PICTURE**2 < count_of(whole, UNKNOWN)
        assert count_of(things, UNKNOWN) < 50
        assert class_colour(composed(), NONE, CLASSES) == UNKNOWN

    def test_small_regions_are_named_below(self, monkeypatch: pytest.MonkeyPatch) -> None:
        below: list[Word] = []
        monkeypatch.setattr(drawing, "panel", lambda title, page, words=(): below.extend(words))
        labels = np.full((S, S), SKY)
        labels[0, :3] = DOG
        drawing._map_panel(shown(), "", labels, np.zeros_like(labels))
        assert [word.text for word in below] == ["4 dog"]

    def test_every_mention_of_a_kind_of_stuff_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        named: list[str] = []

        def tag(page: Image.Image, text: str, *rest: Any) -> bool:
            named.append(text)
            return True

        monkeypatch.setattr(lettering, "tag", tag)
        said = narrative(("grass", [(0.5, 0.9)]), ("and", []), ("grass", [(0.2, 0.9)]))
        one = shown(composed(said, tags=np.array([GRASS, NONE, GRASS])))
        drawing._map_panel(one, "", one.composed.canvas.stuff, np.zeros((S, S), np.int64))
        assert sorted(named) == ["1,2 grass", "sky"]

    def test_names_stand_inside_of_their_regions(self) -> None:
        region = np.zeros((10, 10), np.bool_)
        region[:, 8:] = True
        left, top = drawing._spots(region, (100, 100), 10.0)[0]
        assert left + 5 in (85, 95) and 20 < top < 60


class TestSheet:
    def test_what_is_not_drawn_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[Word] = []
        monkeypatch.setattr(drawing, "text_block", lambda words, *rest: told.extend(words))
        drawing._left_out(shown())
        assert [word.text for word in told] == [
            "not drawn:",
            f"4 dog: {NOT_IN_BANK}",
            f"5 sand: {NOT_IN_STUFF}",
            f"6 cat: {NOT_SHOWN}",
        ]
        assert [word.square for word in told[1:]] == [colour_of(place) for place in (3, 4, 5)]

    def test_pictures_and_the_own_photograph_are_there(self) -> None:
        side = PICTURE // FINE
        sheet = narrative_sheet("title", "about", [shown()])
        assert sheet.dtype == np.uint8 and sheet.ndim == 3
        assert count_of(sheet, GREEN) == 2 * side**2
        own = shown(photograph=plain((200, 10, 10)), labels=np.full((S, S), SAND), image_id=7)
        told = narrative_sheet("title", "about", [own])
        assert count_of(told, (200, 10, 10)) == side**2
        assert count_of(told, colour_of(4)) > 0.8 * side**2 > count_of(sheet, colour_of(4))

    def test_steps_are_headed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        headings: list[str] = []

        def section(heading: str, *rest: Any) -> Image.Image:
            headings.append(heading)
            return panels.section(heading, *rest)

        monkeypatch.setattr(drawing, "section", section)
        narrative_sheet("title", "about", [shown(image_id=7, photograph=plain(GREY), simulated=True)])
        assert headings == [
            "1  narrative of image 7, by what its words mention",
            "2  simulated mouse trace and hulls",
            "3  retrieved pictures, best first, and masks taken",
            "4  label map, put together",
            "5  drawn from it",
            "what it tells of",
        ]
        headings.clear()
        narrative_sheet(
            "title", "about", [shown(composed(silent(SAID)), pictures=np.zeros((0, 8, 8, 3), np.uint8), seeds=())]
        )
        assert headings[1] == "2  no mouse trace" and len(headings) == 4

    def test_several_narratives_are_below_each_other(self) -> None:
        one, two = (narrative_sheet("title", "about", [shown()] * count) for count in (1, 2))
        assert two.shape[1] == one.shape[1] and two.shape[0] > 1.6 * one.shape[0]

    @pytest.mark.parametrize("words", [1, 200])
    def test_odd_narratives(self, words: int) -> None:
        """Of one word and of many, of no mention, with nothing found, many mentions and long names."""
        rng = np.random.default_rng(words)
        said = narrative((" ".join(["word", "w" * 400, *["and"] * words][:words]), [(0.1, 0.1), (0.9, 0.8)]))
        silence = composed(said, tags=np.full(words, NONE))
        many = composed(said, tags=rng.integers(0, NONE + 1, words))
        narrow = shown(
            many,
            classes=[name * 30 for name in CLASSES],
            photographs={},
            pictures=np.stack([plain(GREEN, 8, 24)] * 9),
            seeds=range(9),
        )
        sheets = [
            narrative_sheet("", "", [each])
            for each in (shown(silence), shown(many), narrow, shown(nothing_found(many)))
        ]
        assert len({sheet.shape[1] for sheet in sheets}) == 1
        assert count_of(sheets[2], GREEN) > 0.9 * 9 * (PICTURE // FINE) ** 2 / 3

    def test_neighbouring_mentions_differ_in_colour(self) -> None:
        for place in range(40):
            apart = np.abs(np.subtract(colour_of(place), colour_of(place + 1))).sum()
            assert apart > 100

    def test_a_found_picture_may_be_named_twice(self) -> None:
        one = composed()
        again = replace(one, retrieved=(*one.retrieved, Found(0, 100, 0.5)))
        assert narrative_sheet("", "", [shown(again)]).size


class TestPanels:
    @settings(deadline=None, max_examples=60)
    @given(text=st.text(max_size=60), width=st.integers(20, 400))
    def test_texts_are_cut_to_fit(self, text: str, width: int) -> None:
        cut = panels.fitted(text, width, TEXT)
        if lettering.width_of(text, TEXT) <= width:
            assert cut == text
        else:
            assert cut.endswith("…") and text.startswith(cut[:-1])
            assert lettering.width_of(cut, TEXT) <= width or cut == "…"

    def test_rows_are_broken(self) -> None:
        part = Image.new("RGB", (100, 10))
        assert panels.row([part] * 3, 5, 310).size == (310, 10)
        assert panels.row([part] * 3, 5, 309).size == (205, 20 + panels.GAP)
        assert panels.row([part], 5, 50).size == (100, 10)

    def test_small_pictures_keep_their_pixels(self) -> None:
        picture = Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8))
        large = panels.enlarged(picture, 100)
        assert large.size == (100, 50) and len(large.getcolors() or ()) == 2
        assert panels.enlarged(large, 20).size == (20, 10)
