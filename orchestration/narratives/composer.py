"""From tagged narratives to label maps: masks are retrieved for what is mentioned, and put together.

TReCS (Koh et al., 2021) sections 2.2 and 2.3. What the paper leaves open is decided so: neighbouring words of one tag
are one mention. The words "other" and "background" mention nothing (the tagger never says them). In a narrative with a
mouse trace, what the mouse does not show is not drawn. In one without any trace, each thing is the largest mask of its
class in the best picture that has one, where that picture has it, and the stuff is that of the best of the pictures
that show most of the mentioned kinds of stuff. In both, only the pictures that were retrieved are looked at, unless
`TReCSConfig.missing` says otherwise.
"""

from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from models.trecs.config import TReCSConfig
from orchestration.data.composition import Thing, compose
from orchestration.data.hulls import MIN_RADIUS, phrase_mask, tagged_phrases
from orchestration.data.mask_choice import (
    Choice,
    Code,
    PictureMasks,
    choose_masks,
    encoded,
    intersection_over_union,
)
from orchestration.data.records import Narrative
from orchestration.errors import RequestError
from orchestration.narratives.composed import Composed, Found, Mention
from orchestration.narratives.mask_bank import MaskBank

SILENT = frozenset({"other", "background"})
"""Names of classes that mention nothing (section 2.1)."""
NOT_SHOWN = "not shown by the mouse"
NOT_IN_BANK = "no picture of the mask bank has one"
NOT_RETRIEVED = "no retrieved picture has one"
NOT_IN_STUFF = "the picture that the stuff is from has none"
_UNKNOWN = ""  # a word of no class
_GROWTH = 4
_KEPT = 1024  # pictures whose masks are not read again


class Retrieves(Protocol):
    """Finds pictures of the mask bank: see `orchestration.narratives.retrieval_index.Retriever`."""

    def search(self, texts: Sequence[str], k: int, not_image_ids: Sequence[int] | None = None) -> list[list[Found]]: ...


class Composer:
    """Composes label maps from the masks of a bank."""

    def __init__(
        self, bank: MaskBank, retriever: Retrieves, config: TReCSConfig, min_radius: float = MIN_RADIUS
    ) -> None:
        """min_radius: pixels of the canvas around each point of a trace. Raises RequestError for a bank of another size
        than the configured resolution."""
        if bank.size != config.resolution:
            raise RequestError(
                f"the masks in {bank.folder} are {bank.size} px wide and label maps of {config.resolution} px are "
                "asked for: build a mask bank of that size"
            )
        self.bank, self.retriever, self.config, self.min_radius = bank, retriever, config, min_radius
        self._names = (*bank.classes, _UNKNOWN)

    def compose(
        self,
        narratives: Sequence[Narrative],
        tags: Sequence[NDArray[np.int64]],
        not_image_ids: Sequence[int] | None = None,
        where: Sequence[str] | None = None,
    ) -> list[Composed]:
        """Every step for each narrative; the same whatever other narratives there are.

        tags: one class a word of the caption split at white space, the number of classes for a word of none;
        not_image_ids: for each the picture that it is of, from which nothing is taken; where: what messages call them.
        Raises RequestError for a narrative without words, with another number of tags or a tag that is no class, with
        times that run backwards, and with points or times that are no numbers.
        """
        called = where or [f"narrative {row}" if len(narratives) > 1 else "the narrative" for row in range(len(tags))]
        own = [None] * len(narratives) if not_image_ids is None else list(not_image_ids)
        rows = list(zip(narratives, tags, called, strict=True))
        mentions = [self._mentions(*row) for row in rows]
        found = self.retriever.search([narrative.caption for narrative in narratives], self.config.k, not_image_ids)
        masks = lru_cache(_KEPT)(self.bank.masks)
        return [
            self._composed(narrative, tagged, said, tuple(pictures), image, masks)
            for (narrative, tagged, _), said, pictures, image in zip(rows, mentions, found, own, strict=True)
        ]

    def _mentions(self, narrative: Narrative, tags: NDArray[np.int64], where: str) -> tuple[Mention, ...]:
        """In order, none drawn yet."""
        bank, size = self.bank, self.bank.size
        if len(tags) and not (tags.min() >= 0 and tags.max() <= len(bank.classes)):
            strange = tags[(tags < 0) | (tags > len(bank.classes))][0]
            raise RequestError(
                f"{where} has the tag {strange}, and there are the classes 0 to {len(bank.classes) - 1}: tag it with "
                "the mask bank's classes"
            )
        names = [self._names[tag] for tag in tags.tolist()]
        phrases = tagged_phrases(narrative, names, SILENT | {_UNKNOWN}, where)
        traced = has_trace(narrative)
        found = []
        for phrase in phrases:
            label = int(tags[phrase.first])
            hull = phrase_mask(phrase.points, size, size, self.min_radius, where)
            why = NOT_SHOWN if traced and not hull.any() else ""
            found.append(Mention(phrase, label, not bank.stuff[label], hull, None, why))
        return tuple(found)

    def _composed(
        self,
        narrative: Narrative,
        tags: NDArray[np.int64],
        mentions: tuple[Mention, ...],
        found: tuple[Found, ...],
        own: int | None,
        masks: Callable[[int], PictureMasks],
    ) -> Composed:
        self._check(found)
        traced = has_trace(narrative)
        drawn = [mention for mention in mentions if not mention.why]
        things, stuff = ([(m.label, m.hull) for m in drawn if m.thing == thing] for thing in (True, False))
        further = self._further(narrative.caption, {label for label, _ in things}, found, own)
        pictures, beyond = ([masks(picture.place) for picture in ranked] for ranked in (found, further))
        choices = self._choices(things, pictures, beyond, traced)
        best, fit = (
            best_stuff(stuff, pictures) if traced else (most_stuff({label for label, _ in stuff}, pictures), 0.0)
        )
        shown = frozenset(pictures[best].labels.tolist()) if pictures else frozenset[int]()
        mentions = self._decided(mentions, choices, shown)
        pasted = [Thing(m.label, m.choice.mask(), m.hull) for m in mentions if m.choice is not None]
        canvas = compose(pasted, self._segmentation(found, best), self.bank.stuff, self.config.centre)
        words = tuple(narrative.caption.split())
        chosen = best if found else None
        return Composed(narrative, words, tags, mentions, found + further, chosen, fit, canvas)

    def _check(self, found: Sequence[Found]) -> None:
        ids = self.bank.image_ids
        for picture in found:
            if not (0 <= picture.place < len(ids) and ids[picture.place] == picture.image_id):
                raise RequestError(
                    f"image {picture.image_id} was retrieved, which is not picture {picture.place} of the masks in "
                    f"{self.bank.folder}: build the mask bank and the retrieval index of one split"
                )

    def _segmentation(self, found: Sequence[Found], best: int) -> NDArray[np.int64]:
        """(S,S) of the best; "don't care" everywhere where nothing was retrieved."""
        if found:
            return self.bank.segmentation(found[best].place)
        return np.full((self.bank.size, self.bank.size), len(self.bank.classes))

    def _choices(
        self,
        wanted: Sequence[tuple[int, NDArray[np.bool_]]],
        pictures: Sequence[PictureMasks],
        beyond: Sequence[PictureMasks],
        traced: bool,
    ) -> list[Choice | None]:
        """The mask of each thing; from the first picture beyond that has one where none of the retrieved does."""
        place, centre = self.config.place, self.config.centre
        if not traced:
            return [largest_mask(label, [*pictures, *beyond]) for label, _ in wanted]
        found = choose_masks(wanted, pictures, place, centre)
        for row, choice in enumerate(found):
            label = wanted[row][0]
            further = [number for number, masks in enumerate(beyond) if label in masks.labels]
            if choice is None and further:
                (choice,) = choose_masks([wanted[row]], [beyond[further[0]]], place, centre)
                assert choice is not None
                found[row] = replace(choice, picture=len(pictures) + further[0])
        return found

    def _further(
        self, text: str, labels: Collection[int], found: Sequence[Found], own: int | None
    ) -> tuple[Found, ...]:
        """For `missing="next"`: for each class that no retrieved picture has, the nearest one beyond that does."""
        bank = self.bank
        seen = {int(label) for picture in found for label in bank.labels_of(picture.place)}
        lacking = {label for label in labels if label not in seen and bank.has(label)}
        further: list[Found] = []
        asked = len(found)
        while self.config.missing == "next" and lacking and asked < len(bank):
            asked = min(max(1, asked) * _GROWTH, len(bank))
            (ranked,) = self.retriever.search([text], asked, None if own is None else [own])
            for picture in ranked:
                there = lacking.intersection(bank.labels_of(picture.place).tolist())
                if there:
                    further.append(picture)
                    lacking -= there
        self._check(further)
        return tuple(further)

    def _decided(
        self, mentions: Sequence[Mention], choices: Sequence[Choice | None], shown: Collection[int]
    ) -> tuple[Mention, ...]:
        """Each with its mask, or why it is not drawn; choices: of the things that are; shown: by the stuff layer."""
        found, coming = [], iter(choices)
        for mention in mentions:
            if mention.why:
                found.append(mention)
            elif not mention.thing:
                found.append(replace(mention, why="" if mention.label in shown else NOT_IN_STUFF))
            elif (choice := next(coming)) is not None:
                found.append(replace(mention, choice=choice))
            else:
                found.append(replace(mention, why=NOT_RETRIEVED if self.bank.has(mention.label) else NOT_IN_BANK))
        return tuple(found)


def has_trace(narrative: Narrative) -> bool:
    """Whether the mouse was anywhere at all."""
    return any(len(trace) for trace in narrative.traces)


def largest_mask(label: int, pictures: Sequence[PictureMasks]) -> Choice | None:
    """The largest mask of a class in the first picture that has one, the first of equally large ones; its IoU is 0."""
    for number, masks in enumerate(pictures):
        own = np.flatnonzero(masks.labels == label)
        if len(own):
            areas = coco_mask.area([masks.codes[place] for place in own])
            place = int(own[int(np.argmax(areas))])
            return Choice(number, place, 0.0, masks.codes[place])
    return None


def best_stuff(wanted: Sequence[tuple[int, NDArray[np.bool_]]], pictures: Sequence[PictureMasks]) -> tuple[int, float]:
    """`orchestration.data.composition.choose_stuff` of masks: no map is drawn to be compared. 0, 0.0 for no picture."""
    if not wanted or not pictures:
        return 0, 0.0
    fits = np.zeros((len(wanted), len(pictures)))
    for row, (label, hull) in enumerate(
        zip((label for label, _ in wanted), encoded([h for _, h in wanted]), strict=True)
    ):
        for column, masks in enumerate(pictures):
            own: list[Code] = [masks.codes[place] for place in np.flatnonzero(masks.labels == label)]
            if own:
                fits[row, column] = intersection_over_union([coco_mask.merge(own)], hull)[0]
    means = fits.mean(0)
    best = int(means.argmax())
    return best, float(means[best])


def most_stuff(labels: AbstractSet[int], pictures: Sequence[PictureMasks]) -> int:
    """Which picture shows most of the classes, the first of those that show as many; 0 for no picture."""
    counts = [len(labels & set(masks.labels.tolist())) for masks in pictures]
    return int(np.argmax(counts)) if counts else 0
