"""What the page says of wrong input, of a server that refuses, and of hostile text."""

from orchestration.serving.endpoint import HttpSettings, create_http_app
from orchestration.serving.requests import ServeError
from tests.page_support import MARKUP, Open, Site, build_graph, fragment_of, opened_page
from tests.serving_support import FakeBackend, serve_in_thread

WRONG = [
    ("prompt", "", "prompt"),
    ("prompt", "   ", "prompt"),
    ("prompt", "x" * 2001, "2,001 characters"),
    ("prompt", "a\x01b", "control character"),
    ("seed", "-1", "seed must be a whole number from 0"),
    ("seed", str(2**63), "seed must be a whole number from 0"),
    ("seed", "seven", "seed is no whole number"),
    ("seed", "1.5", "seed is no whole number"),
    ("count", "0", "count must be a whole number from 1"),
    ("count", "99", "count is more than 16"),
    ("count", "", "count is no whole number"),
    ("truncation", "0", "truncation must be a number above 0"),
    ("truncation", "much", "truncation is no number"),
]


def test_bad_input_is_said_beside_its_field(opened: Open) -> None:
    with opened() as found:
        page = found.page
        for field, value, words in WRONG:
            page.fill("#prompt", "a boat")
            page.fill("#seed", "1")
            page.fill("#count", "1")
            page.fill("#truncation", "")
            page.fill(f"#{field}", value)
            page.click("#draw")
            assert words in found.said_of(f"#{field}")
            assert page.locator("[aria-invalid]").count() == 1 == page.locator(".error:visible").count()
        page.fill("#truncation", "1")
        found.draw()
        assert page.locator("[aria-invalid]").count() == 0 == page.locator(".error:visible").count()


def test_bad_narratives_and_graphs_are_said_beside_them(opened: Open) -> None:
    with opened() as found:
        page = found.page
        found.choose("teller", "narrative")
        page.click("#draw")
        assert "narrative" in found.said_of("#narrative")
        page.fill("#narrative", "word " * 501)
        page.click("#draw")
        assert "501 words" in found.said_of("#narrative")
        build_graph(found)
        page.locator("[data-key=objects-1]").fill("treee")
        page.click("#draw")
        assert found.said_of("[data-key=objects-1]").startswith("Object 2: no object 'treee' is known")
        page.locator("[data-key=objects-1]").fill("")
        page.click("#draw")
        assert found.said_of("[data-key=objects-1]") == "Object 2 has a relation and no name: write or pick its name."
        page.locator("[data-key=objects-1]").fill("x" * 101)
        page.click("#draw")
        assert found.said_of("[data-key=objects-1]").startswith("Object 2 must be a string of 1 to 100")
        page.check("#graph-typed")
        page.fill("#graph", "sheep beside tree")
        page.click("#draw")
        assert "beside" in found.said_of("#graph")


def test_other_refusals_are_said(opened: Open, backend: FakeBackend) -> None:
    with opened() as found:
        page = found.page
        page.fill("#prompt", "a boat")
        backend.failure = ServeError("unknown_model", "painter is no longer here: choose another")
        page.click("#draw")
        assert found.said_of("#model") == "painter is no longer here: choose another."
        backend.failure = ServeError("timed_out", "no picture within 60 seconds: repeat the request, it is safe to")
        page.click("#draw")
        page.locator("#form-error", has_text="no picture within 60 seconds").wait_for()
        backend.failure = None
        page.context.set_offline(True)
        page.click("#draw")
        page.locator("#form-error", has_text="The server cannot be reached").wait_for()
        page.context.set_offline(False)
        found.draw()
        assert [said for said in found.said if "net::ERR_INTERNET_DISCONNECTED" in said or "504" in said]
        found.said.clear()


def test_a_busy_server_is_asked_again(opened: Open, backend: FakeBackend) -> None:
    with opened() as found:
        page = found.page
        page.fill("#prompt", "a boat")
        backend.failure = ServeError("busy", "the queue is full: repeat in a moment", {"Retry-After": "0"})
        before = len(backend.jobs)
        page.click("#draw")
        page.locator("#form-error", has_text="the queue is full").wait_for()
        assert len(backend.jobs) - before == 4, "asked once, and three times again"
        backend.failure = ServeError("busy", "the queue is full: repeat in a moment", {"Retry-After": "1"})
        page.click("#draw")
        page.locator("#status", has_text="trying again in 1 second (1 of 3)").wait_for()
        backend.failure = None
        found.drawn()


def test_a_token_is_asked_for(site: Site) -> None:
    with serve_in_thread(create_http_app(FakeBackend(), HttpSettings(token="right"))) as base:
        link = fragment_of({"prompt": "a boat", "seed": 3})
        with opened_page(site.browser, base, link, ready=False) as found:
            page = found.page
            page.locator("#token").wait_for()
            assert page.locator("#work").is_hidden() and page.evaluate("document.activeElement.id") == "token"
            page.keyboard.type("wröng 鍵")
            page.keyboard.press("Enter")
            assert "token is missing or wrong" in found.said_of("#token")
            page.fill("#token", "right")
            page.keyboard.press("Enter")
            assert found.drawn()["seed"] == 3, "the link is followed once the token is there"
            assert page.locator("#token-part").is_hidden()
            page.get_by_role("button", name="Where from").click()
            page.locator(".lineage").wait_for()
            page.reload()
            page.locator("#work").wait_for()
            assert page.evaluate("[localStorage.getItem('t2i-token'), sessionStorage.getItem('t2i-token')]") == [
                None,
                "right",
            ]


def test_a_server_without_models_is_looked_at_again(opened: Open, backend: FakeBackend) -> None:
    backend.empty = True
    with opened(ready=False) as found:
        page = found.page
        page.locator("#notice", has_text="No model answers yet").wait_for()
        assert page.locator("#work").is_hidden()
        backend.empty = False
        page.click("#retry")
        page.locator("#work").wait_for()
        assert page.inner_text("#notice") == "" and page.locator("#retry").is_hidden()


BROKEN = [
    ("#r=", "broken"),
    ("#r=%%%", "broken"),
    (fragment_of(b"\xff\xfe"), "broken"),
    (fragment_of(b'{"prompt": "a'), "broken"),
    (fragment_of([1]), "something else"),
    (fragment_of(None), "something else"),
    (fragment_of({"prompt": "a", "script": 1}), "something else"),
    (fragment_of({"type": "constructor", "prompt": "a"}), "something else"),
    (fragment_of({"type": "graph", "graph": [1]}), "without words"),
    (fragment_of({"prompt": {"a": 1}}), "without words"),
    (fragment_of({"prompt": "a", "seed": "x"}), "wrong seed"),
    (fragment_of({"prompt": "a", "model": 7}), "no model"),
]


def test_a_broken_link_is_said(opened: Open) -> None:
    with opened(BROKEN[0][0]) as found:
        page = found.page
        for fragment, words in BROKEN:
            page.evaluate("fragment => { location.hash = fragment; }", fragment)
            page.locator("#notice", has_text=words).wait_for()
        assert found.bodies == []
        page.evaluate("fragment => { location.hash = fragment; }", fragment_of({"prompt": "a boat", "seed": 4}))
        assert found.drawn()["seed"] == 4 and page.inner_text("#notice") == ""


def test_odd_links_do_no_harm(opened: Open) -> None:
    odd = [
        {"type": "narrative", "narrative": {"caption": {"a": 1}, "traces": {"length": 3}}},
        {"type": "narrative", "narrative": {"words": 7, "trace": [[1], None, "x"]}},
        {
            "type": "graph",
            "graph": {"objects": [None, {"name": MARKUP}], "relations": [[0, MARKUP, 9], [1, "x", 1], 3]},
        },
        {"type": "graph", "graph": {"objects": 5, "relations": {"0": 1}}},
    ]
    for request in odd:
        with opened(fragment_of({**request, "seed": 1})) as found:
            found.page.locator("[aria-invalid=true], #form-error:not(:empty)").first.wait_for()
            assert found.page.locator("#ask img, #ask b").count() == 0


def test_text_stays_text(opened: Open, backend: FakeBackend) -> None:
    with opened() as found:
        page = found.page
        page.fill("#prompt", MARKUP)
        found.draw()
        assert page.locator("#reasons .words").inner_text().replace("\n", " ") == MARKUP
        assert page.locator("#history .what").inner_text() == MARKUP
        found.choose("teller", "narrative")
        page.fill("#narrative", MARKUP)
        found.draw()
        assert "onerror=alert(1)" in page.inner_text("#phrases") and "onerror=alert(1)" in page.inner_text("#reasons")
        found.choose("grapher", "graph")
        page.locator("[data-key=objects-0]").fill(MARKUP)
        assert page.locator("#graph-sketch svg").get_attribute("aria-label") == f"Scene graph: {MARKUP}"
        backend.failure = ServeError("wrong_prompt", f"{MARKUP} is no name")
        page.click("#draw")
        assert MARKUP in found.said_of("[data-key=objects-0]")
        assert page.locator("main b, main img[src='x']").count() == 0
