"""The papers' tables as data: what they set, what they claim, and what a malformed one says."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.registry import get_system
from orchestration.recipes import RECIPES, get_recipe
from search_spaces.tables import Table, TableError, load_table, parse_table, table_names

NAME = "small"
WHOLE = """\
name: small
system: mirrorgan
title: a title
source: a paper
columns:
  is: {metric: inception_score, protocol: p, better: higher, data: cub, recipe: mirrorgan_cub, source: s}
  fid: {metric: fid, protocol: p, better: lower, data: cub, recipe: mirrorgan_cub, source: s}
rows:
  one: {title: One, changes: {model.stream_weight: 1.0}, published: {is: {value: 3.0, spread: 0.1}, fid: {value: 9}}}
  two: {title: Two, changes: {model.stream_weight: 2.0}, published: {is: {value: 4.0, spread: 0.2}, fid: {value: 8}}}
claims:
  - {better: two, worse: one, columns: [is, fid], source: section 1}
"""


def refusal(text: str) -> str:
    """The one sentence of a table that is none."""
    with pytest.raises(TableError) as caught:
        parse_table(text.encode(), NAME)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def without_absent_fields(table: Table, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes; skips, with the reason, where the system has no such field yet."""
    known = get_system(table.system).Config.model_fields
    for field in changes:
        if field.startswith("model.") and field.split(".")[1] not in known:
            pytest.skip(f"{table.system} has no field {field} yet, which {table.name} needs")
    return changes


ROWS = [(name, row) for name in table_names() for row in load_table(name).rows]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_row_is_an_experiment_of_every_recipe(name: str, row: str) -> None:
    table = load_table(name)
    changes = without_absent_fields(table, table.rows[row].changes)
    for recipe in table.recipes:
        assert recipe in RECIPES
        base = get_recipe(recipe)
        assert base.system == table.system
        base.replace(changes)


@pytest.mark.parametrize("name", table_names())
def test_rows_are_different_experiments(name: str) -> None:
    table = load_table(name)
    for recipe in table.recipes:
        base = get_recipe(recipe)
        made = [base.replace(without_absent_fields(table, row.changes)).identity for row in table.rows.values()]
        assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", table_names())
def test_a_column_is_of_the_data_of_its_recipe(name: str) -> None:
    for column in load_table(name).columns.values():
        assert get_recipe(column.recipe).data.source.partition(":")[0] == column.data


def test_mirrorgan_table_3() -> None:
    """The paper's numbers: Inception Score on CUB and COCO with its spread, R-precision on CUB and COCO."""
    table = load_table("mirrorgan_table3")
    printed = {
        "without_global_lambda_0": (3.91, 0.09, 19.01, 0.42, 39.09, 50.69),
        "without_global_lambda_20": (4.47, 0.07, 25.99, 0.41, 55.67, 73.28),
        "lambda_5": (4.01, 0.06, 21.85, 0.43, 32.07, 52.55),
        "lambda_10": (4.30, 0.07, 24.11, 0.31, 43.21, 63.40),
        "lambda_20": (4.54, 0.17, 26.47, 0.41, 57.67, 74.52),
    }
    found = {}
    for name, row in table.rows.items():
        cub, coco = row.published["inception_score_cub"], row.published["inception_score_coco"]
        precision = [row.published[f"r_precision_{data}"].value for data in ("cub", "coco")]
        found[name] = (cub.value, cub.spread, coco.value, coco.spread, *precision)
    assert found == printed
    assert table.rows["lambda_20"].changes["model.stream_weight"] == 20
    assert table.recipes == ("mirrorgan_cub_paper", "mirrorgan_coco14_paper")
    assert {(claim.better, claim.worse) for claim in table.claims} == {
        ("lambda_10", "lambda_5"),
        ("lambda_20", "lambda_10"),
        ("without_global_lambda_20", "without_global_lambda_0"),
        ("lambda_20", "without_global_lambda_20"),
    }


def test_a_claim_has_a_direction() -> None:
    table = parse_table(WHOLE.encode(), NAME)
    [claim] = table.claims
    assert claim.holds(table.columns["is"], 2.0, 1.0) and not claim.holds(table.columns["is"], 1.0, 2.0)
    assert claim.holds(table.columns["fid"], 1.0, 2.0) and not claim.holds(table.columns["fid"], 2.0, 1.0)
    assert not claim.holds(table.columns["is"], 1.0, 1.0) and not claim.holds(table.columns["fid"], 1.0, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (WHOLE, "", "dictionary"),
        (WHOLE, "[1", "line 1"),
        (WHOLE, "\0", "cannot be read"),
        (WHOLE, "!!python/object:os.system {}", "cannot be read"),
        ("title: a title\n", "title: a title\ntitle: b\n", "'title' is there twice"),
        ("  two: {", "  one: {", "'one' is there twice"),
        ("name: small", "name: large", "says name 'large': write name: small"),
        ("name: small", "name: Small!", "wrong at name"),
        ("system: mirrorgan\n", "", "wrong at system: field required"),
        ("title: a title", "title: ''", "wrong at title"),
        ("source: a paper", "extra: a paper", "wrong at source"),
        ("better: higher", "better: more", "columns.is.better"),
        ("protocol: p, better: higher", "better: higher", "columns.is.protocol"),
        ("stream_weight: 2.0", "stream_weight: 1.0", "'one' and 'two' are the same configuration"),
        ("stream_weight: 2.0", "stream_weight: [2.0]", "rows.two.changes"),
        ("value: 4.0", "value: x", "rows.two.published.is.value"),
        ("value: 4.0", "value: .nan", "rows.two.published.is.value"),
        ("spread: 0.2", "spread: -0.2", "rows.two.published.is.spread"),
        ("spread: 0.2}, fid", "spread: 0.2}, fdi", "row 'two' names column 'fdi', which is not there; near it: fid"),
        ("{is: {value: 4.0, spread: 0.2}, fid: {value: 8}}", "{}", "rows.two.published"),
        (", fid: {value: 8}", "", "claim 1 compares 'fid', for which row 'two' has no published number"),
        ("better: two", "better: tow", "claim 1 names row 'tow', which is not there; near it: two"),
        ("[is, fid]", "[si]", "claim 1 names column 'si'"),
        ("[is, fid]", "[]", "claims.0.columns"),
        ("better: two, worse: one", "better: one, worse: two", "but the published numbers are 3 and 4, higher being"),
        ("better: two, worse: one", "better: one, worse: one", "but the published numbers are 3 and 3"),
        ("value: 8", "value: 10", "in 'fid', but the published numbers are 10 and 9, lower being better"),
        ("  - {better: two, worse: one, columns: [is, fid], source: section 1}", "  []", "wrong at claims"),
    ],
)
def test_a_malformed_table_is_a_sentence(old: str, new: str, says: str) -> None:
    parse_table(WHOLE.encode(), NAME)
    assert old in WHOLE
    sentence = refusal(WHOLE.replace(old, new, 1))
    assert sentence.startswith("search_spaces/tables/small.yaml") and says in sentence


def test_one_row_is_no_table() -> None:
    values = yaml.safe_load(WHOLE)
    del values["rows"]["two"]
    assert "wrong at rows" in refusal(yaml.safe_dump(values))


def test_an_unknown_table_lists_near_ones() -> None:
    with pytest.raises(TableError, match="near it: mirrorgan_table3"):
        load_table("mirrorgan_table_3")
    with pytest.raises(TableError, match="no table '../attngan'"):
        load_table("../attngan")


@settings(deadline=None, max_examples=100)
@given(place=st.integers(0, len(WHOLE) - 1), letter=st.characters(codec="utf-8"))
def test_a_typing_error_is_a_table_or_a_sentence(place: int, letter: str) -> None:
    try:
        table = parse_table((WHOLE[:place] + letter + WHOLE[place + 1 :]).encode(), NAME)
    except TableError as error:
        assert "\n" not in str(error)
    else:
        assert Table.model_validate(table.model_dump(mode="json")) == table
