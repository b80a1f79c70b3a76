"""`t2i drill`: kill everything once, on the cluster that is there, and see that nothing changes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError
from orchestration.home import copy_of
from orchestration.options import number


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "drill")(drill)


@click.option(
    "--kill",
    "kinds",
    metavar="KIND,...",
    help="Who is killed: worker, trial, driver, node, tracking, replica. node takes a whole machine of the cluster "
    "away, with all that runs on it, and only if it is named here  [default: all but node]",
)
@number("--seed", "Seed of the moments and of who is hit.", 0, default=0)
@number("--trials", "Trials of the campaign.", 1, 100, default=2)
@click.option(
    "--bring-back",
    metavar="COMMAND",
    help="Run on this machine once the node is gone, to start it again  [default: wait for whoever looks after it]",
)
@click.option("--keep", is_flag=True, help="Keep the campaign that was hit, though nothing was found.")
def drill(app: App, kinds: str | None, seed: int, trials: int, bring_back: str | None, keep: bool) -> Result:
    """Kill everything once, and see that nothing changes.

    On the cluster of RAY_ADDRESS, else on one of this machine that is started for it. A campaign of a minute is run
    twice: undisturbed, and hit by one blow of each kind, at moments that the seed draws. Its ledgers must be equal to
    the last bit, MLflow must hold every record once, and nothing may be left over on the cluster. Then an endpoint
    loses a replica under load. All of it is in HOME/drills, with an MLflow server of its own; it starts whatever it
    kills, but for the node. The exit code is 1 if anything differs. The same command goes on with one that was cut off.

    \b
    Examples:
      t2i drill
      t2i drill --kill trial,driver --seed 7
      RAY_ADDRESS=10.0.0.1:6379 t2i drill --home /shared/t2i-home --kill worker,node --bring-back "bash start-worker.sh"
    """
    from orchestration.drill.plan import Kind, Plan, parse_kinds

    plan = Plan(seed, trials, parse_kinds(kinds))
    if bring_back is not None and Kind.NODE not in plan.kinds:
        raise RequestError("--bring-back is for a node, and none is killed: name node in --kill, or leave it out")
    if copy_of(app.home.root) is not None:
        raise RequestError("a drill compares files, and its home is an address: give a folder that all nodes share")
    from orchestration.drill.drill import Drill, failed, possible
    from orchestration.drill.page import as_json, page
    from orchestration.drill.reach import cluster

    with _ended_like_interrupted(), cluster(plan.workers) as reached:
        plan, skipped = possible(reached, plan, asked=kinds is not None)
        one = Drill(plan, app.home, reached, app.say, app.progress(), bring_back)
        try:
            report = one.run(keep)
        except BaseException:
            app.say(f"what was done is kept in {one.home.root}")
            raise
    report.skipped = skipped
    app.say(page(report))
    result = as_json(report)
    if report.faults:
        app.give(result)
        raise failed(report)
    return result


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """SIGTERM, as from who stops a job, ends what was started too."""

    def interrupt(which: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
