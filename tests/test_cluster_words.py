"""What is written inside rendered files for other readers: commands of t2i, lines for a shell, steps of an image."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from orchestration.cli import cli
from orchestration.clusters.findings import at
from orchestration.clusters.profile import read_profile
from orchestration.clusters.render import Rendered, render_file

REPOSITORY = Path(__file__).parents[1]
NAMES = ("small", "gpu")
# Docker's own reference names these and no others.
INSTRUCTIONS = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)
shellcheck = pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")


@pytest.fixture(scope="module")
def rendered() -> dict[str, Rendered]:
    return {name: render_file(REPOSITORY / "clusters" / "profiles" / f"{name}.yaml") for name in NAMES}


def documents(rendered: Rendered) -> Iterator[tuple[str, Any]]:
    """Every YAML document, and the file it is in."""
    for name, text in rendered.files.items():
        if name.endswith(".yaml"):
            yield from ((name, document) for document in yaml.safe_load_all(text))


def strings(values: Any) -> Iterator[str]:
    """Every string in a document, in whatever depth."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for each in values.values() if isinstance(values, dict) else values:
            yield from strings(each)


def lint(program: str, folder: Path, *options: str) -> str:
    """What shellcheck says of a program."""
    path = folder / "program.sh"
    path.write_text(program)
    words = ["shellcheck", "--shell=bash", "--severity=warning", *options, str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_t2i_is_one(name: str, rendered: dict[str, Rendered]) -> None:
    """Also what only a cluster runs: an option that is renamed is noticed before it is there."""
    lines = [text for _, document in documents(rendered[name]) for text in strings(document) if text.startswith("t2i ")]
    applied = re.findall(r"(?m)^#     sbatch \S+ (.+)$", "\n".join(rendered[name].files.values()))
    lines += [f"t2i {words}" for words in applied]
    profile, _ = read_profile(REPOSITORY / "clusters" / "profiles" / f"{name}.yaml")
    assert len(lines) == 2 + (profile.slurm is not None), lines
    for line in lines:
        words = shlex.split(line)[1:]
        context = cli.commands[words[0]].make_context(words[0], words[1:], parent=click.Context(cli, info_name="t2i"))
        job = profile.train if words[0] == "train" else profile.tune
        assert context.params["recipe"] == job.recipe and context.params["workers"] == job.workers, line


@shellcheck
@pytest.mark.parametrize("name", NAMES)
def test_lines_for_a_shell_are_programs(name: str, rendered: dict[str, Rendered], tmp_path: Path) -> None:
    """Those of ray up, of pods that start a shell, and the steps of an image."""
    found = []
    for file, document in documents(rendered[name]):
        if "cluster_name" in document:
            found += [(file, line) for key in document if key.endswith("commands") for line in document[key]]
        else:
            shells = [each for each in lists(document) if each[:1] in (["sh"], ["bash"], ["/bin/sh"], ["/bin/bash"])]
            found += [(file, each[-1]) for each in shells]
    found += [(file, line) for file, kind, line in steps(rendered[name]) if kind == "RUN"]
    assert {Path(file).parts[0] for file, _ in found} >= {"container"} | ({"ray-up"} if name == "gpu" else set())
    # SC2034: what is set for a program; SC1090, SC1091: what is read is on the cluster's own disk.
    for file, line in found:
        said = lint(line, tmp_path, "--exclude=SC1090,SC1091,SC2034")
        assert said == "", (file, line, said)


def lists(values: Any) -> Iterator[list[str]]:
    """Every list of strings in a document: commands are such."""
    if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
        yield values
    elif isinstance(values, dict | list):
        for each in values.values() if isinstance(values, dict) else values:
            yield from lists(each)


def steps(rendered: Rendered) -> Iterator[tuple[str, str, str]]:
    """File, instruction and what follows it, of every step of the container files; options such as --mount left out."""
    for name, text in rendered.files.items():
        if Path(name).name.startswith("Containerfile"):
            lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
            for step in re.sub(r"\\\n\s*", " ", lines).splitlines():
                if step.strip():
                    instruction, _, rest = step.strip().partition(" ")
                    yield name, instruction, re.sub(r"^(--\w+=\S+\s+)+", "", rest)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_made_of_what_is_there(name: str, rendered: dict[str, Rendered]) -> None:
    """Instructions that there are, from one base, of files that the repository has."""
    all_steps = list(steps(rendered[name]))
    assert all(INSTRUCTIONS.fullmatch(kind) for _, kind, _ in all_steps)
    for file in {file for file, _, _ in all_steps}:
        mine = [(kind, rest) for each, kind, rest in all_steps if each == file]
        assert mine[0][0] == "FROM" and [kind for kind, _ in mine].count("FROM") == 1
        copied = [word for kind, rest in mine if kind == "COPY" for word in rest.split()[:-1]]
        assert copied and all((REPOSITORY / word).exists() for word in copied), copied
        [command] = [yaml.safe_load(rest) for kind, rest in mine if kind == "CMD"]
        assert command[0] == "t2i" and mine[-1][0] == "CMD"
        # Every package of the project is in it.
        assert {"models", "orchestration", "search_spaces", "clusters"} <= set(copied)


@pytest.mark.parametrize("name", NAMES)
def test_no_field_has_a_rule_that_only_the_api_server_runs(
    name: str, rendered: dict[str, Rendered], shared_data: Path
) -> None:
    """Rules in CEL are not run by a validator of JSON schemas: so none of the fields that have one is written."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    known = {}
    for path in sorted((shared_data / "kuberay-crds").glob("*.yaml")):
        spec = yaml.load(path.read_text(), Loader=loader)["spec"]
        known[spec["names"]["kind"]] = next(each for each in spec["versions"] if each["name"] == "v1")
    looked_at = []
    for file, document in documents(rendered[name]):
        if document.get("kind") in known:
            schema = at(known[document["kind"]], "schema", "openAPIV3Schema")
            looked_at.append(file)
            assert [where for where in ruled(schema, document, "") if where] == [], file
    assert len(looked_at) == 4
    schema = at(known["RayCluster"], "schema", "openAPIV3Schema")
    assert list(ruled(schema, {"spec": {"managedBy": "me"}}, "")) == [".spec.managedBy"]


def ruled(schema: Any, values: Any, where: str) -> Iterator[str]:
    """Where in values there is something that its schema has a rule in CEL for."""
    if "x-kubernetes-validations" in schema:
        yield where
    if isinstance(values, dict):
        for key, value in values.items():
            inner = at(schema, "properties", key) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                yield from ruled(inner, value, f"{where}.{key}")
    elif isinstance(values, list):
        for each in values:
            yield from ruled(schema.get("items") or {}, each, f"{where}[]")
