"""The memory of words against equation 7 in plain Python; what it looks at, portions, words without pictures."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from models.contract import NOTHING, Batch, Given, Regions, RegionStore, StageMissing, Tokens
from models.cpgan import memory
from models.cpgan.captioner import AttentionCaptionerConfig, TopDownCaptioner
from models.cpgan.memory import Memory, MemoryConfig, entries_of
from models.cpgan.pointing import PointingRule, PointingShare, pointing_share, points_at
from models.registry import gathered_names, get_gathered

WORDS, ITEMS, PLACES, WIDTH = 6, 5, 3, 4
PART = Memory()
Row = tuple[int, int, int, float]
"""word, item, place, attention"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True, eq=False)
class Store:
    """features: (N,R,F)."""

    features: Tensor

    def take(self, items: Tensor, places: Tensor) -> Tensor:
        return self.features[items, places]


STORE = Store(torch.randn(ITEMS, PLACES, WIDTH, generator=torch.Generator().manual_seed(3)))
# Few values, so that words and pictures are often equal.
ATTENTION = st.sampled_from([0.25, 0.5, 0.75, 1.0]) | st.floats(1 / 128, 1, width=32)
ROWS = st.lists(
    st.tuples(st.integers(1, WORDS - 1), st.integers(0, ITEMS - 1), st.integers(0, PLACES - 1), ATTENTION), min_size=1
).map(lambda rows: sorted(rows, key=lambda row: row[1]))


def box_of(item: int, place: int) -> list[float]:
    return [item / ITEMS, place / PLACES, 1.0, 1.0]


def portion(rows: Sequence[Row]) -> dict[str, Tensor]:
    """As `Memory.look` gives it."""
    words, items, places, attention = zip(*rows, strict=True) if rows else ((), (), (), ())
    whole = {"words": words, "items": items, "places": places}
    return {
        **{name: torch.tensor(values, dtype=torch.int64) for name, values in whole.items()},
        "attention": torch.tensor(attention, dtype=torch.float32),
        "boxes": torch.tensor([box_of(item, place) for _, item, place, _ in rows]).reshape(-1, 4),
    }


def cut(rows: Sequence[Row], cuts: Sequence[int]) -> list[dict[str, Tensor]]:
    ends = sorted(end % (len(rows) + 1) for end in cuts)
    return [portion(rows[a:b]) for a, b in zip([0, *ends], [*ends, len(rows)], strict=True)]


def gathered(
    portions: Sequence[Mapping[str, Tensor]], config: MemoryConfig | None = None, store: RegionStore = STORE
) -> dict[str, Tensor]:
    return PART.gather(config or MemoryConfig(), WORDS, portions, store)[0]


def by_hand(rows: Sequence[Row], top_k: int | None, unknown: str) -> tuple[list[list[float]], list[Row], list[int]]:
    """Equation 7: the memory, the regions that count, and N of each word."""
    kept: list[Row] = []
    pictures = [0] * WORDS
    table: list[list[float] | None] = [[0.0] * WIDTH]
    for word in range(1, WORDS):
        best: dict[int, Row] = {}
        for row in rows:
            if row[0] == word:
                other = best.get(row[1], (0, 0, PLACES, -math.inf))
                best[row[1]] = min(row, other, key=lambda row: (-row[3], row[2]))
        pictures[word] = len(best)
        chosen = sorted(best.values(), key=lambda row: (-row[3], row[1]))[:top_k]
        kept += chosen
        total = sum(row[3] for row in chosen)
        features = STORE.features.tolist()
        table.append(
            [sum(a * features[item][place][f] for _, item, place, a in chosen) / total for f in range(WIDTH)]
            if chosen
            else None
        )
    seen = [row for row in table[1:] if row is not None]
    mean = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
    rest = mean if unknown == "mean" else [0.0] * WIDTH
    return [row if row is not None else rest for row in table], kept, pictures


class TestGather:
    @settings(deadline=None, max_examples=150)
    @given(ROWS, st.none() | st.integers(1, 7), st.sampled_from(["mean", "zero"]), st.lists(st.integers(0, 99)))
    def test_equation_7(self, rows: list[Row], top_k: int | None, unknown: str, cuts: list[int]) -> None:
        config = MemoryConfig.model_validate({"top_k": top_k, "unknown": unknown})
        found, figures = PART.gather(config, WORDS, iter(cut(rows, cuts)), STORE)
        table, kept, pictures = by_hand(rows, top_k, unknown)
        assert found["memory"].dtype == torch.float32
        torch.testing.assert_close(found["memory"], torch.tensor(table), rtol=1e-5, atol=1e-6)
        assert found["pictures"].tolist() == pictures
        entries = portion(kept)
        for name in entries:
            assert found[f"entry_{name}"].equal(entries[name]), name
        seen = sum(count > 0 for count in pictures)
        assert figures == pytest.approx(
            {
                "words_seen": seen,
                "never_seen_share": 1 - seen / (WORDS - 1),
                "pictures_per_word": sum(pictures) / seen,
                "kept_per_word": len(kept) / seen,
                "mean_attention": sum(row[3] for row in kept) / len(kept),
            }
        )

    @settings(deadline=None, max_examples=100)
    @given(
        ROWS,
        st.none() | st.integers(1, 3),
        st.lists(st.integers(0, 99)),
        st.lists(st.integers(0, 99)),
        st.integers(1, 9),
        st.integers(1, 5),
        st.randoms(use_true_random=False),
    )
    def test_any_division_gives_the_same_bytes(
        self,
        rows: list[Row],
        top_k: int | None,
        cuts: list[int],
        others: list[int],
        merged: int,
        taken: int,
        random: Random,
    ) -> None:
        config = MemoryConfig(top_k=top_k)
        whole = gathered(cut(rows, cuts), config)
        with patch.object(memory, "MERGED_AT_ONCE", merged):
            again = gathered(cut(rows, others), config)
            random.shuffle(mixed := list(rows))
            again_mixed = gathered([portion(sorted(mixed, key=lambda row: row[1]))], config)
        for name, value in whole.items():
            assert value.equal(again[name]) and value.equal(again_mixed[name]), name
        # The store may be asked for fewer features at a time: their sum is the same.
        with patch.object(memory, "FEATURES_AT_ONCE", taken):
            assert gathered(cut(rows, cuts), config)["memory"].equal(whole["memory"])

    def test_more_pictures_than_rows_wait(self) -> None:
        """Every picture is merged alone, and the worse ones are let go."""
        rows: list[Row] = [(1 + item % 2, item, 0, 1 / (1 + item)) for item in range(200)]
        store = Store(torch.arange(200.0)[:, None, None].expand(200, 1, WIDTH))
        with patch.object(memory, "MERGED_AT_ONCE", 1):
            found = gathered([portion([row]) for row in rows], MemoryConfig(top_k=3), store)
        assert found["entry_items"].tolist() == [0, 2, 4, 1, 3, 5]
        assert found["pictures"].tolist() == [0, 100, 100, 0, 0, 0]

    def test_several_occurrences_in_one_picture_are_one(self) -> None:
        rows: list[Row] = [(2, 0, 0, 0.2), (2, 0, 2, 0.6), (2, 0, 1, 0.6), (2, 1, 0, 0.2)]
        found = gathered([portion(rows[:1]), portion(rows[1:])])
        assert found["pictures"].tolist() == [0, 0, 2, 0, 0, 0]
        # Of equal attention the first region.
        assert found["entry_places"].tolist() == [1, 0]
        wanted = (0.6 * STORE.features[0, 1] + 0.2 * STORE.features[1, 0]) / 0.8
        torch.testing.assert_close(found["memory"][2], wanted)

    def test_words_without_a_picture_are_alike(self) -> None:
        rows: list[Row] = [(2, 0, 0, 0.9), (2, 1, 0, 0.3), (4, 3, 1, 0.1)]
        table = gathered([portion(rows)])["memory"]
        assert table[0].eq(0).all()
        assert table[1].equal(table[3]) and table[1].equal(table[5])
        # Each word counts once, however often and strongly it was seen.
        torch.testing.assert_close(table[1], (table[2] + table[4]) / 2)
        assert gathered([portion(rows)], MemoryConfig(unknown="zero"))["memory"][[1, 3, 5]].eq(0).all()

    def test_entries_of_a_word(self) -> None:
        rows: list[Row] = [(2, 0, 0, 0.3), (4, 0, 2, 0.5), (2, 1, 1, 0.9)]
        found = gathered([portion(rows)])
        two = entries_of(found, 2)
        assert two["items"].tolist() == [1, 0] and two["places"].tolist() == [1, 0]
        torch.testing.assert_close(two["boxes"], torch.tensor([box_of(1, 1), box_of(0, 0)]))
        assert entries_of(found, 4)["attention"].tolist() == [0.5]
        assert all(not len(value) for word in (1, 3, 5) for value in entries_of(found, word).values())

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([[]], "no training picture has both a region and a caption with a known word"),
            ([], "the memory would be empty"),
            ([[(WORDS, 0, 0, 0.5)]], "a caption has word 6, and the vocabulary's words are 1 to 5: read the captions"),
            ([[(0, 0, 0, 0.5)]], "a caption has word 0"),
            ([[(1, 2, 0, 0.5)], [(1, 1, 0, 0.5)]], "picture 1 comes after picture 2: give them in order"),
            ([[(1, 0, 0, math.nan)]], "the captioner's attention is not finite: its training went wrong"),
        ],
    )
    def test_what_is_refused(self, rows: list[list[Row]], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            gathered([portion(part) for part in rows])

    def test_broken_features_are_refused(self) -> None:
        with pytest.raises(ValueError, match="region features are not finite: find the regions again"):
            gathered([portion([(1, 0, 0, 0.5)])], store=Store(torch.full((1, 1, WIDTH), math.inf)))


class Planted(nn.Module):
    """Stands in for a captioner: word w attends to region w - 1 most, a little less at each later place."""

    def attend(self, tokens: Tensor, lengths: Tensor, regions: Regions) -> Tensor:
        (captions, positions), places = tokens.shape, regions.boxes.shape[1]
        attention = torch.full((captions, positions, places), 0.1)
        attention.scatter_(2, ((tokens - 1).clamp(min=0) % places)[..., None], 0.8)
        attention -= 0.01 * torch.arange(positions)[None, :, None]
        outside = torch.arange(positions)[None, :] >= lengths[:, None]
        return attention.masked_fill(outside[..., None] | regions.padding()[:, None, :], 0.0)


def pictures(counts: Sequence[int], generator: torch.Generator | None = None) -> Regions:
    boxes = torch.rand(len(counts), PLACES, 4, generator=generator)
    features = torch.randn(len(counts), PLACES, WIDTH, generator=generator)
    return Regions(boxes, features, torch.rand(len(counts), PLACES), torch.tensor(counts))


def looked(
    captions: Sequence[Sequence[int]],
    items: Sequence[int],
    regions: Regions,
    config: MemoryConfig | None = None,
    captioner: nn.Module | None = None,
) -> dict[str, Tensor]:
    """What look gives for captions (rows of word indices) of pictures that stand at `items` of `regions`."""
    lengths = [len(caption) for caption in captions]
    ids = torch.zeros(len(captions), max(1, *lengths), dtype=torch.int64)
    for row, caption in zip(ids, captions, strict=True):
        row[: len(caption)] = torch.tensor(caption, dtype=torch.int64)
    taken = torch.tensor(items)
    shown = Regions(*(getattr(regions, name)[taken] for name in ("boxes", "features", "scores", "counts")))
    batch = Batch(taken, tokens=Tokens(ids, torch.tensor(lengths), "digest"), regions=shown)
    return PART.look({"captioner": captioner or Planted()}, config or MemoryConfig(), batch, taken)


class TestLook:
    def test_every_word_has_its_most_attended_region(self) -> None:
        regions = pictures([3, 3])
        found = looked([[2, 3, 2], [1]], [0, 1], regions)
        assert found["words"].tolist() == [2, 3, 2, 1]
        assert found["items"].tolist() == [0, 0, 0, 1]
        assert found["places"].tolist() == [1, 2, 1, 0]
        torch.testing.assert_close(found["attention"], torch.tensor([0.8, 0.79, 0.78, 0.8]))
        assert found["boxes"].equal(regions.boxes[[0, 0, 0, 1], [1, 2, 1, 0]])

    def test_the_first_of_equal_regions(self) -> None:
        regions = pictures([2])
        # Word 3 means the region at padding: those there are equal.
        assert looked([[3]], [0], regions)["places"].tolist() == [0]

    def test_pictures_without_regions_and_captions_without_words_say_nothing(self) -> None:
        regions = pictures([0, 3])
        found = looked([[1, 2], [3], [], [0, 0]], [0, 1, 1, 1], regions)
        assert found["words"].tolist() == [3] and found["items"].tolist() == [1]
        assert all(not len(value) for value in looked([[1], [2]], [0, 0], regions).values())
        assert looked([[1]], [0], regions)["boxes"].shape == (0, 4)

    def test_long_captions_are_cut(self) -> None:
        found = looked([[1, 2, 3, 4, 5], [1]], [0, 0], pictures([3]), MemoryConfig(longest=3))
        assert found["words"].tolist() == [1, 2, 3, 1]

    def test_a_captions_rows_do_not_depend_on_the_others(self) -> None:
        torch.manual_seed(0)
        config = AttentionCaptionerConfig(region_dim=WIDTH, embedding_dim=4, hidden_dim=6, attention_dim=3)
        net, regions = TopDownCaptioner(config, WORDS).eval(), pictures([3, 2, 1])
        captions, items = [[1, 2, 3], [4], [5, 5]], [0, 1, 2]
        whole = looked(captions, items, regions, captioner=net)
        parts = [looked([one], [item], regions, captioner=net) for one, item in zip(captions, items, strict=True)]
        for name, value in whole.items():
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


def test_a_word_remembers_the_region_it_was_planted_at() -> None:
    """From captions to memory: region w - 1 of every picture holds a thing of kind w."""
    generator = torch.Generator().manual_seed(5)
    kinds = torch.randn(PLACES, WIDTH, generator=generator)
    count = 30
    regions = pictures([3] * 20 + [0] * 5 + [2] * 5, generator)
    regions.features.copy_(kinds + 0.01 * torch.randn(count, PLACES, WIDTH, generator=generator))
    captions = torch.randint(1, PLACES + 1, (count * 2, 4), generator=generator).tolist()
    items = [item for item in range(count) for _ in range(2)]

    def seen() -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(items), 6):
            yield looked(captions[start : start + 6], items[start : start + 6], regions)

    found, figures = PART.gather(MemoryConfig(top_k=8), WORDS, seen(), Store(regions.features))
    told = [
        {word for item, caption in zip(items, captions, strict=True) if item == one for word in caption}
        for one in range(count)
    ]
    shown = [{word for word in words if one not in range(20, 25)} for one, words in enumerate(told)]
    assert found["pictures"].tolist() == [sum(word in words for words in shown) for word in range(WORDS)]
    for word in range(1, PLACES + 1):
        assert set(entries_of(found, word)["places"].tolist()) == {word - 1}
        torch.testing.assert_close(found["memory"][word], kinds[word - 1], rtol=0, atol=0.03)
    torch.testing.assert_close(found["memory"][4], found["memory"][1:4].mean(0))
    assert figures["kept_per_word"] == 8 and figures["words_seen"] == 3


class TestThePart:
    def test_it_describes_itself(self) -> None:
        assert PART.name in gathered_names() and isinstance(get_gathered("memory"), Memory)
        config = MemoryConfig(longest=7, resolution=64)
        assert PART.stages(config) == {"detector": "grid_detector", "captioner": "attention_captioner"}
        assert (PART.longest(config), PART.resolution(config)) == (7, 64)
        assert all(info.description for info in MemoryConfig.model_fields.values())

    def test_it_looks_with_the_trained_captioner(self, tmp_path: Path) -> None:
        config = AttentionCaptionerConfig(
            region_dim=WIDTH, embedding_dim=4, hidden_dim=6, attention_dim=3, resolution=64
        )
        net = TopDownCaptioner(config, WORDS)
        model = config.model_dump(mode="json")
        (tmp_path / "part.json").write_text(json.dumps({"system": "attention_captioner", "model": model}))
        save_file(net.state_dict(), tmp_path / "captioner.safetensors")
        earlier = Given(WORDS, {"captioner": tmp_path})
        [found] = PART.build(MemoryConfig(resolution=64), earlier).values()
        assert all(value.equal(found.state_dict()[name]) for name, value in net.state_dict().items())
        with pytest.raises(ValueError, match="resolution is 256, but the trained stage 'captioner' learnt"):
            PART.build(MemoryConfig(), earlier)
        with pytest.raises(StageMissing, match="'captioner', which was not given"):
            PART.build(MemoryConfig(), Given(WORDS))
        with torch.device("meta"):
            assert all(value.is_meta for value in PART.build(MemoryConfig(), NOTHING)["captioner"].parameters())


HALF = torch.tensor([[0.0, 0.0, 0.5, 1.0]])


class TestPointing:
    @pytest.mark.parametrize(
        ("box", "overlaps", "centred"),
        [
            ([0.0, 0.0, 0.5, 1.0], True, True),
            ([0.0, 0.0, 0.9, 1.0], True, True),
            ([0.0, 0.0, 1.0, 1.0], False, True),  # exactly half is not more than half; the centre is on the edge
            ([0.2, 0.4, 0.3, 0.6], False, True),
            ([0.4, 0.0, 1.0, 1.0], False, False),
        ],
    )
    def test_both_rules(self, box: list[float], overlaps: bool, centred: bool) -> None:
        boxes = torch.tensor([box])
        assert points_at(boxes, HALF).tolist() == [overlaps]
        assert points_at(boxes, HALF, "centre").tolist() == [centred]
        assert not points_at(boxes, torch.zeros(0, 4)).any()

    def test_share_and_chance(self) -> None:
        right, wrong = HALF[0], torch.tensor([0.5, 0.0, 1.0, 1.0])
        regions = [torch.stack([right, wrong]), torch.stack([wrong, wrong, right, wrong]), wrong[None], right[None]]
        things = [HALF, HALF, torch.stack([wrong, right]), torch.zeros(0, 4)]
        found = pointing_share(torch.stack([right, wrong, wrong, right]), regions, things)
        # Where the named thing is not in the picture nothing points at it.
        assert found == PointingShare(2 / 4, (1 / 2 + 1 / 4 + 1 + 0) / 4, 4)

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 2**31), st.sampled_from(["overlap", "centre"]))
    def test_chance_is_what_random_regions_reach(self, seed: int, rule: PointingRule) -> None:
        generator = torch.Generator().manual_seed(seed)

        def corners(count: int) -> Tensor:
            return torch.rand(count, 2, 2, generator=generator).sort(1).values

        regions, things = [corners(4).flatten(1) for _ in range(5)], [corners(2).flatten(1) for _ in range(5)]
        every = [
            pointing_share(torch.stack([found[place] for found in regions]), regions, things, rule)
            for place in range(4)
        ]
        assert sum(one.share for one in every) / 4 == pytest.approx(every[0].chance)
        assert len({one.chance for one in every}) == 1

    def test_no_entries(self) -> None:
        none = pointing_share(torch.zeros(0, 4), [], [])
        assert math.isnan(none.share) and math.isnan(none.chance) and none.count == 0

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="1 boxes, 2 pictures' regions and 1 pictures' things"):
            pointing_share(HALF, [HALF, HALF], [HALF])
        with pytest.raises(ValueError, match="an entry's picture has no region: give all regions"):
            pointing_share(HALF, [torch.zeros(0, 4)], [HALF])
