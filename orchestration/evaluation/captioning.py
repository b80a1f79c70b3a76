"""Captioning scores of descriptions: does a picture's redescription say what its caption says? (MirrorGAN's idea.)

BLEU-1 to BLEU-4 are torchmetrics', CIDEr-D and ROUGE-L (beta 1.2) the COCO caption evaluation's, METEOR nltk's. Words
are those of `orchestration.data.vocabulary`; the COCO evaluation's own tokenizer needs Java and splits words such as
"man's" otherwise, hence "words" in every protocol's name. METEOR is that of 2005 with exact and stem matches alone: its
synonyms need WordNet's files, its later versions Java.

There are two sides: descriptions of pictures drawn against the caption each was drawn for ("own-caption"), and
descriptions of real pictures against all their captions ("all-captions"), which says what the captioner itself can do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Self

import numpy as np
from numpy.typing import NDArray

from orchestration.data.features import CaptionIndex
from orchestration.data.vocabulary import Vocabulary, words
from orchestration.errors import RequestError
from orchestration.evaluation.estimates import Estimate, bootstrapped, mean, resample_weights
from orchestration.evaluation.matcher_views import OWN_CAPTIONER
from orchestration.evaluation.metric import Result, Seen

NAME = "captioning"
OWN, ALL = "own-caption", "all-captions"
ORDERS = (1, 2, 3, 4)
_NEEDED = ("pycocoevalcap", "nltk")
PROTOCOLS: Mapping[str, str] = {
    f"{NAME}/{OWN}/words/...": "descriptions of pictures drawn against the caption each was drawn for, words split as "
    "by AttnGAN's released code",
    f"{NAME}/{ALL}/words/...": "descriptions of real pictures against all captions of each",
    ".../bleu-N": "n-grams up to N, of the whole corpus, not smoothed (Papineni et al., 2002)",
    ".../cider-d": "tf-idf weighted n-grams up to 4, times 10; idf from the captions judged against (Vedantam et al., "
    "2015)",
    ".../rouge-l": "longest common subsequence, F with beta 1.2 as in the COCO caption evaluation (Lin, 2004)",
    ".../meteor-exact-stem": "METEOR of 2005, matching words and stems but no synonyms (Banerjee and Lavie, 2005)",
}


@dataclass(frozen=True, slots=True)
class _Told:
    """One description, and the captions it is held against: words with single spaces."""

    description: str
    captions: tuple[str, ...]


class CaptioningScores:
    """Captioning scores of VIEW/words (B,T), indices of `vocabulary`.

    captions: all captions of each image, by image id; where they are given, real pictures are described and held
    against all of theirs, else pictures drawn against the caption each was drawn for. seed: of the resamples behind
    BLEU's intervals; those of the means take CIDEr-D's idf as given. It keeps the words: about 10 MB for 30,000
    pictures. A picture drawn is named by its place, a real one by its image: one that comes twice counts once. Raises
    RequestError where a library is missing.
    """

    name = NAME
    plan = "captions"

    def __init__(
        self,
        vocabulary: Vocabulary,
        view: str = OWN_CAPTIONER,
        captions: Mapping[int, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> None:
        missing = [library for library in _NEEDED if find_spec(library) is None]
        if missing:
            raise RequestError(f"{NAME} needs {' and '.join(missing)}: pip install 't2i[captions]'")
        self.vocabulary, self.view, self.captions, self.seed = vocabulary, view, captions, seed
        side = OWN if captions is None else ALL
        self.protocol = f"{side}/words" if view == OWN_CAPTIONER else f"{view}/{side}/words"
        views = frozenset({view})
        self.looks_at, self.looks_at_real = (views, frozenset[str]()) if captions is None else (frozenset(), views)
        self._told: dict[int, _Told] = {}

    def update(self, drawn: Seen) -> None:
        """Add B pictures drawn, where those are described. Raises RequestError for a caption without a word."""
        if self.captions is None:
            asked = drawn.asked
            self._add(drawn, asked.places, [(text,) for text in asked.texts])

    def update_real(self, real: Seen) -> None:
        """Add B real pictures, where those are described. Raises RequestError for one without a caption."""
        if self.captions is not None:
            ids = real.asked.image_ids
            self._add(real, ids, [self.captions.get(image_id, ()) for image_id in ids.tolist()])

    def _add(self, seen: Seen, keys: NDArray[np.int64], captions: Sequence[Sequence[str]]) -> None:
        rows = seen[f"{self.view}/words"]
        if rows.ndim != 2 or not len(rows) == len(keys) == len(captions):
            raise ValueError(f"word indices (B,T) for {len(keys)} pictures are wanted, not {rows.shape}")
        for key, image_id, row, texts in zip(
            keys.tolist(), seen.asked.image_ids.tolist(), rows.tolist(), captions, strict=True
        ):
            held_against = tuple(filter(None, (" ".join(words(text)) for text in texts)))
            if not held_against:
                raise RequestError(
                    f"{NAME} has no caption with a word for image {image_id}: judge data whose pictures all have "
                    "captions"
                )
            self._told.setdefault(key, _Told(" ".join(self.vocabulary.decode(row)), held_against))

    def merge(self, other: Self) -> None:
        """Add what another worker saw. Raises ValueError for another protocol, seed or vocabulary."""
        mine, theirs = (
            f"{metric.protocol} with seed {metric.seed} and vocabulary {metric.vocabulary.digest[:12]}"
            for metric in (self, other)
        )
        if mine != theirs:
            raise ValueError(f"{theirs} is not {mine}")
        for key, told in other._told.items():
            self._told.setdefault(key, told)

    def compute(self) -> list[Result]:
        """`captioning/PROTOCOL/bleu-1` to bleu-4, cider-d, meteor-exact-stem and rouge-l.

        All are in [0, 1], CIDEr-D in [0, 10]. Raises RequestError for fewer than two pictures: CIDEr-D weighs words by
        how many pictures' captions have them.
        """
        if len(self._told) < 2:
            raise RequestError(
                f"{NAME} weighs words by how many pictures' captions have them, and {len(self._told) or 'no'} "
                f"picture{' was' if len(self._told) == 1 else 's were'} described: judge two or more, of a split with "
                "captions"
            )
        keys = sorted(self._told)
        told = [self._told[key] for key in keys]
        weights = resample_weights(np.array(keys, np.int64), self.seed)
        estimates = _bleu(told, weights)
        estimates |= {name: mean(score(told)) for name, score in _MEANS.items()}
        distinct = len({each.description for each in told})
        notes = ("every picture has the same description",) if distinct == 1 else ()
        real, drawn = (0, len(told)) if self.captions is None else (len(told), 0)
        details = {"distinct": distinct / len(told)}
        return [
            Result(NAME, f"{self.protocol}/{name}", estimate, real, drawn, notes, details)
            for name, estimate in estimates.items()
        ]


def captions_of(index: CaptionIndex) -> dict[int, tuple[str, ...]]:
    """All captions of each image of a split, by image id."""
    bounds = zip(index.starts[:-1].tolist(), index.starts[1:].tolist(), strict=True)
    return {
        image_id: index.texts[start:stop]
        for image_id, (start, stop) in zip(index.image_ids.tolist(), bounds, strict=True)
    }


def _bleu(told: Sequence[_Told], weights: NDArray[np.int64]) -> dict[str, Estimate]:
    from torchmetrics.text import BLEUScore

    scorer = BLEUScore(n_gram=ORDERS[-1])
    sums = [np.zeros(2 * len(ORDERS) + 2)]
    for each in told:
        # Of captions as near in length the shorter one counts, as in the COCO evaluation; here that is the first.
        scorer.update([each.description], [sorted(each.captions, key=lambda text: len(text.split()))])
        parts = (scorer.numerator, scorer.denominator, scorer.preds_len, scorer.target_len)
        sums.append(np.concatenate([np.atleast_1d(part.double().numpy()) for part in parts]))
    # n-grams found, n-grams said, words said, words of the captions: (N,10), exact up to 16 million words.
    counts = np.diff(np.stack(sums), axis=0)
    found = {}
    for order in ORDERS:
        resampled = np.array([bleu(row, order) for row in weights @ counts])
        found[f"bleu-{order}"] = bootstrapped(bleu(counts.sum(0), order), resampled, len(told))
    return found


def bleu(sums: NDArray[np.float64], order: int) -> float:
    """BLEU of a corpus with these sums (10,): n-grams found and said by n, words said, words of the captions."""
    found, said = sums[:order], sums[len(ORDERS) : len(ORDERS) + order]
    if not found.all():
        return 0.0
    brevity = min(0.0, 1 - sums[-1] / sums[-2])
    return float(np.exp(np.log(found / said).mean() + brevity))


def _cider_d(told: Sequence[_Told]) -> NDArray[np.float64]:
    from pycocoevalcap.cider.cider import Cider

    return np.array(Cider().compute_score(*_as_coco(told))[1], np.float64)


def _rouge_l(told: Sequence[_Told]) -> NDArray[np.float64]:
    from pycocoevalcap.rouge.rouge import Rouge

    return np.array(Rouge().compute_score(*_as_coco(told))[1], np.float64)


def _as_coco(told: Sequence[_Told]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Captions and descriptions as the COCO evaluation takes them."""
    captions = {place: list(each.captions) for place, each in enumerate(told)}
    return captions, {place: [each.description] for place, each in enumerate(told)}


class _NoSynonyms:
    """Stands in for WordNet."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def _meteor(told: Sequence[_Told]) -> NDArray[np.float64]:
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    stemmer, synonyms = PorterStemmer(), _NoSynonyms()
    return np.array(
        [
            meteor_score(
                [caption.split() for caption in each.captions],
                each.description.split(),
                stemmer=stemmer,
                wordnet=synonyms,
            )
            for each in told
        ],
        np.float64,
    )


_MEANS: Mapping[str, Callable[[Sequence[_Told]], NDArray[np.float64]]] = {
    "cider-d": _cider_d,
    "meteor-exact-stem": _meteor,
    "rouge-l": _rouge_l,
}
