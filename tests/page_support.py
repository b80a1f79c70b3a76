"""What the tests of the page share: a browser on a served page, and what a person does there."""

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestration.serving.endpoint import create_http_app
from tests.browser_support import Opened, chromium
from tests.serving_support import FakeBackend, serve_in_thread

Open = Callable[..., AbstractContextManager["Page"]]

Spots = Sequence[tuple[float, float]]
"""x and y on the canvas, 0 to 1."""

BIGGEST = 2**63 - 1
DRAWN = re.compile(r"picture.* by ")
NARRATIVE = "In this picture a dog lies on the grass, behind it stands a tree."
GRAPH = "sheep left of tree and sky above tree"
MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"

_REFUSED = "error: Failed to load resource: the server responded with a status of 4"


@dataclass
class Page(Opened):
    """The page of an endpoint, in a context of its own. bodies: of the requests for pictures; replies: to them."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    replies: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if request.url.endswith("/v1/images"):
            self.bodies.append(request.post_data_json)

    def choose(self, model: str, kind: str) -> None:
        """A model, and the tab of what it is asked for with."""
        self.page.select_option("#model", model)
        self.page.click(f"#tab-{kind}")

    def draw(self, count: int = 1) -> dict[str, Any]:
        """Presses the button and waits for that many pictures; what was asked for."""
        self.page.click("#draw")
        return self.drawn(count)

    def drawn(self, count: int = 1) -> dict[str, Any]:
        """Waits for that many pictures; what was asked for."""
        self.page.locator("#status", has_text=DRAWN).wait_for()
        assert self.page.locator("#pictures figure.picture").count() == count
        return self.bodies[-1]

    def pngs(self) -> list[bytes]:
        """The files that are shown."""
        found = self.page.locator("#pictures .frame img")
        return [base64.b64decode(one.get_attribute("src").partition(",")[2]) for one in found.all()]

    def stroke(self, spots: Spots) -> None:
        """One stroke with the mouse."""
        canvas = self.page.locator("#trace")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in spots]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.wait_for_timeout(25)
            self.page.mouse.move(*place, steps=3)
        self.page.mouse.up()

    def swipe(self, spots: Spots) -> None:
        """One stroke with a finger."""
        canvas = self.page.locator("#trace")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        hand = self.page.context.new_cdp_session(self.page)
        for place, (x, y) in enumerate(spots):
            point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            kind = "touchMove" if place else "touchStart"
            hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
            self.page.wait_for_timeout(25)
        hand.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def tab_to(self, selector: str, most: int = 60) -> None:
        """Presses the Tab key until something is focused, as a person without a mouse would."""
        for _ in range(most):
            if self.page.evaluate("selector => document.activeElement?.matches(selector)", selector):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"the Tab key does not lead to {selector}")

    def said_of(self, control: str) -> str:
        """The sentence beside a control: it must be marked as wrong, described by the sentence, and focused."""
        found = self.page.locator(control)
        self.page.locator(f"{control}[aria-invalid=true]").wait_for()
        assert found.evaluate("one => one === document.activeElement"), "the person is led to what is wrong"
        described = found.get_attribute("aria-describedby").split()
        told = [self.page.locator(f"#{each}").inner_text() for each in described if each.endswith("-error")]
        assert len(told) == 1 and told[0].endswith("."), told
        return str(told[0])


@contextmanager
def opened_page(browser: Any, url: str, fragment: str = "", *, ready: bool = True, **options: Any) -> Iterator[Page]:
    """The page, watched: no error, no dialog, and no request that leaves its origin."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(60_000)
    try:
        found = Page(context.new_page())
        found.page.goto(f"{url}/{fragment}")
        if ready:
            found.page.locator("#work").wait_for()
        yield found
        # Hints to developers are "verbose"; that a request was refused is said on the page.
        assert [said for said in found.said if not said.startswith((_REFUSED, "verbose:"))] == []
        assert [asked for asked in found.asked if not asked.startswith((f"{url}/", "data:", "blob:"))] == []
    finally:
        context.close()


@dataclass
class Site:
    """A browser, and a server of pictures that need no model."""

    browser: Any
    url: str
    backend: FakeBackend

    def open(self, fragment: str = "", **options: Any) -> AbstractContextManager[Page]:
        """The page; see `opened_page`."""
        return opened_page(self.browser, self.url, fragment, **options)

    def heal(self) -> None:
        """Whatever a test made of the backend, the next one finds it well."""
        self.backend.failure, self.backend.wait_s, self.backend.empty = None, 0.0, False


@contextmanager
def served_site() -> Iterator[Site]:
    """For all tests of the page: neither browser nor server is started twice."""
    backend = FakeBackend()
    with chromium("the page") as browser, serve_in_thread(create_http_app(backend)) as url:
        yield Site(browser, url, backend)


def build_graph(found: Page) -> None:
    """Sheep left of tree, sky above tree, by mouse."""
    page = found.page
    found.choose("grapher", "graph")
    page.locator("[data-key=objects-0]").fill("sheep")
    for place, name in enumerate(("tree", "sky"), 1):
        page.click("#add-object")
        page.locator(f"[data-key=objects-{place}]").fill(name)
    for place, (subject, word, target) in enumerate((("0", "left of", "1"), ("2", "above", "1"))):
        page.click("#add-relation")
        page.locator(f"[data-key=relations-{place}]").select_option(subject)
        page.locator(f"[data-key=relations-{place}-1]").select_option(word)
        page.locator(f"[data-key=relations-{place}-2]").select_option(target)


def make_prompt(found: Page) -> None:
    found.page.fill("#prompt", "ein Boot, 船 und 🚢")
    found.page.fill("#truncation", "0.5")


def make_narrative(found: Page) -> None:
    found.choose("teller", "narrative")
    found.page.fill("#narrative", NARRATIVE)
    found.stroke([(0.1, 0.8), (0.3, 0.6), (0.5, 0.8)])


def fragment_of(request: Any) -> str:
    """A link that holds something."""
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    return "#r=" + base64.urlsafe_b64encode(text).decode().rstrip("=")
