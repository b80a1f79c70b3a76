"""The page: read aloud, in the dark, and on a phone."""

from itertools import pairwise
from typing import Any

import pytest

from tests.browser_support import PHONE
from tests.page_support import BIGGEST, NARRATIVE, Open, build_graph, make_narrative, make_prompt

AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def check_accessible(page: Any) -> None:
    """Nothing that axe calls serious or critical."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe looks at the page: pip install axe-playwright-python"
    )
    page.evaluate("Promise.all(document.getAnimations().map(one => one.finished.catch(() => null)))")
    response = axe.Axe().run(page, options=AXE).response
    assert len(response["passes"]) > 20, "axe looked"
    found = [
        f"{one['id']} ({one['impact']}): {node['html'][:160]}"
        for one in response["violations"]
        for node in one["nodes"]
        if one["impact"] in ("serious", "critical")
    ]
    assert found == []


@pytest.mark.parametrize(("scheme", "options"), [("light", {}), ("dark", PHONE)], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(opened: Open, scheme: str, options: dict[str, Any]) -> None:
    with opened(color_scheme=scheme, **options) as found:
        page = found.page
        check_accessible(page)
        page.fill("#prompt", "a xyzzy boat")
        found.draw()
        page.get_by_role("button", name="Where from").click()
        page.locator(".lineage").wait_for()
        page.fill("#seed", "-1")
        page.click("#draw")
        found.said_of("#seed")
        check_accessible(page)
        page.fill("#seed", "1")
        make_narrative(found)
        found.draw()
        check_accessible(page)
        build_graph(found)
        page.fill("#count", "2")
        found.draw(2)
        page.get_by_role("group", name="Picture 1").get_by_role("button", name="Boxes").click()
        page.locator("[data-key=objects-0]").fill("x")
        page.click("#draw")
        found.said_of("[data-key=objects-0]")
        check_accessible(page)
        page.check("#graph-typed")
        check_accessible(page)
        headings = "[...document.querySelectorAll('h1, h2, h3')].filter(one => one.checkVisibility())"
        levels = page.evaluate(f"{headings}.map(one => +one.tagName[1])")
        assert levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))


def test_what_is_pressed_is_large_enough(opened: Open) -> None:
    """WCAG 2.2, success criterion 2.5.8: at least 24 by 24 pixels."""
    small = """all => all.filter(one => one.checkVisibility() && !one.closest('.hidden')).map(one => {
      const {width, height} = one.getBoundingClientRect();
      return [one.outerHTML.slice(0, 90), width, height];
    }).filter(([, width, height]) => Math.min(width, height) < 24)"""
    pressed = "button, input:not([type=radio]), select, textarea, summary, label:has(input), #history a, canvas"
    with opened(**PHONE) as found:
        for make in (make_prompt, make_narrative, build_graph):
            make(found)
            found.draw()
            assert found.page.locator(pressed).evaluate_all(small) == []


def test_fits_a_phone(opened: Open) -> None:
    with opened(**PHONE) as found:
        page = found.page

        def check_fits() -> None:
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            right = "all => all.filter(one => one.checkVisibility()).map(one => one.getBoundingClientRect().right)"
            assert max(page.locator("main *:not(svg *)").evaluate_all(right)) <= 390

        page.fill("#prompt", "unbreakable" * 30)
        page.fill("#seed", str(BIGGEST))
        found.draw()
        page.get_by_role("button", name="Where from").click()
        page.locator(".lineage").wait_for()
        check_fits()
        assert page.locator("#pictures img").bounding_box()["width"] > 340, "pictures are large"
        assert page.evaluate("getComputedStyle(document.querySelector('#pictures img')).imageRendering") == "pixelated"
        found.choose("teller", "narrative")
        page.fill("#narrative", f"{NARRATIVE} {'unbreakable' * 10}")
        found.draw()
        check_fits()
        build_graph(found)
        found.draw()
        check_fits()
        page.locator("[data-key=objects-0]").fill("unbreakable" * 9)
        page.click("#draw")
        found.said_of("[data-key=objects-0]")
        check_fits()
