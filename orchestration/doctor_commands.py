"""`t2i doctor`: is this machine, or a cluster, fit for the other commands."""

import os

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.home import find_home


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "doctor")(doctor)


@click.option(
    "--address", metavar="HOST:PORT", help="Ray cluster, auto too  [default: $RAY_ADDRESS, else this machine alone]"
)
@click.option("--optuna", metavar="URL", help="Optuna's database, as given to t2i tune --storage  [default: none]")
@click.option("--stages", metavar="URL", help="Store of stages  [default: $T2I_STAGES_REMOTE]")
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="A node that takes longer for one look does not answer.",
)
def doctor(app: App, address: str | None, optuna: str | None, stages: str | None, timeout: float) -> Result:
    """Look for what is wrong with a machine or a cluster.

    On every node: versions, GPUs, tokens, open ports, shared memory, disks and clocks; whether the home, the store of
    stages, MLflow and Optuna's storage can be used from there; and a real all-reduce between the nodes. One page of
    findings, each with its mend, and of facts. Nothing is changed, but for small files that are removed at once. The
    exit code is 1 if anything is refused. Run it on a machine of the cluster, or as a job of it.

    \b
    Examples:
      t2i doctor
      t2i doctor --address auto --home /shared/t2i-home --mlflow-uri http://mlflow:5000
      t2i doctor --address 10.0.0.1:6379 --stages s3://bucket/stages --json
    """
    from orchestration.clusters.knocking import checked_address
    from orchestration.doctor.collecting import examine
    from orchestration.doctor.facts import Asked
    from orchestration.doctor.findings import find
    from orchestration.doctor.page import as_json, page
    from orchestration.registry import Connection
    from orchestration.stages import REMOTE

    address = address or os.environ.get("RAY_ADDRESS") or None
    # One that cannot be written to is a finding here, which App.home refuses.
    home = find_home(click.get_current_context().params["home"]).root
    asked = Asked(
        home=str(home),
        address=None if address is None else checked_address(address),
        # A relative path of SQLite means another file on another node.
        mlflow=Connection(home, app.mlflow_uri).uri if app.mlflow_uri else None,
        optuna=None if optuna is None else checked_database(optuna),
        stages=stages or os.environ.get(REMOTE) or None,
        timeout_s=timeout,
    )
    facts = examine(asked, app.progress())
    findings = find(facts)
    app.say(page(facts, findings))
    result = as_json(facts, findings)
    refused = result["counts"]["refuse"]
    if refused:
        app.give(result)
        raise RunError(
            f"the doctor refuses this for {refused} reason{'s' if refused > 1 else ''}: mend each as it says"
        )
    return result


def checked_database(url: str) -> str:
    """A database's URL. Raises RequestError for what is none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(url)
    except ArgumentError as error:
        raise RequestError(
            "--optuna is no URL of a database: write it as postgresql+psycopg://USER@HOST/NAME or sqlite:////PATH"
        ) from error
    return url
