"""A home with three trained models, served as a person would: `t2i serve`, client, page, promotion, roll-back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestration.campaigns.segments import TRIALS, trial_name
from orchestration.champion_contest import Contest
from orchestration.champions import promote
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.narratives.narrative_text import EXAMPLE
from orchestration.serving import T2IClient
from orchestration.serving.pictures import read_metadata
from orchestration.serving.server import check_port
from orchestration.tracking import Tracker
from orchestration.training.state import open_checkpoint
from tests.browser_support import chromium
from tests.page_support import opened_page
from tests.served_support import small_painter, small_retriever, small_teller

pytestmark = pytest.mark.ray_cluster

CAMPAIGN = "lambda-campaign"


@dataclass
class Served:
    """A home, and `t2i serve` on it."""

    home: Home
    tracker: Tracker
    url: str
    process: subprocess.Popen[str]
    errors: Path

    def run(self, *words: str) -> tuple[int, str, str]:
        """A command on the same home: exit code, standard output and standard error."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestration", *words, "--home", str(self.home.root)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(shared_tracker: Tracker) -> tuple[Home, Tracker]:
    """The champions attngan (a trial of a campaign), trecs and retrievegan, of one training step each; and a
    challenger."""
    home = Home(shared_tracker.home)
    trial = home.campaigns / CAMPAIGN / TRIALS / trial_name(3)
    trial.parent.mkdir(parents=True)
    shutil.move(small_painter(home).parent.parent, trial)
    parent = shared_tracker.start_run("attngan", CAMPAIGN, f"campaign-{CAMPAIGN}", {}, {"t2i.kind": "campaign"})
    tags = {"t2i.kind": "trial"}
    shared_tracker.start_run("attngan", trial.name, f"{CAMPAIGN}-{trial.name}", {}, tags, parent)
    for checkpoint in (next((trial / "checkpoints").iterdir()), small_teller(home), small_retriever(home)):
        folder = checkpoint.parent.parent
        promote(shared_tracker, home, open_checkpoint(checkpoint), folder, Contest(command="t2i promote"), {})
    small_painter(home, **{"training.seed": 5})
    return home, shared_tracker


@pytest.fixture(scope="module")
def served(made: tuple[Home, Tracker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home, tracker = made
    errors = tmp_path_factory.mktemp("serve") / "errors.txt"
    port = check_port("127.0.0.1", 0)
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "T2I_SERVE_TOKEN")}
    words = ["serve", "--home", str(home.root), "--port", str(port), "--poll", "0.2", "--max-batch", "4"]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration", *words],
            env={**clean, "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in said, errors.read_text()
        yield Served(home, tracker, f"http://127.0.0.1:{port}", process, errors)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0 and "Traceback" not in errors.read_text(), errors.read_text()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[T2IClient]:
    with T2IClient(served.url, timeout=120) as opened:
        yield opened


def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Raises TimeoutError when it does not come true."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError("it did not come true")
        time.sleep(0.1)


def version_of(client: T2IClient, name: str) -> str:
    return next(model.version for model in client.models().models if model.name == name)


def test_every_champion_is_served_and_says_what_it_takes(client: T2IClient) -> None:
    models = {model.name: model for model in client.models().models}
    assert {name: model.accepts for name, model in models.items()} == {
        "attngan": ["prompt"],
        "trecs": ["narrative", "prompt"],
        "retrievegan": ["graph"],
    }
    assert client.models().default == {"prompt": "attngan", "narrative": "trecs", "graph": "retrievegan"}
    assert [models[name].truncation for name in ("attngan", "retrievegan")] == [True, False]
    for model in models.values():
        for kind, example in model.examples.items():
            drawn = client.draw({"type": kind, kind: example, "model": model.name})
            assert len(drawn.images) == 1, "its own examples can be drawn"


def test_each_kind_is_drawn_with_its_reasons_and_the_same_twice(client: T2IClient) -> None:
    graph = client.models().models
    words = next(model.graph for model in graph if model.graph is not None)
    built = {
        "objects": [{"name": words.objects[0]}, {"name": words.objects[1]}],
        "relations": [[0, words.relations[0], 1]],
    }
    requests: list[dict[str, Any]] = [
        {"prompt": "a red house on the grass", "seed": 4, "count": 2, "truncation": 0.7},
        {"type": "narrative", "narrative": json.loads(EXAMPLE), "seed": 4},
        {"type": "narrative", "narrative": "a house and a boat on the water", "seed": 4},
        {"type": "graph", "graph": built, "seed": 4, "count": 2},
    ]
    kinds = ["prompt", "narrative", "narrative", "graph"]
    for request, kind in zip(requests, kinds, strict=True):
        first, again = (client.draw({**request, "explain": True}) for _ in range(2))
        assert first == again and first.reasons is not None and first.reasons.type == kind


def test_a_picture_leads_back_to_its_trial(client: T2IClient) -> None:
    picture = client.image("a red house on the grass", seed=7)
    told = client.lineage(picture.png)
    assert (told.model, told.versions, told.champion) == ("attngan", [1], True)
    assert (told.campaign, told.trial) == (CAMPAIGN, trial_name(3))
    assert told.checkpoint_digest == read_metadata(picture.png)["checkpoint_digest"]
    assert told.data.source.startswith("scenes:") and told.history and told.experiment


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("the page") as running:
        yield running


def test_the_page_draws_each_kind_and_a_link_draws_it_again(served: Served, browser: Any, client: T2IClient) -> None:
    with opened_page(browser, served.url) as found:
        page = found.page
        page.fill("#prompt", "a red house on the grass")
        found.draw()
        prompt = found.pngs()[0]
        assert read_metadata(prompt)["model"] == "attngan"
        page.get_by_role("button", name="Where from").first.click()
        page.get_by_text(CAMPAIGN).first.wait_for()
        assert trial_name(3) in page.inner_text("#pictures")
        found.choose("trecs", "narrative")
        page.fill("#narrative", "a red house, behind it there is water.")
        found.stroke([(0.2, 0.5), (0.5, 0.4), (0.5, 0.8), (0.2, 0.8)])
        found.stroke([(0.1, 0.1), (0.9, 0.1), (0.9, 0.3)])
        found.draw()
        narrative = found.pngs()[0]
        assert json.loads(read_metadata(narrative)["prompt"])["traces"]
        assert page.locator("#reasons img").count() >= 2, "masks and the canvas"
        found.choose("retrievegan", "graph")
        words = next(model.graph for model in client.models().models if model.graph is not None)
        for place, name in enumerate(words.objects[:2]):
            if place:
                page.click("#add-object")
            page.locator(f"[data-key=objects-{place}]").fill(name)
        page.click("#add-relation")
        for key, choice in (("relations-0", "0"), ("relations-0-1", words.relations[0]), ("relations-0-2", "1")):
            page.locator(f"[data-key={key}]").select_option(choice)
        found.draw()
        graph = found.pngs()[0]
        assert page.locator("#reasons img").count() >= 2, "patches"
        links = page.locator("#history a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    for png, link in zip((graph, narrative, prompt), links, strict=False):
        with opened_page(browser, served.url, link) as again:
            again.drawn()
            assert again.pngs() == [png], "in another browser, the same bytes"


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"type": "graph", "graph": "sheep beneath"}, "the graph cannot be read"),
        ({"type": "narrative", "narrative": {"words": ["a"], "trace": [[0, 0, 0]]}}, "no times of its words"),
        ({"prompt": "a house", "model": "retrievegan"}, "takes a scene graph, not a prompt"),
        ({"type": "graph", "graph": "sheep", "truncation": 0.5}, "no latent to truncate"),
    ],
)
def test_what_a_model_cannot_take_is_refused(client: T2IClient, request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        client.draw(request_)


def test_a_promotion_and_a_roll_back_are_followed_while_it_serves(served: Served, client: T2IClient) -> None:
    before = client.image("a red house on the grass", seed=9)
    assert before.model == "attngan@1"
    challenger = next(folder.name for folder in served.home.runs.glob("small-painter-*"))
    code, _, errors = served.run("promote", challenger, "--force")
    assert code == 0, errors
    until(lambda: version_of(client, "attngan") == "2")
    after = client.image("a red house on the grass", seed=9)
    assert (after.model, after.png != before.png) == ("attngan@2", True)
    assert client.image("a red house on the grass", seed=9, model="attngan@1").png == before.png
    code, _, errors = served.run("rollback", "--model", "attngan")
    assert code == 0, errors
    until(lambda: version_of(client, "attngan") == "1")
    assert client.image("a red house on the grass", seed=9).png == before.png
    code, said, _ = served.run("history", "--model", "attngan")
    assert code == 0 and "promoted, forced" in said and "rolled back" in said
    assert any("rolled back" in line for line in client.lineage(before).history)


def test_a_champion_whose_file_was_altered_is_refused(served: Served, client: T2IClient) -> None:
    before = client.image("a red house on the grass", seed=9)
    version = next(each for each in served.tracker.versions("attngan") if each.version == 2)
    file = next((served.tracker.folder_here(version) or Path()).glob("generator*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    served.tracker.set_champion("attngan", 2)
    until(lambda: any(model.note for model in client.models().models))
    [note] = [model.note for model in client.models().models if model.note]
    assert "version 2 is the champion and was refused" in note and file.name in note
    assert client.image("a red house on the grass", seed=9).png == before.png
    file.write_bytes(whole)
    served.tracker.set_champion("attngan", 1)
    until(lambda: not any(model.note for model in client.models().models))
