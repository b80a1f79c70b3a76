"""Any detector that `transformers` loads, from a folder on this machine: DETR, YOLOS, RT-DETR and their kin."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.detectors.boxes import selected
from models.detectors.contract import Detections, DetectorSettings, file_digest, one_by_one, settings_digest
from models.detectors.framing import check_pictures
from models.encoders.image import WeightsMissing

_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"


class TransformersDetector:
    """A detector of `transformers` as a `Detector`: weights from safetensors alone, nothing fetched, no remote code.

    Pictures are made ready, and boxes read, by the folder's own image processor in its PIL form, so that torchvision is
    not needed. Raises WeightsMissing with a sentence.
    """

    def __init__(self, folder: Path, settings: DetectorSettings, device: torch.device) -> None:
        _check_folder(folder)
        self.settings = settings
        try:
            with _quiet():
                self.processor, net, report = _load(folder)
        except WeightsMissing:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WeightsMissing(
                f"no detector could be loaded from {folder} ({lines[0]}): give the folder of an object detector that "
                "transformers knows, with safetensors weights"
            ) from error
        _check_weights(folder, report)
        self.net = net.requires_grad_(False).eval().to(device)
        labels = self.net.config.id2label
        self.names = tuple(str(labels.get(place, f"class {place}")) for place in range(max(labels) + 1))
        self.name = f"transformers-{self.net.config.model_type}"
        self.digest = settings_digest(settings, self.names, _folder_digest(folder))

    @property
    def device(self) -> torch.device:
        """Where its net is now."""
        return next(iter(self.net.parameters())).device

    @torch.no_grad()
    def detect(self, pictures: Tensor) -> list[Detections]:
        """As `Detector.detect`."""
        check_pictures(pictures)
        if not len(pictures):
            return []
        parts = torch.split(pictures.cpu(), 1 if one_by_one(self.device) else len(pictures))
        return [found for part in parts for found in self._detect(part)]

    def _detect(self, pictures: Tensor) -> list[Detections]:
        height, width = pictures.shape[-2:]
        inputs = self.processor(
            images=[picture.permute(1, 2, 0).numpy() for picture in pictures],
            input_data_format="channels_last",
            return_tensors="pt",
        ).to(self.device)
        outputs = self.net(**inputs)
        if not outputs.logits.isfinite().all() or not outputs.pred_boxes.isfinite().all():
            raise WeightsMissing(f"{self.name} finds boxes that are no numbers: its weights are damaged, give others")
        # Its threshold is exclusive, ours is not.
        sizes = torch.tensor([[height, width]] * len(pictures))
        read = self.processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)
        return [self._found(one, height, width) for one in read]

    def _found(self, one: dict[str, Tensor], height: int, width: int) -> Detections:
        found = Detections(one["boxes"].float().cpu(), one["scores"].float().cpu(), one["labels"].cpu())
        found = selected(found, self.settings)
        size = found.boxes.new_tensor([width, height, width, height])
        return Detections((found.boxes / size).clamp(0, 1), found.scores, found.classes)


def _check_folder(folder: Path) -> None:
    for name in (_CONFIG, _PROCESSOR):
        if not (folder / name).is_file():
            raise WeightsMissing(f"{folder} has no {name}: give the folder of a detector as transformers saves it")
    if not list(folder.glob("*.safetensors")):
        raise WeightsMissing(
            f"{folder} has no .safetensors weights, and no other kind is read because it could run code: save the "
            "detector as safetensors"
        )


def _load(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Image processor, net, and what loading says of weights that do not fit."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

    local = {"local_files_only": True, "trust_remote_code": False}
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
    if not type(processor).__name__.endswith("Pil"):
        raise WeightsMissing(
            f"{folder} wants {type(processor).__name__}, which needs torchvision: give a detector whose image "
            "processor has a PIL form, such as DETR, YOLOS or RT-DETR"
        )
    if not hasattr(processor, "post_process_object_detection"):
        raise WeightsMissing(
            f"{folder} wants {type(processor).__name__}, which reads no boxes: give the folder of an object detector"
        )
    config = AutoConfig.from_pretrained(folder, **local)
    net, report = AutoModelForObjectDetection.from_pretrained(
        folder, config=config, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **local
    )
    return processor, net, report


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of weights: what does not fit is refused in a sentence of ours."""
    from transformers.utils import logging as library

    level, bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bar:
            library.enable_progress_bar()


def _check_weights(folder: Path, report: dict[str, Any]) -> None:
    """A net that is filled in part detects noise: transformers only warns."""
    lacking = sorted(map(str, report["missing_keys"])) + sorted(map(str, report["mismatched_keys"]))
    if lacking:
        raise WeightsMissing(
            f"{folder} lacks {len(lacking)} weights of its net, {lacking[0]} first: give the folder of a whole detector"
        )


def _folder_digest(folder: Path) -> str:
    names = [_CONFIG, _PROCESSOR, *sorted(path.name for path in folder.glob("*.safetensors"))]
    digests = {name: file_digest(folder / name) for name in names}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
