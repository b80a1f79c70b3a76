"""The papers' numbers: as printed, under names that our metrics have, and malformed files told in a sentence."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.data.sources import FORMATS
from orchestration.errors import RequestError
from orchestration.evaluation.feature_views import NETS
from orchestration.evaluation.fid import Fid
from orchestration.evaluation.inception_score import InceptionScore
from orchestration.evaluation.published import FILE, UNKNOWN, Published, numbers_of, published, read_published
from orchestration.evaluation.r_precision import RPrecision
from orchestration.evaluation.recall import KS, TO_CAPTION, TO_IMAGE
from orchestration.evaluation.soa_captions import SOURCES, Counts
from search_spaces.tables import load_table, table_names

SMALL: dict[str, Any] = {
    "tables": [
        {
            "source": "a paper, table 1",
            "size": 64,
            "note": "read me",
            "columns": {
                "a": {"metric": "fid", "protocol": "inception-2015", "data": "cub", "split": "test", "samples": 10},
                "b": {"metric": "r_precision", "protocol": "unknown", "data": "cub", "split": "test", "percent": True},
            },
            "rows": [
                {"system": "one", "values": {"a": 3.5, "b": [50, 2.5]}},
                {"system": "two", "note": "quoted", "protocols": {"a": "unknown"}, "values": {"a": 4}},
            ],
        }
    ]
}


def written(folder: Path, content: Any) -> Path:
    """A file with that content, as YAML unless it is text."""
    path = folder / "numbers.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def find(source: str, system: str, figure: str, data: str, variant: str = "") -> Published:
    """The only such number."""
    (found,) = [
        number
        for number in published()
        if (number.source, number.system, number.figure, number.data, number.variant)
        == (source, system, figure, data, variant)
    ]
    return found


class TestNumbers:
    @pytest.mark.parametrize(
        ("source", "system", "figure", "data", "value", "spread"),
        [
            ("MirrorGAN (2019), table 1", "mirrorgan", "inception_score/cub/inception-cub", "cub", 4.56, 0.05),
            ("MirrorGAN (2019), table 2", "attngan", "r_precision/1+99/top-3", "coco-2014", 0.7653, None),
            (
                *("CPGAN (2020), table 1", "cpgan", "inception_score/cpgan/inception-torchvision", "coco-2014"),
                *(52.73, 0.61),
            ),
            ("CPGAN (2020), table 1", "cpgan", "r_precision/batch-100/top-1", "coco-2014", 0.9359, None),
            ("XMC-GAN (2021), table 2", "xmcgan", "fid/inception-2015", "coco-2014", 9.33, None),
            ("XMC-GAN (2021), table 2", "real", "soa_i/yolov3-256-squash/published/hinz", "coco-2014", 0.8084, None),
            ("XMC-GAN (2021), table 3", "trecs", "fid/unknown", "ln-coco", 48.7, None),
            ("RetrieveGAN (2020), table 1", "retrievegan", "diversity/lpips-alex", "coco-2017", 0.34, 0.1),
            ("TReCS (2021), table 1", "attngan", "fid/unknown", "ln-openimages", 56.6, None),
            ("TReCS (2021), table 3", "trecs", "recall/caption-to-image@5", "ln-coco", 0.538, None),
        ],
    )
    def test_as_printed(
        self, source: str, system: str, figure: str, data: str, value: float, spread: float | None
    ) -> None:
        number = find(source, system, figure, data)
        assert number.value == pytest.approx(value) and number.spread == spread

    def test_ablations_have_a_variant(self) -> None:
        number = find("XMC-GAN (2021), table 4", "xmcgan", "fid/unknown", "coco-2014", "S + W + VGG")
        assert number.value == 11.12
        ablations = [n for n in published() if n.source.startswith("XMC-GAN") and n.source[-1] in "4567"]
        assert ablations and all(number.variant for number in ablations)

    def test_ablations_are_those_of_the_tables(self) -> None:
        """And nowhere else: a number lives in one place."""
        tables = [load_table(name) for name in table_names()]
        assert {number.source for number in read_published(FILE)}.isdisjoint(table.source for table in tables)
        for table in tables:
            mine = [number for number in published() if number.source == table.source]
            assert mine == list(numbers_of(table)) and len(mine) > 1
            keys = [(n.system, n.variant, n.data, n.figure) for n in mine if n.protocol != UNKNOWN]
            assert len(set(keys)) == len(keys)

    def test_a_number_of_a_table_is_in_the_units_of_records(self) -> None:
        number = find(
            "MirrorGAN (2019), table 3", "mirrorgan", "r_precision/1+99/top-1", "cub", "MirrorGAN, lambda = 5"
        )
        assert (number.value, number.spread, number.samples, number.size) == (0.3207, None, 30_000, 256)
        assert "R-precision, 39.09, lies above" in number.note

    def test_every_system_of_the_papers_is_there(self) -> None:
        systems = {number.system for number in published() if not number.variant}
        assert systems >= {
            "real",
            "attngan",
            "mirrorgan",
            "cpgan",
            "xmcgan",
            "retrievegan",
            "trecs",
            "dm-gan",
            "op-gan",
        }
        assert systems >= {"sd-gan", "obj-gan", "sg2im", "pastegan", "stackgan"}

    def test_data_sets_are_called_as_by_t2i(self) -> None:
        assert {number.data for number in published()} <= FORMATS.keys() - {"coco"}

    def test_protocols_are_ours(self) -> None:
        ours = {f"fid/{Fid(net, 0).protocol}" for net in NETS}
        for protocol in ("openai/inception-2015", "cub/inception-cub", "cpgan/inception-torchvision"):
            ours.add(f"inception_score/{InceptionScore(protocol).protocol}")
        for protocol in ("1+99", "1+99-other-classes", "batch-100"):
            ours |= {f"r_precision/{RPrecision(protocol).protocol}/top-{top}" for top in (1, 2, 3)}
        ours |= {f"recall/{way}@{k}" for way in (TO_IMAGE, TO_CAPTION) for k in KS}
        ours |= {f"soa_{mean}/yolov3-256-squash/{source}/{Counts().name}" for mean in "ci" for source in SOURCES}
        ours.add("diversity/lpips-alex")
        known = {number.figure for number in published() if number.protocol != UNKNOWN}
        assert known <= ours and len(known) > 10

    def test_shares_are_no_percentages(self) -> None:
        shares = [n for n in published() if n.metric.startswith(("r_precision", "recall", "soa", "human", "diversity"))]
        assert all(0 < number.value < 1 for number in shares)
        assert all(number.value > 1 for number in published() if number not in shares)

    def test_an_unknown_protocol_says_why(self) -> None:
        assert all(bool(number.why) == (number.protocol == UNKNOWN) for number in published())


class TestReader:
    def test_a_small_file(self, tmp_path: Path) -> None:
        first, second, third = read_published(written(tmp_path, SMALL))
        assert (first.system, first.figure, first.value, first.spread) == ("one", "fid/inception-2015", 3.5, None)
        assert (first.samples, first.size, first.note, first.why) == (10, 64, "read me", "")
        assert (second.value, second.spread, second.samples) == (0.5, 0.025, None)
        assert second.why == "the paper does not settle how it was measured"
        assert (third.protocol, third.why, third.note) == (UNKNOWN, "quoted", "quoted; read me")

    @pytest.mark.parametrize(
        ("place", "value", "sentence"),
        [
            (
                ("rows", 0, "values", "c"),
                1.0,
                "the row of one names the column 'c', which the table lacks; it has a, b",
            ),
            (("rows", 1, "protocols", "b"), "x", "the row of two has a protocol and no value for 'b'"),
            (("rows", 0, "values", "a"), "many", "rows.0.values.a"),
            (("rows", 0, "values", "a"), float("nan"), "rows.0.values.a"),
            (("rows", 0, "values", "a"), [1.0, -2.0], "rows.0.values.a"),
            (("rows", 0, "values"), {}, "rows.0.values: dictionary should have at least 1 item"),
            (("rows", 0, "colour"), "red", "rows.0.colour: extra inputs are not permitted"),
            (("rows", 0, "system"), "", "rows.0.system: string should have at least 1 character"),
            (("rows", 1, "system"), "one", "gives fid/"),
            (("columns", "a", "data"), "coco", "the column 'a' is of the data set 'coco', and data sets are called"),
            (("columns", "a", "data"), "birds", "the column 'a' is of the data set 'birds'"),
            (("columns", "a", "samples"), 0, "columns.a.samples: input should be greater than 0"),
            (("columns", "a", "metric"), None, "columns.a.metric: input should be a valid string"),
            (("source",), None, "tables.0.source"),
            (("size",), "big", "tables.0.size"),
        ],
    )
    def test_a_wrong_field_is_named(
        self, tmp_path: Path, place: tuple[str | int, ...], value: Any, sentence: str
    ) -> None:
        content: Any = copy.deepcopy(SMALL)
        spot = content["tables"][0]
        for step in place[:-1]:
            spot = spot[step]
        spot[place[-1]] = value
        if sentence == "gives fid/":
            del content["tables"][0]["rows"][1]["protocols"]
        with pytest.raises(RequestError) as refused:
            read_published(written(tmp_path, content))
        told = str(refused.value)
        assert sentence in told and told.startswith(str(tmp_path / "numbers.yaml")) and "\n" not in told

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("tables: [", "cannot be read"),
            ("tables: []\ntables: []", "is there twice"),
            ("[]", "is wrong at the file"),
            ("", "is wrong at the file"),
            ("tables: []", "is wrong at tables: list should have at least 1 item"),
            ("tables: !!python/object:os.system {}", "cannot be read"),
        ],
    )
    def test_a_file_of_another_form(self, tmp_path: Path, content: str, sentence: str) -> None:
        with pytest.raises(RequestError, match=sentence):
            read_published(written(tmp_path, content))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"none\.yaml cannot be read \(.*\): give a file of published numbers$"):
            read_published(tmp_path / "none.yaml")

    def test_the_file_travels_with_the_package(self) -> None:
        assert FILE.is_file() and FILE.parent.name == "evaluation"
