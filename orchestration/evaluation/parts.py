"""A part that is trained before a GAN, against held-out pictures: it draws nothing, so it has figures of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.abilities import Captioner, Comparer, Finder, Matcher, Tagger
from models.contract import Batch, Nets
from models.detectors.contract import Detections
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures, held_out_captions
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.estimates import Estimate, figures, wilson
from orchestration.evaluation.finding import found_figures
from orchestration.evaluation.judging import CPU, Verdict
from orchestration.evaluation.metric import Asked, Seen
from orchestration.evaluation.naming import caption_overlap, naming_in_scenes
from orchestration.evaluation.r_precision import NAME, RPrecision, most_others
from orchestration.evaluation.recall import NAME as RECALL
from orchestration.evaluation.recall import Recall
from orchestration.prepared import PreparedSplit

BATCH = 50
OTHERS = 99


class PartJudge:
    """Judges a `Matcher` by R-precision and recall, a `Captioner` by naming, a `Finder` by the boxes it finds, a
    `Comparer` by the triplets it puts in the right order and a `Tagger` by the labels it was taught, on one held-out
    split.

    samples: pictures, each with one caption, drawn with the seed; a finder and a comparer see each once. R-precision is
    1+99, or 1+K where fewer images are judged. Where images share classes, or captions of scenes name the same
    background, colour and thing, it is also given against captions of other classes: those of the same class may well
    be true. Recall is among the captions that are judged and their images. Raises RequestError for a part that is none
    of them and for fewer than two images, RunError where a captioner's words, the boxes that are to be found, or the
    graphs that are compared, were not prepared.
    """

    def __init__(
        self, experiment: Experiment, split: PreparedSplit, samples: int, seed: int, device: torch.device = CPU
    ) -> None:
        self.part = experiment.trainable
        if not isinstance(self.part, Matcher | Captioner | Comparer | Finder | Tagger):
            raise RequestError(
                f"{experiment.system} neither matches nor describes pictures, nor finds or compares what is in them, "
                "nor tags words, so nothing here can judge it: give its class embed and encode, describe, find, "
                "compare, or tag (models/contract.py)"
            )
        self.seed, self.device = seed, device
        self.data: CaptionedPictures = split.open()
        if isinstance(self.part, Captioner) and self.data.tokens is None:
            raise RunError(f"no word indices were prepared for {experiment.system}: add tokens to what it reads")
        if isinstance(self.part, Finder) and self.data.objects is None:
            raise RunError(f"no boxes were prepared for {experiment.system}: add objects to what it reads")
        if isinstance(self.part, Comparer) and self.data.graphs is None:
            raise RunError(f"no scene graphs were prepared for {experiment.system}: add graphs to what it reads")
        self.items, self.captions = held_out_captions(self.data.index, samples, seed)
        self.image_ids = self.data.image_ids[self.items]
        if len(np.unique(self.image_ids)) < 2:
            raise RequestError(
                f"{experiment.system} is judged by telling images apart, and {len(np.unique(self.image_ids))} was held "
                "out: choose a larger split as data.validation_split"
            )
        self.labels: list[list[str]] | None = None
        if split.labels:
            known = json.loads((Path(split.labels) / "labels.json").read_text())
            self.labels = [known[str(image_id)] for image_id in self.image_ids.tolist()]

    def __call__(self, nets: Nets) -> Verdict:
        """Figures of these nets, in evaluation mode meanwhile. Nothing is random: equal nets have equal figures."""
        found: dict[str, float] = {}
        protocols = []
        with torch.inference_mode(), _evaluating(nets):
            if isinstance(self.part, Matcher):
                metrics, recall = self._match(self.part, nets)
                every: list[RPrecision | Recall] = [*metrics, recall]
                for metric in every:
                    found |= figures({result.figure: result.estimate for result in metric.compute()})
                protocols += [f"{NAME}/{metrics[0].protocol}", f"{RECALL}/{recall.protocol}"]
            if isinstance(self.part, Captioner):
                found |= self._name(self.part, nets)
                protocols.append("naming/caption-overlap" if self.labels is None else "naming/scenes")
            if isinstance(self.part, Finder):
                found |= self._find(self.part, nets)
                protocols.append("finding")
            if isinstance(self.part, Comparer):
                found |= self._compare(self.part, nets)
                protocols.append("triplets")
            if isinstance(self.part, Tagger):
                found |= self._tag(self.part, nets)
                protocols.append("tags")
        return Verdict(" ".join(protocols), found, len(self.items))

    def _match(self, part: Matcher, nets: Nets) -> tuple[list[RPrecision], Recall]:
        classes = self._classes()
        protocols = [f"1+{min(OTHERS, most_others(self.image_ids))}"]
        if classes is not None and (others := min(OTHERS, most_others(self.image_ids, classes))):
            protocols.append(f"1+{others}-other-classes")
        metrics = [RPrecision(protocol, self.seed) for protocol in protocols]
        recall = Recall(metrics[0].view)
        for places, batch in self._batches():
            embedded = zip(("picture", "caption"), part.embed(nets, batch), strict=True)
            seen = Seen(
                self._asked(places, self.image_ids if classes is None else classes),
                {f"{metrics[0].view}/{name}": array.float().cpu().numpy() for name, array in embedded},
            )
            for metric in metrics:
                metric.update(seen)
            recall.update_real(seen)
        return metrics, recall

    def _asked(self, places: NDArray[np.int64], classes: NDArray[np.int64]) -> Asked:
        texts = [self.data.index.texts[caption] for caption in self.captions[places]]
        return Asked(places, self.image_ids[places], classes[places], self.captions[places], texts)

    def _name(self, part: Captioner, nets: Nets) -> dict[str, float]:
        assert self.data.tokens is not None
        vocabulary = self.data.tokens.vocabulary
        told = []
        for _, batch in self._batches():
            told += [vocabulary.decode(row) for row in part.describe(nets, batch).tolist()]
        if self.labels is not None:
            return naming_in_scenes(told, self.labels)
        return caption_overlap(told, [self.data.index.texts[caption] for caption in self.captions])

    def _find(self, part: Finder, nets: Nets) -> dict[str, float]:
        """Of each picture once: one that is judged twice would only seem to be two."""
        assert self.data.objects is not None
        items, first = np.unique(self.items, return_index=True)
        found: list[Detections] = []
        for _, batch in self._batches(first):
            assert batch.images is not None
            found += part.find(nets, batch.images)
        return found_figures(found, self.data.objects.take(items))

    def _compare(self, part: Comparer, nets: Nets) -> dict[str, float]:
        """Of the triplets within each portion of pictures. Those of one patch hang together: the interval is that of as
        many independent pictures."""
        _, first = np.unique(self.items, return_index=True)
        right = total = 0.0
        for _, batch in self._batches(first):
            near, far = part.compare(nets, batch)
            right += float((near < far).sum() + (near == far).sum() / 2)
            total += len(near)
        if not total:
            raise RequestError("no held-out picture has two objects, so there is nothing to compare: choose other data")
        order: Estimate = wilson(right / total, len(first))
        return {**figures({"triplets/in-order": order}), "triplets_count/in-order": total}

    def _tag(self, part: Tagger, nets: Nets) -> dict[str, float]:
        """Of each narrative's words that have a label. Those of one narrative hang together: the interval is that of as
        many independent narratives. Majority is the share of the most frequent label."""
        _, first = np.unique(self.captions, return_index=True)
        right, labels = 0, list[NDArray[np.int64]]()
        for _, batch in self._batches(first):
            if batch.tagged is None:
                raise RunError(f"no tagged words were prepared for {type(part).__name__}: add tagged to what it reads")
            taught = batch.tagged.first & (batch.tagged.labels >= 0)
            told = batch.tagged.labels[taught]
            right += int((part.tag(nets, batch)[taught] == told).sum())
            labels.append(told.cpu().numpy())
        flat = np.concatenate(labels)
        if not len(flat):
            raise RequestError("no word of the held-out narratives has a label: choose data with traces or tags")
        agreement: Estimate = wilson(right / len(flat), len(first))
        majority = float(np.bincount(flat).max() / len(flat))
        return {
            **figures({"tags/agreement": agreement}),
            "tags/majority": majority,
            "tags_count/agreement": float(len(flat)),
        }

    def _classes(self) -> NDArray[np.int64] | None:
        """(samples,) what pictures of one class share; None where every image is a class of its own."""
        if self.labels is not None:
            return np.unique(self.labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
        classes = self.data.index.class_ids[self.items]
        return None if np.array_equal(classes, self.image_ids) else classes

    def _batches(self, samples: NDArray[np.int64] | None = None) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Places among the samples, and the samples as training would see them, but cut in the centre; None: of all."""
        wanted = np.arange(len(self.items), dtype=np.int64) if samples is None else samples
        for start in range(0, len(wanted), BATCH):
            places = wanted[start : start + BATCH]
            yield places, self.data.still(self.items[places], self.captions[places]).to(self.device)


@contextmanager
def _evaluating(nets: Nets) -> Iterator[None]:
    """The nets are in evaluation mode in here, and afterwards every module is as it was."""
    before = [(module, module.training) for net in nets.values() for module in net.modules()]
    for net in nets.values():
        net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
