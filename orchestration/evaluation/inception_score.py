"""Inception Score (Salimans et al. 2016, section 4): exp of the mean KL divergence of p(y|x) from their mean p(y).

It is the mean over splits of the pictures. The papers differ in the net, the splits and the classes, hence the
protocols, each KIND/NET with NET the view that gives the logits:

    openai  10 splits, the i-th from place i N/10 to (i+1) N/10, rounded down; all of the net's classes; logits before
            the classifier's bias where the view has them, since the authors' code leaves the bias out
    cpgan   10 splits of N/10 pictures rounded down, the last N mod 10 left out (CPGAN's released code, torchvision's
            net)
    cub     50 classes: logit 0 of 51, the background, is left out before the softmax, unless the view has left it out;
            pictures in a seeded random order; 10 splits as openai's (StackGAN's released code, with its net fine-tuned
            on CUB; that code also leaves out what does not fill a batch of 64, which is not done here)
    xmcgan  1 split (XMC-GAN's released code)

Splits are of the pictures by place. The score is biased downwards with few pictures a split. The published spread is
the deviation of the splits' scores (`std`); the interval is a Poisson bootstrap of the pictures within their splits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestration.data.sampler import derive_seed, mix
from orchestration.errors import RequestError
from orchestration.evaluation.estimates import bootstrapped, resample_weights
from orchestration.evaluation.metric import Result, Seen
from orchestration.evaluation.plans import CAPTIONS
from orchestration.evaluation.samples import Samples

NAME = "inception_score"
ORDER_STREAM = 334
CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """tail: of pictures that do not fill a split is kept; classes: that are wanted, None for any number, with one more
    for a background that is left out; unbiased: logits before the bias are taken where there are any."""

    splits: int
    tail: bool = True
    classes: int | None = None
    shuffled: bool = False
    unbiased: bool = False


KINDS: Mapping[str, Kind] = {
    "openai": Kind(10, unbiased=True),
    "cpgan": Kind(10, tail=False),
    "cub": Kind(10, classes=50, shuffled=True),
    "xmcgan": Kind(1),
}
PROTOCOLS: Mapping[str, str] = {
    "inception_score/openai/NET": "10 splits, all classes of NET (Salimans et al. 2016, released code)",
    "inception_score/cpgan/NET": "10 equal splits, the tail left out (CPGAN's released code, torchvision's net)",
    "inception_score/cub/NET": "50 classes of a net fine-tuned on CUB, no background, 10 splits in random order "
    "(StackGAN's released code)",
    "inception_score/xmcgan/NET": "1 split (XMC-GAN's released code)",
}


def split_bounds(count: int, splits: int, tail: bool = True) -> list[tuple[int, int]]:
    """First and one past the last of each split of `count` pictures; without the tail all are of one length."""
    if not tail:
        size = count // splits
        return [(number * size, (number + 1) * size) for number in range(splits)]
    return [(number * count // splits, (number + 1) * count // splits) for number in range(splits)]


def score(logits: NDArray[np.floating], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) Inception Scores of one split, logits (N,C), where its pictures count (R,N) times; softmax in float64.

    Weights that are all 0 count as 1.
    """
    weights = np.where(weights.any(1, keepdims=True), weights, 1).astype(np.float64)
    marginal, negentropy = np.zeros((len(weights), logits.shape[1])), np.zeros(len(weights))
    for start in range(0, len(logits), CHUNK):
        part = slice(start, start + CHUNK)
        logs = logits[part].astype(np.float64)
        logs -= logs.max(1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(1, keepdims=True))
        shares = np.exp(logs)
        marginal += weights[:, part] @ shares
        negentropy += weights[:, part] @ (shares * logs).sum(1)
    total = weights.sum(1)
    marginal /= total[:, None]
    # 0 log 0 is 0: a class that no picture could be.
    logs = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
    return np.asarray(np.exp(negentropy / total - (marginal * logs).sum(1)))


def inception_scores(
    logits: NDArray[np.floating], weights: NDArray[np.int64], splits: int, tail: bool = True
) -> NDArray[np.float64]:
    """(R,splits) scores of logits (N,C) in their order, for pictures that count (R,N) times."""
    bounds = split_bounds(len(logits), splits, tail)
    return np.stack([score(logits[first:last], weights[:, first:last]) for first, last in bounds], axis=1)


class InceptionScore:
    """Inception Score under one protocol, KIND/NET, of NET's logits (B,C).

    RequestError for another kind. seed: of the order of cub, and of the interval. Splits hang on how many pictures come
    in the end, so it keeps all logits, in float32: 121 MB for 30,000 pictures and 1,008 classes, for a moment twice.
    """

    name = NAME
    plan = CAPTIONS
    looks_at_real: frozenset[str] = frozenset()

    def __init__(self, protocol: str = "openai/inception-2015", seed: int = 0) -> None:
        kind, _, net = protocol.partition("/")
        if kind not in KINDS or not net:
            raise RequestError(
                f"{NAME} has no protocol {protocol!r}: use KIND/NET, with one of {', '.join(KINDS)} and the view that "
                "gives logits, such as openai/inception-2015"
            )
        self.protocol, self.seed, self._kind = protocol, seed, KINDS[kind]
        self.looks_at = frozenset({net})
        self._samples = Samples(f"{net}/logits")

    def update(self, drawn: Seen) -> None:
        """Add NET/logits (B,C). Raises RequestError for logits that are not finite or of another number of classes than
        the protocol's or those before, and ValueError for a place that came before."""
        array = self._samples.array
        if self._kind.unbiased and f"{array}_unbiased" in drawn.arrays:
            array = f"{array}_unbiased"
        classes, wanted = np.shape(drawn[array])[-1], self._kind.classes
        if wanted is not None and classes not in (wanted, wanted + 1):
            raise RequestError(
                f"{NAME}/{self.protocol} needs logits of {wanted} classes, or of {wanted + 1} with the background "
                f"first, and {array} has {classes}: give the weights of the net that the protocol means"
            )
        self._samples.add(drawn, array)

    def update_real(self, real: Seen) -> None:
        """Nothing: no real picture plays a part."""

    def merge(self, other: "InceptionScore") -> None:
        """Add what another worker saw. Raises ValueError for another protocol or seed."""
        if (self.protocol, self.seed) != (other.protocol, other.seed):
            raise ValueError(f"{other.protocol} with seed {other.seed} is not {self.protocol} with seed {self.seed}")
        self._samples.merge(other._samples)

    def compute(self) -> list[Result]:
        """`inception_score`, with `std` (over splits) as a detail.

        Raises RequestError for fewer than two pictures a split.
        """
        kind, count = self._kind, self._samples.count
        if count < 2 * kind.splits:
            raise RequestError(
                f"{NAME}/{self.protocol} needs at least {2 * kind.splits} pictures, two a split, and has {count}: "
                "judge more"
            )
        places, logits = self._samples.kept()
        if kind.shuffled:
            order = np.argsort(mix(derive_seed(self.seed, ORDER_STREAM), 0, places))
            places, logits = places[order], logits[order]
        logits = logits[:, 1:] if kind.classes is not None and logits.shape[1] > kind.classes else logits
        weights = np.concatenate([np.ones((1, count), np.int64), resample_weights(places, self.seed)])
        scores = inception_scores(logits, weights, kind.splits, kind.tail)
        used = count if kind.tail else count // kind.splits * kind.splits
        value = bootstrapped(float(scores[0].mean()), scores[1:].mean(1), used)
        notes, details = tuple(self._notes(count, used, logits.shape[1])), {"std": float(scores[0].std())}
        return [Result(NAME, self.protocol, value, 0, used, notes, details)]

    def _notes(self, count: int, used: int, classes: int) -> Iterator[str]:
        if used // self._kind.splits < classes:
            yield (
                f"fewer pictures a split ({used // self._kind.splits}) than classes ({classes}): biased downwards, "
                "compare equal counts only"
            )
        if used < count:
            yield f"the last {count - used} of {count} pictures are left out, as the protocol has it"
