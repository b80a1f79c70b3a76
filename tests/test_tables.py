"""The papers' tables as data: what they set, what they claim, and what a malformed one says."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.registry import system_names
from orchestration.config import Experiment
from orchestration.recipes import get_recipe
from search_spaces.tables import Table, TableError, load_table, parse_table, table_names

NAME = "small"
WHOLE = """\
name: small
system: mirrorgan
title: a title
source: a paper
columns:
  is: {metric: inception_score, protocol: p, better: higher, data: cub, split: test, recipe: mirrorgan_cub, source: s}
  fid: {metric: fid, protocol: p, better: lower, data: cub, split: test, recipe: mirrorgan_cub, source: s}
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


PRESENT = [name for name in table_names() if not load_table(name).to_come]
ROWS = [(name, row) for name in PRESENT for row in load_table(name).rows]


def bases(table: Table) -> list[Experiment]:
    """The recipes at the paper's scale, as all rows have them."""
    return [get_recipe(recipe).replace(dict(table.settings)) for recipe in table.recipes]


@pytest.mark.parametrize("name", table_names())
def test_a_table_is_to_come_as_long_as_its_system_is(name: str) -> None:
    table = load_table(name)
    assert table.to_come == (table.system not in system_names())
    assert name.startswith(f"{table.system}_") and load_table(name).label == name.replace("_", "-")


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_row_is_an_experiment_of_every_recipe(name: str, row: str) -> None:
    table = load_table(name)
    for base in bases(table):
        assert base.system == table.system
        base.replace(dict(table.rows[row].changes))


@pytest.mark.parametrize("name", PRESENT)
def test_rows_are_different_experiments(name: str) -> None:
    table = load_table(name)
    for base in bases(table):
        made = [base.replace(dict(row.changes)).identity for row in table.rows.values()]
        assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", PRESENT)
def test_a_column_is_of_the_data_and_split_of_its_recipe(name: str) -> None:
    for column in load_table(name).columns.values():
        data = get_recipe(column.recipe).data
        assert (data.source.partition(":")[0], data.test_split) == (column.data, column.split)


@pytest.mark.parametrize("name", table_names())
def test_every_row_sets_the_same_fields(name: str) -> None:
    """Or a row would hang on what the recipe happens to have, and smaller scales have other recipes."""
    table = load_table(name)
    if table.name == "retrievegan_table2":  # whose weights are not published: the recipe's stand for "on"
        return
    assert len({frozenset(row.changes) for row in table.rows.values()}) == 1


@pytest.mark.parametrize("name", table_names())
def test_every_row_is_claimed_something_of(name: str) -> None:
    table = load_table(name)
    claimed = {row for claim in table.claims for row in claim.order}
    assert claimed | {"s_w_d"} >= table.rows.keys()  # of which the text says nothing


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        (
            "xmcgan_table4",
            {
                "none": (15.89, 39.28, 21.41, 8.99, 25.72),
                "s": (23.50, 19.25, 53.57, 24.57, 45.41),
                "w": (20.72, 24.38, 44.42, 20.50, 39.12),
                "d": (18.90, 29.71, 31.16, 12.73, 30.89),
                "vgg": (21.54, 39.58, 35.89, 17.41, 35.08),
                "d_vgg": (23.61, 21.14, 47.04, 23.87, 44.41),
                "s_w": (26.02, 14.25, 64.94, 30.49, 51.60),
                "s_w_d": (28.06, 12.96, 65.36, 34.21, 54.23),
                "s_w_vgg": (30.55, 11.12, 70.98, 39.36, 59.10),
                "s_w_d_vgg": (30.66, 11.93, 69.86, 39.85, 59.78),
            },
        ),
        (
            "xmcgan_table5",
            {
                "self_modulation": (28.98, 13.59, 64.65, 35.18, 55.54),
                "attentional": (30.66, 11.93, 69.86, 39.85, 59.78),
            },
        ),
        (
            "xmcgan_table6",
            {"l2": (12.46, 52.86, 22.62, 8.27, 25.48), "contrastive": (21.54, 39.58, 35.89, 17.41, 35.08)},
        ),
        (
            "xmcgan_table7",
            {
                "generator": (23.69, 34.70, 40.44, 21.61, 38.13),
                "discriminator": (25.81, 26.63, 56.62, 28.58, 49.36),
                "both": (31.33, 11.34, 73.11, 42.29, 61.39),
            },
        ),
        ("xmcgan_figure5", {"layers_0": (12.61,), "layers_2": (19.42,)}),
        (
            "trecs_table2",
            {
                "bert_raw_ccfpse": (20.0, 49.9),
                "hmm_spade": (20.2, 50.6),
                "hmm_ccfpse": (20.7, 49.0),
                "bert_hmm_spade": (20.2, 49.5),
                "bert_hmm_ccfpse": (21.3, 48.7),
            },
        ),
        (
            "trecs_table3",
            {
                "true_masks": (22.0, 44.6),
                "k_1": (20.3, 49.0),
                "k_5": (21.3, 48.7),
                "k_10": (21.0, 50.9),
                "k_20": (20.7, 52.3),
                "k_50": (20.0, 56.5),
                "k_100": (18.8, 60.5),
            },
        ),
        (
            "retrievegan_table1",
            {
                "predicted_boxes": (43.2, 10.6, 0.34, 70.3, 7.7, 0.24),
                "given_boxes": (42.7, 10.7, 0.21, 46.3, 9.1, 0.23),
            },
        ),
        (
            "retrievegan_table2",
            {
                "neither": (56.8, 8.8, 0.30),
                "gt_selection": (47.8, 9.7, 0.36),
                "cooccurrence": (52.8, 9.8, 0.29),
                "both": (43.2, 10.6, 0.34),
            },
        ),
        (
            "cpgan_figure6",
            {
                "attngan_plus": (38.12,),
                # 38.12 and 8.9, 2.5 and 9.8 points (section 4.2).
                "mate": (47.0,),
                "oaie": (40.6,),
                "fgcd": (47.9,),
                "mate_oaie": (),
                "mate_fgcd": (),
                "oaie_fgcd": (),
                "all": (52.73,),
            },
        ),
    ],
)
def test_numbers_as_printed(name: str, printed: dict[str, tuple[float, ...]]) -> None:
    """In the order of the paper's columns."""
    table = load_table(name)
    found = {
        row: tuple(entry.published[column].value for column in table.columns if column in entry.published)
        for row, entry in table.rows.items()
    }
    assert found == printed


def test_recall_of_trecs_is_of_no_row() -> None:
    [encoder] = load_table("trecs_table3").references
    assert [figure.value for figure in encoder.published.values()] == [
        *(26.3, 53.8, 66.8, 78.4, 89.9, 95.4),
        *(27.0, 52.2, 63.1, 74.1, 86.6, 92.9),
    ]


def test_other_systems_of_retrievegans_table_1() -> None:
    """FID, Inception Score and diversity on COCO-Stuff, then on Visual Genome."""
    found = {
        (entry.system, entry.title): tuple(figure.value for figure in entry.published.values())
        for entry in load_table("retrievegan_table1").references
    }
    assert found == {
        ("sg2im", "with predicted boxes"): (136.8, 4.1, 0.02, 126.9, 5.1, 0.11),
        ("attngan", "on graphs in words"): (72.8, 8.4, 0.14, 114.6, 10.4, 0.27),
        ("pastegan", "with predicted boxes"): (59.8, 8.8, 0.43, 81.8, 6.7, 0.30),
        ("sg2im", "with true boxes"): (79.9, 8.5, 0.02, 111.9, 5.8, 0.13),
        ("layout2im", "with true boxes"): (45.3, 10.2, 0.29, 44.0, 9.3, 0.29),
        ("pastegan", "with true boxes"): (54.9, 9.6, 0.38, 68.1, 6.7, 0.28),
        ("real", ""): (6.8, 24.3, 6.9, 24.1),
    }


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
    assert {claim.order for claim in table.claims} == {
        ("lambda_5", "lambda_10", "lambda_20"),
        ("without_global_lambda_0", "without_global_lambda_20"),
        ("without_global_lambda_20", "lambda_20"),
    }


def test_a_column_has_a_direction() -> None:
    columns = parse_table(WHOLE.encode(), NAME).columns
    assert columns["is"].improves(1.0, 2.0) and not columns["is"].improves(2.0, 1.0)
    assert columns["fid"].improves(2.0, 1.0) and not columns["fid"].improves(1.0, 2.0)
    assert not columns["is"].improves(1.0, 1.0) and not columns["fid"].improves(1.0, 1.0)


THIRD = """\
  three: {title: Three, changes: {model.stream_weight: 3.0}, published: {is: {value: 5}, fid: {value: 8.5}}}
claims:
"""


def test_rows_in_order() -> None:
    longer = WHOLE.replace("claims:\n", THIRD)
    in_order = longer.replace(
        "better: two, worse: one, columns: [is, fid]", "monotone: [one, two, three], columns: [is]"
    )
    [claim] = parse_table(in_order.encode(), NAME).claims
    assert claim.order == ("one", "two", "three") and claim.words == "three over two over one"
    told = refusal(in_order.replace("columns: [is]", "columns: [fid]"))
    assert "claim 1 says 'three' is better than 'two' in 'fid', but the published numbers are 8.5 and 8" in told
    assert "claims.0.monotone" in refusal(in_order.replace("[one, two, three]", "[one, two]"))
    assert "names row 'one' twice" in refusal(in_order.replace("[one, two, three]", "[one, two, one]"))


def test_a_claim_about_bars_without_numbers() -> None:
    without = WHOLE.replace("published: {is: {value: 4.0, spread: 0.2}, fid: {value: 8}}}", "published: {}}")
    assert "for which row 'two' has no published number" in refusal(without)
    table = parse_table(without.replace("source: section 1", "source: section 1, drawn: true").encode(), NAME)
    assert table.claims[0].drawn and [entry.title for entry in table.entries()] == ["One"]


def test_references_are_of_known_columns() -> None:
    reference = "references:\n  - {system: real, published: {fid: {value: 2}}}\nclaims:\n"
    table = parse_table(WHOLE.replace("claims:\n", reference).encode(), NAME)
    assert [(entry.system, entry.title) for entry in table.entries()] == [
        ("real", ""),
        ("mirrorgan", "One"),
        ("mirrorgan", "Two"),
    ]
    told = refusal(WHOLE.replace("claims:\n", reference.replace("fid", "kid")))
    assert "the reference 'real' names column 'kid', which is not there; near it: fid" in told


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
        ("protocol: p, better: higher", "protocol: unknown, better: higher", "why says what is known of an unknown"),
        ("protocol: p, better: higher", "protocol: p, why: w, better: higher", "write both or neither"),
        (
            "protocol: p, better: higher",
            "protocol: p, nearest: q, better: higher",
            "nearest is for an unknown protocol",
        ),
        ("split: test, ", "", "columns.is.split: field required"),
        ("split: test, ", "split: test, samples: 0, ", "columns.is.samples"),
        ("better: two, worse: one", "better: two", "either better and worse, or monotone"),
        (
            "better: two, worse: one",
            "better: two, worse: one, monotone: [one, two, one]",
            "either better and worse, or",
        ),
        ("stream_weight: 2.0", "stream_weight: 1.0", "'one' and 'two' are the same configuration"),
        ("stream_weight: 2.0", "stream_weight: [2.0]", "rows.two.changes"),
        ("value: 4.0", "value: x", "rows.two.published.is.value"),
        ("value: 4.0", "value: .nan", "rows.two.published.is.value"),
        ("spread: 0.2", "spread: -0.2", "rows.two.published.is.spread"),
        ("spread: 0.2}, fid", "spread: 0.2}, fdi", "row 'two' names column 'fdi', which is not there; near it: fid"),
        ("{is: {value: 4.0, spread: 0.2}, fid: {value: 8}}", "{}", "row 'two' has no published number"),
        (", fid: {value: 8}", "", "claim 1 compares 'fid', for which row 'two' has no published number"),
        ("better: two", "better: tow", "claim 1 names row 'tow', which is not there; near it: two"),
        ("[is, fid]", "[si]", "claim 1 names column 'si'"),
        ("[is, fid]", "[]", "claims.0.columns"),
        ("better: two, worse: one", "better: one, worse: two", "but the published numbers are 3 and 4, higher being"),
        ("better: two, worse: one", "better: one, worse: one", "a claim names row 'one' twice"),
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
