"""`t2i serve`: the champions behind an endpoint, on this machine or as a configuration file for a cluster."""

import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError
from orchestration.options import Option, number, repeatable

if TYPE_CHECKING:
    from orchestration.serving.settings import ServeSettings

FORM = "NAME, NAME@champion or NAME@VERSION"

CONFIG_HEAD = """\
# The endpoint of t2i for a Ray cluster. On a machine of the cluster:
#     serve deploy {file}
# The same again after a change. Other args restart every process. Batches and the number of replicas can be changed
# without: beside args, write deployments with an entry of the name painter and its user_config (max_batch, wait_s),
# num_replicas or autoscaling_config, which count in place of those in args.
#
# Requests must carry the token that {token_variable} holds, and nothing is served without one. Set it in the
# environment that Ray is started in, on every machine; in this file everyone who reads it could draw.
#
# {home} must be a folder that every machine sees{registry}.
"""


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "serve")(serve)


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    # No range says that it is outside.
    if math.isnan(value):
        raise click.BadParameter("nan is no number", context, option)
    return value


def seconds(flag: str, text: str, low: float, high: float, default: float, above: bool = False) -> Option:
    """An option that takes seconds."""
    kind = click.FloatRange(low, high, min_open=above)
    return click.option(
        flag, type=kind, default=default, show_default=True, metavar="SECONDS", help=text, callback=_number
    )


@repeatable("--model", "chosen", "NAME[@VERSION]", "What is served  [default: every model with a champion]")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; the default answers this machine only, any other needs T2I_SERVE_TOKEN.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, metavar="N", help="Port to listen on."
)
@click.option(
    "--replicas", default="1", show_default=True, metavar="N|A-B", help="Processes that draw; A-B: more under load."
)
@number("--max-batch", "Pictures drawn at once, at most.", 1, 1024, default=16)
@number("--max-queued", "Requests that may wait; one more is refused as busy.", 1, 1_000_000, default=256)
@seconds("--timeout", "Longest time a request may take.", 0, 3600, 60.0, above=True)
@seconds("--keep-warm", "A version that was replaced stays loaded so long, to go back to.", 10, 1_000_000, 600.0)
@seconds("--poll", "The registry is asked for its champions so often.", 0.1, 3600, 2.0)
@number("--models-per-replica", "Other versions that a replica keeps, because they were asked for.", 1, 64, default=2)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cuda takes one GPU a replica.",
)
@click.option(
    "--cpus",
    type=click.FloatRange(0, 1024, min_open=True),
    default=1.0,
    show_default=True,
    metavar="N",
    help="CPUs a replica, and its threads.",
    callback=_number,
)
@click.option("--log-prompts", is_flag=True, help="Let the log hold what people write.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the configuration file for a cluster, and stop  [default: serve on this machine]",
)
def serve(
    app: App,
    chosen: Sequence[str],
    host: str,
    port: int,
    replicas: str,
    max_batch: int,
    max_queued: int,
    timeout: float,
    keep_warm: float,
    poll: float,
    models_per_replica: int,
    device: str,
    cpus: float,
    log_prompts: bool,
    config: Path | None,
) -> Result | None:
    """Serve the champions with Ray Serve, until interrupted.

    The page is at /. POST /v1/images with {"prompt": ..., "seed": 0} gives a PNG, GET /v1/models says what can be asked
    for. A champion that is promoted or rolled back while it serves answers as soon as it is loaded. With
    T2I_SERVE_TOKEN set, requests need it as a bearer token.

    \b
    Examples:
      t2i serve --port 8000
      t2i serve --model xmcgan --model trecs@2 --replicas 1-4 --device cuda
      t2i serve --host 0.0.0.0 --home /shared/t2i-home --config serve.yaml
    """
    from orchestration.serving.settings import ServeSettings

    tracker = app.tracker()
    models = chosen_models(tracker, chosen)
    least, most = parse_replicas(replicas)
    settings = ServeSettings(
        home=app.home.root,
        # Replicas have another working folder: the tracker has made a relative path whole.
        tracking_uri=tracker.uri if app.mlflow_uri else None,
        models=models,
        device=device,
        cpus=cpus,
        replicas=least,
        max_replicas=most,
        max_batch=max_batch,
        max_queued=max_queued,
        timeout_s=timeout,
        keep_warm_s=keep_warm,
        poll_s=poll,
        models_per_replica=models_per_replica,
        log_prompts=log_prompts,
    )
    if config is not None:
        write_config(config, settings, host, port)
        app.say(f"wrote {config}: serve deploy {config} starts it on the cluster")
        return {"config": str(config.absolute()), "models": list(models or champions_of(tracker))}
    from orchestration.serving.client import T2IClient
    from orchestration.serving.server import start_server

    server = start_server(settings, host, port)
    try:
        with T2IClient(server.url) as client:
            told = client.models()
        answering = told.models
        app.say(f"{', '.join(f'{each.name}@{each.version}' for each in answering)} at {server.url} (Ctrl-C ends it)")
        for each in answering:
            if each.note:
                app.say(f"{each.name}: {each.note}")
        for name, why in told.refused.items():
            app.say(f"{name}: {why}")
        server.wait()
    finally:
        server.stop()
    return None


def chosen_models(tracker: Any, chosen: Sequence[str]) -> tuple[str, ...]:
    """What is to be served, as in ServeSettings.models. Raises RequestError for a model or version that is not
    registered, and where there is no champion."""
    from orchestration.serving.inputs import MODEL_PATTERN
    from orchestration.serving.settings import NO_CHAMPION

    names = tuple(dict.fromkeys(name.removesuffix("@champion") for name in chosen))
    for name in names:
        if not re.fullmatch(MODEL_PATTERN, name):
            raise RequestError(f"--model {name!r} is none: write it as {FORM}")
    if not names and not champions_of(tracker):
        raise RequestError(f"no model in {tracker.home} has a champion: {NO_CHAMPION}")
    for name in names:
        _check(tracker, *name.partition("@")[::2])
    return names


def champions_of(tracker: Any) -> list[str]:
    """The names of all models that are served where none is chosen."""
    from orchestration.serving.inputs import can_be_asked_for

    return [name for name in tracker.champions() if can_be_asked_for(name)]


def _check(tracker: Any, model: str, version: str) -> None:
    from orchestration.serving.settings import NO_CHAMPION

    known = tracker.models()
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
        there = f"write {' or '.join(near)}" if near else f"there are {', '.join(known)}"
        raise RequestError(f"no model {model!r} is registered: {there if known else NO_CHAMPION}")
    listed = ", ".join(str(each.version) for each in tracker.versions(model)) or "none"
    if version and version not in listed.split(", "):
        raise RequestError(f"model {model!r} has no version {version}: there are {listed}")
    if not version and tracker.champion(model) is None:
        raise RequestError(
            f"model {model!r} has no champion: promote one with t2i promote RUN, or name a version as {model}@VERSION "
            f"(there are {listed})"
        )


def parse_replicas(text: str) -> tuple[int, int | None]:
    """N, or A-B: at least and at most. Raises RequestError."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    least, most = (int(found[1]), int(found[2]) if found[2] else None) if found else (0, None)
    if not 1 <= least <= 1024 or not (most is None or least <= most <= 1024):
        raise RequestError(f"--replicas {text!r} is none: write it as N or A-B, from 1 to 1024, the smaller first")
    return least, most


def write_config(file: Path, settings: "ServeSettings", host: str, port: int) -> None:
    """The Serve configuration file of an endpoint, whole or not at all. Raises RequestError where it cannot be."""
    import yaml

    from orchestration.serving.settings import TOKEN_VARIABLE
    from orchestration.stages import write_atomically

    uri = settings.tracking_uri
    registry = "" if uri else ", with its mlflow.db (or name a server with --mlflow-uri)"
    head = CONFIG_HEAD.format(file=file.name, token_variable=TOKEN_VARIABLE, home=settings.home, registry=registry)
    if uri and "@" in uri:
        head += "#\n# The address of MLflow holds a password: keep this file to yourself.\n"
    document = yaml.safe_dump(deployment(settings, host, port), sort_keys=False, allow_unicode=True, width=120)
    try:
        write_atomically(file, head + document)
    except OSError as error:
        raise RequestError(
            f"--config {file} cannot be written ({error.strerror}): name a file in a folder that can"
        ) from error


def deployment(settings: "ServeSettings", host: str, port: int) -> dict[str, Any]:
    """An endpoint as Ray's ServeDeploySchema has it; the application is built from the settings, as on one machine."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "logging_config": {"encoding": "JSON"},
        "applications": [
            {
                "name": "t2i",
                "route_prefix": "/",
                "import_path": "orchestration.serving.app:build_app",
                "args": settings.args(),
            }
        ],
    }
