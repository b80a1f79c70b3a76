"""The names of what label maps show, where systems that draw from those have no prompts to read."""

import json
from dataclasses import dataclass
from pathlib import Path

from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset
from orchestration.errors import RequestError
from orchestration.stages import Progress, Stage, short_hash, write_atomically
from orchestration.training.state import LABELS

VERSION = 1


@dataclass(frozen=True, slots=True)
class LabelNames:
    """Stands where other systems have a text encoder: words alone draw nothing.

    classes: names, by label.
    """

    folder: Path
    classes: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "LabelNames":
        """The names in a folder. Raises RequestError when they cannot be read."""
        try:
            return cls(folder, tuple(map(str, json.loads((folder / LABELS).read_text(encoding="utf-8"))["classes"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"the names of labels in {folder} cannot be read ({error}): restore the folder, or prepare the data "
                "again"
            ) from error

    @property
    def digest(self) -> str:
        """Of the names in their order."""
        return short_hash(list(self.classes))

    @property
    def dim(self) -> int:
        """Width of text features: there are none."""
        return 0


def label_names_stage(train: Dataset) -> Stage:
    """The stage that keeps the names of what the training pictures' label maps show."""

    def run(folder: Path, progress: Progress) -> None:
        write_atomically(folder / LABELS, json.dumps({"classes": LabelReader(train).classes}, ensure_ascii=False))

    return Stage("label-names", VERSION, {"split": train.split}, {"data": train.digest}, run)
