"""The page in a real browser: each of its inputs draws, with a mouse, a finger or the keyboard alone."""

import json
import re

import pytest

from orchestration.narratives.narrative_text import read_narrative
from orchestration.serving.pictures import read_metadata
from tests.browser_support import PHONE
from tests.page_support import BIGGEST, GRAPH, NARRATIVE, Open, build_graph
from tests.serving_support import FakeBackend


def test_a_sentence_is_drawn(opened: Open, backend: FakeBackend) -> None:
    with opened() as found:
        page = found.page
        assert page.locator("#prompt").get_attribute("placeholder") == "such as: a red boat on the sea"
        page.fill("#prompt", "a red boat under a xyzzy moon")
        page.fill("#seed", str(BIGGEST))
        page.fill("#count", "3")
        page.fill("#truncation", "0,7")
        assert found.draw(3) == {
            "type": "prompt",
            "prompt": "a red boat under a xyzzy moon",
            "model": "painter",
            "seed": BIGGEST,
            "count": 3,
            "truncation": 0.7,
            "format": "json",
            "explain": True,
        }
        assert backend.jobs[-1].seeds[0] == BIGGEST and backend.jobs[-1].truncation == 0.7
        told = [read_metadata(png) for png in found.pngs()]
        assert [int(each["seed"]) for each in told] == list(backend.jobs[-1].seeds)
        alts = page.locator("#pictures img").evaluate_all("all => all.map(one => one.alt)")
        assert alts == [f"a red boat under a xyzzy moon, seed {seed}" for seed in backend.jobs[-1].seeds]
        assert page.locator("#pictures img").evaluate_all("all => all.every(one => one.naturalWidth === 16)")
        assert re.fullmatch(r"3 pictures in \d+ ms by painter, version 3", page.inner_text("#status"))
        assert page.locator("#reasons .unread").all_text_contents() == ["xyzzy (not known)"]
        assert "does not know 1 word" in page.inner_text("#reasons")
        assert page.get_attribute("#output", "aria-busy") == "false"


def test_a_narrative_is_drawn_with_its_trace(opened: Open, backend: FakeBackend) -> None:
    with opened() as found:
        page = found.page
        found.choose("teller", "narrative")
        page.fill("#narrative", NARRATIVE)
        rows = page.locator("#phrases .phrase")
        assert rows.count() == 2
        page.get_by_role("button", name="Split between “picture” and “a”").click()
        assert rows.count() == 3 and page.inner_text("#now").endswith("“In this picture”")
        page.get_by_role("button", name="Join “picture” and “a”").click()
        assert rows.count() == 2
        found.stroke([(0.1, 0.8), (0.3, 0.6), (0.5, 0.8), (0.3, 0.9)])
        assert "behind it" in page.inner_text("#now")
        found.stroke([(0.7, 0.1), (0.8, 0.5), (0.9, 0.2)])
        assert page.inner_text("#now").startswith("Every phrase has its stroke")
        sent = found.draw()["narrative"]
        assert sent["caption"] == NARRATIVE and len(sent["traces"]) == 2
        assert " ".join(word["utterance"] for word in sent["timed_caption"]) == NARRATIVE
        first, second = sent["traces"]
        assert first[0]["x"] == pytest.approx(0.1, abs=0.02) and first[0]["y"] == pytest.approx(0.8, abs=0.02)
        assert second[-1]["x"] == pytest.approx(0.9, abs=0.02) and second[-1]["y"] == pytest.approx(0.2, abs=0.02)
        words = sent["timed_caption"]
        assert words[0]["start_time"] == first[0]["t"] and words[8]["end_time"] == first[-1]["t"]
        assert words[9]["start_time"] == second[0]["t"] and words[-1]["end_time"] == second[-1]["t"]
        assert read_narrative(backend.jobs[-1].text).caption == NARRATIVE
        runs = page.locator("#reasons .words .run")
        assert " ".join(runs.all_inner_texts()) == NARRATIVE
        lines = runs.evaluate_all("all => all.map(one => getComputedStyle(one).borderBottomColor)")
        tags = page.locator("#reasons .words small").all_inner_texts()
        assert all((line == "rgb(64, 96, 192)") == (tag == "dog") for line, tag in zip(lines, tags, strict=True))
        assert "dog" in tags and "grass" in tags
        assert page.locator(".mentions img[alt^='Mask for']").count() >= 1
        assert page.locator(".retrieved li").count() == 3 and "fits the trace by 40 %" in page.inner_text("#reasons")
        assert page.locator("#reasons img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")


def test_strokes_can_be_undone_and_cleared(opened: Open) -> None:
    with opened() as found:
        page = found.page
        found.choose("teller", "narrative")
        found.stroke([(0.5, 0.5), (0.6, 0.6)])
        assert "Write the narrative first" in page.inner_text("#status")
        page.fill("#narrative", "a dog, a tree, the sky")
        for x in (0.2, 0.4, 0.6):
            found.stroke([(x, 0.2), (x, 0.8)])
        clears = page.get_by_role("button", name="Clear the stroke of phrase")
        assert clears.count() == 3
        page.click("#undo")
        assert clears.count() == 2 and "the sky" in page.inner_text("#now")
        page.get_by_role("button", name="Clear the stroke of phrase 1").click()
        assert clears.count() == 1 and "a dog" in page.inner_text("#now")
        page.fill("#narrative", "a dog, a big tree, the sky")
        assert clears.count() == 1, "a stroke stays with its phrase when a word is written into it"
        sent = found.draw()["narrative"]
        assert [point["x"] for point in sent["traces"][0]] == pytest.approx([0.4] * len(sent["traces"][0]), abs=0.02)
        assert len(sent["timed_caption"]) == 7 and len(sent["traces"]) == 1
        page.click("#clear-trace")
        assert found.draw()["narrative"] == "a dog, a big tree, the sky"


def test_a_finger_draws(opened: Open) -> None:
    with opened(**PHONE) as found:
        found.choose("teller", "narrative")
        found.page.fill("#narrative", "a dog")
        found.swipe([(0.2, 0.2), (0.5, 0.5), (0.8, 0.3)])
        (trace,) = found.draw()["narrative"]["traces"]
        assert (trace[0]["x"], trace[-1]["x"]) == pytest.approx((0.2, 0.8), abs=0.02) and len(trace) >= 3


def test_a_recorded_narrative_is_sent_as_it_is(opened: Open) -> None:
    recorded = {
        "image_id": "7",
        "caption": "a dog on grass",
        "timed_caption": [{"utterance": "a dog on grass", "start_time": 0, "end_time": 1.5}],
        "traces": [[{"x": 0.25, "y": -0.01, "t": 0.012}, {"x": 0.5, "y": 0.5, "t": 1.4}]],
    }
    with opened() as found:
        page = found.page
        found.choose("teller", "narrative")
        page.click("#paste summary")
        for broken in ("{", "[1]", "null", "words"):
            page.fill("#recorded-text", broken)
            page.click("#use-recorded")
            assert "no JSON object" in found.said_of("#recorded-text")
        page.fill("#recorded-text", json.dumps(recorded))
        page.click("#use-recorded")
        assert page.inner_text("#recorded-words") == "a dog on grass"
        assert page.inner_text("#recorded-size") == "1 trace, 2 points"
        assert found.draw()["narrative"] == recorded
        page.click("#drop-recorded")
        assert page.input_value("#narrative") == "a dog on grass"
        assert found.draw()["narrative"] == "a dog on grass"


BUILT = {
    "objects": [{"name": "sheep"}, {"name": "tree"}, {"name": "sky"}],
    "relations": [[0, "left of", 1], [2, "above", 1]],
}


def test_a_scene_graph_is_built_and_drawn(opened: Open) -> None:
    with opened() as found:
        page = found.page
        build_graph(found)
        names = page.locator("#object-names option").evaluate_all("all => all.map(one => one.value)")
        assert names == ["sheep", "tree", "grass", "sky", "traffic light"]
        words = "Scene graph: sheep left of tree, sky above tree"
        assert page.locator("#graph-sketch svg").get_attribute("aria-label") == words
        page.fill("#seed", "1")
        page.fill("#count", "2")
        assert found.draw(2)["graph"] == BUILT
        assert page.inner_text("#reasons svg + .note") == GRAPH
        chosen = "all => all.map(one => [...one.children].findIndex(each => each.className === 'chosen'))"
        assert page.locator(".patches").evaluate_all(chosen) == [1, 2, 0]
        second = page.locator("#pictures figcaption").nth(1).inner_text()
        page.select_option("#patches-of", "1")
        place = int(re.findall(r"seed (\d+)", second)[0]) % 3
        assert page.locator(".patches").evaluate_all(chosen) == [place, (place + 1) % 3, (place + 2) % 3]
        boxes = page.get_by_role("group", name="Picture 2").get_by_role("button", name="Boxes")
        boxes.click()
        assert page.locator(".boxes rect").count() == 3
        assert page.locator(".boxes text").all_text_contents() == ["sheep", "tree", "sky"]
        boxes.click()
        assert page.locator(".boxes").count() == 0
        page.get_by_role("button", name="Remove object 1").click()
        assert found.draw(2)["graph"] == {
            "objects": [{"name": "tree"}, {"name": "sky"}],
            "relations": [[1, "above", 0]],
        }
        page.get_by_role("button", name="Remove relation 1").click()
        assert found.draw(2)["graph"]["relations"] == []


def test_a_scene_graph_is_typed_and_drawn(opened: Open) -> None:
    with opened() as found:
        page = found.page
        build_graph(found)
        page.check("#graph-typed")
        assert page.input_value("#graph") == GRAPH, "what was built is there to be typed on"
        page.fill("#graph", "sky above grass")
        assert found.draw()["graph"] == "sky above grass"
        assert page.locator("#reasons svg.graph").get_attribute("aria-label") == "Scene graph: sky above grass"


def test_a_sentence_by_keyboard_alone(opened: Open) -> None:
    with opened() as found:
        page = found.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        found.tab_to("#prompt")
        page.keyboard.type("a boat")
        found.tab_to("#count")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Control+Enter")
        assert found.drawn(2)["prompt"] == "a boat"
        found.tab_to("[aria-label='Picture 1'] [aria-pressed]")
        page.keyboard.press("Space")
        page.locator(".lineage").wait_for()
        page.keyboard.press("Space")
        assert page.locator(".lineage").is_hidden()
        found.tab_to("#history a")
        page.keyboard.press("Enter")
        assert found.drawn(1)["prompt"] == "a boat"


def test_a_narrative_by_keyboard_alone(opened: Open) -> None:
    with opened() as found:
        page = found.page
        found.tab_to("#model")
        page.keyboard.press("t")
        found.tab_to("[role=tab]")
        for key, kind in (
            ("ArrowLeft", "narrative"),
            ("ArrowRight", "prompt"),
            ("End", "narrative"),
            ("Home", "prompt"),
        ):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.id") == f"tab-{kind}"
            assert page.locator(f"#panel-{kind}").is_visible()
        page.keyboard.press("ArrowLeft")
        found.tab_to("#narrative")
        page.keyboard.type("a dog on grass")
        found.tab_to("[data-key=gap-1]")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.locator(".phrase").count() == 2
        assert page.evaluate("document.activeElement.dataset.key") == "gap-2", "the focus stays on the gap"
        found.tab_to("#trace")
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Space")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Space")
        assert "2 points set" in page.inner_text("#status")
        page.keyboard.press("Enter")
        page.keyboard.press("Space")
        page.keyboard.press("Escape")
        assert page.inner_text("#status") == "Stroke dropped"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        page.keyboard.press("Enter")
        page.keyboard.press("Control+Enter")
        sent = found.drawn()["narrative"]
        assert sent["traces"][0] == [{"x": 0.4, "y": 0.5, "t": 0}, {"x": 0.4, "y": 0.52, "t": 0.25}]
        assert [(point["x"], point["y"]) for point in sent["traces"][1]] == [(0.42, 0.52)] * 2


def test_a_scene_graph_by_keyboard_alone(opened: Open) -> None:
    with opened() as found:
        page = found.page
        found.tab_to("#model")
        page.keyboard.press("g")
        found.tab_to("[data-key=objects-0]")
        page.keyboard.type("sheep")
        page.keyboard.press("Enter")
        page.keyboard.type("tree")
        found.tab_to("#add-relation")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.dataset.key") == "relations-0"
        page.keyboard.press("Tab")
        page.keyboard.press("b")
        page.keyboard.press("Control+Enter")
        assert found.drawn()["graph"] == {
            "objects": [{"name": "sheep"}, {"name": "tree"}],
            "relations": [[0, "below", 1]],
        }


def test_only_what_a_model_takes_is_offered(opened: Open) -> None:
    with opened() as found:
        page = found.page

        def offered() -> list[str]:
            return list(page.locator("[role=tab]:visible").all_inner_texts())

        assert page.input_value("#model") == "painter" and offered() == ["Sentence"]
        assert page.locator("#truncation").is_visible()
        page.select_option("#model", "teller")
        assert offered() == ["Sentence", "Narrative"] and page.locator("#truncation").is_hidden()
        page.select_option("#model", "grapher")
        assert offered() == ["Scene graph"] and page.locator("#panel-graph").is_visible()
        assert "version 3 was refused" in page.inner_text("#model-hint")
        assert page.locator("#panel-prompt").is_hidden() and page.locator("#panel-narrative").is_hidden()
        for model, kind, words in (("painter", "prompt", "a red boat on the sea"), ("grapher", "graph", GRAPH)):
            page.select_option("#model", model)
            page.click("#example")
            assert found.draw()[kind] == words
        page.select_option("#model", "teller")
        page.click("#tab-narrative")
        page.click("#example")
        assert found.draw()["narrative"]["words"] == ["a", "dog", "on", "grass"]


def test_drawing_can_be_cancelled(opened: Open, backend: FakeBackend) -> None:
    with opened() as found:
        page = found.page
        page.fill("#prompt", "a boat")
        backend.wait_s = 30.0
        page.click("#draw")
        page.locator("#output[aria-busy=true]").wait_for()
        assert page.locator("#draw").is_disabled() and "Drawing 1 picture" in page.inner_text("#status")
        page.click("#cancel")
        page.locator("#status", has_text="Cancelled").wait_for()
        assert page.locator("#output[aria-busy=false]").count() == 1 and page.locator("#cancel").is_hidden()
        backend.wait_s = 0.0
        found.draw()
