"""The report page, as text: what is in it, what cannot get out of it, and what damage it survives."""

import base64
import hashlib
import html
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import plotly.graph_objects as go
import pytest

from orchestration import report_commands
from orchestration.campaigns.ledger import FILE, Ledger, SegmentState
from orchestration.campaigns.report import duration, read_folder, write_report
from orchestration.campaigns.report_plots import BEST, Plot, parallel_coordinates, slices
from orchestration.campaigns.report_study import comparisons, distribution, importances, points_at, study_of
from orchestration.campaigns.report_trials import KEPT_BYTES, Record
from orchestration.campaigns.standing import Standing
from orchestration.errors import RequestError, RunError
from search_spaces.space import Parameter, load_space
from tests.report_support import (
    ACCURACY,
    FID,
    SCRIPT,
    Made,
    figures_at,
    halving_campaign,
    picture,
    population_campaign,
    settings_of,
    two_objectives,
)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return halving_campaign(tmp_path_factory.mktemp("halved"))


@pytest.fixture(scope="module")
def page(halved: Made) -> str:
    return write_report(halved.folder, halved.folder / "page.html").read_text()


def own(page: str) -> str:
    """The page without plotly.js, and without its plots' and pictures' data."""
    page = re.sub(r"data:image/\w+;base64,[\w+/=]+", "data:image/", page)
    page = re.sub(r"<script>.*?plotly\.js v.*?</script>", "", page, count=1, flags=re.DOTALL)
    return re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)


def plots(page: str) -> dict[str, Any]:
    """The plots' data by id."""
    found = re.findall(r'<script type="application/json" data-plot="(.*?)">(.*?)</script>', page, flags=re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def section(page: str, name: str) -> str:
    [found] = re.findall(rf'<section id="{name}">(.*?)</section>', page, flags=re.DOTALL)
    return found


def test_head_says_what_came_of_it(page: str, halved: Made) -> None:
    head = own(page)
    assert f"<h1>{halved.folder.name}</h1>" in head
    assert "Best: trial-0000 with 34.17 [32.67, 36.17], within the noise of trial-0010" in head
    assert "The paper&#39;s own point is the best." in head
    assert "<b>14</b> of 14 trials" in head and "1 running, 3 finished, 8 stopped, 1 diverged, 1 failed" in head
    trained = 13 * 2 + 6 * 2 + 3 * 4
    assert f"<b>{trained} kimg</b>" in head and "55% less than every trial&#39;s whole budget (112 kimg)" in head
    assert "4 kimg in trials that diverged, collapsed or failed" in head
    assert "<b>8 min</b>" in head  # 50 000 pictures at 100 a second
    told = section(page, "search")
    for words in (
        "xmcgan_scenes32",
        "scenes:size=32",
        "minimize validation/fid/scenes-net",
        "compared at 2, 4, 8 kimg",
    ):
        assert words in told
    assert "section 4.3" in told and "0.1 to 10, log" in told and "2023-11-14 22:13 to 2023-11-14 22:14 (UTC)" in told


def test_every_trial_and_why_it_ended(page: str, halved: Made) -> None:
    rows = section(page, "trials")
    for trial in halved.ledger.trials():
        assert len(re.findall(rf'<th scope="row">{trial.name}\s', rows)) == 1
    assert rows.index("trial-0000") < rows.index("trial-0010") < rows.index("trial-0004")
    ended = section(page, "ended")
    assert "<b>trial-0001, trial-0005, trial-0008</b>: others were better at 4 kimg" in ended
    assert "<b>trial-0007</b>: the worker ended without a word (killed)" in ended
    numbers = [
        re.findall(r">([^<>]+)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", ended, flags=re.DOTALL)[1:]
    ]
    assert [[row[0], row[1], row[2], row[4]] for row in numbers] == [
        ["2", "14", "11", "6"],
        ["4", "6", "6", "3"],
        ["8", "3", "3", "-"],
    ]


def test_text_is_text(page: str, tmp_path: Path) -> None:
    """Whatever the ledger, a recipe, a parameter's name or a value says."""
    assert SCRIPT not in page and html.escape(SCRIPT) in own(page)
    parameters = {
        "<b>&lt;x": {**load_space("xmcgan").parameters["tau"].model_dump(mode="json")},
        "kind": {
            **load_space("xmcgan").parameters["batch_size"].model_dump(mode="json"),
            "field": "model.kind",
            "values": ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>"],
            "paper": None,
            "released": None,
            "by_data": {},
            "source": SCRIPT,
        },
    }
    space = load_space("xmcgan").model_validate({"system": "x", "parameters": parameters, "default": ["kind"]})
    settings = settings_of(trials=10, scheduler="none", grace_kimg=8.0)
    made = Made(tmp_path, settings, space, name=f"{SCRIPT}\n", base={"recipe": SCRIPT}, code=[SCRIPT])
    for number in range(10):
        made.trial(number, {"<b>&lt;x": 0.1 + number / 100, "kind": parameters["kind"]["values"][number % 2]})
        made.reached(made.begun(number), {FID: 5.0 + number})
    nasty = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert len(plots(nasty)) >= 4
    assert own(nasty).count("<script") == 1, "the page's own"
    assert "<img" not in own(nasty).replace('<img src="data:image/', "")
    for name, figure in plots(nasty).items():
        for text in strings(figure):
            assert not re.search(r"<(?!br\b)", text) and not text.startswith("javascript:"), (name, text)


def test_a_plot_cannot_end_its_element() -> None:
    figure = go.Figure(go.Scatter(x=[1.0, math.nan, math.inf], y=[1, 2, 3], name=f"</script>{SCRIPT}<!--"))
    written = Plot(figure, "").json
    assert not re.search("[<>&]", written) and "NaN" not in written and "Infinity" not in written
    [trace] = json.loads(written)["data"]
    assert trace["name"] == f"</script>{SCRIPT}<!--" and list(trace["x"]) == [1.0, None, None]


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) and not value.startswith("%{") else []


def test_nothing_outside_is_named(page: str) -> None:
    assert not re.search(r"(?:https?:)?//\w", own(page))
    assert not re.search(r"\b(?:src|href)=\"(?!data:|#)", own(page))
    text = plots(page)
    assert text and not any("://" in string for string in strings(text))


def test_the_policy_allows_these_scripts_alone(page: str) -> None:
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    policy = html.unescape(policy)
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert len(scripts) == 2 and set(re.findall(r"'sha256-(.*?)'", policy)) == digests
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.partition("style-src")[0]


def test_pictures_are_in_the_page(page: str, tmp_path: Path) -> None:
    cards = section(page, "best")
    assert cards.count('<img src="data:image/png;base64,') == cards.count("<article>") == 6
    assert "Grid of pictures that trial-0000 drew for held-out captions at 8 kimg" in cards
    picture(tmp_path / "pictures" / "kimg-000002.000.png", 3, (3000, 900))
    picture(tmp_path / "pictures" / "kimg-000001.000.png", 3)
    found = Record(tmp_path).picture()
    assert (found.kimg, found.width) == (2.0, 3000) and found.uri.startswith("data:image/jpeg")
    assert len(found.uri) < KEPT_BYTES


def test_the_papers_trial_is_shown_though_others_are_better(tmp_path: Path) -> None:
    made = two_objectives(tmp_path)
    for trial in made.ledger.trials()[:1]:
        segment = made.ledger.segments()[0]
        made.reached(segment, {**trial.figures, FID: 99.0, "validation/accuracy/thing": 0.1})
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert re.findall(r"<h3>(trial-\d+)", section(page, "best"))[-1] == "trial-0000"


def test_damage_is_told_and_no_end(tmp_path: Path) -> None:
    made = halving_campaign(tmp_path / "made")
    trials = made.folder / "trials"
    (trials / "trial-0000" / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    (trials / "trial-0001" / "metrics.jsonl").write_text(
        '[1]\n{"images": 3}\n{"images": NaN, "kimg": 1, "time": 0, "metrics": {}}\n'
    )
    shutil.rmtree(trials / "trial-0003")
    (trials / "trial-0010" / "pictures" / "kimg-000008.000.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with (trials / "trial-0005" / "metrics.jsonl").open("a") as file:
        odd = {"images": 8000, "kimg": 8.0, "time": 1e300, "metrics": {FID: math.nan, "speed/images_per_second": 0.0}}
        file.write(json.dumps(odd) + '\n{"images": 9')
    page = write_report(made.folder, tmp_path / "report.html").read_text()
    assert "trial-0000: metrics.jsonl cannot be read (UnicodeDecodeError)." in section(page, "trials")
    cards = section(page, "best")
    assert "no picture was drawn" in cards and "kimg-000008.000.png cannot be read (UnidentifiedImageError)" in cards
    curves = plots(page)["plot-0"]["data"]
    named = {trace["name"]: trace for trace in curves if "name" in trace}
    assert named["trial-0000 (paper)"]["x"] == named["trial-0003"]["x"] == [2.0, 4.0, 8.0], "from the ledger"
    assert "NaN" not in json.dumps(curves)


def test_a_campaign_that_has_hardly_begun(tmp_path: Path) -> None:
    made = Made(tmp_path / "new", settings_of())
    page = write_report(made.folder, tmp_path / "report.html").read_text()
    assert "No trial has begun yet." in page and "No trial has a figure at the whole budget yet." in page
    assert plots(page) == {}
    made.trial(0)
    made.begun(0)
    assert "1 running" in write_report(made.folder, tmp_path / "report.html").read_text()


def test_a_folder_that_is_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"is no campaign: it has no {FILE}"):
        write_report(tmp_path, tmp_path / "report.html")
    Ledger.create(tmp_path / "other", {"settings": settings_of().model_dump(mode="json")}).close()
    with pytest.raises(RequestError, match="does not say what this version needs .*space.*use the version"):
        read_folder(tmp_path / "other")


def test_where_nothing_can_be_written(halved: Made, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written .* name another file with --out"):
        write_report(halved.folder, tmp_path / "none" / "report.html")


def test_one_budget_at_a_time(halved: Made) -> None:
    whole, first = comparisons(halved.ledger.segments(), halved.settings)
    assert (whole.kimg, whole.whole, len(whole.points)) == (8.0, True, 3)
    assert (first.kimg, first.whole, len(first.points)) == (2.0, False, 11)
    study = study_of(first.points, halved.space, halved.settings)
    told = {trial.number: trial.value for trial in study.trials if trial.value is not None}
    assert told == {point.trial: point.reached[0].value for point in first.points}
    assert 4 not in told and told[12] == figures_at(halved.ledger.trial(12).values, 2.0)[FID]


def test_importances_find_what_matters_and_need_enough(tmp_path: Path) -> None:
    made = two_objectives(tmp_path / "many", trials=40)
    points = points_at(made.ledger.segments(), made.settings, 8.0)
    study = study_of(points, made.space, made.settings)
    found = [importances(study, made.settings, objective, len(points)) for objective in (0, 1)]
    assert found[0] is not None and math.isclose(sum(found[0].values()), 1.0)
    assert max(found[0], key=found[0].__getitem__) == "tau"
    down = settings_of(scheduler="none", objectives=[{"figure": FID}, {"figure": ACCURACY}])
    turned = [replace(one, reached=(one.reached[0], Standing(-one.reached[1].value))) for one in points]
    assert importances(study_of(turned, made.space, down), down, 1, len(turned)) == found[1] != found[0]
    assert importances(study, made.settings, 0, 9) is None
    few = two_objectives(tmp_path / "few", trials=9)
    page = write_report(few.folder, tmp_path / "report.html").read_text()
    assert "Importances need 10 trials or more at one budget; here are 9." in page


def test_ranges_hold_every_value() -> None:
    tau = load_space("xmcgan").parameters["tau"]
    wide = distribution(tau, [0.001, 0.9])
    assert (wide.low, wide.high, wide.log) == (0.001, 0.9, True)  # type: ignore[attr-defined]
    assert not distribution(tau, [-1.0]).log  # type: ignore[attr-defined]
    choice = Parameter.model_construct(kind="choice", values=("a",))
    assert distribution(choice, ["a", "<"]).choices == ("a", "&lt;")  # type: ignore[attr-defined]
    whole = Parameter.model_construct(kind="int", low=1.0, high=4.0, log=False)
    assert distribution(whole, [6]).high == 6  # type: ignore[attr-defined]


def test_slices_have_intervals_names_and_the_paper(halved: Made) -> None:
    points = points_at(halved.ledger.segments(), halved.settings, 2.0)
    study = study_of(points, halved.space, halved.settings)
    [plot] = slices(study, points, halved.settings, 0)
    dots = [trace for trace in plot.figure.data if trace.error_y.array is not None]
    stars = [trace for trace in plot.figure.data if trace.marker.symbol == "star"]
    assert len(dots) == len(stars) == 3
    for trace in dots:
        by_number = {point.trial: point.reached[0] for point in points}
        for number, value, text, up, down in zip(
            trace.marker.color, trace.y, trace.text, trace.error_y.array, trace.error_y.arrayminus, strict=True
        ):
            assert value == by_number[number].value and text.startswith(f"trial-{number:04d}: ")
            assert (round(up, 6), round(down, 6)) == (2.0, 1.5)
    assert {str(star.x[0]) for star in stars} == {"1.0", "0.1", "32"}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_reddest_line_is_the_best(halved: Made, direction: str) -> None:
    settings = settings_of(objectives=[{"figure": FID, "direction": direction}])
    points = points_at(halved.ledger.segments(), settings, 2.0)
    plot = parallel_coordinates(study_of(points, halved.space, settings), points, settings.objectives[0], 0)
    reddest = [trace for trace in plot.figure.data if trace.mode == "lines" and trace.line.color == BEST]
    pick = min if direction == "minimize" else max
    best = pick(point.reached[0].value for point in points)
    assert [trace.customdata[0][1] for trace in reddest] == [f"{best:.3g}"]


def test_population_shows_who_copied_whom(tmp_path: Path) -> None:
    made = population_campaign(tmp_path)
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    told = section(page, "population")
    rows = [re.findall(r">([^<>]+)</", row) for row in re.findall(r"<tr>(.*?)</tr>", told, flags=re.DOTALL)[1:]]
    assert [row[:4] for row in rows] == [
        ["2", "trial-0003", "trial-0001", "000000000001"],
        ["6", "trial-0002", "trial-0000", "000000000000"],
    ]
    assert "tau 0.1268 to 0.05" in rows[0][4] and "batch_size 64 to 32" in rows[1][4]
    lines = next(figure for figure in plots(page).values() if figure["layout"].get("annotations"))
    arrows = [(one["x"], one["ay"], one["y"]) for one in plots(page)["plot-3"]["layout"]["annotations"]]
    assert lines and arrows == [(6.0, "trial-0000", "trial-0002"), (2.0, "trial-0001", "trial-0003")]
    made.reached(made.ledger.segments()[-1], {}, SegmentState.COLLAPSED, "all pictures are alike")
    assert "all pictures are alike" in write_report(tmp_path, tmp_path / "report.html").read_text()


def test_two_objectives_have_a_front(tmp_path: Path) -> None:
    made = two_objectives(tmp_path)
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert "fid/scenes-net (lower is better) against accuracy/thing (higher is better)" in section(page, "front")
    front = next(
        figure for figure in plots(page).values() if any(one.get("name") == "on the front" for one in figure["data"])
    )
    on = next(one for one in front["data"] if one["name"] == "on the front")
    whole = points_at(made.ledger.segments(), made.settings, 8.0)
    pairs = {(point.reached[0].value, point.reached[1].value) for point in whole}
    expected = {(a, b) for a, b in pairs if not any(c <= a and d >= b and (c, d) != (a, b) for c, d in pairs)}
    assert set(zip(on["x"], on["y"], strict=True)) == expected and 0 < len(expected) < len(pairs)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def call(*words: str) -> Any:
    group = click.Group()
    report_commands.add_to(group)
    return group.main(list(words), "t2i", standalone_mode=False)


def test_the_command(halved: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    shutil.copytree(halved.folder, home / "campaigns" / "scenes-1234")
    call("report", "scenes-1234", "--home", str(home), "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = home / "campaigns" / "scenes-1234" / "report.html"
    assert told == {"report": str(page), "trials": 14, "bytes": page.stat().st_size}
    out = tmp_path / "other.html"
    call("report", str(halved.folder), "--home", str(home), "--out", str(out))
    said = capsys.readouterr().out
    assert out.is_file() and f"wrote {out}" in said and "trial-0000 (best, paper)" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["scenes-1235"], "there is no campaign 'scenes-1235'; near it: scenes-1234"),
        (["."], "there is no campaign '.'"),
        (["scenes-1234", "--out", "page.pdf"], "page.pdf is no HTML file: end its name with .html"),
        (["scenes-1234", "--out", "none/page.html"], "there is no folder none; make it or name another"),
        (["scenes-1234", "--out", "folder.html"], "folder.html is a folder: name a file in it"),
    ],
)
def test_wrong_requests(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    Made(tmp_path / "home" / "campaigns" / "scenes-1234", settings_of())
    with pytest.raises(RequestError) as refused:
        call("report", *words, "--home", "home")
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""
