"""`t2i show`: pictures of a run for people."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError
from orchestration.evaluation_commands import parse_weights
from orchestration.options import number, repeatable

SAMPLES, NEIGHBOURS, CURVE, MEMORY, RETRIEVAL = "samples", "neighbours", "curve", "memory", "retrieval"
NARRATIVE = "narrative"
CAPTIONS, NEIGHBOURED_CAPTIONS, GRAPHS, NARRATIVES = 12, 6, 4, 2


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "show")(show)


@click.argument("runs", metavar="RUN... [WORD|GRAPH|NARRATIVE...]", nargs=-1, required=True)
@click.option(
    "--what",
    type=click.Choice([SAMPLES, NEIGHBOURS, CURVE, MEMORY, RETRIEVAL, NARRATIVE]),
    default=SAMPLES,
    show_default=True,
    help="Pictures of captions, their nearest training pictures, a metric against kimg, what words mean, which patches "
    "are retrieved for scene graphs, or every step from a narrative to a picture.",
)
@click.option("--out", type=click.Path(dir_okay=False), default="show.png", show_default=True, help="PNG to draw.")
@number(
    "--captions",
    "Held-out captions, graphs, narratives  [default: 12; neighbours: 6; retrieval: 4; narrative: 2]",
    1,
    100,
)
@number("--samples", "samples, retrieval, narrative: pictures a caption.", 1, 8, default=3)
@number("--nearest", "neighbours: training pictures a caption; memory: words like a word.", 1, 10, default=5)
@number("--regions", "memory: regions a word.", 1, 8, default=4)
@number("--seed", "Seed of captions and noise.", 0, default=0)
@click.option("--net", metavar="NET", help="neighbours: feature net  [default: that of the run's evaluation]")
@repeatable("--weights", "weights", "NET=PATH", "neighbours: weights of a feature net  [default: none]")
@click.option(
    "--figure", metavar="FIGURE", default="fid", show_default=True, help="curve: METRIC or METRIC/PROTOCOL to draw."
)
@number("--workers", "neighbours: processes; the picture is the same  [default: every core]", 1)
def show(
    app: App,
    runs: Sequence[str],
    what: str,
    out: str,
    captions: int | None,
    samples: int,
    nearest: int,
    regions: int,
    seed: int,
    net: str | None,
    weights: Sequence[str],
    figure: str,
    workers: int | None,
) -> Result:
    """Draw what a run makes, what it learned from, or how it fared.

    samples: held-out captions, each with the real picture (framed) and what is drawn for it with several seeds.
    neighbours: pictures drawn and the training pictures nearest to them; a generator that copies is seen here.
    curve: a metric of one or more runs against kimg, with its 95 % interval; one protocol only.
    memory: for each WORD the regions of training pictures that a CPGAN run remembers of it, and words like it.
    retrieval: for each GRAPH in words, by default of held-out pictures, the patches that a RetrieveGAN run may draw it
    from, those it chose, the photographs they were cut from, the boxes and the pictures.
    RUN is a run's name in HOME/runs, a run folder or a checkpoint folder.

    \b
    Examples:
      t2i show xmcgan_scenes32-1a415cbaa832 --out sheet.png
      t2i show RUN --what neighbours --captions 8
      t2i show RUN1 RUN2 --what curve --figure fid
      t2i show RUN --what memory bird red
      t2i show RUN --what retrieval "sheep left of tree and tree above grass"
      t2i show RUN --what narrative "In this picture there is a house. In the background there is grass."
    """
    if what == MEMORY:
        return _memory(app, runs[0], runs[1:], out, regions, nearest)
    if what == RETRIEVAL:
        return _retrieval(app, runs[0], runs[1:], out, captions or GRAPHS, samples, seed)
    if what == NARRATIVE:
        return _narratives(app, runs[0], runs[1:], out, captions or NARRATIVES, samples, seed)
    if what == CURVE:
        return _curve(app, runs, out, figure)
    if len(runs) > 1:
        raise RequestError(f"--what {what} shows one run, and {len(runs)} are named: name one, or use --what curve")
    return (
        _samples(app, runs[0], out, captions or CAPTIONS, samples, seed)
        if what == SAMPLES
        else _neighbours(app, runs[0], out, captions or NEIGHBOURED_CAPTIONS, nearest, seed, net, weights, workers)
    )


def _curve(app: App, runs: Sequence[str], out: str, figure: str) -> Result:
    from orchestration.evaluation.sheets import show_curve

    name, curves = show_curve(app.home, runs, Path(out), figure)
    app.say(f"drew {name} of {len(curves)} run{'s' * (len(curves) > 1)} to {out}")
    points = {curve.run: {"kimg": curve.kimg, "value": curve.value} for curve in curves}
    return {"png": str(Path(out).resolve()), "figure": name, "runs": points}


def _memory(app: App, run: str, words: Sequence[str], out: str, regions: int, nearest: int) -> Result:
    from orchestration.memory_sheet import show_memory

    found = show_memory(app.home, run, words, Path(out), regions, nearest, app.progress())
    unseen = [one.word for one in found if not one.pictures]
    never = f"; never seen: {', '.join(unseen)}" if unseen else ""
    app.say(f"drew {len(found)} word{'s' * (len(found) > 1)} to {out}{never}")
    return {"png": str(Path(out).resolve()), "words": [asdict(one) for one in found]}


def _retrieval(app: App, run: str, graphs: Sequence[str], out: str, held_out: int, samples: int, seed: int) -> Result:
    from orchestration.retrieval_sheet import show_retrieval

    found = show_retrieval(app.home, run, graphs, Path(out), held_out, samples, seed, app.progress())
    app.say(f"drew {len(found)} graph{'s' * (len(found) > 1)} to {out}")
    return {"png": str(Path(out).resolve()), "graphs": [one.to_json() for one in found]}


def _narratives(
    app: App, run: str, narratives: Sequence[str], out: str, held_out: int, samples: int, seed: int
) -> Result:
    from orchestration.narratives.sheet import show_narratives

    found = show_narratives(app.home, run, narratives, Path(out), held_out, samples, seed, app.progress())
    app.say(f"drew {len(found)} narrative{'s' * (len(found) > 1)} to {out}")
    return {"png": str(Path(out).resolve()), "narratives": found}


def _samples(app: App, run: str, out: str, captions: int, samples: int, seed: int) -> Result:
    from orchestration.evaluation.sheets import show_samples
    from orchestration.runs import find_checkpoint

    checkpoint, _ = find_checkpoint(app.home, run)
    texts = show_samples(checkpoint, app.home, Path(out), captions, samples, seed, app.progress())
    app.say(f"drew {len(texts)} captions to {out}")
    return {"png": str(Path(out).resolve()), "captions": texts}


def _neighbours(
    app: App,
    run: str,
    out: str,
    captions: int,
    nearest: int,
    seed: int,
    net: str | None,
    weights: Sequence[str],
    workers: int | None,
) -> Result:
    from orchestration.evaluation.sheets import show_neighbours
    from orchestration.runs import find_checkpoint

    paths = parse_weights(weights)
    checkpoint, _ = find_checkpoint(app.home, run)
    found = show_neighbours(
        checkpoint, app.home, Path(out), captions, nearest, seed, net, paths, workers, app.progress()
    )
    suspicious = sum(one.suspicious for one in found)
    app.say(f"drew {len(found)} captions to {out}; {suspicious} of their pictures are suspiciously near")
    rows = [
        {"caption": one.caption, "images": one.image_ids, "distances": one.distances, "suspicious": one.suspicious}
        for one in found
    ]
    return {"png": str(Path(out).resolve()), "captions": [one.caption for one in found], "neighbours": rows}
