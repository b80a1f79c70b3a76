"""What a drill does, from its seed alone: a campaign that takes a minute, who is hit in it, and at which moments."""

import random
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version

from orchestration.campaigns.changes import code_version
from orchestration.errors import RequestError
from orchestration.stages import short_hash

RECIPE = "xmcgan_scenes32"
KIMG, CHECKPOINT_KIMG, LOG_KIMG = 1.6, 0.16, 0.016
TINY = {
    "data.source": "scenes:size=32,things=2,colours=2,backgrounds=2,objects=1,train=64,val=32,test=32",
    "model.channels": 2,
    "model.noise_dim": 8,
    "model.sentence_dim": 8,
    "training.batch_size": 16,
    "training.log_kimg": LOG_KIMG,
    "evaluation.samples": 32,
    "evaluation.protocol": "auto",
    # On a CPU the same training gives the same bits, and a drill compares bits.
    "resources.use_gpu": False,
    "resources.max_failures": 5,
}
SEARCH = (
    *("--concurrent", "1", "--kimg", f"{KIMG}", "--grace-kimg", f"{CHECKPOINT_KIMG}", "--scheduler", "none"),
    *("--sampler", "random", "--parameter", "tau", "--range", "tau=0.05:0.2"),
)


class Kind(StrEnum):
    """Who is killed."""

    WORKER = "worker"
    TRIAL = "trial"
    DRIVER = "driver"
    NODE = "node"
    TRACKING = "tracking"
    REPLICA = "replica"


DEFAULT = tuple(kind for kind in Kind if kind is not Kind.NODE)
"""A node is somebody's machine: it is lost only where that is asked for."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Somebody is killed once this trial has seen so many pictures, which are between two checkpoints."""

    kind: Kind
    trial: int
    images: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    seed: int
    trials: int
    kinds: tuple[Kind, ...]

    @property
    def workers(self) -> int:
        """A trial of one worker trains in its own process: only a group has workers to kill."""
        return 2 if Kind.WORKER in self.kinds else 1

    @property
    def in_campaign(self) -> tuple[Kind, ...]:
        """Those that are killed while it runs."""
        return tuple(kind for kind in Kind if kind in self.kinds and kind is not Kind.REPLICA)

    @property
    def words(self) -> tuple[str, ...]:
        """Of `t2i tune`, but for the campaign's name and home: the same for the twin and for the one that is hit."""
        changes = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
        return ("tune", RECIPE, "--trials", f"{self.trials}", "--workers", f"{self.workers}", *SEARCH, *changes)

    @property
    def twin(self) -> str:
        """The twin's name, which is another one for other code: what is there of it is not run again."""
        return f"twin-{short_hash([self.words, code_version(), version('torch')])[:12]}"

    @property
    def name(self) -> str:
        """Of the drill: the same request finds what it left when it was cut off."""
        return f"seed-{self.seed}-{short_hash([self.twin, list(self.in_campaign)])[:8]}"

    def strikes(self) -> list[Strike]:
        """Who is hit when, trial by trial. Each trial has about as many, spread over it; none near its end."""
        draw = self.draw("campaign")
        order = draw.sample(self.in_campaign, len(self.in_campaign))
        found = []
        for trial in range(self.trials):
            mine = order[trial :: self.trials]
            share = KIMG * 1000 / (len(mine) + 1)
            for place, kind in enumerate(mine):
                images = share * (place + draw.uniform(0.2, 0.8))
                whole, steps = round(CHECKPOINT_KIMG * 1000), round(CHECKPOINT_KIMG / LOG_KIMG)
                # Right after a checkpoint nothing could be lost.
                after = draw.randint(steps // 3, steps - 2) * round(LOG_KIMG * 1000)
                found.append(Strike(kind, trial, max(1, int(images) // whole) * whole + after))
        return found

    def draw(self, what: str) -> random.Random:
        """Numbers of this seed for one use."""
        return random.Random(f"{self.seed} {what}")


def parse_kinds(text: str | None) -> tuple[Kind, ...]:
    """Kinds from a list with commas, in the order of `Kind`; by default all but a node. Raises RequestError."""
    if text is None:
        return DEFAULT
    words = [word.strip() for word in text.split(",")]
    known = [kind.value for kind in Kind]
    for word in words:
        if word not in known:
            raise RequestError(f"--kill {word!r} is none: write one or more of {', '.join(known)}, with commas")
    return tuple(kind for kind in Kind if kind in words)
