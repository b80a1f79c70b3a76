"""Which captions name which of COCO's 80 things, and how many pictures each is drawn for: the asking side of semantic
object accuracy (Hinz, Heinrich and Wermter, "Semantic Object Accuracy for Generative Text-to-Image Synthesis",
arXiv 1910.13321, section 4, and the captions released with it).

Captions come from the released list, by path, or from the data's own captions by words. The paper gives examples of
words alone ("person, woman, man, ...", "monitor, tv, screen, ..."). The words here are those that the released
captions of 79 labels share, in both numbers, with the false friends that are absent from them; the words of `person`,
and spellings that the release passes over (motorcycle, airplane, cellphone, television, racquet, doughnut), are ours.
The released search asks for a space after most words, so it passes over captions that end with one, and it takes
parts of words ("strain" as a train); here a word counts wherever it stands, and only whole. So the two sources are
two protocols.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.detectors.coco import NAMES, coco_index
from orchestration.data.features import CaptionIndex
from orchestration.data.sampler import SeededOrder, derive_seed
from orchestration.data.vocabulary import words
from orchestration.errors import RequestError

PUBLISHED, BY_WORDS = "published", "words"
SOURCES = {
    PUBLISHED: "the captions released with Hinz et al. 2019, each for the label it was released for",
    BY_WORDS: "the data's own captions, each for every label that one of its words names",
}
PERSON = NAMES.index("person")
CAPTION_STREAM, SAMPLE_STREAM = 320, 321

# LABEL: what names it; but not in: its false friends. Plurals by "s" and "es" are understood.
WORDS = """
person: person, people, man, men, woman, women, boy, girl, child, children, kid, baby, babies, toddler, lady, ladies,
  guy, human, player, skier, surfer, snowboarder, skateboarder, rider, worker
  but not in: snow man, gingerbread man, man made, cd player, dvd player, record player, music player
bicycle: bicycle, bike; but not in: dirt bike, motor bike
car: car, auto; but not in: train car, rail car, passenger car, subway car, side car, car window, car tire
motorcycle: motorcycle, motorbike, motor bike, motor cycle, scooter, dirt bike
airplane: airplane, aeroplane, plane, biplane, jet, aircraft; but not in: jet ski
bus: bus, schoolbus, minibus
train: train
truck: truck, firetruck
boat: boat, ship, sailboat, motorboat, rowboat, speedboat, tugboat, houseboat
traffic light: traffic light
fire hydrant: hydrant
stop sign: stop sign
parking meter: parking meter
bench: bench
bird: bird, hummingbird
cat: cat, kitten
dog: dog, pup, bulldog, sheepdog; but not in: hot dog, chili dog, chilli dog, corn dog, cheese dog
horse: horse
sheep: sheep
cow: cow
elephant: elephant; but not in: toy elephant, stuffed elephant
bear: bear; but not in: teddy bear, stuffed bear, toy bear, care bear
zebra: zebra
giraffe: giraffe
backpack: backpack, rucksack
umbrella: umbrella
handbag: handbag, hand bag, purse
tie: tie, necktie
suitcase: suitcase, suit case
frisbee: frisbee
skis: skis
snowboard: snowboard, snow board
sports ball: ball; but not in: meat ball
kite: kite
baseball bat: baseball bat
baseball glove: baseball glove
skateboard: skateboard, skate board
surfboard: surfboard, surf board
tennis racket: racket, racquet
bottle: bottle
wine glass: wine glass
cup: cup; but not in: cup cake
fork: fork
knife: knife, knives
spoon: spoon
bowl: bowl; but not in: toilet bowl
banana: banana
apple: apple; but not in: pine apple, apple computer, apple laptop, apple desktop, apple brand, apple hardware,
  apple mouse, apple keyboard
sandwich: sandwich
orange: oranges
broccoli: broccoli
carrot: carrot
hot dog: hot dog, hotdog, chili dog, corn dog
pizza: pizza
donut: donut, doughnut
cake: cake; but not in: cup cake
chair: chair
couch: couch, sofa
potted plant: potted plant
bed: bed
dining table: table, desk
toilet: toilet
tv: tv, television, monitor, screen
laptop: laptop
mouse: computer mouse
remote: remote
keyboard: keyboard
cell phone: cell phone, cellphone, mobile phone
microwave: microwave
oven: oven; but not in: microwave oven
toaster: toaster
sink: sink
refrigerator: refrigerator, fridge
book: book
clock: clock
vase: vase
scissors: scissors, scissor
teddy bear: teddy bear, teddybear
hair drier: hair drier, hair dryer, hairdryer
toothbrush: toothbrush, tooth brush
"""


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """P pairs of a caption and a label that it names, in the order of labels, then of captions.

    texts: (P,); labels: (P,) places in NAMES; image_ids: (P,) of the images that the captions are of; rows: (P,)
    places of the captions in the index they are from, or in this set where they are published (`matched_to` finds
    them in an index); source: one of SOURCES.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    source: str

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(80,) captions of each label."""
        return np.bincount(self.labels, minlength=len(NAMES))

    @property
    def without_captions(self) -> tuple[str, ...]:
        """The labels that no caption names: they play no part in the figures."""
        return tuple(NAMES[label] for label in np.flatnonzero(self.counts == 0))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many pictures are drawn for which captions.

    By default Hinz's rule (the release's README): `images` for each caption, but one for each of `person_captions`
    captions of `person`, drawn at random. limit: at most so many captions of each label, drawn at random. sample:
    instead of all that, so many pairs of caption and label drawn at random from all, one picture each. Raises
    RequestError for numbers below 1, and for a limit together with a sample.
    """

    images: int = 3
    person_captions: int = 30_000
    limit: int | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        for name in ("images", "person_captions", "limit", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"object accuracy: {name} is {value}, but must be 1 or more")
        if self.limit is not None and self.sample is not None:
            raise RequestError("object accuracy: limit and sample exclude each other; leave one of them out")

    @property
    def name(self) -> str:
        """As part of a protocol's name: "hinz", "hinz-limit-20", "random-30000"."""
        if self.sample is not None:
            return f"random-{self.sample}"
        own = Counts()
        parts = ["hinz"]
        parts += [f"limit-{self.limit}"] * (self.limit is not None)
        parts += [f"images-{self.images}"] * (self.images != own.images)
        parts += [f"person-{self.person_captions}"] * (self.person_captions != own.person_captions)
        return "-".join(parts)


COUNTS = {
    "hinz": "3 pictures a caption; 1 for each of 30,000 random captions of person (README of Hinz et al.'s release)",
    "hinz-limit-N": "the same for at most N random captions of each label",
    "random-30000": "1 picture for each of 30,000 random captions, as in XMC-GAN's ablations (section 6.2, Tables 4-6)",
}


@dataclass(frozen=True, slots=True)
class LabelsPlan:
    """N pictures to draw. pairs: (N,) places in the caption set; captions: (N,) its rows there; labels: (N,);
    protocol: SOURCE/COUNTS, such as "words/hinz"."""

    pairs: NDArray[np.int64]
    captions: NDArray[np.int64]
    labels: NDArray[np.int64]
    protocol: str

    def __len__(self) -> int:
        return len(self.pairs)


def labels_plan(captions: CaptionSet, counts: Counts | None = None, *, seed: int) -> LabelsPlan:
    """Which pictures are drawn, in the order of labels: a function of the captions, the counts and the seed.

    A label's captions do not depend on what other labels have. Raises RequestError where no caption names anything,
    or a sample is larger than the set.
    """
    counts = counts or Counts()
    if not len(captions):
        raise RequestError(
            "object accuracy: no caption names any of COCO's 80 things; judge on data whose captions do, or name the "
            "released captions by path"
        )
    if counts.sample is not None:
        if counts.sample > len(captions):
            raise RequestError(
                f"object accuracy: {counts.sample} captions are to be drawn, but only {len(captions)} pairs of caption "
                "and label are there; draw fewer"
            )
        pairs = _some(np.arange(len(captions)), counts.sample, derive_seed(seed, SAMPLE_STREAM))
    else:
        pairs = np.concatenate([_of_label(captions, label, counts, seed) for label in range(len(NAMES))])
    protocol = f"{captions.source}/{counts.name}"
    return LabelsPlan(pairs, captions.rows[pairs], captions.labels[pairs], protocol)


def _of_label(captions: CaptionSet, label: int, counts: Counts, seed: int) -> NDArray[np.int64]:
    pairs = np.flatnonzero(captions.labels == label)
    most = len(pairs) if counts.limit is None else counts.limit
    if label == PERSON:
        most = min(most, counts.person_captions)
    chosen = _some(pairs, most, derive_seed(seed, CAPTION_STREAM, label))
    return np.repeat(chosen, 1 if label == PERSON else counts.images)


def _some(places: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    if most >= len(places):
        return places
    return np.sort(places[SeededOrder(len(places), seed).items(np.arange(most))])


def labels_of(text: str) -> tuple[int, ...]:
    """The labels that a caption names, as places in NAMES: its words, or several in a row, are a label's, and are
    no part of a false friend of it."""
    found = words(text)
    line = " ".join(found)
    rules, openers = _rules()
    candidates = sorted({label for word in found for label in openers.get(word, ())})
    return tuple(label for label in candidates if any(hit["named"] for hit in rules[label].finditer(line)))


def captions_by_words(index: CaptionIndex) -> CaptionSet:
    """A split's own captions by the words that name labels; the set is empty where none do."""
    owners = np.repeat(index.image_ids, np.diff(index.starts))
    pairs = sorted((label, row) for row, text in enumerate(index.texts) for label in labels_of(text))
    labels, rows = np.array(pairs, np.int64).reshape(-1, 2).T
    return CaptionSet(tuple(index.texts[row] for row in rows), labels, owners[rows], rows, BY_WORDS)


@cache
def _rules() -> tuple[list[re.Pattern[str]], dict[str, list[int]]]:
    """A pattern for each label, and the labels that may be named where a word stands."""
    entries = dict(entry.split(":", 1) for entry in re.split(r"\n(?! )", WORDS.strip()))
    patterns, openers = [], dict[str, list[int]]()
    for label, name in enumerate(NAMES):
        named, _, friends = re.sub(r"\s+", " ", entries[name]).partition("but not in:")
        spellings = [list(_spellings(part)) for part in (named, friends)]
        # False friends first: where both begin at one word, the friend takes it.
        patterns.append(re.compile(rf"\b(?:(?:{_any(spellings[1])})|(?P<named>{_any(spellings[0])}))\b"))
        for spelling in spellings[0]:
            openers.setdefault(spelling.split()[0], []).append(label)
    return patterns, openers


def _any(spellings: list[str]) -> str:
    # The longest first, since the first that fits is taken; where there are none, what fits nothing.
    return "|".join(sorted(spellings, key=lambda spelling: (-len(spelling), spelling))) or "(?!)"


def _spellings(listed: str) -> Iterator[str]:
    for phrase in re.split("[,;]", listed):
        if phrase.strip():
            yield phrase.strip()
            yield phrase.strip() + ("es" if phrase.strip().endswith(("ch", "sh", "s", "x")) else "s")


class PublishedCaption(msgspec.Struct, frozen=True):
    """A line of the released captions as JSON: label 0 to 79 in NAMES's order, the release's name of it, COCO's
    image and caption ids, the text. Other fields are left alone."""

    label: int
    name: str
    image_id: int
    id: int
    caption: str


def published_captions(path: Path) -> CaptionSet:
    """The released captions from a file of JSON lines, plain or gzipped (.gz), by label.

    Raises RequestError naming the file and the line: for a file that is missing, empty or no gzip file; a line that
    is no such caption; a label that is not 0 to 79, has two names, or bears the name of another label; an empty
    caption; a caption that a label has twice.
    """
    found: dict[tuple[int, int], PublishedCaption] = {}
    names: dict[int, str] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = msgspec.json.decode(line, type=PublishedCaption)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{where}, is no caption of a label ({error}); mend it, or take the released file"
            ) from error
        _check_label(entry, names, where)
        if not entry.caption.strip():
            raise RequestError(f"{where}, has an empty caption; leave the line out")
        if (entry.label, entry.id) in found:
            raise RequestError(
                f"{where}, lists caption {entry.id} of label {entry.label} ({entry.name}) a second time; leave one of "
                "the lines"
            )
        found[entry.label, entry.id] = entry
    if not found:
        raise RequestError(f"{path} holds no captions; name the file of the captions released by label")
    pairs = [found[key] for key in sorted(found)]
    labels, images = np.array([(pair.label, pair.image_id) for pair in pairs], np.int64).T
    return CaptionSet(tuple(pair.caption for pair in pairs), labels, images, np.arange(len(pairs)), PUBLISHED)


def matched_to(captions: CaptionSet, index: CaptionIndex) -> CaptionSet:
    """Those pairs whose caption is in a split's index too, with their rows there: the same image and words.

    COCO's captions of 2014 val are released; other splits have few of them. Raises RequestError where none is there.
    """
    owners = np.repeat(index.image_ids, np.diff(index.starts)).tolist()
    rows = {(image, words(text)): row for row, (image, text) in enumerate(zip(owners, index.texts, strict=True))}
    keys = zip(captions.image_ids.tolist(), captions.texts, strict=True)
    found = np.array([rows.get((image, words(text)), -1) for image, text in keys], np.int64)
    there = np.flatnonzero(found >= 0)
    if not len(there):
        raise RequestError(
            f"none of the {len(captions)} captions by label is among the {len(index.texts)} of the split: judge on "
            "COCO's val images of 2014, or by the data's own captions"
        )
    texts = tuple(captions.texts[place] for place in there)
    return CaptionSet(texts, captions.labels[there], captions.image_ids[there], found[there], captions.source)


def _lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(
            f"captions by label in {path} cannot be read ({error}); name a file of JSON lines"
        ) from error
    return content.splitlines()


def _check_label(entry: PublishedCaption, names: dict[int, str], where: str) -> None:
    if not 0 <= entry.label < len(NAMES):
        raise RequestError(f"{where}, has the unknown label {entry.label}; labels are 0 to {len(NAMES) - 1}")
    known = names.setdefault(entry.label, entry.name)
    if known != entry.name:
        raise RequestError(f"{where}, calls label {entry.label} {entry.name!r}, but it was {known!r} before; mend one")
    # The release has its own names for some labels; another label's name means another order of labels.
    meant = coco_index(entry.name)
    if meant not in (None, entry.label):
        raise RequestError(
            f"{where}, calls label {entry.label} {entry.name!r}, but {NAMES[meant]} is label {meant}; number labels in "
            "COCO's order of 80"
        )
