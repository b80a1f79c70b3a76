"""The page: pictures are linked to, made again, downloaded, traced back, and kept in a history."""

import json
import re
from collections.abc import Callable

import pytest

from orchestration.serving.pictures import read_metadata
from tests.page_support import (
    BIGGEST,
    Open,
    Page,
    Site,
    build_graph,
    fragment_of,
    make_narrative,
    make_prompt,
)


@pytest.mark.parametrize("make", [make_prompt, make_narrative, build_graph])
def test_a_link_makes_the_same_bytes_again(opened: Open, make: Callable[[Page], None]) -> None:
    with opened() as found:
        make(found)
        found.page.fill("#seed", str(BIGGEST))
        found.page.fill("#count", "3")
        first = found.draw(3)
        pictures = found.pngs()
        links = found.page.locator("#history a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
        assert len(links) == 3 and len(set(pictures)) == 3
    for link, picture in zip(links, pictures, strict=True):
        with opened(link) as again:
            sent = again.drawn()
            assert again.pngs() == [picture]
            model = read_metadata(picture)
            assert sent["model"] == f"{model['model']}@{model['version']}"
            assert sent[sent["type"]] == first[first["type"]] and sent["count"] == 1
            assert sent["seed"] == int(model["seed"]) and sent.get("truncation") == first.get("truncation")
            assert again.page.evaluate("location.hash") == "", "the address says nothing that is no longer so"


def test_a_link_keeps_its_version(opened: Open) -> None:
    old = {"type": "prompt", "prompt": "a boat", "model": "painter@2", "seed": 5}
    gone = {**old, "model": "gone@9"}
    with opened(fragment_of(old)) as found:
        assert found.drawn()["model"] == "painter@2"
        assert found.page.input_value("#model") == "painter@2"
        assert "painter, version 2" in found.page.inner_text("#pictures")
        found.page.select_option("#model", "painter")
        assert found.draw()["model"] == "painter"
    with opened(fragment_of(gone)) as found:
        assert "no such model" in found.said_of("#model")


def test_a_picture_is_downloaded_linked_and_traced_back(opened: Open, site: Site) -> None:
    with opened(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True) as found:
        page = found.page
        page.fill("#prompt", "a boat")
        page.fill("#seed", "7")
        found.draw()
        with page.expect_download() as waited:
            page.get_by_role("button", name="Download").click()
        assert waited.value.suggested_filename == "painter-3-7.png"
        saved = waited.value.path().read_bytes()
        assert [saved] == found.pngs() and read_metadata(saved)["prompt"] == "a boat"
        page.get_by_role("button", name="Copy link").click()
        page.locator("#status", has_text="copied").wait_for()
        link = page.evaluate("navigator.clipboard.readText()")
        assert link == f"{site.url}/" + page.locator("#history a").get_attribute("href")
        page.get_by_role("button", name="Where from").click()
        page.locator(".lineage").wait_for()
        facts = dict(
            zip(
                page.locator(".lineage dt").all_inner_texts(),
                page.locator(".lineage dd").all_inner_texts(),
                strict=True,
            )
        )
        assert facts["Picture"] == read_metadata(saved)["image"]
        assert facts["Checkpoint"] == read_metadata(saved)["checkpoint_digest"]
        assert facts["Trial"] == "4 of campaign sweep-1" and facts["Data"] == "scenes:64"
        assert facts["Model"] == "painter, version 3, champion" and facts["Images seen"] == "12,800"
    with opened(link.removeprefix(f"{site.url}/")) as again:
        again.drawn()
        assert again.pngs() == [saved]
        again.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        again.page.get_by_role("button", name="Copy link").click()
        assert again.page.get_by_label("Link to this picture").input_value() == link, "without a clipboard it is shown"


FULL = """() => {
  const set = Storage.prototype.setItem;
  Storage.prototype.setItem = function (key, text) {
    if (text.length > 3000) throw new DOMException('full', 'QuotaExceededError');
    set.call(this, key, text);
  };
}"""


def test_history_lasts_and_survives_a_full_storage(opened: Open) -> None:
    with opened() as found:
        page = found.page
        page.fill("#prompt", "a boat")
        page.fill("#count", "16")
        for seed in range(4):
            page.fill("#seed", str(seed))
            found.draw(16)
            page.locator("#history small", has_text=re.compile(rf"seed {seed}$")).wait_for()
        entries = page.locator("#history a")
        assert entries.count() == 50
        page.reload()
        entries.first.wait_for()
        assert entries.count() == 50 and page.locator("#history img").count() == 50
        page.evaluate(FULL)
        page.fill("#prompt", "a boat")
        page.fill("#seed", "99")
        found.draw()
        page.locator("#history small", has_text="seed 99").wait_for()
        kept = page.evaluate("JSON.parse(localStorage.getItem('t2i-history')).map(one => one.seed)")
        assert kept[0] == "99" and 1 <= len(kept) < 50, "the oldest make room"
        page.evaluate("localStorage.clear()")
        page.reload()
        page.locator("#work").wait_for()
        foreign = [1, None, {"link": "javascript:alert(1)", "text": "x", "model": "m", "seed": "1", "thumb": ""}, {}]
        page.evaluate("text => localStorage.setItem('t2i-history', text)", json.dumps(foreign))
        page.reload()
        page.fill("#prompt", "a boat")
        found.draw()
        entries.first.wait_for()
        assert entries.count() == 1
        found.draw()
        assert entries.count() == 1, "the same picture is there once"
        page.click("#clear-history")
        assert page.locator("#history-part").is_hidden()
        page.reload()
        page.locator("#work").wait_for()
        assert entries.count() == 0
