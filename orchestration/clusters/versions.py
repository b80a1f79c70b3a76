"""The versions that every machine of a cluster must have: from the project's own files, never written twice."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from orchestration.errors import RequestError

if TYPE_CHECKING:
    from orchestration.clusters.profile import Profile

PROJECT = "t2i"
REPOSITORY = Path(__file__).resolve().parents[2]
TOLD = ("ray", "torch", "mlflow", "optuna")
"""What is said at the head of every file, and compared with it."""


@dataclass(frozen=True)
class Versions:
    """project: of t2i. python: major.minor. packages: exact versions by canonical name. pinned: whether they are those
    of constraints.txt; else what is installed here."""

    project: str
    python: str
    packages: Mapping[str, str]
    pinned: bool

    def __getitem__(self, name: str) -> str:
        return self.packages[canonicalize_name(name)]

    @property
    def tag(self) -> str:
        """Of an image: t2i's version and ray's, since both ends must have the same ray."""
        return f"{self.project}-ray{self['ray']}"

    @property
    def line(self) -> str:
        """In words, for a person."""
        return ", ".join([f"t2i {self.project}", f"python {self.python}", *(f"{each} {self[each]}" for each in TOLD)])


@cache
def project_versions() -> Versions:
    """Those of the repository when this code lies in it, else of what is installed. Raises RequestError when the pins
    of constraints.txt are not what pyproject.toml asks for."""
    described = REPOSITORY / "pyproject.toml"
    try:
        project = tomllib.loads(described.read_text(encoding="utf-8"))["project"]
        pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
        if project["name"] != PROJECT:
            raise FileNotFoundError
    except (FileNotFoundError, KeyError):
        return _installed()
    return parse_versions(project["version"], project["requires-python"], project["dependencies"], pins)


def parse_versions(version: str, python: str, wanted: list[str], pins: str) -> Versions:
    """From a project's version, its requires-python, its dependencies and the text of constraints.txt."""
    packages: dict[str, str] = {
        canonicalize_name(name): pin for name, pin in re.findall(r"(?m)^([A-Za-z0-9_.-]+)==(\S+)", pins)
    }
    for text in wanted:
        requirement = Requirement(text)
        pin = packages.get(canonicalize_name(requirement.name))
        if pin is not None and not requirement.specifier.contains(pin, prereleases=True):
            raise RequestError(
                f"constraints.txt pins {requirement.name} {pin} and pyproject.toml wants {requirement.specifier}: make "
                "them agree before anything is rendered"
            )
    return Versions(version, _lowest(python), packages, pinned=True)


def _installed() -> Versions:
    try:
        own = metadata.metadata(PROJECT)
    except metadata.PackageNotFoundError as error:
        raise RequestError("t2i is not installed and no repository is here: install it with pip") from error
    packages: dict[str, str] = {
        # A build's own mark, such as +cpu, is no other version.
        canonicalize_name(each.metadata["Name"]): each.version.partition("+")[0]
        for each in metadata.distributions()
    }
    packages.setdefault("faiss-cpu", packages.get("faiss-gpu", ""))
    return Versions(own["Version"], _lowest(own["Requires-Python"]), packages, pinned=False)


def _lowest(requires_python: str) -> str:
    """The oldest Python that is allowed: what the pins were resolved on."""
    [lowest] = [each.version for each in SpecifierSet(requires_python) if each.operator == ">="]
    return ".".join(lowest.split(".")[:2])


def require_versions(profile: "Profile", versions: Versions, where: str) -> None:
    """RequestError when the profile says that its image holds something else than what would be rendered."""
    for name, told in profile.versions.items():
        ours = {"python": versions.python, PROJECT: versions.project}.get(name) or versions.packages.get(
            canonicalize_name(name)
        )
        if ours is None:
            raise RequestError(f"profile {where}: versions.{name}: t2i uses no package of that name: leave it out")
        same = told == ours or (name == "python" and told.startswith(f"{ours}."))
        if not same:
            raise RequestError(
                f"profile {where}: versions.{name} is {told} and t2i here is for {ours}: build the image from the "
                "Containerfile that is rendered, or install the t2i that the image has"
            )
    found = re.search(r"ray[-_]?(\d+\.\d+(?:\.\d+)?)", profile.image.tag or "")
    if found and found[1] != versions["ray"]:
        raise RequestError(
            f"profile {where}: image.tag {profile.image.tag} says ray {found[1]} and ray here is {versions['ray']}: "
            "name an image of that version, or leave the tag out"
        )


def image_of(profile: "Profile", versions: Versions) -> str:
    """NAME:TAG; the tag says the versions unless the profile names one."""
    tag = profile.image.tag or f"{versions.tag}-{'gpu' if profile.image.gpu else 'cpu'}"
    return f"{profile.image.name}:{tag}"
