"""Region features: a folder of one's own, what the stage writes, how training reads them, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.contract import Given, Regions
from orchestration.data import regions as regions_module
from orchestration.data.batches import CaptionedPictures
from orchestration.data.regions import (
    ABOUT,
    ARRAYS,
    RegionFeatures,
    check_detector,
    check_features,
    digest_regions,
    open_regions,
    write_regions,
)
from orchestration.errors import RequestError, RunError
from tests.region_support import (
    COUNT,
    IDS,
    WIDTH,
    write_own,
)
from tests.tiny import tiny_data

DOCUMENT = Path(__file__).parents[1] / "docs" / "data.md"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_own(tmp_path / "own")

    def test_the_documents_example_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        [example] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        exec(example, {})
        found = open_regions(tmp_path / "regions" / "train").of(np.array([285, 139]))
        batch = found.batch(np.array([0, 1]))
        assert batch.counts.tolist() == [1, 2] and batch.features.shape == (2, 3, 4)
        assert batch.boxes[1, 0].tolist() == pytest.approx([0.1, 0.2, 0.5, 0.9])

    def test_what_is_written_is_read(self, folder: Path) -> None:
        found = open_regions(folder)
        check_features(found)
        assert len(found) == len(IDS) and found.image_ids.tolist() == list(IDS)
        batch = found.batch(np.array([3, 1]))
        assert isinstance(batch, Regions) and batch.counts.tolist() == [3, 1]
        boxes, features = np.load(folder / "boxes.npy"), np.load(folder / "features.npy")
        assert batch.boxes[0].equal(torch.from_numpy(boxes[3])) and batch.boxes.dtype == torch.float32
        assert batch.features[0].equal(torch.from_numpy(features[3].astype(np.float32)))
        assert batch.scores[1, 0] == np.load(folder / "scores.npy")[1, 0]

    def test_what_is_beyond_the_count_is_zero(self, folder: Path) -> None:
        batch = open_regions(folder).batch(np.arange(4))
        for row, count in enumerate((0, 1, 2, 3)):
            for values in (batch.boxes, batch.features, batch.scores):
                assert not values[row, count:].any() and (count == 0 or values[row, :count].any())
        assert batch.padding().sum(1).tolist() == [3, 2, 1, 0]

    def test_nothing_is_asked_of_what_is_not_read(self, tmp_path: Path) -> None:
        boxes, scores = np.full((4, COUNT, 4), 7, np.float32), np.zeros((4, COUNT), np.float32)
        open_regions(write_own(tmp_path / "own", boxes=boxes, scores=scores, counts=np.zeros(4, np.int64)))

    @settings(max_examples=25, deadline=None)
    @given(order=st.permutations(range(4)), chosen=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def test_it_follows_the_splits_order(
        self, order: list[int], chosen: list[int], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Three of the four images, in any order."""
        folder = write_own(tmp_path_factory.mktemp("own"))
        whole, split = open_regions(folder), np.array(IDS)[order[:3]]
        found, items = whole.of(split), np.array(chosen)
        assert len(found) == 3
        batch, expected = found.batch(items), whole.batch(np.array(order)[items])
        assert batch.features.equal(expected.features) and batch.boxes.equal(expected.boxes)
        places = torch.arange(len(items)) % COUNT
        rows = np.load(folder / "features.npy")[np.array(order)[items], places.numpy()]
        assert found.take(torch.from_numpy(items), places).equal(torch.from_numpy(rows.astype(np.float32)))

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({"about": {"format": 2}}, [ABOUT, "is of format 2, and this version reads 1", "docs/data.md"]),
            ({"about": {"count": 0}}, [ABOUT, "has count 0", "1 or more"]),
            ({"about": {"feature_dim": 5}}, ["features.npy has the shape (4, 3, 4)", "(N,R,F) = (4, 3, 5)"]),
            ({"about": {"count": 2}}, ["boxes.npy has the shape (4, 3, 4)", "(4, 2, 4)"]),
            ({"about": {"colour": 1}}, [ABOUT, "does not describe regions", "colour", "docs/data.md"]),
            ({"scores": None}, ["scores.npy is missing", "docs/data.md"]),
            ({"boxes": np.zeros((4, COUNT, 4))}, ["boxes.npy holds float64, and float32 is read"]),
            ({"counts": np.zeros(3, np.int64)}, ["counts.npy has the shape (3,)", "(N) = (4,)"]),
            ({"counts": np.array([0, 1, 4, 0])}, ["counts.npy has for image 632 a count outside 0 to 3"]),
            ({"counts": np.array([0, -1, 3, 0])}, ["counts.npy has for image 285 a count outside 0 to 3"]),
            ({"boxes": np.full((4, COUNT, 4), 1.5, np.float32)}, ["boxes.npy has for image 285 a box outside [0, 1]"]),
            ({"boxes": np.full((4, COUNT, 4), np.nan, np.float32)}, ["boxes.npy has for image 139 a box", "NaN"]),
            (
                {"boxes": np.broadcast_to(np.array([0.5, 0, 0.4, 1], np.float32), (4, COUNT, 4))},
                ["boxes.npy has for image 285 a box whose x1 or y1 is below its x0 or y0", "give x0, y0, x1, y1"],
            ),
            ({"scores": np.full((4, COUNT), np.nan, np.float32)}, ["scores.npy has for image 285 a score", "NaN"]),
            ({"scores": np.full((4, COUNT), 90, np.float32)}, ["scores.npy has for image 285 a score outside [0, 1]"]),
            (
                {"scores": np.broadcast_to(np.array([0.1, 0.2, 0.3], np.float32), (4, COUNT))},
                ["scores.npy has for image 632 scores that rise: put the highest first"],
            ),
            ({"image_ids": np.array([139, 285, 139, 724])}, ["image_ids.npy has image 139 twice"]),
            ({"features": np.zeros((4, COUNT, WIDTH), object)}, ["features.npy is cut short or no .npy file"]),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_is_wrong_is_a_sentence(self, tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
        folder = write_own(tmp_path / "own", **change)
        with pytest.raises(RequestError) as refused:
            open_regions(folder)
        sentence = str(refused.value)
        assert str(folder) in sentence and "\n" not in sentence
        for part in parts:
            assert part in sentence, sentence

    def test_a_short_file(self, folder: Path) -> None:
        file = folder / "features.npy"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(RequestError, match=r"features\.npy is cut short"):
            open_regions(folder)

    @pytest.mark.parametrize("content", ["", "[", "{}", '{"format": "one"}', "\xff"])
    def test_a_broken_description(self, folder: Path, content: str) -> None:
        (folder / ABOUT).write_bytes(content.encode("latin-1"))
        with pytest.raises(RequestError, match=r"regions\.json does not describe regions.*docs/data\.md"):
            open_regions(folder)
        (folder / ABOUT).unlink()
        with pytest.raises(RequestError, match=r"regions\.json cannot be read"):
            open_regions(folder)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_features_that_are_no_numbers(self, folder: Path, value: float) -> None:
        features = np.load(folder / "features.npy")
        features[2, 1, 3] = value
        np.save(folder / "features.npy", features)
        with pytest.raises(RequestError, match=r"features\.npy has for image 632 a feature that is NaN or infinite"):
            check_features(open_regions(folder))

    def test_regions_of_other_images(self, folder: Path) -> None:
        found = open_regions(folder)
        with pytest.raises(RequestError, match=r"image_ids\.npy lacks 2 of the 3 images.*\(1, 2\).*another image set"):
            found.of(np.array([139, 1, 2]))

    def test_regions_of_other_data(self, tmp_path: Path) -> None:
        found = open_regions(write_own(tmp_path / "own", about={"pictures": "a" * 64}))
        found.of(np.array(IDS), "a" * 64)
        with pytest.raises(RequestError, match=r"found in the pictures aaaaaaaaaaaa, and these are bbbbbbbbbbbb"):
            found.of(np.array(IDS), "b" * 64)
        open_regions(write_own(tmp_path / "unsaid")).of(np.array(IDS), "b" * 64)

    def test_regions_of_another_detector(self, folder: Path) -> None:
        check_detector(open_regions(folder), "by-hand")
        with pytest.raises(RequestError, match=r"found by by hand with the digest by-hand, and the detector in use"):
            check_detector(open_regions(folder), "c" * 64)

    def test_every_file_is_in_the_digest(self, folder: Path) -> None:
        seen = {digest_regions(folder)}
        for file in sorted(folder.iterdir()):
            content = file.read_bytes()
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            seen.add(digest_regions(folder))
            file.write_bytes(content)
        assert len(seen) == 1 + 6 and digest_regions(folder) in seen


class Bright:
    """Stands in for a `RegionNet`: it finds as many boxes as the first pixel says, with features of the pixels."""

    digest, feature_dim = "d" * 64, 2
    settings = SimpleNamespace(count=COUNT)
    detector = SimpleNamespace(name="bright", names=("light", "dark"))

    def __init__(self, fail_after: int = 10**9, value: float = 1.0) -> None:
        self.seen: list[Tensor] = []
        self.fail_after, self.value = fail_after, value

    def to(self, device: str) -> "Bright":
        return self

    def __call__(self, images: Tensor) -> Regions:
        assert images.dtype == torch.float32
        self.seen += list(images)
        if len(self.seen) > self.fail_after:
            raise RunError("stopped")
        level = (images[:, 0, 0, 0] + 1) / 2
        counts = (level * COUNT).round().long()
        boxes = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(len(images), COUNT, 4)
        scores = torch.tensor([0.9, 0.5, 0.1]).expand(len(images), COUNT)
        features = (level[:, None, None] * self.value).expand(len(images), COUNT, 2)
        return Regions(boxes, features, scores, counts)


class TestWriting:
    @pytest.fixture
    def pictures(self) -> Any:
        """70 grey pictures: more than a block."""
        pixels = torch.arange(70, dtype=torch.uint8)[:, None, None, None].expand(70, 3, 2, 2) * 3
        return SimpleNamespace(image_ids=np.arange(70) + 5, pixels=lambda items: pixels[torch.from_numpy(items)])

    def write(self, monkeypatch: pytest.MonkeyPatch, folder: Path, pictures: Any, net: Bright) -> RegionFeatures:
        monkeypatch.setattr(regions_module, "open_region_net", lambda given: net)
        folder.mkdir(exist_ok=True)
        write_regions(folder, lambda: pictures, Given(), "e" * 64, lambda *told: None)
        return open_regions(folder)

    def test_what_the_net_finds_is_kept(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Any) -> None:
        net = Bright()
        found = self.write(monkeypatch, tmp_path / "made", pictures, net)
        # In [-1, 1], whatever the transform's own values are.
        assert torch.stack(net.seen)[:, 0, 0, 0].equal(torch.arange(70) * 3 / 127.5 - 1)
        assert found.image_ids.tolist() == list(range(5, 75)) and found.about.pictures == "e" * 64
        assert (found.about.detector, found.about.digest) == ("bright", "d" * 64)
        assert found.about.classes == ["light", "dark"] and found.about.count == COUNT
        levels = np.arange(70) * 3 / 255
        assert found.counts.tolist() == np.round(levels * COUNT).astype(int).tolist()
        assert np.allclose(found.features[:, 0, 1], levels, atol=1e-3)
        assert {path.name for path in (tmp_path / "made").iterdir()} == {ABOUT, *(f"{name}.npy" for name in ARRAYS)}
        found.of(pictures.image_ids, "e" * 64)

    def test_one_that_was_stopped_goes_on(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Any) -> None:
        whole = digest_regions(self.write(monkeypatch, tmp_path / "whole", pictures, Bright()).folder)
        with pytest.raises(RunError, match="stopped"):
            self.write(monkeypatch, tmp_path / "stopped", pictures, Bright(fail_after=66))
        (tmp_path / "stopped" / ".boxes.npy-12345678").write_bytes(b"half")
        again = Bright()
        assert digest_regions(self.write(monkeypatch, tmp_path / "stopped", pictures, again).folder) == whole
        assert len(again.seen) == 6
        assert not list((tmp_path / "stopped").glob(".*"))

    def test_other_weights_go_on_with_nothing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Any
    ) -> None:
        with pytest.raises(RunError, match="stopped"):
            self.write(monkeypatch, tmp_path / "stopped", pictures, Bright(fail_after=66))
        other = Bright()
        other.digest = "f" * 64
        self.write(monkeypatch, tmp_path / "stopped", pictures, other)
        assert len(other.seen) == 70

    @pytest.mark.parametrize("value", [float("nan"), 1e9])
    def test_features_that_cannot_be_kept(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Any, value: float
    ) -> None:
        with (
            np.errstate(over="ignore"),
            pytest.raises(RequestError, match=r"features of pictures 0 to 63 are NaN, infinite or beyond half"),
        ):
            self.write(monkeypatch, tmp_path / "made", pictures, Bright(value=value))

    def test_another_machine_with_other_weights(self, monkeypatch: pytest.MonkeyPatch, pictures: Any) -> None:
        monkeypatch.setattr(regions_module, "open_region_net", lambda given: Bright())
        regions_module._open_worker(lambda: pictures, Given(), "d" * 64, "cpu")
        with pytest.raises(RequestError, match="put the same weights on every machine"):
            regions_module._open_worker(lambda: pictures, Given(), "a" * 64, "cpu")


def test_pictures_of_other_data_are_refused(tmp_path: Path) -> None:
    data = tiny_data()
    own = open_regions(write_own(tmp_path / "own", data.image_ids))
    together = CaptionedPictures(data.pictures, data.index, regions=own)
    assert together.regions is not None and together.regions.rows.tolist() == list(range(len(data)))
    other = open_regions(write_own(tmp_path / "other", data.image_ids[1:]))
    with pytest.raises(RequestError, match="lacks 1 of the 24 images"):
        CaptionedPictures(data.pictures, data.index, regions=other)
    things: Any = SimpleNamespace(image_ids=data.image_ids[::-1])
    with pytest.raises(RunError, match="captions and objects were prepared from different data"):
        CaptionedPictures(data.pictures, data.index, objects=things)
    wrong = replace(own, rows=own.rows[::-1])
    assert not wrong.batch(np.array([1])).boxes.equal(own.batch(np.array([1])).boxes)
