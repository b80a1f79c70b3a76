"""What can be wrong with published data, and what is done about it: refuse at the first fault, or go on and keep count.

Readers say each problem to a `Notice`. `refuse` is the strict one: a fault ends the reading with its sentence. With
`Findings` the reader goes on without the broken item, and what was left out can be read there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from orchestration.errors import RequestError


class Kind(Enum):
    """Every kind of problem: its name, and whether it is a fault.

    An item with a fault cannot be used: it is refused, or left out. Anything else is a remark: the item is used as it
    is, since published data sets have such items and papers trained on them.
    """

    FILE_BROKEN = ("annotation file broken", True)  # unreadable, cut short, not JSON, another layout
    SPLIT_UNUSABLE = ("split that cannot be used", True)  # what is left of it is nothing
    ENTRY_BROKEN = ("annotation entry broken", True)
    DUPLICATE_ID = ("duplicate id", True)
    ANNOTATION_WITHOUT_IMAGE = ("annotation without image", True)
    IMAGE_WITHOUT_ANNOTATION = ("image without annotation", False)
    UNLISTED_PICTURE = ("picture that no annotation file lists", False)
    PICTURE_MISSING = ("picture missing", True)
    PICTURE_TRUNCATED = ("picture cut short", True)
    PICTURE_UNDECODABLE = ("picture does not decode", True)
    PICTURE_TINY = ("picture of one pixel", True)  # high or wide
    PICTURE_SIZE = ("picture of another size than annotated", True)  # boxes and masks would lie wrong
    PICTURE_EXTENSION = ("picture with a wrong extension", False)
    PICTURE_CMYK = ("picture in CMYK", False)
    PICTURE_GREY = ("grey picture", False)
    PICTURE_ROTATED = ("picture with an EXIF rotation", False)
    GRAPH_STRANGER = ("relationship or attribute of an object that the graph lacks", False)
    BOX_EMPTY = ("box without area", False)
    BOX_OUTSIDE = ("box outside the image", False)
    MASK_BROKEN = ("segmentation broken", True)
    MASK_SIZE = ("mask of another size than its image", True)
    CATEGORY_UNKNOWN = ("unknown category", True)
    CAPTION_EMPTY = ("empty caption", True)
    CAPTION_ENCODING = ("caption that is not UTF-8", True)
    CAPTION_ONE_WORD = ("caption of one word", False)
    CAPTION_LONG = ("caption of more than 100 words", False)
    TRACE_NAN = ("trace with a number that is none", True)  # NaN or infinite
    TRACE_EMPTY = ("narrative without a trace point", False)
    TRACE_OUTSIDE = ("trace outside the image", False)

    def __init__(self, title: str, is_fault: bool) -> None:
        self.title, self.is_fault = title, is_fault


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `sentence` says what is wrong, where, and how to mend it, and ends in a full stop."""

    kind: Kind
    sentence: str


Notice = Callable[[Problem], None]
"""Hears every problem. If it returns after a fault, the item is left out."""


def refuse(problem: Problem) -> None:
    """The strict `Notice`: RequestError at the first fault; remarks are passed over."""
    if problem.kind.is_fault:
        raise RequestError(problem.sentence)


@dataclass(slots=True)
class Findings:
    """A `Notice` that keeps count of every kind, and the first few sentences of each.

    The same sentence counts once: splits that share a file each say what is wrong with it.
    """

    examples_kept: int = 3
    counts: dict[Kind, int] = field(default_factory=dict)
    examples: dict[Kind, list[str]] = field(default_factory=dict)
    _said: set[int] = field(default_factory=set)

    def __call__(self, problem: Problem) -> None:
        if (sentence := hash(problem.sentence)) in self._said:
            return
        self._said.add(sentence)
        self.counts[problem.kind] = self.counts.get(problem.kind, 0) + 1
        known = self.examples.setdefault(problem.kind, [])
        if len(known) < self.examples_kept:
            known.append(problem.sentence)

    @property
    def faults(self) -> int:
        """How many faults were found; remarks are not counted."""
        return sum(count for kind, count in self.counts.items() if kind.is_fault)
