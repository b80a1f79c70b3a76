"""Where state lives: one folder, `--home` or T2I_HOME."""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT = "t2i-home"


@dataclass(frozen=True, slots=True)
class Home:
    """The folders under one root; nothing is created until it is written."""

    root: Path

    @property
    def data(self) -> Path:
        """Generated data sets."""
        return self.root / "data"

    @property
    def stages(self) -> Path:
        """Content-addressed results."""
        return self.root / "stages"

    @property
    def encoders(self) -> Path:
        """Packaged encoders, unpacked."""
        return self.root / "encoders"

    @property
    def runs(self) -> Path:
        """One folder a training run."""
        return self.root / "runs"

    @property
    def campaigns(self) -> Path:
        """One folder a campaign."""
        return self.root / "campaigns"


def find_home(option: str | None = None) -> Home:
    """The home named by the option, else by T2I_HOME, else ./t2i-home; absolute."""
    return Home(Path(option or os.environ.get("T2I_HOME") or DEFAULT).expanduser().resolve())
