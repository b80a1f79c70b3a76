"""`t2i cluster`: the files that start a cluster, from one profile, and their check."""

from collections.abc import Sequence
from pathlib import Path

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.options import repeatable

KINDS = ("kuberay", "ray-up", "slurm", "hosts", "container")
FOLDER = "cluster"


@click.group(context_settings={"max_content_width": 110})
def cluster() -> None:
    """Render the files that start a cluster, and check them.

    One profile holds sizes, image, storage and addresses; everything else is made from it. The examples are in
    clusters/profiles.

    \b
    Examples:
      t2i cluster render clusters/profiles/small.yaml --out cluster
      t2i cluster check cluster
    """


def add_to(group: click.Group) -> None:
    """Add the commands to a group."""
    group.add_command(cluster)


def render(app: App, profile: Path, out: Path, only: Sequence[str]) -> Result:
    """Render the files of a profile.

    KubeRay manifests, files for ray up, a Slurm batch script, programs for machines that are there, and a container
    file: those that PROFILE has parts for. Each begins with the command that applies it. The folder holds what was
    rendered and nothing else; a file in it that was changed by hand is never overwritten.

    \b
    Examples:
      t2i cluster render clusters/profiles/small.yaml
      t2i cluster render clusters/profiles/gpu.yaml --only kuberay --out gpu
    """
    from orchestration.clusters.render import render_file, write

    unknown = [kind for kind in only if kind not in KINDS]
    if unknown:
        raise RequestError(f"--only {unknown[0]!r} is none: there are {', '.join(KINDS)}")
    rendered = render_file(profile, only)
    write(rendered, out)
    for name in rendered.files:
        app.say(f"  {name}")
    app.say(f"wrote {len(rendered.files)} files to {out}, for {rendered.versions.line}")
    app.say(f"t2i cluster check {out} checks them; each begins with the command that applies it")
    return {
        "folder": str(out.absolute()),
        "files": sorted(rendered.files),
        "profile": rendered.digest,
        "image": rendered.image,
        "versions": rendered.versions.line,
    }


def check(app: App, path: Path, schemas: Path | None) -> Result:
    """Check rendered files, also those that were changed by hand.

    Tokens are on, nothing is open to the outside, versions agree, what is asked for fits; Ray's own validators read
    files for ray up, groups and the endpoint, and bash reads programs. With --schemas, manifests are held against the
    operator's CustomResourceDefinitions. Everything that is wrong is said at once, and the exit code is then 1.

    \b
    Examples:
      t2i cluster check cluster
      t2i cluster check cluster/kuberay --schemas PATH
    """
    from orchestration.clusters.check import check as look
    from orchestration.clusters.schemas import Schemas

    names, findings = look(path, Schemas(schemas) if schemas else None)
    for finding in findings:
        app.say(finding.line)
    result = {
        "files": names,
        "findings": [
            {"file": each.file, "where": each.where, "what": each.what, "mend": each.mend} for each in findings
        ],
    }
    if findings:
        app.give(result)
        faults = "1 fault" if len(findings) == 1 else f"{len(findings)} faults"
        raise RunError(f"{faults} in {path}, the first in {findings[0].line}")
    app.say(f"{len(names)} files are right{'' if schemas else '; manifests were not held against --schemas'}")
    return result


_render = click.argument("profile", type=click.Path(path_type=Path))(
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=FOLDER,
        show_default=True,
        metavar="FOLDER",
        help="Folder that holds the files afterwards.",
    )(repeatable("--only", "only", "KIND", f"{', '.join(KINDS)}  [default: all that PROFILE has parts for]")(render))
)
_check = click.argument("path", type=click.Path(path_type=Path))(
    click.option(
        "--schemas",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="KubeRay's CustomResourceDefinitions, as YAML files  [default: none]",
    )(check)
)
command(cluster, "render")(_render)
command(cluster, "check")(_check)
