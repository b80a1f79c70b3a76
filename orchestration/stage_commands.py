"""`t2i stages`: a recipe's graph, one stage in full, checking, dropping and freeing what is stored."""

import difflib
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.options import Workers, repeatable, takes_experiment

if TYPE_CHECKING:
    from orchestration.stage_graph import Effect, Graph, Row
    from orchestration.stage_store import Description

GRAPH = "graph"
DIGEST_SHOWN = 12  # digits of a digest of data


class StagesGroup(click.Group):
    """The group; without one of its commands, what follows is a recipe."""

    default = GRAPH

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = [GRAPH, *args]
        return super().parse_args(ctx, args)


@click.group("stages", cls=StagesGroup, invoke_without_command=True)
@click.pass_context
def stages(ctx: click.Context) -> None:
    """Show a recipe's stages, and care for the store of them.

    A stage is what must exist before a training: vocabulary, trained parts, pictures, text features. Its key is the
    hash of all that it depends on; its result, HOME/stages/NAME-KEY, is shared by every run and trial that needs it.
    `t2i stages RECIPE` is short for `t2i stages graph RECIPE`. With T2I_STAGES_REMOTE=URL (file://, s3:// or what
    else fsspec opens) a missing stage is fetched from there, and a computed one is copied there.

    \b
    Examples:
      t2i stages xmcgan_scenes32
      t2i stages gc --dry-run
      t2i stages check
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command(stages, GRAPH)
@takes_experiment
@repeatable(
    "--change", "changes", "FIELD=VALUE", "Say what would be run anew if this field changed too  [default: nothing]"
)
def graph(
    app: App, recipe: str, data: str | None, assignments: Sequence[str], workers: Workers, changes: Sequence[str]
) -> Result:
    """Show a recipe's stages in order, and which are there.

    Each with its state (done, running, missing, damaged), size, key and what it is made from; the run itself comes
    last. No stage is run. Scenes that were never drawn are drawn first: their digest is part of the keys.

    \b
    Examples:
      t2i stages xmcgan_scenes32
      t2i stages xmcgan_scenes32 --change text.max_tokens=16
      t2i stages graph xmcgan_laptop --data coco:PATH --json
    """
    _check_recipe(recipe)
    from orchestration.config import apply_assignments
    from orchestration.options import chosen_experiment
    from orchestration.stage_graph import compare, read_graph

    experiment = chosen_experiment(recipe, data, assignments, workers)
    changed = apply_assignments(experiment, _checked_changes(changes)) if changes else None
    home, progress = app.home, app.progress()
    now = read_graph(experiment, home, progress)
    effects = compare(now, read_graph(changed, home, progress)) if changed else None
    app.say(f"{recipe} on {experiment.data.source}, stages in {home.stages}")
    for line in _table(now):
        app.say(line)
    if effects is not None:
        app.say(f"\nwith {', '.join(changes)}")
        for line in _effects(effects):
            app.say(line)
    return {
        "recipe": recipe,
        "data": experiment.data.source,
        "folder": str(home.stages),
        "stages": [_row_json(row) for row in now.stages],
        "run": _row_json(now.run),
        "change": None if effects is None else _change_json(changes, effects),
    }


def _check_recipe(word: str) -> None:
    """RequestError when a command was meant."""
    if word in stages.commands:
        raise RequestError(f"{word} is a command: write its options after it, as in t2i stages {word} --json")
    from orchestration.recipes import RECIPES

    near = difflib.get_close_matches(word, stages.commands, n=1, cutoff=0.7)
    if near and word not in RECIPES:
        raise RequestError(f"no recipe or command {word!r}: perhaps t2i stages {near[0]} was meant")


def _checked_changes(changes: Sequence[str]) -> Sequence[str]:
    for change in changes:
        if not change.partition("=")[0].strip() or "=" not in change:
            raise RequestError(f"--change {change!r} is no assignment: write it as field=value, e.g. training.kimg=50")
    return changes


def _table(now: "Graph") -> list[str]:
    width = max(len(row.label) for row in now.rows)
    lines = []
    for row in now.rows:
        sources = _sources(row, now) if row is not now.run else f"all of these; {row.name}"
        note = f"  [{row.note}]" if row.note else ""
        size = size_text(row.bytes) if row.bytes else ""
        lines.append(f"  {row.state:8} {size:>9}  {row.label:{width}}  {row.key}  from {sources}{note}")
    return lines


def _sources(row: "Row", now: "Graph") -> str:
    labels = {other.name: other.label for other in now.stages}
    parts = [labels.get(source) or f"{what} {source[:DIGEST_SHOWN]}" for what, source in sorted(row.inputs.items())]
    return ", ".join(parts) or "its settings alone"


def _effects(effects: "Sequence[Effect]") -> list[str]:
    *of_stages, run = effects
    width = max(len(effect.label) for effect in effects)
    words = {"stays": "stays", "anew": "is run anew as {}", "there already": "is there already: {}"}
    lines = [f"  {effect.label:{width}}  {words[effect.effect].format(effect.name)}" for effect in of_stages]
    words["anew"] = "is a new run, {}"
    return [*lines, f"  {run.label:{width}}  {words[run.effect].format(run.name)}"]


def _row_json(row: "Row") -> dict[str, Any]:
    return {
        "label": row.label,
        "name": row.name,
        "key": row.key,
        "state": row.state,
        "bytes": row.bytes,
        "inputs": row.inputs,
        "note": row.note,
    }


def _change_json(changes: Sequence[str], effects: "Sequence[Effect]") -> dict[str, Any]:
    *of_stages, run = effects
    return {
        "fields": list(changes),
        "anew": [effect.name for effect in of_stages if effect.effect == "anew"],
        "there_already": [effect.name for effect in of_stages if effect.effect == "there already"],
        "stays": [effect.name for effect in of_stages if effect.effect == "stays"],
        "run": {"name": run.name, "effect": run.effect},
    }


def size_text(count: int) -> str:
    """Bytes for a person, in powers of 1000."""
    if count < 1000:
        return f"{count} B"
    number, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if number < 999.95:
            break
        number, unit = number / 1000, larger
    return f"{number:.1f} {unit}"


@command(stages, "show")
@click.argument("stage", metavar="NAME-KEY")
def show(app: App, stage: str) -> Result:
    """Show one stage: its sources, files, users, and when it ran.

    The beginning of its name or key is enough where only one stage begins so. A trained part shows its figures.

    \b
    Example: t2i stages show vocabulary
    """
    from orchestration.stage_store import describe, find_stage

    found = describe(app.home, find_stage(app.home.stages, stage))
    for line in _described(found):
        app.say(line)
    manifest = found.manifest
    return {
        "name": found.folder.name,
        "folder": str(found.folder),
        "state": "damaged" if found.damage else "done",
        "note": found.damage,
        "bytes": found.bytes,
        "version": manifest.version if manifest else None,
        "settings": manifest.settings if manifest else None,
        "inputs": found.inputs,
        "files": {name: entry.bytes for name, entry in manifest.files.items()} if manifest else None,
        "computed": found.records,
        "used_by": found.used_by,
        "figures": found.figures,
    }


def _described(found: "Description") -> list[str]:
    damage = f"damaged: {found.damage}" if found.damage else "done"
    lines = [f"{found.folder.name}  {damage}, {size_text(found.bytes)}", f"  folder    {found.folder}"]
    for record in found.records:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["started"]))
        lines.append(f"  computed  {when} in {record['seconds']:g} s by process {record['process']}")
    lines += [f"  made from {what}: {source}" for what, source in found.inputs.items()]
    lines += [f"  used by   {user}" for user in found.used_by] or ["  used by   nothing: t2i stages gc frees it"]
    if found.manifest:
        lines.append(f"  version   {found.manifest.version}")
        lines.append(f"  settings  {json.dumps(found.manifest.settings, sort_keys=True)}")
        lines += [f"  file      {name}, {size_text(entry.bytes)}" for name, entry in found.manifest.files.items()]
    if isinstance(found.figures, dict):
        lines += [f"  {name} = {value}" for name, value in sorted(found.figures.items())]
    return lines


@command(stages, "check")
def check(app: App) -> Result:
    """Read every byte of every stage and say what is damaged.

    A run reads small files whole, and large ones only if they were touched since; this reads all. Exit code 1 when
    something is damaged.

    \b
    Example: t2i stages check
    """
    from orchestration.stage_store import check_store

    folders, damaged = check_store(app.home.stages, app.progress())
    for error in damaged:
        app.say(f"{error.folder.name}: {error.what}")
    result = {"stages": len(folders), "damaged": {error.folder.name: error.what for error in damaged}}
    if damaged:
        app.give(result)
        raise RunError(
            f"{len(damaged)} of {len(folders)} stages are damaged: t2i stages drop NAME-KEY removes one, and the next "
            "run computes it anew"
        )
    app.say(f"{len(folders)} stages in {app.home.stages}, all as they were written")
    return result


@command(stages, "drop")
@click.argument("stage", metavar="NAME-KEY")
def drop(app: App, stage: str) -> Result:
    """Remove one stage, so that the next run computes it anew.

    The way to mend a damaged one. What was begun of it is removed too. Refused while a process computes or reads it.

    \b
    Example: t2i stages drop text-features-0123456789abcdef
    """
    from orchestration.stage_store import drop as remove

    freed = remove(app.home.stages, stage)
    app.say(f"removed {stage}, {size_text(freed)}")
    return {"dropped": stage, "bytes": freed}


@command(stages, "gc")
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
def gc(app: App, dry_run: bool) -> Result:
    """Free the stages that no run or campaign refers to.

    A run refers to all that it read (its prepared.json) and, where it trained a part, to that part. What those stages
    were made from, and what a process computes or reads now, is kept too. What killed processes left is freed; a stage
    that was begun and can go on is kept (`t2i stages drop` frees it). Stages made for judging a run on its test split
    belong to no run: they are freed, and made again when they are needed.

    \b
    Examples:
      t2i stages gc --dry-run
      t2i stages gc
    """
    from orchestration.stage_store import free_unreferenced

    freed = free_unreferenced(app.home, dry_run)
    word = "would free" if dry_run else "freed"
    for name, size in (freed.stages | freed.temporaries).items():
        app.say(f"{word} {name}, {size_text(size)}")
    for name, size in freed.begun.items():
        app.say(f"begun and kept: {name}, {size_text(size)}")
    app.say(f"{word} {size_text(freed.bytes)} in {len(freed.stages)} stages; {len(freed.kept)} are kept")
    return {
        "dry_run": dry_run,
        "bytes": freed.bytes,
        "freed": freed.stages,
        "temporaries": freed.temporaries,
        "kept": freed.kept,
        "begun": freed.begun,
    }
