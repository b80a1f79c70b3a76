"""Does a description of a picture name what the picture's own caption names?

Two protocols: `scenes`, for generated scenes, whose main thing, its colour and the background are known; and
`caption-overlap`, for other data. A description that names everything would be right everywhere, so each figure
stands beside `naming_mismatched`, the same descriptions against what the picture before names: the difference counts.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestration.data.scenes import BACKGROUNDS
from orchestration.data.scenes.vocabulary import stuff_id
from orchestration.data.vocabulary import words
from orchestration.evaluation.estimates import QUANTILE_95, Estimate, figures, share
from orchestration.evaluation.scenes_net import ATTRIBUTES

# Words of English captions that name nothing.
FUNCTION_WORDS = frozenset(
    words(
        """
        a an the this that these those there here it its he she his her him they them their we you i one some any each
        all both other another and or but nor so as than then while when where who which what whose of in on at by to
        from for with without into onto over under near next up down out off about between through around behind beside
        is are was were be been being am has have had having do does did can could will would may very too also not no
        s t
        """
    )
)
# COCO-Stuff's label of a pixel is the category id less one.
_BACKGROUND_NAMES = {f"stuff {stuff_id(index) - 1}": item.name for index, item in enumerate(BACKGROUNDS)}


def named_words(label: str) -> frozenset[str]:
    """The words that name a label of `scenes_net.named_attributes`: for a background, all those of its name."""
    return frozenset(words(_BACKGROUND_NAMES.get(label, label)))


def naming_in_scenes(descriptions: Sequence[Collection[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """Shares of N >= 2 descriptions (words) that name their picture's labels (background, colour, thing).

    `naming/scenes/thing` ..., with _low and _high; naming_mismatched; naming_chance: of a description that always names
    the commonest. A colour counts wherever it is said, as in "on green grass".
    """
    _check(descriptions, labels)
    found: dict[str, float] = {}
    for place, attribute in enumerate(ATTRIBUTES):
        wanted = [row[place] for row in labels]
        found |= figures({f"naming/scenes/{attribute}": share(_named(descriptions, wanted))})
        rolled = _named(descriptions, [*wanted[-1:], *wanted[:-1]])
        found[f"naming_mismatched/scenes/{attribute}"] = float(rolled.mean())
        found[f"naming_chance/scenes/{attribute}"] = Counter(wanted).most_common(1)[0][1] / len(wanted)
    return found


def _named(descriptions: Sequence[Collection[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    pairs = zip(descriptions, labels, strict=True)
    return np.array([named_words(label) <= set(description) for description, label in pairs], np.bool_)


def content_words(text: str) -> frozenset[str]:
    """The words of a caption that name something: all but English function words."""
    return frozenset(words(text)) - FUNCTION_WORDS


def caption_overlap(descriptions: Sequence[Collection[str]], captions: Sequence[str]) -> dict[str, float]:
    """Mean share of a caption's content words that its picture's description has, for N >= 2 pictures.

    `naming/caption-overlap`, with _low and _high (mean and 1.96 standard errors); naming_mismatched. Pictures whose
    caption has no content word are left out; the figures are 0 where none has one.
    """
    _check(descriptions, captions)
    wanted = [content_words(caption) for caption in captions]
    overlap = _overlap(descriptions, wanted)
    mean, error = float(overlap.mean()), float(overlap.std() / len(overlap) ** 0.5)
    low, high = max(0.0, mean - QUANTILE_95 * error), min(1.0, mean + QUANTILE_95 * error)
    found = figures({"naming/caption-overlap": Estimate(mean, low, high, len(overlap))})
    rolled = _overlap(descriptions, [*wanted[-1:], *wanted[:-1]])
    return {**found, "naming_mismatched/caption-overlap": float(rolled.mean())}


def _overlap(descriptions: Sequence[Collection[str]], wanted: Sequence[frozenset[str]]) -> NDArray[np.float64]:
    pairs = zip(descriptions, wanted, strict=True)
    shares = [len(named.intersection(description)) / len(named) for description, named in pairs if named]
    return np.array(shares or [0.0])


def _check(descriptions: Sequence[Collection[str]], truths: Sequence[object]) -> None:
    if len(descriptions) < 2 or len(descriptions) != len(truths):
        raise ValueError(f"two descriptions or more, each with its truth, not {len(descriptions)} with {len(truths)}")
