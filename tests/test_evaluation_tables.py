"""Tables of records: what stands in them, what is marked best, what does not compare and what papers' numbers may."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import RequestError
from orchestration.evaluation.record import Judged, MetricRecord
from orchestration.evaluation.tables import FIELDS, WIDTH, Table, better

OURS: dict[str, Any] = {"metric": "fid", "protocol": "scenes-net", "value": 12.3456, "half": 0.41}
COCO: dict[str, Any] = {
    "protocol": "inception-2015",
    "data": "coco-2014:folder",
    "split": "val",
    "real": 30_000,
    "drawn": 30_000,
    "pictures": "xmcgan 256 centre",
}


def record(run: str = "run-a", **changes: Any) -> MetricRecord:
    """A record of FID on scenes, with changes."""
    values = {**OURS, "seed": 1, "data": "scenes", "split": "test", "real": 500, "drawn": 400, **changes}
    judged = Judged(
        system=values.get("system", "xmcgan"),
        recipe="recipe",
        run=run,
        checkpoint=values.get("checkpoint", run),
        kimg=values.get("kimg", 8.0),
        data=values["data"],
        data_digest=values["data"] + "digest",
        split=values["split"],
        pictures=values.get("pictures", "xmcgan 32 centre"),
        seed=values["seed"],
    )
    return MetricRecord(
        metric=values["metric"],
        protocol=values["protocol"],
        value=values["value"],
        low=values["value"] - values["half"],
        high=values["value"] + values["half"],
        count=values["drawn"],
        real=values["real"],
        drawn=values["drawn"],
        judged=judged,
        views=values.get("views", {}),
        notes=tuple(values.get("notes", ())),
    )


def line(text: str, start: str) -> str:
    """The only line that starts so."""
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return found


class TestCells:
    def test_a_value_stands_with_its_interval_and_counts(self) -> None:
        text = Table.of([record()]).text()
        assert line(text, "fid/scenes-net").split() == ["fid/scenes-net", "↓", "500/400", "12.35", "[11.94,", "12.76]"]
        assert "run-a" in text and "8 kimg" in text and "scenes, split test, pictures xmcgan 32 centre" in text

    @pytest.mark.parametrize(
        ("value", "half", "shown"),
        [
            (0.00123, 0.0001, "0.00123 [0.00113, 0.00133]"),
            (1234.5, 250.0, "1234 [984, 1484]"),
            (0.5, 0.0, "0.5 [0.5, 0.5]"),
            (float("nan"), 0.1, "nan [nan, nan]"),
        ],
    )
    def test_digits_follow_the_interval(self, value: float, half: float, shown: str) -> None:
        assert shown in Table.of([record(value=value, half=half)]).text()

    def test_seeds_are_merged_and_their_spread_is_the_noise(self) -> None:
        table = Table.of([record(value=value, seed=seed) for seed, value in enumerate((10.0, 11.0, 12.0))])
        cell = table.cells["fid/scenes-net", 0]
        assert (cell.record.value, cell.noise, cell.seeds) == (11.0, 1.0, (0, 1, 2))
        assert cell.record.high - cell.record.low == pytest.approx(0.82)
        text = table.text()
        assert "noise 1, 3 seeds" in text and "noise: standard deviation over sampling seeds" in text
        assert "; noise 1, 3 seeds" in table.markdown()

    def test_a_seed_that_comes_twice_counts_once(self) -> None:
        cell = Table.of([record(value=10.0), record(value=14.0)]).cells["fid/scenes-net", 0]
        assert (cell.record.value, cell.noise, cell.seeds) == (14.0, None, (1,))

    def test_seeds_of_other_counts_are_left_out_with_a_note(self) -> None:
        table = Table.of([record(value=1.0, drawn=16, seed=3), record()])
        assert table.cells["fid/scenes-net", 0].seeds == (1,)
        assert table.footnotes == (
            "earlier figures of run-a are left out: the number of pictures drawn differs (16 and 400)",
        )

    def test_a_figure_that_a_run_lacks(self) -> None:
        table = Table.of([record(), record(metric="kid"), record("run-b")])
        assert line(table.text(), "kid/scenes-net").endswith(" -")
        assert "| - |" in table.markdown()

    def test_no_records(self) -> None:
        with pytest.raises(RequestError, match="^there is no figure to show: judge a run with t2i evaluate RUN$"):
            Table.of([])


class TestColumns:
    def test_what_runs_do_not_share_stands_below_their_names(self) -> None:
        table = Table.of([record(), record("run-b", split="val", kimg=16.5)])
        assert [column.lines for column in table.columns] == [("8 kimg", "split test"), ("16.5 kimg", "split val")]
        assert table.heading == "Judged on scenes, pictures xmcgan 32 centre"

    def test_two_checkpoints_of_a_run_are_two_columns(self) -> None:
        table = Table.of([record(checkpoint="a", kimg=1), record(checkpoint="b", kimg=2)])
        assert [column.lines for column in table.columns] == [("1 kimg",), ("2 kimg",)]

    @settings(deadline=None, max_examples=30)
    @given(
        st.lists(st.text("abc-_/é漢", min_size=1, max_size=70), min_size=1, max_size=7, unique=True),
        st.lists(st.text("abc-_/", min_size=1, max_size=90), min_size=1, max_size=4, unique=True),
    )
    def test_no_line_is_too_long_and_nothing_is_lost(self, runs: list[str], protocols: list[str]) -> None:
        records = [record(run, protocol=protocol, notes=("n" * 200,)) for run in runs for protocol in protocols]
        text = Table.of(records).text()
        assert max(map(len, text.splitlines())) <= WIDTH
        assert text.count("12.35 [11.94, 12.76]") == len(records)


class TestBest:
    def test_better_by_more_than_the_noise(self) -> None:
        table = Table.of([record(), record("run-b", value=14.0)])
        assert "12.35* [" in table.text() and "14.00 [" in table.text()
        assert "**12.35** [" in table.markdown()

    def test_a_difference_within_the_intervals_is_none(self) -> None:
        assert "*" not in Table.of([record(), record("run-b", value=12.6)]).text()

    def test_a_difference_within_the_noise_floor_is_none(self) -> None:
        def seeds(run: str, values: tuple[float, float], half: float) -> list[MetricRecord]:
            return [record(run, value=value, seed=seed, half=half) for seed, value in enumerate(values)]

        near = [*seeds("run-a", (10.0, 14.0), 0.01), *seeds("run-b", (12.0, 16.0), 0.01)]
        assert not any(cell.best for cell in Table.of(near).cells.values())
        far = [*seeds("run-a", (10.0, 10.1), 0.01), *seeds("run-b", (12.0, 12.1), 0.01)]
        assert [cell.best for cell in Table.of(far).cells.values()] == [True, False]

    def test_all_others_must_be_worse(self) -> None:
        records = [record(value=10.0), record("run-b", value=10.1), record("run-c", value=20.0)]
        assert "*" not in Table.of(records).text()

    @pytest.mark.parametrize(
        ("metric", "direction", "best"),
        [
            ("kid", "lower", 0),
            ("inception_score", "higher", 1),
            ("soa_c_top40", "higher", 1),
            ("diversity", None, None),
            ("soap", None, None),
        ],
    )
    def test_directions(self, metric: str, direction: str | None, best: int | None) -> None:
        assert better(metric) == direction
        cells = Table.of([record(metric=metric), record("run-b", metric=metric, value=99.0)]).cells
        assert [place for (_, place), cell in cells.items() if cell.best] == ([] if best is None else [best])

    def test_real_pictures_do_not_compete(self) -> None:
        records = [record("real pictures", value=0.1, checkpoint=""), record(), record("run-b", value=14.0)]
        table = Table.of(records)
        assert [cell.best for cell in table.cells.values()] == [False, True, False]
        assert table.columns[0].lines == ()

    def test_one_run_is_not_best(self) -> None:
        assert "*" not in Table.of([record()]).text()

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"drawn": 300}, "the number of pictures drawn differs (400 and 300)"),
            ({"data": "coco:there"}, "the data differs"),
            ({"views": {"scenes-net": "b"}}, "the weights of scenes-net differ"),
        ],
    )
    def test_what_does_not_compare_is_said_and_not_ranked(self, changes: dict[str, Any], reason: str) -> None:
        table = Table.of(
            [record(views={"scenes-net": "a"}), record("run-b", value=1.0, **{"views": {"scenes-net": "a"}, **changes})]
        )
        assert table.footnotes == (f"run-b does not compare with run-a: {reason}",)
        text = table.text()
        assert "*" not in text and "[0.59, 1.41]" in text and f"(1) run-b does not compare with run-a: {reason}" in text
        assert ("of 500/300" in text) == ("drawn" in changes)


class TestFootnotes:
    def test_notes_stand_once_with_their_numbers(self) -> None:
        records = [
            record(notes=("few pictures", "odd")),
            record("run-b", notes=("few pictures",)),
            record(metric="kid", notes=("few pictures",)),
        ]
        table = Table.of(records)
        text = table.text()
        assert table.footnotes == ("few pictures", "odd")
        assert text.count("few pictures") == 1
        assert line(text, "fid").startswith("fid/scenes-net ↓ (1) ") and "12.76] (2)" in line(text, "fid")
        assert line(text, "kid").startswith("kid/scenes-net ↓ (1) ")

    def test_markdown_survives_its_marks(self) -> None:
        text = Table.of([record("a|b", notes=("x|y\nz",))]).markdown()
        assert "a\\|b" in text and "- (1) x\\|y z" in text
        rows = [row.replace("\\|", "").count("|") for row in text.splitlines() if row.startswith("|")]
        assert rows == [4, 4, 4]


class TestPublished:
    def test_numbers_of_the_same_protocol_and_data_stand_beside_ours(self) -> None:
        table = Table.of([record(**COCO)])
        beside = {table.columns[place].title: number.value for (_, place), number in table.published.items()}
        assert beside["xmcgan"] == 9.33 and beside["real"] == 6.09 and beside["cpgan"] == 55.82
        text = table.text()
        assert "published: XMC-GAN (2021), table 2; section 5.2: the official code" in text
        assert "not comparable" not in text
        assert table.columns[1].title == "xmcgan"  # the judged system first
        assert not any(cell.best for cell in table.cells.values())

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"data": "scenes"}, "ours is scenes data"),
            ({"data": "coco:folder"}, "data called coco:PATH may be of either year, call it coco-2014:PATH"),
            ({"split": "train"}, "ours is the split train"),
            ({"protocol": "inception-imagenet"}, "measured under another protocol"),
            ({"drawn": 500}, "theirs is from 30,000 pictures, ours from 500"),
            ({"pictures": "xmcgan 32 centre"}, "theirs is of pictures of 256 px, ours of 32 px"),
        ],
    )
    def test_others_are_a_footnote_with_the_reason(self, changes: dict[str, Any], reason: str) -> None:
        table = Table.of([record(**{**COCO, **changes})])
        assert not table.published and len(table.columns) == 1
        assert (
            f"fid/inception-2015 9.33 on coco-2014 val (XMC-GAN (2021), table 2; not comparable: {reason})"
            in (table.remarks[0])
        )
        assert len(table.remarks) <= 4

    def test_a_protocol_that_is_not_known_never_compares(self) -> None:
        table = Table.of([record(**{**COCO, "data": "ln-coco:folder", "protocol": "unknown"})])
        assert not table.published
        assert "fid (protocol unknown) 14.12 on ln-coco val" in table.remarks[0]

    def test_systems_without_papers_have_no_remark(self) -> None:
        assert Table.of([record(system="mine")]).remarks == ()

    def test_notes_of_a_number_stand_with_it(self) -> None:
        table = Table.of([record(**{**COCO, "metric": "r_precision", "protocol": "1+99-other-classes/top-1"})])
        note = "published: DM-GAN's README (2019); the released code gives ties to the right caption"
        assert note in table.footnotes and "published (1)" in table.text()


class TestFiles:
    def test_csv_has_every_number_in_full(self) -> None:
        records = [record(notes=("a, b",)), record("run-b", value=14.0, seed=5), record("run-b", value=15.0, seed=4)]
        first, second = csv.DictReader(io.StringIO(Table.of(records).csv()))
        assert tuple(first) == FIELDS
        assert (first["figure"], first["value"], first["best"], first["better"]) == (
            "fid/scenes-net",
            "12.3456",
            "yes",
            "lower",
        )
        assert (first["real"], first["drawn"], first["notes"], first["source"]) == ("500", "400", "a, b", "")
        assert (second["run"], second["seeds"]) == ("run-b", "4 5")
        assert float(second["noise"]) == pytest.approx(0.5**0.5)

    def test_csv_names_the_papers(self) -> None:
        rows = list(csv.DictReader(io.StringIO(Table.of([record(**COCO)]).csv())))
        (paper,) = [row for row in rows if (row["source"], row["system"]) == ("XMC-GAN (2021), table 2", "xmcgan")]
        assert (paper["value"], paper["drawn"], paper["run"]) == ("9.33", "30000", "")

    def test_the_form_is_the_file_s_ending(self, tmp_path: Path) -> None:
        table = Table.of([record()])
        for name, content in (("t.md", table.markdown()), ("t.csv", table.csv())):
            table.write(tmp_path / name)
            assert (tmp_path / name).read_text() == content
        assert {path.name for path in tmp_path.iterdir()} == {"t.md", "t.csv"}

    def test_another_ending(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"t\.txt is neither \.md nor \.csv: end its name with one of them$"):
            Table.of([record()]).write(tmp_path / "t.txt")

    def test_nowhere_to_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RequestError, match=r"t\.md cannot be written \(.*\): give another place$"):
            Table.of([record()]).write(tmp_path / "file" / "t.md")
