"""Papers' claims tried on made figures, and the tables that come out."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.campaigns.reproduce_claims import (
    HOLDS,
    NORMAL,
    NOT_JUDGED,
    REVERSED,
    WITHIN_NOISE,
    Cell,
    Noise,
    judge_claim,
)
from orchestration.campaigns.reproduce_report import WIDTH, Report, Run
from orchestration.campaigns.reproduce_scales import (
    Measure,
    measures_of,
)
from orchestration.errors import RequestError
from orchestration.evaluation.estimates import STUDENT
from search_spaces.tables import Claim
from tests.reproduce_support import MIRRORGAN, PAPER, RISING, XMCGAN, made_report, record

HIGH = Measure(("is",), "recipe", "is/scenes-net", "inception_score/openai/scenes-net", "higher", False)
LOW = Measure(("fid",), "recipe", "fid/scenes-net", "fid/scenes-net", "lower", False)
ALONE = Noise()


def cells(**values: float | Sequence[float]) -> dict[str, Cell]:
    """Cells by row, of one training or several."""
    several = {row: [value] if isinstance(value, float | int) else value for row, value in values.items()}
    return {row: Cell(tuple(record(value) for value in found)) for row, found in several.items()}


def claim(*order: str) -> Claim:
    """Rows from the worst to the best."""
    form: dict[str, Any] = {"monotone": order} if len(order) > 2 else {"worse": order[0], "better": order[1]}
    return Claim(columns=("fid",), source="section 1", **form)


class TestClaims:
    def test_a_difference_beyond_the_noise(self) -> None:
        """Standard errors of 0.1 / 1.96 each: the noise is 1.96 times their root of squares, 0.141."""
        found = judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=1.15), ALONE)
        assert found.verdict == HOLDS and found.gain == pytest.approx(0.15)
        assert found.critical * found.error == pytest.approx(0.1 * math.sqrt(2))
        assert judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=1.13), ALONE).verdict == WITHIN_NOISE
        assert judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=0.85), ALONE).verdict == REVERSED
        lower = judge_claim(claim("a", "b"), LOW, cells(a=1.0, b=0.85), ALONE)
        assert lower.verdict == HOLDS and lower.gain == pytest.approx(0.15)

    def test_what_has_no_figure_is_not_judged(self) -> None:
        found = judge_claim(claim("a", "b"), HIGH, cells(a=1.0), ALONE)
        assert (found.verdict, found.reason) == (NOT_JUDGED, "b: no figure") and math.isnan(found.gain)
        assert judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=math.nan), ALONE).reason == "a figure is not finite"
        other = {"a": Cell((record(1.0),)), "b": Cell((record(2.0, split="val"),))}
        assert "the split differs" in judge_claim(claim("a", "b"), HIGH, other, ALONE).reason

    def test_rows_in_order(self) -> None:
        order = claim("a", "b", "c")
        assert judge_claim(order, HIGH, cells(a=1.0, b=2.0, c=3.0), ALONE).verdict == HOLDS
        # A step within the noise takes nothing away.
        assert judge_claim(order, HIGH, cells(a=1.0, b=0.95, c=3.0), ALONE).verdict == HOLDS
        back = judge_claim(order, HIGH, cells(a=1.0, b=4.0, c=3.0), ALONE)
        assert (back.verdict, back.worse, back.better) == (REVERSED, "b", "c") and back.gain == pytest.approx(-1)
        assert judge_claim(order, HIGH, cells(a=3.0, b=2.0, c=1.0), ALONE).verdict == REVERSED
        assert judge_claim(order, HIGH, cells(a=1.0, b=1.05, c=1.1), ALONE).verdict == WITHIN_NOISE
        assert judge_claim(order, HIGH, cells(a=1.0, b=math.nan, c=3.0), ALONE).verdict == NOT_JUDGED

    def test_trainings_make_the_noise(self) -> None:
        """Pooled over rows: deviations 1 and 3 of two trainings each are root 5, with two degrees of freedom."""
        found = cells(a=[1 - 0.5**0.5, 1 + 0.5**0.5], b=[5 - 3 * 0.5**0.5, 5 + 3 * 0.5**0.5])
        assert found["a"].spread == pytest.approx(1) and found["b"].mean.value == pytest.approx(5)
        noise = Noise.of(list(found.values()))
        assert noise.deviation == pytest.approx(math.sqrt(5)) and noise.freedom == 2 and noise.critical == 4.303
        verdict = judge_claim(claim("a", "b"), HIGH, found, noise)
        # Each mean is of two: root of 5 / 2 each, together root 5.
        assert verdict.error == pytest.approx(math.sqrt(5)) and verdict.gain == pytest.approx(4)
        assert verdict.verdict == WITHIN_NOISE
        assert judge_claim(claim("a", "b"), HIGH, found, ALONE).verdict == HOLDS

    def test_one_training_has_no_spread(self) -> None:
        assert cells(a=1.0)["a"].spread is None
        assert Noise.of(list(cells(a=1.0, b=2.0).values())) == ALONE and ALONE.critical == NORMAL

    @pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (5, 2.571), (30, 2.042), (31, NORMAL)])
    def test_students_quantiles(self, freedom: int, quantile: float) -> None:
        assert Noise(1.0, freedom).critical == quantile
        assert len(STUDENT) == 30 and list(STUDENT) == sorted(STUDENT, reverse=True)


VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
TRAININGS = st.lists(VALUES, min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(one=TRAININGS, other=TRAININGS, shift=VALUES, scale=st.floats(0.1, 10))
def test_a_claim_turned_round_is_reversed(one: list[float], other: list[float], shift: float, scale: float) -> None:
    """Turning rows round, or the direction of the figure, turns the verdict; where the scale begins does not matter."""
    turned = {HOLDS: REVERSED, REVERSED: HOLDS, WITHIN_NOISE: WITHIN_NOISE}
    found = cells(a=one, b=other)
    noise = Noise.of(list(found.values()))
    verdict = judge_claim(claim("a", "b"), HIGH, found, noise)
    assert judge_claim(claim("b", "a"), HIGH, found, noise).verdict == turned[verdict.verdict]
    assert judge_claim(claim("a", "b"), LOW, found, noise).verdict == turned[verdict.verdict]
    moved = cells(a=[value + shift for value in one], b=[value + shift for value in other])
    again = judge_claim(claim("a", "b"), HIGH, moved, Noise.of(list(moved.values())))
    assert again.gain == pytest.approx(verdict.gain, abs=1e-6)
    assert again.error == pytest.approx(verdict.error, abs=1e-6)
    # More noise never makes a difference out of none.
    louder = judge_claim(claim("a", "b"), HIGH, found, replace(noise, deviation=(noise.deviation + 1) * (1 + scale)))
    assert louder.verdict in (verdict.verdict, WITHIN_NOISE)


@settings(deadline=None, max_examples=150)
@given(values=st.lists(VALUES, min_size=3, max_size=5))
def test_rows_in_order_hold_only_without_a_step_back(values: list[float]) -> None:
    names = [chr(ord("a") + place) for place in range(len(values))]
    found = cells(**dict(zip(names, values, strict=True)))
    steps = [judge_claim(claim(*pair), HIGH, found, ALONE).verdict for pair in pairwise(names)]
    ends = judge_claim(claim(names[0], names[-1]), HIGH, found, ALONE).verdict
    verdict = judge_claim(claim(*names), HIGH, found, ALONE).verdict
    assert (verdict == REVERSED) == (ends == REVERSED or REVERSED in steps)
    assert verdict in (REVERSED, ends)


class TestReports:
    def test_numbers_beside_each_other(self) -> None:
        text = made_report(RISING).text()
        assert all(len(line) <= WIDTH for line in text.splitlines())
        assert "r_precision/1+99/top-1 ↑, in percent, the paper's metric on other data" in text
        assert "stand-in for inception_score/cub/inception-cub, inception_score/openai/inception-2015" in " ".join(
            text.split()
        )
        [ours, percent] = [line for line in text.splitlines() if line.startswith("MirrorGAN w/o GA, lambda = 20")]
        assert ours.split()[6:] == ["4.47", "±", "0.07", "25.99", "±", "0.41", "0.300", "[0.290,", "0.310]"]
        assert percent.split()[6:] == ["55.67", "73.28", "30.0", "[29.0,", "31.0]"]

    def test_claims_and_what_they_rest_on(self) -> None:
        report = made_report(RISING)
        assert [one.verdict.verdict for one in report.judgements] == [HOLDS] * 6
        assert report.counts == {HOLDS: 6, REVERSED: 0, WITHIN_NOISE: 0, NOT_JUDGED: 0}
        text = " ".join(report.text().split())
        assert "lambda_20 over lambda_10 over lambda_5" in text and "+20 ± 1.4" in text
        assert "How trainings of the same row differ is not in it" in text and "--seeds 3" in text
        assert "the paper's numbers are of cub and coco-2014, ours of scenes: they do not compare" in text
        assert "on the paper: Inception Score of the last row on CUB" in text

    def test_a_step_back_is_named(self) -> None:
        report = made_report({**RISING, "lambda_10": 0.6})
        assert "reversed (lambda_10 to lambda_20)" in report.text()
        assert report.counts[REVERSED] == 2

    def test_several_trainings(self) -> None:
        report = made_report({row: (value - 0.1, value + 0.1) for row, value in RISING.items()}, seeds=2)
        text = " ".join(report.text().split())
        assert "noise: 2 trainings a row, their spread pooled over rows" in text
        assert "damsm, stream and their seeds are shared by all" in text and "0.14 of 2" in text
        assert {one.verdict.critical for one in report.judgements} == {2.571}

    def test_a_row_that_failed(self) -> None:
        values = {row: value for row, value in RISING.items() if row != "lambda_20"}
        failed = Run("lambda_20", "mirrorgan_scenes", 0, "run", failure="it diverged")
        report = replace(made_report(values), runs=(*made_report(values).runs, failed))
        assert report.failures == [failed] and report.counts[NOT_JUDGED] == 4
        assert "lambda_20, seed 0: no figure: it diverged" in report.text() and "lambda_20: no figure" in report.text()

    def test_nothing_at_all(self) -> None:
        report = made_report({})
        assert report.counts[NOT_JUDGED] == 6 and "r_precision/1+*/top-1" in report.text()
        json.dumps(report.to_json(), allow_nan=False)

    def test_rows_that_were_left_out(self) -> None:
        report = made_report(RISING, rows=("lambda_5", "lambda_20"))
        assert "rows left out: without_global_lambda_0" in " ".join(report.text().split())
        assert report.counts[NOT_JUDGED] == 6

    def test_markdown_has_whole_tables(self, tmp_path: Path) -> None:
        made_report(RISING).write(tmp_path / "table.md")
        text = (tmp_path / "table.md").read_text()
        lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
        tables = [line.count(" | ") for line in lines]
        assert len(tables) == 2 * (1 + 5) + 1 + 6 and tables == [3] * len(tables)

    def test_csv_has_numbers_and_verdicts(self) -> None:
        lines = list(csv.DictReader(io.StringIO(made_report(RISING).csv())))
        kinds = [line["kind"] for line in lines]
        assert (kinds.count("number"), kinds.count("claim")) == (20, 6)
        [line] = [one for one in lines if one["row"] == "lambda_20" and one["column"] == "r_precision_cub"]
        assert (float(line["paper"]), float(line["value"]), line["paper_spread"]) == (0.5767, 0.4, "")
        assert {line["verdict"] for line in lines if line["kind"] == "claim"} == {HOLDS}

    def test_json(self) -> None:
        values = json.loads(json.dumps(made_report(RISING).to_json(), allow_nan=False))
        row = values["rows"]["lambda_20"]
        assert row["paper"]["inception_score_cub"] == {"value": 4.54, "spread": 0.17}
        assert row["ours"]["r_precision/1+99/top-1"]["value"] == 0.4 and row["changes"]["model.stream_weight"] == 20
        assert values["claims"][0]["rows"] == ["lambda_5", "lambda_10", "lambda_20"]
        assert values["claims"][0]["verdict"] == HOLDS and values["verdicts"][HOLDS] == 6

    def test_a_form_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"table\.pdf is neither \.md nor \.csv"):
            made_report(RISING).write(tmp_path / "table.pdf")
        with pytest.raises(RequestError, match="cannot be written"):
            made_report(RISING).write(tmp_path / "none" / "table.md")

    def test_two_data_sets_of_one_metric_are_told_apart(self) -> None:
        measures = measures_of(MIRRORGAN, PAPER, MIRRORGAN.recipes)
        ours = {("lambda_5", place): Cell((record(float(place), figure="r_precision/1+99/top-1"),)) for place in (2, 3)}
        report = Report(MIRRORGAN, PAPER, tuple(measures), tuple(MIRRORGAN.rows), 1, (), ours)
        found = report.to_json()["rows"]["lambda_5"]["ours"]
        assert found["r_precision/1+99/top-1 on cub"]["value"] == 2
        assert found["r_precision/1+99/top-1 on coco-2014"]["value"] == 3
        assert "r_precision/1+99/top-1 on cub ↑, in percent\n" in report.text()

    def test_at_the_papers_scale_it_says_what_compares(self) -> None:
        table, measures = XMCGAN, measures_of(XMCGAN, PAPER, ["xmcgan_coco14"])
        ours = record(20.0, figure="fid/inception-imagenet", data="coco-2014:x", split="val")
        report = Report(table, PAPER, tuple(measures), ("none", "s"), 1, (), {("s", 1): Cell((ours,))})
        text = " ".join(report.text().split())
        assert "fid/inception-imagenet ↓, nearest to fid (measured by the paper's own code in TensorFlow)" in text
        assert "fid/inception-imagenet does not compare with the paper's: measured by the paper's own code" in text
