"""Data with known faults: every kind is said once, with its place, and nothing stops at the first."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from orchestration.data import checking
from orchestration.data.checking import Report, check_source, picture_problems, record_problems
from orchestration.data.coco import SPLITS
from orchestration.data.problems import Findings, Kind, Notice, Problem
from orchestration.data.records import Dataset, ImageRecord, Instance, Panoptic, PanopticSegment
from orchestration.data.sources import FORMATS
from orchestration.errors import RequestError
from tests.tiny_inputs import write_tiny_coco

WIDTH, HEIGHT = 48, 32
COUNTED = ("pictures", "captioned images", "captions", "images with things", "things", "panoptic maps")


def noise(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(), "JPEG", exif=exif)


JPEG, PNG, WEBP = encoded(noise(), "JPEG"), encoded(noise(), "PNG"), encoded(noise(), "WEBP")
PICTURES: Mapping[str, tuple[str, bytes | None, dict[Kind, str]]] = {
    "sound JPEG": ("a.jpg", JPEG, {}),
    "sound PNG": ("a.png", PNG, {}),
    "sound JPEG by its longer name": ("a.JPEG", JPEG, {}),
    "upright by EXIF": ("a.jpg", rotated(1), {}),
    "missing": ("a.jpg", None, {Kind.PICTURE_MISSING: "is not there"}),
    "JPEG without its end": ("a.jpg", JPEG[:-2], {Kind.PICTURE_TRUNCATED: "is cut short"}),
    "half a JPEG": ("a.jpg", JPEG[: len(JPEG) // 2], {Kind.PICTURE_TRUNCATED: "is cut short"}),
    "JPEG cut in its header": ("a.jpg", JPEG[:100], {Kind.PICTURE_TRUNCATED: "is cut short"}),
    "three bytes of a JPEG": ("a.jpg", JPEG[:3], {Kind.PICTURE_TRUNCATED: "is cut short"}),
    "half a PNG": ("a.png", PNG[: len(PNG) // 2], {Kind.PICTURE_TRUNCATED: "is cut short"}),
    "PNG cut in its header": ("a.png", PNG[:20], {Kind.PICTURE_TRUNCATED: "is cut short"}),
    "half a WebP": ("a.webp", WEBP[: len(WEBP) // 2], {Kind.PICTURE_TRUNCATED: "is cut short"}),
    "empty file": ("a.jpg", b"", {Kind.PICTURE_TRUNCATED: "is an empty file"}),
    "a web page": ("a.jpg", b"<html>not found</html>", {Kind.PICTURE_UNDECODABLE: "does not decode"}),
    "broken PNG data": (
        "a.png",
        PNG[:60] + bytes(200) + PNG[260:],
        {Kind.PICTURE_UNDECODABLE: "does not decode"},
    ),
    "PNG named JPEG": (
        "a.jpg",
        PNG,
        {Kind.PICTURE_EXTENSION: "is PNG by its content, which is read, but its name says JPEG; rename"},
    ),
    "no extension": ("a", PNG, {Kind.PICTURE_EXTENSION: "its name does not say so"}),
    "CMYK": ("a.jpg", encoded(noise().convert("CMYK"), "JPEG"), {Kind.PICTURE_CMYK: "is in CMYK"}),
    "grey": ("a.jpg", encoded(noise().convert("L"), "JPEG"), {Kind.PICTURE_GREY: "is grey (mode L)"}),
    "rotated": ("a.jpg", rotated(6), {Kind.PICTURE_ROTATED: "has EXIF orientation 6; it is not turned"}),
    "other size": ("a.png", encoded(noise(20, 10), "PNG"), {Kind.PICTURE_SIZE: "is 20 x 10 px"}),
    "several at once": (
        "a.png",
        encoded(noise(20, 10).convert("L"), "JPEG"),
        {Kind.PICTURE_SIZE: "is 20 x 10 px", Kind.PICTURE_EXTENSION: "is JPEG", Kind.PICTURE_GREY: "is grey"},
    ),
}


class TestPictures:
    def found(self, folder: Path, name: str, content: bytes | None, size: tuple[int, int]) -> list[Problem]:
        if content is not None:
            (folder / name).write_bytes(content)
        return picture_problems(ImageRecord(1, Path(name), *size), folder)

    @pytest.mark.parametrize("case", PICTURES)
    def test_each_kind_with_its_sentence(self, tmp_path: Path, case: str) -> None:
        name, content, expected = PICTURES[case]
        problems = self.found(tmp_path, name, content, (WIDTH, HEIGHT))
        assert {problem.kind for problem in problems} == set(expected), problems
        for problem in problems:
            assert expected[problem.kind] in problem.sentence
            assert problem.sentence.startswith(f"picture {tmp_path / name} ") and problem.sentence.endswith(".")
            assert "\n" not in problem.sentence

    @pytest.mark.parametrize("size", [(1, 20), (20, 1), (1, 1)])
    def test_one_pixel_wide_or_high(self, tmp_path: Path, size: tuple[int, int]) -> None:
        [problem] = self.found(tmp_path, "a.png", encoded(noise(*size), "PNG"), size)
        assert problem.kind is Kind.PICTURE_TINY
        assert f"is {size[0]} x {size[1]} px" in problem.sentence

    def test_a_folder_where_the_picture_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").mkdir()
        [problem] = self.found(tmp_path, "a.jpg", None, (WIDTH, HEIGHT))
        assert problem.kind is Kind.PICTURE_MISSING


def table(folder: Path, name: str) -> Any:
    return json.loads((folder / "annotations" / name).read_text())


def write_table(folder: Path, name: str, content: Any) -> None:
    (folder / "annotations" / name).write_text(json.dumps(content))


def with_instances(folder: Path) -> Path:
    """A tiny COCO folder whose first train image has things, one of them with each fault that only drawing finds."""
    write_tiny_coco(folder)
    images = table(folder, "captions_train2017.json")["images"]
    shapes: list[Any] = [
        [[1, 1, 9, 1, 9, 9]],
        [[1, 1, 9, 1]],
        {"size": [30, 40], "counts": [7]},
        {"size": [40, 30], "counts": [1200]},
    ]
    things = [
        {
            "id": place,
            "image_id": 1,
            "category_id": 17,
            "bbox": [1, 1, 8, 8],
            "segmentation": shape,
            "area": 32,
            "iscrowd": 0,
        }
        for place, shape in enumerate(shapes)
    ]
    categories = [{"id": 17, "name": "cat", "supercategory": "animal"}]
    write_table(folder, "instances_train2017.json", {"images": images, "annotations": things, "categories": categories})
    return folder


class TestSources:
    def check(self, folder: Path, **options: Any) -> Report:
        return check_source(f"coco:{folder}", None, Path(), **options)

    def test_nothing_is_wrong(self, tmp_path: Path) -> None:
        report = self.check(write_tiny_coco(tmp_path / "coco"))
        assert report.findings == Findings() and report.verdict is None
        assert {split: [counts[name] for name in COUNTED] for split, counts in report.counts.items()} == {
            "train": [3, 3, 5, 0, 0, 0],
            "val": [2, 2, 2, 0, 0, 0],
        }
        text = list(report.lines())
        assert text[-3:] == ["no fault", "", "no remark"]
        assert text[1].split() == ["train", "val"] and text[2].split() == ["pictures", "3", "2"]
        assert len({len(line) for line in text[1:5]}) == 1  # in columns

    def test_several_kinds_are_all_reported(self, tmp_path: Path) -> None:
        """A fault of every reader and of pictures: nothing stops at the first."""
        folder = with_instances(tmp_path / "coco")
        pictures = folder / "train2017"
        (pictures / "000000000002.png").write_bytes(PNG[: len(PNG) // 2])
        (pictures / "000000000003.png").unlink()
        Image.new("L", (7, 5)).save(folder / "val2017" / "000000000004.png")
        captions = table(folder, "captions_val2017.json")
        captions["annotations"][1]["caption"] = " "
        write_table(folder, "captions_val2017.json", captions)
        report = self.check(folder)
        faults = {kind: count for kind, count in report.findings.counts.items() if kind.is_fault}
        assert faults == {
            Kind.PICTURE_TRUNCATED: 1,
            Kind.PICTURE_MISSING: 1,
            Kind.PICTURE_SIZE: 1,
            Kind.CAPTION_EMPTY: 1,
            Kind.MASK_BROKEN: 2,
            Kind.MASK_SIZE: 1,
        }
        assert report.findings.counts[Kind.PICTURE_GREY] == 1
        assert report.verdict is not None
        assert report.verdict.startswith(f"7 faults of 6 kinds in coco:{folder}: mend them, or leave them out with")
        text = "\n".join(report.lines())
        assert text.index("7 faults of 6 kinds") < text.index("picture cut short") < text.index("2 remarks of 2 kinds")
        for problem in report.findings.examples.values():
            assert all(sentence in text and sentence.endswith(".") for sentence in problem)
        broken = report.findings.examples[Kind.MASK_BROKEN]
        assert broken[0].startswith("image 1 (000000000001.png): the segmentation of its cat at x 1, y 1 cannot be ")
        assert "polygon 0 has 4 numbers" in broken[0] and "counts covers 7 pixels" in broken[1]

    def test_a_file_that_ends_a_split_is_counted_and_the_next_split_goes_on(self, tmp_path: Path) -> None:
        folder = write_tiny_coco(tmp_path / "coco")
        (folder / "annotations" / "captions_train2017.json").write_text('{"images": [')
        report = self.check(folder)
        assert report.counts["train"] == {} and report.counts["val"]["pictures"] == 2
        assert report.findings.counts == {Kind.FILE_BROKEN: 1, Kind.SPLIT_UNUSABLE: 1}
        assert "it is cut short" in report.findings.examples[Kind.FILE_BROKEN][0]
        assert "no usable image in train2017" in report.findings.examples[Kind.SPLIT_UNUSABLE][0]
        assert report.verdict == f"2 faults of 2 kinds in coco:{folder}: mend them."
        assert set(report.digests) == {"val"}
        assert any(line.split() == ["pictures", "unreadable", "2"] for line in report.lines())

    def test_a_problem_of_all_splits_is_said_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Some formats have one file for all splits, which is read for each."""
        said = Problem(Kind.DUPLICATE_ID, "line 3 is line 2 again.")

        def read(root: Path, split: str, notice: Notice) -> Dataset:
            notice(said)
            return Dataset("coco", split, root, (), frozenset(), split)

        monkeypatch.setattr(checking, "FORMATS", {"coco": replace(FORMATS["coco"], splits=lambda _: SPLITS, read=read)})
        report = self.check(tmp_path)
        assert list(report.counts) == list(SPLITS) and report.findings.counts == {Kind.DUPLICATE_ID: 1}

    def test_names_of_any_kind_are_one_line_each(self, tmp_path: Path) -> None:
        folder = write_tiny_coco(tmp_path / "coco")
        for name in ("a\nb.png", "\x1b[31m\u202e.png"):
            (folder / "train2017" / name).write_bytes(PNG)
        captions = table(folder, "captions_train2017.json")
        captions["images"].append({**captions["images"][0], "id": 77, "file_name": "x" * 5000})
        write_table(folder, "captions_train2017.json", captions)
        lines = list(self.check(folder).lines())
        assert all(line.isprintable() and len(line) < 700 for line in lines)
        for part in ("a\\nb.png is listed", "\\x1b[31m\\u202e.png is listed", "xxx ... ", "xxx' among them"):
            assert any(part in line for line in lines), part

    def test_examples_are_as_many_as_wanted(self, tmp_path: Path) -> None:
        folder = write_tiny_coco(tmp_path / "coco")
        for picture in (folder / "train2017").iterdir():
            picture.write_bytes(b"no picture")
        for wanted in (0, 2, 5):
            report = self.check(folder, examples=wanted)
            assert report.findings.counts == {Kind.PICTURE_UNDECODABLE: 3}
            assert len(report.findings.examples[Kind.PICTURE_UNDECODABLE]) == min(wanted, 3)

    def test_pictures_may_be_left_closed(self, tmp_path: Path) -> None:
        folder = with_instances(tmp_path / "coco")
        (folder / "train2017" / "000000000002.png").write_bytes(b"no picture")
        kinds = self.check(folder, pictures=False).findings.counts.keys()
        assert Kind.PICTURE_UNDECODABLE not in kinds and Kind.MASK_BROKEN in kinds

    def test_some_splits(self, tmp_path: Path) -> None:
        folder = write_tiny_coco(tmp_path / "coco")
        assert list(check_source(f"coco:{folder}", ["val", "val"], Path()).counts) == ["val"]
        with pytest.raises(RequestError, match="has no split 'dev'; it has train, val"):
            check_source(f"coco:{folder}", ["dev"], Path())

    def test_a_source_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="is no COCO folder"):
            self.check(tmp_path)
        with pytest.raises(RequestError, match="no known kind"):
            check_source("cocoo:x", None, Path())

    def test_what_is_said_is_json(self, tmp_path: Path) -> None:
        report = self.check(with_instances(tmp_path / "coco"))
        found = report.as_json()
        assert json.loads(json.dumps(found)) == found
        assert found["problems"]["MASK_BROKEN"]["count"] == 2 and found["problems"]["MASK_BROKEN"]["fault"]
        assert found["faults"] == report.findings.faults == 3

    def test_progress_is_told(self, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        check_source(f"coco:{write_tiny_coco(tmp_path / 'coco')}", ["train"], Path(), lambda *done: told.append(done))
        assert told == [("checking train", done, 3) for done in (1, 2, 3)]

    def test_real_photographs(self, shared_data: Path) -> None:
        """The counts that the folder's own README gives; its four label and instance maps are of two images."""
        report = self.check(shared_data / "coco-mini")
        assert {split: [counts[name] for name in COUNTED] for split, counts in report.counts.items()} == {
            "train": [80, 38, 169, 79, 770, 26],
            "val": [99, 99, 495, 65, 552, 23],
        }
        assert report.counts["val"]["narratives"] == 170 and report.counts["val"]["images with stuff"] == 2
        assert report.findings.faults == 0


class TestMaps:
    def record(self, folder: Path, ids: NDArray[np.uint8], labels: NDArray[np.uint8]) -> ImageRecord:
        noise().save(folder / "1.png")
        return ImageRecord(
            1,
            Path("1.png"),
            WIDTH,
            HEIGHT,
            stuff_map=encoded(Image.fromarray(labels), "PNG"),
            panoptic=Panoptic(
                encoded(Image.fromarray(ids), "PNG"),
                (PanopticSegment(257, "sea", 155, False, (0, 0, 4, 4), 16.0, False),),
            ),
        )

    def problems(self, record: ImageRecord, folder: Path) -> dict[Kind, str]:
        return {problem.kind: problem.sentence for problem in record_problems(record, folder)}

    def test_sound(self, tmp_path: Path) -> None:
        ids, labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
        ids[:4, :4] = (1, 1, 0)
        assert self.problems(self.record(tmp_path, ids, labels), tmp_path) == {}

    def test_segment_without_a_pixel(self, tmp_path: Path) -> None:
        ids, labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
        found = self.problems(self.record(tmp_path, ids, labels), tmp_path)
        assert list(found) == [Kind.MASK_BROKEN]
        assert found[Kind.MASK_BROKEN].startswith("image 1 (1.png): the panoptic map has no pixel of segment 257 (1 of")

    def test_maps_of_another_size(self, tmp_path: Path) -> None:
        ids, labels = np.full((HEIGHT, WIDTH, 3), 1, np.uint8), np.zeros((HEIGHT + 1, WIDTH), np.uint8)
        found = self.problems(self.record(tmp_path, ids, labels), tmp_path)
        assert f"is {WIDTH} x {HEIGHT + 1} px" in found[Kind.MASK_SIZE]

    def test_a_label_that_is_none(self, tmp_path: Path) -> None:
        ids, labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.full((HEIGHT, WIDTH), 200, np.uint8)
        ids[0, 0] = (1, 1, 0)
        assert "holds label 200" in self.problems(self.record(tmp_path, ids, labels), tmp_path)[Kind.MASK_BROKEN]

    def test_a_map_that_does_not_decode(self, tmp_path: Path) -> None:
        whole = self.record(tmp_path, np.full((HEIGHT, WIDTH, 3), 1, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8))
        found = self.problems(replace(whole, stuff_map=tmp_path / "gone.png", panoptic=None), tmp_path)
        assert "gone.png cannot be read" in found[Kind.MASK_BROKEN]

    def test_an_rle_of_another_size(self, tmp_path: Path) -> None:
        """COCO's reader leaves such regions out; other readers may not."""
        noise().save(tmp_path / "1.png")
        content = b'{"size": [3, 4], "counts": [12]}'
        region = Instance("cat", 17, (1.5, 2, 3, 4), content, 12.0, False)
        found = self.problems(ImageRecord(1, Path("1.png"), WIDTH, HEIGHT, stuff=(region,)), tmp_path)
        assert list(found) == [Kind.MASK_SIZE]
        assert "the segmentation of its cat at x 1.5, y 2 cannot be drawn (size is [3, 4]" in found[Kind.MASK_SIZE]
