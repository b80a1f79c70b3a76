"""What a served cluster of tests draws with: painters without nets, and a registry that is one JSON file.

Replicas load both by their import path.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from orchestration.errors import RequestError, RunError
from orchestration.serving.catalogue import Release
from orchestration.serving.replies import Abilities, Lineage, PromptReasons, ReadWord, Reasons
from orchestration.serving.requests import ServeError
from orchestration.stages import write_atomically

PAINTER, CATALOGUE = f"{__name__}:FakePainter", f"{__name__}:FileCatalogue"


def digest(model: str, version: int) -> str:
    """Of a made-up checkpoint."""
    return f"{sum(map(ord, model)) * 1000 + version:064x}"


class FakePainter:
    """Pictures of noise from seed and checkpoint. A batch takes 20 ms, so that requests find company.

    "exit" in a prompt ends the replica's process if the file named after it is still there, and removes it; "wait for"
    waits until the file is there, and "note" makes it.
    """

    resolution = 8
    experiment_name = "fake"
    probes = None

    def __init__(self, checkpoint_digest: str) -> None:
        self.checkpoint_digest = checkpoint_digest
        self.abilities = Abilities(
            system="fake", recipe="fake", resolution=8, accepts=["prompt"], truncation=True, examples={"prompt": "a"}
        )

    @classmethod
    def load(cls, checkpoint: Path, home: Path, device: str = "cpu") -> Self:
        model, version = checkpoint.name.split("@")
        if (checkpoint / "unloadable").exists():
            raise RequestError(f"{checkpoint} needs a newer text encoder: install it")
        time.sleep(0.3)
        return cls(digest(model, int(version)))

    def check(self, prompt: str) -> None:
        if prompt.startswith("unreadable"):
            raise RequestError("the prompt cannot be read: write another one")

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> NDArray[np.uint8]:
        pixels = self.draw_float(prompts, seeds, truncation).permute(0, 2, 3, 1)
        return ((pixels + 1) * 127.5).to(torch.uint8).numpy()

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> torch.Tensor:
        time.sleep(0.02)
        for prompt in prompts:
            if prompt.startswith("exit ") and Path(prompt[5:]).exists():
                Path(prompt[5:]).unlink()
                os._exit(1)
            if prompt.startswith("wait for "):
                awaited = Path(prompt.removeprefix("wait for "))
                awaited.with_name(f"{awaited.name} awaited by {os.getpid()}").touch()
                while not awaited.exists():
                    time.sleep(0.05)
            if prompt.startswith("note "):
                Path(prompt.removeprefix("note ")).touch()
            if prompt == "fail":
                raise ValueError("secret prompt text")
        return torch.stack([self.picture(seed, truncation) for seed in seeds])

    def picture(self, seed: int, truncation: float | None = None) -> torch.Tensor:
        """(3,8,8) in [-1, 1]."""
        mixed = (seed + int(self.checkpoint_digest, 16)) % 2**63
        noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(mixed)) * 2 - 1
        return noise if truncation is None else noise * min(1.0, truncation)

    def explain(self, prompt: str, seeds: Sequence[int], truncation: float | None) -> Reasons:
        return PromptReasons(words=[ReadWord(word=word, known=True) for word in prompt.split()])


class FileCatalogue:
    """`registry.json` in the home: for each model its champion and the versions before; a version's folder is
    MODEL@VERSION."""

    def __init__(self, home: Path, uri: str | None) -> None:
        self.home = home

    def champions(self) -> Mapping[str, Release]:
        return {model: self._release(model, entry["champion"]) for model, entry in self._read().items()}

    def version(self, model: str, number: int) -> Release:
        if not (self.home / f"{model}@{number}").is_dir():
            raise RequestError(f"model {model!r} has no version {number}: there are others")
        return self._release(model, number)

    def before(self, model: str) -> Sequence[Release]:
        return [self._release(model, number) for number in self._read()[model]["before"]]

    def fetched(self, release: Release) -> Release:
        folder = self.home / release.id
        if not (folder / "whole").exists():
            raise RequestError(f"generator.safetensors of {release.id} was altered: restore it")
        return replace(release, folder=folder)

    def lineage(self, image: str) -> Lineage:
        raise ServeError("unknown_image", f"there is no picture {image} here: give the id of one")

    def _release(self, model: str, number: int) -> Release:
        return Release(model, number, digest(model, number))

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.home / "registry.json").read_text())
        except OSError as error:
            raise RunError(f"the registry cannot be read ({error})") from error
        return found


def register(home: Path, model: str, *versions: int, whole: bool = True, loadable: bool = True) -> None:
    """Folders of made-up checkpoints."""
    for version in versions:
        folder = home / f"{model}@{version}"
        folder.mkdir(exist_ok=True)
        if whole:
            (folder / "whole").touch()
        if not loadable:
            (folder / "unloadable").touch()


def set_champions(home: Path, **champions: int) -> None:
    """Move the aliases of models."""
    file = home / "registry.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for model, version in champions.items():
        before = [known[model]["champion"], *known[model]["before"]] if model in known else []
        known[model] = {"champion": version, "before": before}
    write_atomically(file, json.dumps(known))
