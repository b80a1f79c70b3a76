"""`t2i data`: what can be read, what is wrong with it, what it looks like, and making it ready for training."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.options import number, repeatable

SHEET_PICTURES, SHOWN_PICTURES = 18, 4


def _some_place(ctx: click.Context, parameter: click.Parameter, place: str | None) -> str | None:
    """An empty one, as an unset variable gives it, is not the current folder."""
    if place == "":
        raise click.BadParameter("it is empty; name the place to write to")
    return place


class DataGroup(click.Group):
    """The group; who names data where a command is expected is told which commands there are."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in self.commands and (":" in word or word == "scenes"):
            raise click.UsageError(
                f"{word!r} is data, not a command: write t2i data check {word} to go through it, "
                f"or t2i data show {word} to see it",
                ctx,
            )
        return super().resolve_command(ctx, args)


@click.group("data", cls=DataGroup, invoke_without_command=True)
@click.pass_context
def data(ctx: click.Context) -> None:
    """List, check, prepare and show data sets.

    Data is named scenes[:options], which is generated once into HOME/data, or FORMAT:PATH with the folder of a data
    set as it was published. Options of scenes are size (pixels), things, colours, backgrounds, objects (most in a
    picture), train, val, test (pictures of each split) and seed.

    \b
    Examples:
      t2i data list
      t2i data check coco:PATH
      t2i data prepare coco:PATH --size 256
      t2i data show scenes:size=64,things=8 --out scenes.png
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command(data, "list")
def list_data(app: App) -> Result:
    """List the formats that can be read.

    Each with what a full release carries, and the systems that this is enough for.

    \b
    Example: t2i data list
    """
    from orchestration.listing import list_formats

    return list_formats(app.say)


@command(data, "check")
@click.argument("source")
@repeatable("--split", "splits", "SPLIT", "train, val or test  [default: all there are]")
@number("--examples", "Sentences shown of each kind of problem.", 0, 1000, default=3)
@click.option("--no-pictures", is_flag=True, help="Do not decode the pictures: annotations only.")
def check(app: App, source: str, splits: Sequence[str], examples: int, no_pictures: bool) -> Result:
    """Go through a data set and report everything that is wrong.

    Annotation files are read whole, pictures decoded, masks, boxes and traces looked at; nothing stops at the first
    fault. A fault makes an item unusable; a remark is about one that is used as it is. Exit code 1 when there are
    faults.

    \b
    Examples:
      t2i data check coco:PATH
      t2i data check coco:PATH --split val --examples 20
    """
    from orchestration.data.checking import check_source

    report = check_source(
        source,
        splits or None,
        _home(app, source),
        app.progress(),
        examples=examples,
        pictures=not no_pictures,
    )
    for line in report.lines():
        app.say(line)
    if report.verdict is not None:
        app.give(report.as_json())
        raise RunError(report.verdict)
    return report.as_json()


@command(data, "show")
@click.argument("source")
@click.option("--split", default="train", show_default=True, metavar="SPLIT", help="train, val or test.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    callback=_some_place,
    default="data.png",
    show_default=True,
    help="PNG to draw.",
)
@number("--images", "Images drawn, those that carry the most  [default: 4; 18 on a sheet]", 1, 60)
@repeatable("--image", "ids", "ID", "Draw this one, by its published id  [default: see --images]")
@click.option("--sheet", is_flag=True, help="Pictures and captions only, many on one sheet, in file order.")
def show(app: App, source: str, split: str, out: str, images: int | None, ids: Sequence[str], sheet: bool) -> Result:
    """Draw what a data set says of its pictures.

    A row for each image: the picture with a caption, boxes, instance masks, label map, panoptic map, scene graph,
    narrative with its mouse trace. Only what the data carries is drawn.

    \b
    Examples:
      t2i data show scenes:size=64,things=8 --out scenes.png
      t2i data show coco:PATH --split val --image 139 --image 285
      t2i data show coco:PATH --sheet --images 36
    """
    from orchestration.data.overlays import chosen_records, draw_overlays, draw_sheet
    from orchestration.data.problems import Findings
    from orchestration.data.sources import open_source

    progress = app.progress()
    findings = Findings()
    try:
        dataset = open_source(
            source, split, _home(app, source), lambda done, total: progress("drawing scenes", done, total), findings
        )
    except RequestError as error:
        if not findings.faults:
            raise
        raise RequestError(f"{str(error).rstrip('.')} (t2i data check {source} says why).") from error
    drawn: dict[str, list[str]]
    if sheet:
        count = images or SHEET_PICTURES
        records = chosen_records(dataset, count, ids) if ids else list(islice(dataset.records, count))
        draw_sheet(dataset, records, Path(out))
        drawn = {record.key or str(record.image_id): ["picture"] for record in records}
    else:
        drawn = draw_overlays(dataset, chosen_records(dataset, images or SHOWN_PICTURES, ids), Path(out))
    captions = sum(len(record.captions or ()) for record in dataset.records)
    app.say(f"{source} ({split}): {len(dataset.records)} pictures, {captions} captions")
    app.say(f"carries {', '.join(sorted(dataset.carries))}; digest {dataset.digest[:16]}")
    if findings.faults:
        app.say(f"left out for their faults: {findings.faults} (t2i data check {source} says why)")
    app.say(f"drew {', '.join(drawn)} to {out}")
    return {
        "source": source,
        "split": split,
        "pictures": len(dataset.records),
        "captions": captions,
        "carries": sorted(dataset.carries),
        "digest": dataset.digest,
        "left_out": findings.faults,
        "png": str(Path(out).resolve()),
        "images": [{"id": name, "panels": titles} for name, titles in drawn.items()],
    }


@command(data, "prepare")
@click.argument("source")
@number("--size", "Side of the training pictures, in pixels.", 8, 4096, default=256)
@click.option(
    "--transform",
    default="xmcgan",
    show_default=True,
    metavar="NAME",
    help="How pictures are made ready: as xmcgan, attngan, sg2im or spade did.",
)
@click.option(
    "--codec",
    type=click.Choice(["png", "raw", "none"]),
    default="png",
    show_default=True,
    help="Pixels compressed without loss, as bytes to be mapped, or left in the published files.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    callback=_some_place,
    metavar="DIR",
    help="Folder  [default: below HOME/prepared]",
)
@repeatable("--split", "splits", "SPLIT", "train, val or test  [default: all there are]")
@click.option(
    "--broken",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="End at the first image that cannot be used, or leave such images out and write down which.",
)
@number("--workers", "Ray Data tasks at a time  [default: the cluster's cores]", 1)
def prepare(
    app: App,
    source: str,
    size: int,
    transform: str,
    codec: str,
    out: str | None,
    splits: Sequence[str],
    broken: str,
    workers: int | None,
) -> Result:
    """Make pictures ready for training, once.

    Pictures are decoded, cut and resized as the papers did, and stored with their annotations in Arrow files that
    training maps. The same command again goes on where a killed one stopped. Train with --data prepared:DIR.

    \b
    Examples:
      t2i data prepare coco:PATH --size 256
      t2i data prepare coco:PATH --size 256 --broken skip --out coco-256
    """
    from orchestration.data.checking import number_of
    from orchestration.data.prepare import prepare as run
    from orchestration.data.shard_form import ShardOptions

    home = app.home.root if out is None else _home(app, source)
    result = run(
        source,
        None if out is None else Path(out),
        ShardOptions(transform, size, codec),  # type: ignore[arg-type]
        home,
        splits=splits or None,
        broken=broken,  # type: ignore[arg-type]
        workers=workers,
        progress=app.progress(),
        say=app.say,
    )
    for split, made in result["splits"].items():
        images, shards = number_of(made["images"], "image"), number_of(made["shards"], "shard")
        app.say(f"{split}: {images} in {shards}, {made['bytes'] / 1e6:,.1f} MB")
        for reason, count in made["left_out"].items():
            app.say(f"  {count:,} left out: {reason} ({made['left_out_file']})")
    app.say(f"train on it with --data {result['data']}")
    return result


def _home(app: App, source: str) -> Path:
    """Only scenes are written; photographs can be looked at with a home that cannot be written to."""
    from orchestration.data.sources import SCENES, parse_source

    return app.home.root if parse_source(source).kind == SCENES else Path()
