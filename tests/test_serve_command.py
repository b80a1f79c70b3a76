"""`t2i serve`: what it passes on, what it refuses, and the file for a cluster. No Ray cluster is started."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from orchestration.cli import cli
from orchestration.errors import RunError
from orchestration.serve_commands import parse_replicas
from orchestration.serving import server
from orchestration.serving.app import build_app
from orchestration.serving.endpoint import HttpSettings, create_http_app
from orchestration.serving.settings import NO_CHAMPION, ServeSettings
from orchestration.tracking import Tracker
from tests.cli_support import T2i, runner
from tests.serving_support import FakeBackend, serve_in_thread

START: Callable[..., Any] = server.start_server


@dataclass
class Started:
    """A server in the place of Ray's, and what it was started with."""

    url: str
    calls: list[tuple[ServeSettings, str, int]] = field(default_factory=list)
    waited: int = 0
    stopped: int = 0

    def start(self, settings: ServeSettings, host: str, port: int) -> "Started":
        self.calls.append((settings, host, port))
        return self

    def wait(self) -> None:
        self.waited += 1

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.delenv("T2I_SERVE_TOKEN", raising=False)
    with serve_in_thread(create_http_app(FakeBackend(), HttpSettings())) as url:
        made = Started(url)
        monkeypatch.setattr(server, "start_server", made.start)
        yield made


@pytest.fixture(scope="module")
def registry(shared_tracker: Tracker) -> Tracker:
    """Three models of two versions each, one without a champion."""
    register(shared_tracker, {"xmcgan": 1, "cpgan": 2, "attngan": None})
    return shared_tracker


@pytest.fixture
def t2i(
    registry: Tracker,
    started: Started,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> T2i:
    return runner(registry.home, tmp_path / "here", monkeypatch, capsys)


def register(tracker: Tracker, champions: dict[str, int | None], versions: int = 2) -> None:
    """Models of so many versions, each with its champion, if any."""
    run, folder = tracker.start_run("e", "n", "k", {}), tracker.home / "checkpoint"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    for model, champion in champions.items():
        for number in range(versions):
            tracker.register(model, run, folder, {"checkpoint_digest": f"{number}" * 16})
        if champion is not None:
            tracker.set_champion(model, champion)


class TestStarting:
    def test_every_champion(self, t2i: T2i, registry: Tracker, started: Started) -> None:
        ended = t2i("serve")
        assert (ended.code, ended.err) == (0, "")
        first, second = ended.out.splitlines()
        # What answers is told by the endpoint itself, and what is wrong with it.
        assert first == f"painter@3, teller@1, grapher@2 at {started.url} (Ctrl-C ends it)"
        assert second == "grapher: version 3 was refused since its files were altered: register it again"
        assert started.calls == [(ServeSettings(home=registry.home), "127.0.0.1", 8000)]
        assert (started.waited, started.stopped) == (1, 1)

    def test_every_option(self, t2i: T2i, registry: Tracker, started: Started) -> None:
        options = "--model xmcgan@champion --model attngan@1 --model xmcgan --host ::1 --port 81 --replicas 2-5"
        options += " --max-batch 8 --max-queued 9 --timeout 5.5 --keep-warm 20 --poll 0.5 --models-per-replica 3"
        options += " --device cuda --cpus 0.5 --log-prompts --mlflow-uri"
        relative = os.path.relpath(registry.home / "mlflow.db")
        ended = t2i("serve", *options.split(), f"sqlite:///{relative}")
        assert ended.code == 0, ended
        settings = ServeSettings(
            home=registry.home,
            tracking_uri=f"sqlite:///{Path.cwd() / relative}",
            models=("xmcgan", "attngan@1"),
            device="cuda",
            cpus=0.5,
            replicas=2,
            max_replicas=5,
            max_batch=8,
            max_queued=9,
            timeout_s=5.5,
            keep_warm_s=20,
            poll_s=0.5,
            models_per_replica=3,
            log_prompts=True,
        )
        assert started.calls == [(settings, "::1", 81)]

    def test_the_defaults_are_those_of_the_settings(self) -> None:
        settings = ServeSettings(home=Path("home"))
        options = {option.name: option for option in cli.commands["serve"].params if isinstance(option, click.Option)}
        named = {"timeout_s": "timeout", "keep_warm_s": "keep_warm", "poll_s": "poll"}
        for name in (
            *("max_batch", "max_queued", "models_per_replica", "device", "cpus"),
            *("timeout_s", "keep_warm_s", "poll_s", "log_prompts"),
        ):
            option = options[named.get(name, name)]
            assert option.get_default(click.Context(cli)) == getattr(settings, name), name
            limits = {type(each).__name__: each for each in ServeSettings.model_fields[name].metadata}
            if isinstance(option.type, click.IntRange | click.FloatRange):
                low = limits["Gt"].gt if "Gt" in limits else limits["Ge"].ge
                assert (option.type.min, option.type.max) == (low, limits["Le"].le), name
                assert option.type.min_open == ("Gt" in limits)
        assert parse_replicas(options["replicas"].default) == (settings.replicas, settings.max_replicas)

    def test_a_failure_stops_what_was_started(
        self, t2i: T2i, registry: Tracker, started: Started, monkeypatch: pytest.MonkeyPatch
    ) -> None:

        def fails() -> None:
            raise RunError("the machine is on fire: repeat the command")

        monkeypatch.setattr(started, "wait", fails)
        ended = t2i("serve")
        assert (ended.code, ended.err) == (1, "t2i: the machine is on fire: repeat the command\n")
        assert started.stopped == 1

    def test_the_token_is_used_to_ask(
        self, t2i: T2i, registry: Tracker, started: Started, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("T2I_SERVE_TOKEN", "a secret")
        with serve_in_thread(create_http_app(FakeBackend(), HttpSettings(token="a secret"))) as url:
            started.url = url
            ended = t2i("serve")
        assert ended.code == 0 and "painter@3" in ended.out and "a secret" not in ended.out


class TestRefusals:
    def test_a_home_without_any_model(self, t2i: T2i, tracker: Tracker, started: Started) -> None:
        home = ["--home", str(tracker.home)]
        t2i("serve", *home).refused(f"no model in {tracker.home} has a champion", NO_CHAMPION)
        t2i("serve", *home, "--model", "xmcgan").refused("no model 'xmcgan' is registered", NO_CHAMPION)
        assert "t2i promote RUN" in NO_CHAMPION and "t2i quickstart" in NO_CHAMPION and started.calls == []

    def test_a_home_without_a_champion(self, t2i: T2i, tracker: Tracker, started: Started) -> None:
        # The last is of others who share the registry: no request could name it.
        register(tracker, {"xmcgan": None, "cpgan": None, "a@b": 1})
        home = ["--home", str(tracker.home)]
        t2i("serve", *home).refused(f"no model in {tracker.home} has a champion", NO_CHAMPION)
        t2i("serve", *home, "--config", "serve.yaml").refused("has a champion")
        t2i("serve", *home, "--model", "cpgan").refused(
            "model 'cpgan' has no champion", "t2i promote RUN", "cpgan@VERSION", "there are 1, 2"
        )
        assert started.calls == [] and not list(Path.cwd().iterdir())
        assert t2i("serve", *home, "--model", "cpgan@2").code == 0

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("xmgan", ["no model 'xmgan' is registered", "write xmcgan"]),
            ("xmgan@1", ["no model 'xmgan' is registered", "write xmcgan"]),
            ("zzzzzz", ["no model 'zzzzzz' is registered", "there are attngan, cpgan, xmcgan"]),
            ("xmcgan@9", ["model 'xmcgan' has no version 9", "there are 1, 2"]),
            ("xmcgan@0", ["--model 'xmcgan@0' is none", "NAME, NAME@champion or NAME@VERSION"]),
            ("xmcgan@latest", ["--model 'xmcgan@latest' is none"]),
            ("xmcgan@", ["--model 'xmcgan@' is none"]),
            ("../xmcgan", ["--model '../xmcgan' is none"]),
            ("xmcgan\n", ["--model 'xmcgan\\n' is none"]),
            ("", ["--model '' is none"]),
        ],
    )
    def test_models(self, t2i: T2i, registry: Tracker, started: Started, name: str, parts: list[str]) -> None:
        t2i("serve", "--model", "cpgan", "--model", name).refused(*parts)
        assert started.calls == []

    @pytest.mark.parametrize("text", ["0", "1-0", "3-2", "a", "", "1-", "-1", "1-2-3", "2000", "1-2000", "1.5", "²"])
    def test_replicas(self, t2i: T2i, registry: Tracker, started: Started, text: str) -> None:
        t2i("serve", f"--replicas={text}").refused(f"--replicas {text!r} is none", "write it as N or A-B")
        assert started.calls == []

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--port", "0"),
            ("--port", "65536"),
            ("--max-batch", "0"),
            ("--max-queued", "0"),
            ("--timeout", "0"),
            ("--timeout", "nan"),
            ("--keep-warm", "9"),
            ("--poll", "0"),
            ("--models-per-replica", "0"),
            ("--device", "tpu"),
            ("--cpus", "0"),
        ],
    )
    def test_numbers(self, t2i: T2i, registry: Tracker, started: Started, option: str, value: str) -> None:
        t2i("serve", option, value).refused(option)
        assert started.calls == []

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    @pytest.mark.parametrize(("token", "part"), [(None, "set T2I_SERVE_TOKEN"), (" ", "set but blank")])
    def test_others_reach_it_only_with_a_token(
        self,
        t2i: T2i,
        registry: Tracker,
        monkeypatch: pytest.MonkeyPatch,
        host: str,
        token: str | None,
        part: str,
    ) -> None:

        def never(**options: Any) -> None:
            raise AssertionError("Ray was started")

        monkeypatch.setattr("ray.init", never)
        monkeypatch.setattr(server, "start_server", START)
        if token is not None:
            monkeypatch.setenv("T2I_SERVE_TOKEN", token)
        t2i("serve", "--host", host, "--port", "18123").refused(part)


class TestTheFile:
    def test_it_is_one_of_ray(self, t2i: T2i, registry: Tracker, started: Started, tmp_path: Path) -> None:
        file = tmp_path / "deep" / "serve.yaml"
        file.parent.mkdir()
        ended = t2i("serve", "--config", str(file), "--host", "0.0.0.0", "--replicas", "1-4", "--json")
        assert ended.json == {"config": str(file), "models": ["cpgan", "xmcgan"]} and started.calls == []
        assert [path.name for path in file.parent.iterdir()] == ["serve.yaml"]
        found = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
        assert found.http_options.host == "0.0.0.0" and found.http_options.port == 8000
        [application] = found.applications
        assert (application.name, application.route_prefix) == ("t2i", "/")
        assert application.import_path == f"{build_app.__module__}:{build_app.__name__}"
        settings = ServeSettings(home=registry.home, max_replicas=4)
        assert isinstance(application.args, dict) and ServeSettings.model_validate(application.args) == settings

    def test_it_builds_the_application(self, t2i: T2i, registry: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
        assert t2i("serve", "--config", "serve.yaml", "--model", "xmcgan@1").code == 0
        args = yaml.safe_load(Path("serve.yaml").read_text())["applications"][0]["args"]
        assert args["models"] == ["xmcgan@1"]
        monkeypatch.setenv("T2I_SERVE_TOKEN", "a secret")
        assert build_app(args) is not None

    def test_it_says_how_to_deploy_and_holds_no_secret(
        self, t2i: T2i, registry: Tracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("T2I_SERVE_TOKEN", "hush")
        ended = t2i("serve", "--config", "serve.yaml")
        assert ended.out == "wrote serve.yaml: serve deploy serve.yaml starts it on the cluster\n"
        text = Path("serve.yaml").read_text()
        comments = [line for line in text.splitlines() if line.startswith("#")]
        assert "#     serve deploy serve.yaml" in comments and "hush" not in text
        told = " ".join(comments)
        assert "T2I_SERVE_TOKEN" in told and str(registry.home) in told and "mlflow.db" in told
        assert "password" not in told

    def test_batches_and_replicas_change_without_a_restart(self, t2i: T2i, registry: Tracker) -> None:
        """As the file's own words say; Serve restarts an application whose code version is another one."""
        assert t2i("serve", "--config", "serve.yaml").code == 0
        told = " ".join(line.lstrip("# ") for line in Path("serve.yaml").read_text().splitlines() if line[0] == "#")
        assert "write deployments with an entry of the name painter and its user_config (max_batch, wait_s)" in told
        [plain] = ServeDeploySchema.model_validate(yaml.safe_load(Path("serve.yaml").read_text())).applications
        assert isinstance(plain.args, dict)
        painter = {"name": "painter", "user_config": {"max_batch": 4, "wait_s": 0.0}, "num_replicas": 3}
        changed = ServeApplicationSchema.model_validate({**plain.model_dump(), "deployments": [painter]})
        restarted = plain.model_copy(update={"args": {**plain.args, "max_batch": 4}})
        assert get_app_code_version(changed) == get_app_code_version(plain) != get_app_code_version(restarted)

    def test_a_home_of_any_name(self, t2i: T2i, tracker: Tracker, tmp_path: Path) -> None:
        odd = tmp_path / "größe: 1, '2'"
        tracker.home.rename(odd)
        register(Tracker(odd), {"xmcgan": 1})
        assert t2i("serve", "--config", "serve.yaml", "--home", str(odd)).code == 0
        args = yaml.safe_load(Path("serve.yaml").read_text(encoding="utf-8"))["applications"][0]["args"]
        assert args["home"] == str(odd)

    @pytest.mark.parametrize(
        ("file", "part"), [("none/serve.yaml", "cannot be written (No such file"), (".", "is a directory")]
    )
    def test_where_it_cannot_be(self, t2i: T2i, registry: Tracker, file: str, part: str) -> None:
        t2i("serve", "--config", file).refused("--config", part)
        assert not list(Path.cwd().iterdir())

    def test_what_was_there_stays_until_the_new_one_is_whole(
        self, t2i: T2i, registry: Tracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("serve.yaml").write_text("old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        assert t2i("serve", "--config", "serve.yaml").code != 0
        assert Path("serve.yaml").read_text() == "old" and [path.name for path in Path.cwd().iterdir()] == [
            "serve.yaml"
        ]
