"""Where an experiment's salient boxes come from: a trained detector, a published one, or a folder of one's own."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.contract import Given
from models.encoders.image import WeightsMissing
from models.encoders.regions import RegionNet, RegionSettings, open_region_net
from models.encoders.trunk import RANDOM, ImageTrunk, find_trunk_weights
from orchestration.data.records import Dataset
from orchestration.data.regions import RegionFeatures, check_detector, check_features, digest_regions, open_regions
from orchestration.errors import RequestError
from orchestration.stages import file_sha256


class RegionSource:
    """One for all parts of an experiment: what is opened and checked here is so once.

    settings: with whole paths, as other processes have another current folder.
    """

    def __init__(self, settings: RegionSettings) -> None:
        self.settings = _whole_paths(settings)
        self._own: dict[tuple[str, str], RegionFeatures] = {}
        self._digests: dict[str, str] = {}

    @property
    def plain(self) -> dict[str, Any]:
        """What changes regions, but for the weights: JSON without any path."""
        values = self.settings.model_dump(mode="json", exclude={"folder": True, "detector": {"weights", "names"}})
        if self.settings.trunk is not None and self.settings.trunk.weights != RANDOM:
            values["trunk"].pop("weights")
        return values

    @cached_property
    def published(self) -> RegionNet | None:
        """The published detector with its pooling; None where the trained part finds. Raises RequestError."""
        if self.settings.detector is None:
            return None
        return self.open(Given(regions=self.settings))

    def open(self, given: Given) -> RegionNet:
        """The detector with its pooling. Raises RequestError."""
        try:
            return open_region_net(given)
        except (WeightsMissing, ValueError) as error:
            raise RequestError(f"regions.detector: {error}") from error

    def inputs(self, trained: str | None) -> dict[str, str]:
        """What a stage that runs the detector depends on, beside `plain`; trained: key of the trained part's stage."""
        if self.published is not None:
            return {"detector": self.published.digest}
        if trained is None:
            raise RequestError("salient boxes need a detector: name a published one, or give the stage detector")
        found = {"detector": trained}
        if self.settings.trunk is not None:
            found["trunk"] = self._trunk_digest
        return found

    @cached_property
    def _trunk_digest(self) -> str:
        assert self.settings.trunk is not None
        try:
            file = find_trunk_weights(self.settings.trunk, "regions.trunk")
        except WeightsMissing as error:
            raise RequestError(str(error)) from error
        return RANDOM if file is None else file_sha256(file)

    def own(self, dataset: Dataset) -> RegionFeatures:
        """A person's own regions of a split, every number of them checked. Raises RequestError."""
        assert self.settings.folder is not None
        folder, key = Path(self.settings.folder) / dataset.split, (dataset.split, dataset.digest)
        if key not in self._own:
            if not folder.is_dir():
                raise RequestError(
                    f"regions.folder: there is no folder {folder}: give one that holds a folder for each split, as "
                    "docs/data.md says"
                )
            image_ids = np.array([record.image_id for record in dataset.records], np.int64)
            found = open_regions(folder).of(image_ids, dataset.digest)
            check_features(found)
            self._own[key] = found
        return self._own[key]

    def own_digest(self, dataset: Dataset) -> str:
        """Of a person's own regions of a split: every byte of them."""
        found = self.own(dataset)
        if dataset.split not in self._digests:
            self._digests[dataset.split] = digest_regions(found.folder)
        return self._digests[dataset.split]

    def width(self, detector_dim: int | None) -> int:
        """Features of a region that is found; detector_dim: of the trained detector."""
        if self.settings.trunk is not None:
            with torch.device("meta"):
                return ImageTrunk(self.settings.trunk).region_dim
        if self.published is not None:
            return self.published.feature_dim
        if detector_dim is None:
            raise RequestError("salient boxes need a detector: name a published one, or give the stage detector")
        return detector_dim

    def check_own_detector(self, digest: str, datasets: Sequence[Dataset]) -> None:
        """RequestError where a person's own regions are of another detector than the one with that digest."""
        for dataset in datasets if self.settings.folder is not None else ():
            check_detector(self.own(dataset), digest)


def check_region_dim(field: str, wanted: int | None, width: int, where: str) -> None:
    """RequestError where settings are for regions of another width. field: their name; where: whose regions."""
    if wanted not in (None, width):
        raise RequestError(
            f"{field} is {wanted}, but {where} gives {width} features a region: add --set {field}={width}"
        )


def _whole_paths(settings: RegionSettings) -> RegionSettings:
    values = settings.model_dump(mode="json")
    if settings.folder is not None:
        values["folder"] = _whole(settings.folder)
    if settings.detector is not None:
        values["detector"] |= {
            name: _whole(path)
            for name in ("weights", "names")
            if (path := getattr(settings.detector, name)) is not None
        }
    if settings.trunk is not None and settings.trunk.weights not in (None, RANDOM):
        values["trunk"]["weights"] = _whole(str(settings.trunk.weights))
    return RegionSettings.model_validate(values)


def _whole(path: str) -> str:
    return str(Path(path).expanduser().resolve())
