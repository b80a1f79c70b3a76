"""Running a command inside the test's process, and saying how it ended."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from orchestration.cli import cli, run_cli

TINY_SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=1,train=20,val=4,test=4"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str, code: int = 2) -> None:
        """One sentence on standard error, with these parts, and nothing else."""
        assert (self.code, self.out) == (code, ""), self
        sentence = self.err.removesuffix("\n")
        assert sentence.startswith("t2i: ") and "\n" not in sentence, self.err
        assert "Traceback" not in sentence and "unexpected" not in sentence
        for part in parts:
            assert part in sentence, sentence

    @property
    def json(self) -> Any:
        """The last line of standard output."""
        assert self.code == 0, self
        return json.loads(self.out.splitlines()[-1])


T2i = Callable[..., Ended]


def runner(home: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    """Runs a command in the new folder `here`, with `home` as its home."""
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("T2I_HOME", str(home))

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        code = run_cli(arguments)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


def made(home: Path) -> list[str]:
    """What is in the home, without locks."""
    if not home.exists():
        return []
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.suffix != ".lock")


def every_command(group: click.Group = cli, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command that is no group, by its words."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in sorted(group.commands.items()):
        path = (*words, name)
        found |= every_command(command, path) if isinstance(command, click.Group) else {path: command}
    return found
