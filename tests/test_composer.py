"""Label maps composed of narratives: what is drawn, where, and what is said of what is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.trecs.config import TReCSConfig
from orchestration.data.composition import choose_stuff
from orchestration.data.label_maps import LabelReader
from orchestration.data.mask_choice import centred, picture_masks
from orchestration.data.records import Dataset, Narrative, Utterance
from orchestration.errors import RequestError
from orchestration.narratives.composed import Composed, Found
from orchestration.narratives.composer import (
    NOT_IN_BANK,
    NOT_IN_STUFF,
    NOT_RETRIEVED,
    NOT_SHOWN,
    Composer,
    best_stuff,
    largest_mask,
    most_stuff,
)
from orchestration.narratives.mask_bank import MaskBank, write_mask_bank
from orchestration.stages import quiet
from tests.composing_support import Told, bank_of, narrative, scenes, silent, true_tags
from tests.data_files import refusal

CLASSES = ("cat", "dog", "bird", "grass", "sky", "other")
CAT, DOG, BIRD, GRASS, SKY, OTHER, NONE = range(7)
STUFF = (False, False, False, True, True, True)
S = 32
Map = NDArray[np.int64]


def picture(*things: tuple[int, slice, slice], sky: int = 16, under: int = GRASS) -> tuple[Map, Map]:
    """Sky over grass, with things: class, rows and columns, numbered from 1."""
    labels, instances = np.full((S, S), under), np.zeros((S, S), np.int64)
    labels[:sky] = SKY
    for number, (label, rows, columns) in enumerate(things, 1):
        labels[rows, columns], instances[rows, columns] = label, number
    return labels, instances


def tiny_bank() -> MaskBank:
    """Of four pictures: a cat on the left; a cat on the right and a smaller one; a dog; nothing but sky. No bird."""
    return bank_of(
        [
            picture((CAT, slice(8, 16), slice(2, 10))),
            picture((CAT, slice(8, 16), slice(20, 30)), (CAT, slice(0, 4), slice(0, 4)), sky=8),
            picture((DOG, slice(20, 28), slice(4, 12))),
            picture(sky=S),
        ],
        CLASSES,
        STUFF,
    )


BANK = tiny_bank()
LEFT, RIGHT = [(0.05, 0.3), (0.3, 0.3), (0.2, 0.5)], [(0.65, 0.3), (0.95, 0.3), (0.8, 0.5)]
LOWER = [(0.0, 0.6), (1.0, 0.6), (1.0, 1.0), (0.0, 1.0)]


def composer(ranks: list[int] | None = None, bank: MaskBank = BANK, **chosen: Any) -> Composer:
    config = TReCSConfig.model_validate({"resolution": 32, **chosen})
    return Composer(bank, Told(bank, ranks), config)


def one(said: Narrative, tags: list[int], ranks: list[int] | None = None, **chosen: Any) -> Composed:
    (found,) = composer(ranks, **chosen).compose([said], [np.array(tags)])
    return found


class TestWhatIsDrawn:
    def test_the_mask_under_the_trace_is_pasted_there(self) -> None:
        found = one(narrative(("a cat", LEFT), ("on grass", LOWER)), [CAT, CAT, GRASS, GRASS])
        cat, grass = found.mentions
        assert (cat.label, cat.thing, cat.phrase.tag, cat.why) == (CAT, True, "cat", "")
        assert (grass.label, grass.thing, grass.choice, grass.why) == (GRASS, False, None, "")
        assert cat.choice is not None and cat.choice.picture == 0 and cat.choice.iou > 0.4
        shown = found.canvas.labels == CAT
        assert (shown == centred(cat.choice.mask(), cat.hull)).all() and shown.sum() == 64
        assert (
            found.canvas.labels[~shown] == np.where(np.arange(S)[:, None] < 16, SKY, GRASS).repeat(S, 1)[~shown]
        ).all()
        assert found.words == ("a", "cat", "on", "grass") and found.stuff == 0 and found.stuff_fit > 0.5
        assert [each.place for each in found.retrieved] == [0, 1, 2, 3]

    def test_the_trace_chooses_among_pictures(self) -> None:
        right = one(narrative(("a cat", RIGHT)), [CAT, CAT])
        assert right.mentions[0].choice is not None
        assert (right.mentions[0].choice.picture, right.mentions[0].choice.place) == (1, 0)
        assert right.canvas.labels[:, : S // 2].max() != CAT and (right.canvas.labels[:, S // 2 :] == CAT).any()

    def test_the_first_mentioned_is_on_top_and_each_has_a_number(self) -> None:
        said = narrative(("a cat", LEFT), ("so", []), ("a dog", LEFT))
        found = one(said, [CAT, CAT, NONE, DOG, DOG])
        assert [mention.label for mention in found.mentions] == [CAT, DOG]
        cat, dog = found.canvas.instances == 1, found.canvas.instances == 2
        assert cat.sum() == 64 and (found.canvas.labels[cat] == CAT).all()
        assert dog.sum() < 64 and (found.canvas.labels[dog] == DOG).all()

    def test_what_the_mouse_does_not_show(self) -> None:
        found = one(narrative(("a cat", LEFT), ("a dog", []), ("the sky", [])), [CAT, CAT, DOG, DOG, SKY, SKY])
        assert [mention.why for mention in found.mentions] == ["", NOT_SHOWN, NOT_SHOWN]
        assert not (found.canvas.labels == DOG).any() and found.stuff_fit == 0

    def test_other_and_words_of_no_class_mention_nothing(self) -> None:
        found = one(narrative(("in this a cat", LEFT), ("or so", LOWER)), [OTHER, NONE, CAT, CAT, OTHER, NONE])
        assert [mention.label for mention in found.mentions] == [CAT]
        nothing = one(narrative(("?! ...", LEFT)), [NONE, NONE])
        assert nothing.mentions == () and not nothing.canvas.instances.any()
        assert (nothing.canvas.labels[:8] == SKY).all() and nothing.stuff == 0 and nothing.stuff_fit == 0

    def test_one_class_for_all_words(self) -> None:
        found = one(narrative(("a cat", LEFT), ("and again", RIGHT)), [CAT] * 4)
        assert len(found.mentions) == 1 and found.canvas.instances.max() == 1
        (mention,) = found.mentions
        assert (mention.phrase.first, mention.phrase.end) == (0, 4)
        assert mention.hull.any(0).sum() > S / 2  # of the traces of all its words

    def test_more_pictures_fit_better(self) -> None:
        said = narrative(("a cat", RIGHT), ("a dog", LEFT))
        few, many = (one(said, [CAT, CAT, DOG, DOG], k=k) for k in (1, 5))
        assert [mention.why for mention in few.mentions] == ["", NOT_RETRIEVED]
        assert [mention.why for mention in many.mentions] == ["", ""]
        before, after = few.mentions[0].choice, many.mentions[0].choice
        assert before is not None and after is not None and before.iou < after.iou
        assert len(few.retrieved) == 1 and few.retrieved[0].image_id == 100

    def test_long_narratives(self) -> None:
        phrases = [(f"cat number {place}", LEFT if place % 2 else RIGHT) for place in range(200)]
        found = one(narrative(*phrases), [CAT, NONE, CAT] * 200)
        assert len(found.words) == 600 and len(found.mentions) == 201 and found.canvas.instances.max() <= 201


class TestDegenerateTraces:
    @pytest.mark.parametrize(
        ("points", "place"),
        [
            ([(0.5, 0.25)], (8, 16)),
            ([(0.2, 0.25), (0.4, 0.25), (0.8, 0.25)], (8, 16)),
            ([(0.5, 0.25)] * 5, (8, 16)),
            ([(1.7, -0.4), (2.0, -1.0)], (0, 31)),
            ([(-3.0, 9.0)], (31, 0)),
        ],
        ids=["a point", "a line", "the same point", "outside", "far outside"],
    )
    def test_they_place_things(self, points: list[tuple[float, float]], place: tuple[int, int]) -> None:
        found = one(narrative(("a cat", points)), [CAT, CAT], k=1)
        assert found.mentions[0].hull.any() and found.mentions[0].why == ""
        assert found.canvas.labels[place] == CAT

    def test_a_radius_that_is_smaller_than_a_pixel(self) -> None:
        config = TReCSConfig(resolution=32)
        (found,) = Composer(BANK, Told(BANK), config, 0.01).compose(
            [narrative(("a cat", [(0.5, 0.5)]))], [np.array([CAT, CAT])]
        )
        assert found.mentions[0].hull.sum() == 1 and (found.canvas.labels == CAT).sum() == 64


class TestWithoutTraces:
    def test_the_largest_mask_where_its_picture_has_it(self) -> None:
        said = silent(narrative(("a cat", LEFT), ("a dog", LEFT), ("grass", LOWER)))
        found = one(said, [CAT, CAT, DOG, DOG, GRASS], ranks=[3, 1, 2, 0])
        cat, dog, _ = found.mentions
        assert cat.choice is not None and (cat.choice.picture, cat.choice.place, cat.choice.iou) == (1, 0, 0)
        assert dog.choice is not None and dog.choice.picture == 2
        assert (found.canvas.labels[8:16, 20:30] == CAT).all() and (found.canvas.labels == CAT).sum() == 80
        assert (found.canvas.labels[20:28, 4:12] == DOG).all()
        assert not cat.hull.any() and found.stuff_fit == 0
        # The first retrieved picture has no grass.
        assert found.stuff == 1 and (found.canvas.labels[-1] == GRASS).all()

    def test_the_stuff_of_the_picture_with_most_kinds(self) -> None:
        assert one(silent(narrative(("sky and grass", LEFT))), [SKY, NONE, GRASS], ranks=[3, 2, 0]).stuff == 1
        assert one(silent(narrative(("sky", LEFT))), [SKY], ranks=[3, 2, 0]).stuff == 0
        masks = [BANK.masks(place) for place in (3, 0)]
        assert [most_stuff(wanted, masks) for wanted in ({GRASS}, {SKY}, {SKY, GRASS}, set())] == [1, 0, 1, 0]

    def test_a_thing_that_no_retrieved_picture_has(self) -> None:
        said = silent(narrative(("a dog", LEFT)))
        assert one(said, [DOG, DOG], k=1).mentions[0].why == NOT_RETRIEVED
        found = one(said, [DOG, DOG], k=1, missing="next")
        assert found.mentions[0].choice is not None and found.mentions[0].choice.picture == 1
        assert [each.place for each in found.retrieved] == [0, 2]

    def test_the_largest(self) -> None:
        small, large = BANK.masks(1), BANK.masks(0)
        choice = largest_mask(CAT, [BANK.masks(3), small, large])
        assert choice is not None and (choice.picture, choice.mask().sum()) == (1, 80)
        assert largest_mask(BIRD, [small, large]) is None and largest_mask(CAT, []) is None


class TestMissing:
    SAID = narrative(("a dog", LEFT), ("a bird", RIGHT))
    TAGS = (DOG, DOG, BIRD, BIRD)

    def test_skip(self) -> None:
        found = one(self.SAID, list(self.TAGS), k=2)
        assert [mention.why for mention in found.mentions] == [NOT_RETRIEVED, NOT_IN_BANK]
        assert not found.canvas.instances.any() and len(found.retrieved) == 2

    def test_next(self) -> None:
        asking = composer(k=1, missing="next")
        (found,) = asking.compose([self.SAID], [np.array(self.TAGS)])
        dog, bird = found.mentions
        assert dog.choice is not None and dog.choice.picture == 1 and bird.why == NOT_IN_BANK
        assert [each.place for each in found.retrieved] == [0, 2]  # what was passed over was not used
        assert (found.canvas.labels == DOG).sum() == 64 and found.stuff == 0
        retriever = asking.retriever
        assert isinstance(retriever, Told) and retriever.asked == [1, 4]

    def test_next_does_not_search_for_what_nobody_has(self) -> None:
        asking = composer(k=1, missing="next")
        asking.compose([narrative(("a bird", LEFT))], [np.array([BIRD, BIRD])])
        retriever = asking.retriever
        assert isinstance(retriever, Told) and retriever.asked == [1]

    def test_stuff_that_the_layer_lacks(self) -> None:
        found = one(narrative(("grass", LOWER)), [GRASS], ranks=[3])
        assert found.mentions[0].why == NOT_IN_STUFF and found.stuff_fit == 0 and found.stuff == 0

    def test_the_own_picture_is_not_used(self) -> None:
        said, tags = narrative(("a dog", LEFT)), [np.array([DOG, DOG])]
        (with_it,) = composer(k=4, missing="next").compose([said], tags)
        (without,) = composer(k=4, missing="next").compose([said], tags, [102])
        assert with_it.mentions[0].choice is not None and without.mentions[0].why == NOT_RETRIEVED
        assert 102 not in [each.image_id for each in without.retrieved]

    def test_nothing_is_retrieved(self) -> None:
        alone = bank_of([picture((CAT, slice(8, 16), slice(2, 10)))], CLASSES, STUFF)
        said = narrative(("a cat", LEFT), ("grass", LOWER))
        for narratives in (said, silent(said)):
            (found,) = composer(bank=alone).compose([narratives], [np.array([CAT, CAT, GRASS])], [100])
            assert found.retrieved == () and found.stuff is None and found.stuff_fit == 0
            assert (found.canvas.labels == NONE).all()
            assert [mention.why for mention in found.mentions] == [NOT_RETRIEVED, NOT_IN_STUFF]


class TestRefusals:
    SAID = narrative(("a cat", LEFT), ("on grass", LOWER))
    TAGS = np.array([CAT, CAT, GRASS, GRASS])

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"caption": "  "}, "the narrative has no words; write or say what the trace shows."),
            ({"utterances": ()}, None),
            (
                {"utterances": [Utterance("a cat", 3.0, 4.0), Utterance("on grass", 1.0, 2.0)]},
                "the narrative: the times run backwards at 'on grass', from 3 s to 1 s; give each utterance its start "
                "and end in the order of speech.",
            ),
            (
                {"traces": [np.array([[0.1, 0.2, 0.3], [0.1, np.nan, 0.4]])]},
                "trace 0 of the narrative has a point that is no number (point 1); leave that point out.",
            ),
        ],
        ids=["traces without words", "words without times", "times backwards", "NaN"],
    )
    def test_narratives(self, changes: dict[str, object], said: str | None) -> None:
        changed = replace(self.SAID, **changes)  # type: ignore[arg-type]
        if said is None:  # all points are each phrase's
            found = one(changed, self.TAGS.tolist())
            assert (found.mentions[0].hull == found.mentions[1].hull).all() and found.mentions[0].hull.any()
            return
        assert refusal(lambda: one(changed, self.TAGS.tolist())) == said

    def test_tags(self) -> None:
        assert refusal(lambda: one(self.SAID, [CAT])) == (
            "the narrative has 4 words and 1 tags; give one tag for each word."
        )
        for strange in (7, -1):
            with pytest.raises(RequestError) as caught:
                one(self.SAID, [CAT, CAT, GRASS, strange])
            assert str(caught.value) == (
                f"the narrative has the tag {strange}, and there are the classes 0 to 5: tag it with the mask bank's "
                "classes"
            )

    def test_which_of_many(self) -> None:
        asking, good = composer(), self.SAID
        message = refusal(lambda: asking.compose([good, replace(good, caption="")], [self.TAGS, self.TAGS[:0]]))
        assert message.startswith("narrative 1 has no words")
        message = refusal(
            lambda: asking.compose([replace(good, caption="")], [self.TAGS[:0]], None, ["that of image 7"])
        )
        assert message.startswith("that of image 7 has no words")

    def test_a_bank_of_another_size(self) -> None:
        with pytest.raises(
            RequestError, match=r"are 32 px wide and label maps of 64 px are asked for: build a mask bank"
        ):
            composer(resolution=64)

    @pytest.mark.parametrize("strange", [Found(4, 104, 0.0), Found(1, 100, 0.0), Found(-1, 103, 0.0)])
    def test_pictures_that_are_not_the_bank_s(self, strange: Found) -> None:
        class Astray(Told):
            def search(self, *asked: object) -> list[list[Found]]:
                return [[strange]]

        asking = Composer(BANK, Astray(BANK), TReCSConfig(resolution=32))
        with pytest.raises(RequestError, match=f"image {strange.image_id} was retrieved, which is not picture"):
            asking.compose([self.SAID], [self.TAGS])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000))
def test_stuff_is_chosen_by_masks_as_by_maps(seed: int) -> None:
    """To the last place."""
    rng = np.random.default_rng(seed)
    maps = [rng.choice([GRASS, SKY, CAT, NONE], (9, 9)).repeat(2, 1)[:, :9] for _ in range(rng.integers(1, 5))]
    masks = [picture_masks(labels, np.zeros_like(labels), range(NONE)) for labels in maps]
    wanted = [(int(rng.choice([GRASS, SKY, OTHER])), rng.random((9, 9)) < rng.random()) for _ in range(rng.integers(4))]
    assert best_stuff(wanted, masks) == choose_stuff(wanted, np.stack(maps))
    assert best_stuff(wanted, []) == (0, 0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scenes(tmp_path_factory.mktemp("scenes"), 60)


@pytest.fixture(scope="module")
def bank(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> MaskBank:
    return write_mask_bank(tmp_path_factory.mktemp("bank"), data, 64, None, quiet)


def narratives_of(data: Dataset) -> list[tuple[int, Narrative]]:
    return [(place, said) for place, record in enumerate(data.records) for said in record.narratives or ()]


def with_other_traces(said: list[Narrative], seed: int) -> list[Narrative]:
    """Each narrative's strokes as another narrative's phrases were shown, at its own times."""
    strokes = [stroke for one in said for stroke in one.traces]
    order = iter(np.random.default_rng(seed).permutation(len(strokes)).tolist())
    changed = []
    for one in said:
        traces = []
        for own in one.traces:
            other = strokes[next(order)]
            steps = np.linspace(0, len(other) - 1, len(own))
            points = [np.interp(steps, np.arange(len(other)), other[:, axis]) for axis in (0, 1)]
            traces.append(np.stack([*points, own[:, 2]], 1))
        changed.append(replace(one, traces=traces))
    return changed


def overlap_with_truth(
    data: Dataset, bank: MaskBank, said: list[tuple[int, Narrative]], traced: list[Narrative]
) -> float:
    """Mean IoU of each pasted thing with the pixels of its class in its own picture, of which no mask is taken."""
    reader = LabelReader(data)
    config = TReCSConfig(resolution=64, missing="next")
    tags = [true_tags(one, bank.classes) for _, one in said]
    own = [data.records[place].image_id for place, _ in said]
    fits = []
    composed = Composer(bank, Told(bank), config).compose(traced, tags, own)
    for (place, _), found in zip(said, composed, strict=True):
        truth, _ = reader.read(data.records[place], None, (64, 64))
        for mention in found.mentions:
            if mention.choice is not None:
                pasted, true = centred(mention.choice.mask(), mention.hull), truth == mention.label
                fits.append((pasted & true).sum() / (pasted | true).sum())
    assert len(fits) > 80
    return float(np.mean(fits))


def test_traces_place_things_where_they_are(data: Dataset, bank: MaskBank) -> None:
    """With true tags, and pictures that are retrieved whatever is said."""
    said = narratives_of(data)
    true = overlap_with_truth(data, bank, said, [one for _, one in said])
    shuffled = overlap_with_truth(data, bank, said, with_other_traces([one for _, one in said], 0))
    print(f"mean IoU with the true masks: {true:.3f} by their own traces, {shuffled:.3f} by shuffled ones")
    assert true > 0.3 and true > 2 * shuffled


def test_the_same_beside_any_others(data: Dataset, bank: MaskBank, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    said = [one for _, one in narratives_of(data)[:12]]
    tags = [true_tags(one, bank.classes) for one in said]
    ranks = {one.caption: rng.permutation(len(bank)).tolist() for one in said}
    config = TReCSConfig(resolution=64, missing="next", place="centred", centre="centroid")
    together = Composer(bank, Told(bank, ranks), config).compose(said, tags)
    for place in reversed(range(len(said))):
        (alone,) = Composer(bank, Told(bank, ranks), config).compose([said[place]], [tags[place]])
        other = together[place]
        assert (alone.canvas.labels == other.canvas.labels).all()
        assert (alone.canvas.instances == other.canvas.instances).all()
        assert [each.place for each in alone.retrieved] == [each.place for each in other.retrieved]
        assert [each.choice for each in alone.mentions] == [each.choice for each in other.mentions]
