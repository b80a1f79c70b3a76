"""Which picture comes next: new in every split, and of unseen compositions only in the test split."""

import hashlib
from random import Random

import numpy as np

from orchestration.data.scenes.chance import pick
from orchestration.data.scenes.compose import Scene, Triple, compose, split_triples
from orchestration.data.scenes.draw import Drawing, draw
from orchestration.data.scenes.options import ScenesOptions
from orchestration.errors import RunError

_TRIES = 200
_FEWEST_PIXELS = 12
_LEAST_VISIBLE_PERCENT = 35


class Pictures:
    """Draws one picture after the other and remembers them all."""

    def __init__(self, options: ScenesOptions) -> None:
        self._options = options
        self._seen, self.held_out = split_triples(options)
        self._forbidden = frozenset(self.held_out)
        self._used: set[object] = set()

    def draw_next(self, rng: Random, split: str, index: int) -> tuple[Scene, Drawing]:
        """A scene and its drawing; no earlier picture has the same composition or the same pixels.

        Every other test picture is about a held-out triple; in train and val no object at all shows one.
        """
        novel = split == "test" and index % 2 == 0
        mains: tuple[Triple, ...] = self.held_out if novel else self._seen
        forbidden: frozenset[Triple] = frozenset() if split == "test" else self._forbidden
        for _ in range(_TRIES):
            scene = compose(rng, self._options, pick(rng, mains), forbidden)
            if scene.key in self._used:
                continue
            drawing = draw(scene, self._options.size)
            pixels = hashlib.blake2b(drawing.image.tobytes(), digest_size=16).digest()
            if pixels in self._used or not _is_clear(drawing):
                continue
            self._used.update((scene.key, pixels))
            return scene, drawing
        raise RunError(
            f"No new picture was found for number {index + 1} of {split} in {_TRIES} tries; "
            "ask for fewer pictures, or for more things, colours or backgrounds."
        )


def _is_clear(drawing: Drawing) -> bool:
    """Whether every object shows enough of itself and of the main one most pixels are seen."""
    visible = np.bincount(drawing.labels.ravel(), minlength=len(drawing.areas) + 1)[1:].tolist()
    for shown, whole in zip(visible, drawing.areas, strict=True):
        if shown < _FEWEST_PIXELS or 100 * shown < _LEAST_VISIBLE_PERCENT * whole:
            return False
    return all(shown < visible[0] for shown in visible[1:])
