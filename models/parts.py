"""What lies beside a trained part's weights."""

import json
from pathlib import Path

from models.contract import ConfigT

PART = "part.json"
"""Beside a trained part's weights: which part it is and its settings."""


def part_settings(folder: Path, system: str, config: type[ConfigT]) -> ConfigT:
    """The settings of the trained part in a folder. Raises ValueError that says on one line why they cannot be read,
    such as that they are another part's."""
    try:
        described = json.loads((folder / PART).read_text(encoding="utf-8"))
        if described["system"] != system:
            raise ValueError(f"it is of the part {described['system']}")
        return config.model_validate(described["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
