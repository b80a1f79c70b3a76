"""The report page in a real browser, opened from disk without a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestration.campaigns.report import write_report
from search_spaces.space import load_space
from tests.browser_support import PHONE, Opened, chromium
from tests.report_support import (
    FID,
    SCRIPT,
    Made,
    halving_campaign,
    population_campaign,
    settings_of,
    two_objectives,
)

MARKUP = "<b>&lt;x</b>"
CONTRAST = """selector => {
  const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = channels(colour).map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const behind = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll(selector)].map(element => {
    const style = getComputedStyle(element);
    const ink = light(element instanceof SVGElement ? style.fill : style.color);
    return Math.max(ink, behind) / Math.min(ink, behind);
  });
}"""


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("the report page") as running:
        yield running


def nasty_campaign(folder: Path) -> Made:
    """Names and choices that look like markup, in tables and in plots."""
    known = load_space("xmcgan").parameters
    free = {"paper": None, "released": None, "by_data": {}}
    parameters = {
        MARKUP: known["tau"].model_dump(mode="json"),
        "kind": {
            **known["batch_size"].model_dump(mode="json"),
            **free,
            "field": "model.kind",
            "values": ["<img src=x onerror=alert(1)>", f"</script>{SCRIPT}"],
        },
    }
    space = load_space("xmcgan").model_validate({"system": "x", "parameters": parameters, "default": ["kind"]})
    made = Made(folder, settings_of(scheduler="none", grace_kimg=8.0), space, name=f"scenes {SCRIPT}")
    for number in range(12):
        made.trial(number, {MARKUP: 0.05 + number / 50, "kind": parameters["kind"]["values"][number % 2]})
        made.reached(made.begun(number), {FID: 5.0 + number})
    return made


MADE: dict[str, Callable[[Path], Made]] = {
    "halving": halving_campaign,
    "population": population_campaign,
    "two": two_objectives,
    "nasty": nasty_campaign,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a made campaign's page; made once."""
    folder, files = tmp_path_factory.mktemp("campaigns"), {}

    def page(name: str) -> Path:
        if name not in files:
            files[name] = write_report(MADE[name](folder / name).folder, folder / f"{name}.html")
        return files[name]

    return page


@pytest.fixture
def opened(browser: Any, pages: Callable[[str], Path]) -> Open:
    @contextmanager
    def open_page(name: str, **options: Any) -> Iterator[Opened]:
        context = browser.new_context(offline=True, **options)
        found = Opened(context.new_page())
        found.page.goto(pages(name).as_uri())
        try:
            yield found
            assert found.said == []
            assert [url for url in found.asked if not url.startswith(("data:", "blob:"))] == [pages(name).as_uri()]
        finally:
            context.close()

    return open_page


@pytest.mark.parametrize(
    ("name", "scheme"), [("halving", "light"), ("population", "dark"), ("two", "light"), ("nasty", "dark")]
)
def test_plots_are_drawn(opened: Open, name: str, scheme: str) -> None:
    with opened(name, color_scheme=scheme) as found:
        page = found.page
        wanted = page.evaluate("[...document.querySelectorAll('script[data-plot]')].map(one => one.dataset.plot)")
        assert len(wanted) >= 4
        for plot in wanted:
            place = page.locator(f"#{plot}")
            box = place.bounding_box()
            assert place.locator("svg.main-svg").count() >= 1 and box["height"] > 100 and box["width"] > 200
            drawn = "path.point, .points path, .lines path, path.js-line, .bars path"
            assert place.locator(drawn).count() >= 2, plot
        assert min(page.evaluate(CONTRAST, ".canvas text.xtitle, .canvas .xtick text, .canvas .legendtext")) > 4.5
        assert min(page.evaluate(CONTRAST, "h1, h2, h3, p, td, th, dt, dd, figcaption, nav a, .mark, .state")) > 4.5
        broken = "[...document.images].filter(one => !one.complete || one.naturalWidth === 0).length"
        assert page.evaluate("document.images.length") >= 4 and page.evaluate(broken) == 0


def test_text_stays_text(opened: Open) -> None:
    with opened("nasty") as found:
        page = found.page
        assert page.locator("h1").inner_text() == f"scenes {SCRIPT}" and page.title() == f"Campaign scenes {SCRIPT}"
        assert page.locator("#trials th", has_text=MARKUP).count() == 1
        assert page.locator("#trials b, #trials img").count() == 0
        titles = page.locator(".canvas .xtitle, .canvas .x2title, .canvas .ytick text").all_text_contents()
        assert MARKUP in titles, "a plot's axis is called what the parameter is called"
        assert any("onerror=alert(1)>" in text for text in page.locator(".canvas text").all_text_contents())
    with opened("halving") as found:
        assert found.page.locator("#ended li", has_text=SCRIPT).count() == 1
        assert found.page.evaluate("document.scripts.length") == 2 + found.page.locator(".canvas").count()


@pytest.mark.parametrize("name", ["halving", "population"])
def test_fits_a_phone(opened: Open, name: str) -> None:
    with opened(name, **PHONE) as found:
        page = found.page
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        right = "all => all.filter(one => !one.closest('.scroll, pre')).map(one => one.getBoundingClientRect().right)"
        assert max(page.locator("main *").evaluate_all(right)) <= 390
        for box in [one.bounding_box() for one in page.locator("#best img").all()]:
            assert 200 < box["width"] < 390


def test_prints_on_white_and_comes_back(opened: Open) -> None:
    widths = "[...document.querySelectorAll('.canvas svg.main-svg')].map(one => one.getBoundingClientRect().width)"
    with opened("two", color_scheme="dark", viewport={"width": 1280, "height": 900}) as found:
        page = found.page
        before = page.evaluate(widths)
        assert max(before) > 900
        page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {widths} }})")
        assert page.pdf(format="A4").startswith(b"%PDF")
        assert max(page.evaluate("window.printed")) <= 680, "printing draws anew, within the paper"
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert max(page.evaluate(widths)) <= 680
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert min(page.evaluate(CONTRAST, ".canvas text.xtitle, td, p")) > 4.5
        page.emulate_media(media="screen", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(widths) == before
        assert min(page.evaluate(CONTRAST, ".canvas text.xtitle, td, p")) > 4.5


@pytest.mark.parametrize("name", ["population", "two"])
def test_can_be_read_aloud(opened: Open, name: str) -> None:
    with opened(name) as found:
        page = found.page
        levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(one => +one.tagName[1])")
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert all(page.evaluate("[...document.images].map(one => one.alt.length > 20)"))
        assert page.evaluate("[...document.querySelectorAll('th')].every(one => one.scope)")
        scrolled = page.locator(".scroll").evaluate_all("all => all.map(one => one.tabIndex === 0 && one.ariaLabel)")
        assert scrolled and all(scrolled)
        targets = page.locator("nav a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
        assert len(targets) > 5 and all(page.locator(target).count() == 1 for target in targets)
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.locator("figure.plot figcaption").count() == page.locator(".canvas").count()


def test_hovering_names_the_trial_and_offers_to_send_nothing(opened: Open) -> None:
    with opened("halving") as found:
        page = found.page
        plot = page.locator("#curves .canvas")
        plot.scroll_into_view_if_needed()
        plot.locator(".points path").last.hover(force=True)
        page.wait_for_selector("#curves .hoverlayer text")
        assert "trial-0000 (paper)" in plot.locator(".hoverlayer").text_content()
        offers = page.locator(".modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
        assert "Zoom" in offers and not any(word in str(offers).lower() for word in ("share", "cloud", "plotly"))


def test_every_number_is_there_without_scripts(opened: Open) -> None:
    with opened("halving", java_script_enabled=False) as found:
        assert "every number is in the tables" in found.page.locator("noscript").inner_text()
        assert found.page.locator("#trials tbody tr").count() == 14
