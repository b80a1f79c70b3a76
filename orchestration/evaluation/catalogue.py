"""The metrics by name, and how each is opened for a split: `t2i evaluate --metrics` reads this table."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path

import torch

from models.abilities import Captioner, Matcher
from models.contract import NOTHING
from orchestration.config import Experiment
from orchestration.data.features import CaptionIndex
from orchestration.data.sources import SCENES, parse_source
from orchestration.data.vocabulary import load_vocabulary
from orchestration.data.word_encoder import VOCABULARY, opening
from orchestration.errors import RequestError
from orchestration.evaluation.metric import Metric, OpenView, View
from orchestration.evaluation.plans import Plan, by_label
from orchestration.evaluation.soa_captions import Counts, LabelsPlan
from orchestration.preparation import Preparation
from orchestration.prepared import PreparedSplit
from orchestration.requirements import choose_protocol

DUAL, STATISTICS, SOA_CAPTIONS = "dual-encoder", "fid-statistics", "soa-captions"


FILES: dict[str, str] = {
    **{
        f"lpips-{net}": f"LPIPS's {net} net, ImageNet weights in torchvision's names"
        for net in ("alex", "vgg", "squeeze")
    },
    "lpips-heads": "LPIPS's linear layers, where others than v0.1 are wanted",
    "fastestdet": "FastestDet's .onnx file, for soa",
    "yolov3": "YOLOv3's .weights or .safetensors file, for soa",
    "transformers": "the folder of an object detector that transformers saved, for soa",
    SOA_CAPTIONS: "the released captions by label, for soa; without it the data's own captions are searched",
    DUAL: "the folder of a dual encoder that transformers saved, for r_precision/dual and recall/dual",
    STATISTICS: "mean and covariance of real pictures, .npz or .safetensors, in the place of real pictures",
}
"""What --weights takes beside the names of feature nets."""


@dataclass(frozen=True)
class Context:
    """What metrics are opened with. They say which views they need by opening them here.

    weights: paths by name, of FILES, feature nets and detectors; matcher: folder of the trained part that the
    checkpoint's captions are encoded with, None for another encoder; trained: the preparation of the checkpoint's own
    training, where other data is judged.
    """

    experiment: Experiment
    preparation: Preparation
    split: PreparedSplit
    index: CaptionIndex
    seed: int
    samples: int
    weights: Mapping[str, str]
    matcher: Path | None = None
    trained: Preparation | None = None
    views: dict[str, OpenView] = field(default_factory=dict)

    @property
    def scenes(self) -> bool:
        """Whether the pictures are generated scenes."""
        return parse_source(self.experiment.data.source).kind == SCENES

    @property
    def transform(self) -> str | None:
        """How the parts' pictures are made ready, None for as each was published."""
        chosen = self.experiment.data.transform
        return None if chosen == "auto" else chosen

    @cached_property
    def net(self) -> str:
        """The feature net that plain names such as "fid" mean. Raises RequestError when there is none."""
        chosen = choose_protocol(self.experiment)
        if chosen == "none":
            raise RequestError("evaluation.protocol is none: name one, such as efficientnet-lite0, or fid/NET")
        return chosen

    def feature_view(self, net: str) -> str:
        """The view of a feature net, by its name."""
        from orchestration.evaluation.feature_views import NETS, open_feature_view

        if net not in NETS:
            raise RequestError(f"no feature net is called {net!r}: there are {', '.join(NETS)}")
        judge = self.preparation.judge("scenes-net") if net == "scenes-net" and self.scenes else None
        self.views[net] = partial(open_feature_view, net, self.weights.get(net), judge)
        return net

    def part(self, kind: type) -> str | None:
        """The last of the experiment's trained parts of that kind."""
        found = [name for name in self.experiment.needed if isinstance(self.preparation._part(name), kind)]
        return found[-1] if found else None

    @cached_property
    def labelled(self) -> LabelsPlan:
        """Which captions pictures are drawn for that must show an object."""
        from orchestration.evaluation.soa_captions import captions_by_words, labels_plan, matched_to, published_captions

        given, captions = self.weights.get(SOA_CAPTIONS), captions_by_words(self.index)
        if given:
            captions = matched_to(published_captions(Path(given)), self.index)
        if not len(captions):
            raise RequestError(
                f"soa needs captions that name one of COCO's 80 things, and those of {self.experiment.data.source} "
                "name none: judge by other metrics"
            )
        whole = labels_plan(captions, seed=self.seed)
        # All of them where that is no more than was asked for: 420,000 on COCO are days on one machine.
        return (
            whole if len(whole) <= self.samples else labels_plan(captions, Counts(sample=self.samples), seed=self.seed)
        )

    def labels_plan(self) -> Plan:
        """The same as a plan."""
        plan = self.labelled
        return by_label(self.index, plan.captions, plan.labels, self.seed)


Open = Callable[[Context, str | None], Metric]
"""Opens a metric under a protocol; None for the one that its plain name means."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric's name, what it says, and its protocols. module: where PROTOCOLS says what each means."""

    about: str
    open: Open
    module: str

    @property
    def protocols(self) -> Mapping[str, str]:
        """What each protocol means."""
        found: Mapping[str, str] = import_module(f"orchestration.evaluation.{self.module}").PROTOCOLS
        return found


def _fid(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.fid import Fid
    from orchestration.evaluation.fid_statistics import load_statistics

    net = context.feature_view(protocol or context.net)
    given = context.weights.get(STATISTICS)
    return Fid(net, context.seed, load_statistics(Path(given), net) if given else None)


def _kid(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.kid import Kid

    return Kid(context.feature_view(protocol or context.net), context.seed)


def _coverage(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.coverage import Coverage

    return Coverage(context.feature_view(protocol or context.net), context.seed)


def _accuracy(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.accuracy import SceneAccuracy

    labels, judge = context.split.labels, context.preparation.judge("scenes-net") if context.scenes else None
    if labels is None or judge is None:
        raise RequestError(f"accuracy judges generated scenes only, not {context.experiment.data.source}")
    context.feature_view("scenes-net")
    return SceneAccuracy.open(Path(labels), Path(judge))


def _soa(context: Context, protocol: str | None) -> Metric:
    from models.detectors.contract import DetectorSettings
    from orchestration.evaluation.soa import Soa, open_detected_objects

    kinds = {"fastestdet": "onnx-fastestdet", "yolov3": "yolov3", "transformers": "transformers"}
    given = [name for name in kinds if name in context.weights]
    kind = protocol or (given[0] if given else "yolov3")
    if kind not in kinds:
        raise RequestError(f"no detector is called {kind!r}: there are {', '.join(kinds)}")
    if kind not in context.weights:
        raise RequestError(
            f"soa/{kind} needs the detector's weights: add --weights {kind}=PATH, or another detector's "
            f"({', '.join(name for name in kinds if name != kind)})"
        )
    settings = DetectorSettings.model_validate({"kind": kinds[kind], "weights": context.weights[kind]})
    opened = partial(open_detected_objects, settings, 0)
    view: View = opened(torch.device("cpu"))
    context.views[view.name] = opened
    return Soa(view.name.removeprefix("objects-"), context.labelled.protocol, seed=context.seed)


def _lpips(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.diversity import Diversity

    return Diversity(_lpips_view(context, protocol))


def _lpips_view(context: Context, protocol: str | None) -> str:
    from models.losses.lpips import LpipsSettings
    from orchestration.evaluation.diversity import open_lpips, view_name

    nets = ("alex", "vgg", "squeeze")
    given = [net for net in nets if f"lpips-{net}" in context.weights]
    net = (protocol or (given[0] if given else "alex")).removeprefix("lpips-")
    if net not in nets:
        raise RequestError(f"LPIPS has no net {net!r}: there are {', '.join(nets)}")
    weights, heads = context.weights.get(f"lpips-{net}"), context.weights.get("lpips-heads")
    settings = LpipsSettings.model_validate({"net": net, "weights": weights, "heads": heads})
    name = view_name(settings)
    context.views[name] = open_lpips(settings)
    return name


def _duplicates(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.duplicates import Duplicates, Pixels

    context.views["pixels"] = Pixels
    if protocol is None or protocol == "pixels":
        return Duplicates()
    return Duplicates(_lpips_view(context, protocol))


def _inception_score(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.feature_views import NETS
    from orchestration.evaluation.inception_score import InceptionScore

    kind, _, net = (protocol or "openai").partition("/")
    if kind in NETS:  # is/NET
        kind, net = "openai", kind
    usual = {"cpgan": "inception-torchvision", "cub": "inception-cub", "xmcgan": "inception-imagenet"}
    net = net or (usual.get(kind, "inception-2015") if protocol else context.net)
    return InceptionScore(f"{kind}/{context.feature_view(net)}", context.seed)


def _r_precision(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.r_precision import RPrecision

    protocol = protocol or ""
    independent = protocol.startswith("dual")
    protocol = protocol.partition("/")[2] if independent else protocol
    others = min(99, context.samples - 1, len(context.index.image_ids) - 1)
    return RPrecision(protocol or f"1+{others}", context.seed, _matcher_view(context, independent))


def _recall(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.recall import Recall

    return Recall(_matcher_view(context, protocol is not None and protocol.startswith("dual")))


def _matcher_view(context: Context, independent: bool) -> str:
    from orchestration.evaluation.matcher_views import open_dual_encoder_view, open_matcher_view
    from orchestration.evaluation.r_precision import OWN_MATCHER

    if independent:
        if DUAL not in context.weights:
            raise RequestError(f"an independent dual encoder comes by its folder: add --weights {DUAL}=FOLDER")
        opened: OpenView = partial(open_dual_encoder_view, folder=context.weights[DUAL])
        name = opened(torch.device("cpu")).name
        context.views[name] = opened
        return name
    trained = context.trained or context.preparation
    part = trained.text_part if context.matcher else context.part(Matcher)
    if context.matcher is None and part is None:
        raise RequestError(
            f"{context.experiment.system} has no encoder of pictures and captions of its own: name an independent one "
            f"with r_precision/dual and --weights {DUAL}=FOLDER"
        )
    folder, given, text = context.matcher, NOTHING, None
    if part is not None:
        below = trained.below(part)
        folder, given = folder or trained.part(part), below.built_on
        if "features" in below.subject.reads:
            text = opening(context.experiment.text, trained.home.encoders)
    context.views[OWN_MATCHER] = partial(
        open_matcher_view, folder=str(folder), transform=context.transform, given=given, text=text
    )
    return OWN_MATCHER


def _captioning(context: Context, protocol: str | None) -> Metric:
    from orchestration.evaluation.captioning import CaptioningScores
    from orchestration.evaluation.matcher_views import OWN_CAPTIONER, open_captioner_view

    name = context.part(Captioner)
    if name is None:
        raise RequestError(f"{context.experiment.system} trains no captioner, so nothing here describes its pictures")
    folder = context.preparation.part(name)
    transform = context.transform
    context.views[OWN_CAPTIONER] = partial(open_captioner_view, folder=str(folder), transform=transform)
    return CaptioningScores(load_vocabulary(folder / VOCABULARY), seed=context.seed)


FAMILIES: dict[str, Family] = {
    "fid": Family("Frechet distance of features to those of real pictures", _fid, "fid"),
    "kid": Family("kernel distance of features to those of real pictures", _kid, "kid"),
    "coverage": Family("precision, recall, density and coverage among real pictures", _coverage, "coverage"),
    "is": Family("Inception Score: pictures of clear and many classes", _inception_score, "inception_score"),
    "r_precision": Family("share of pictures that find their caption among wrong ones", _r_precision, "r_precision"),
    "recall": Family("captions that find their real picture, and pictures their captions", _recall, "recall"),
    "captioning": Family("how well a captioner says of a picture what its caption says", _captioning, "captioning"),
    "accuracy": Family("share of generated scenes that show what the caption names", _accuracy, "accuracy"),
    "soa": Family("share of pictures in which a detector finds what the caption names", _soa, "soa"),
    "lpips": Family("diversity: distance between pictures of one caption", _lpips, "diversity"),
    "duplicates": Family("share of captions whose pictures are nearly one", _duplicates, "duplicates"),
}


def default_metrics(context: Context) -> list[str]:
    """What the data and the system allow without any further weights."""
    names = ["fid", "kid", "coverage"]
    names += ["accuracy"] if context.scenes else []
    names += ["r_precision"] if context.matcher or context.part(Matcher) else []
    names += ["captioning"] if context.part(Captioner) else []
    return [*names, "duplicates"]


def open_metrics(names: Sequence[str], context: Context) -> list[Metric]:
    """The metrics, METRIC or METRIC/PROTOCOL each, with the views they need in `context`.

    Raises RequestError for a name that is not known, for weights that are missing, and for data that lacks something.
    """
    from orchestration.evaluation.feature_views import NETS

    unknown = [name for name in context.weights if name not in FILES and name not in NETS]
    if unknown:
        known = [*FILES, *NETS]
        near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5) or known
        raise RequestError(f"no weights are called {unknown[0]!r}; near it: {', '.join(near)}")
    metrics = []
    for name in names or default_metrics(context):
        family, slash, protocol = name.partition("/")
        if family not in FAMILIES:
            near = difflib.get_close_matches(family, FAMILIES, n=3, cutoff=0.5)
            raise RequestError(
                f"there is no metric {family!r}; {'near it: ' if near else 'there are '}{', '.join(near or FAMILIES)}"
            )
        if slash and not protocol:
            raise RequestError(
                f"--metrics {name!r} names no protocol after the slash: leave the slash out, or name one"
            )
        metrics.append(FAMILIES[family].open(context, protocol or None))
    return metrics


def describe_metrics() -> Iterator[str]:
    """Lines for a person: every metric, and its protocols."""
    from orchestration.evaluation.feature_views import NETS

    for name, family in FAMILIES.items():
        yield f"{name}: {family.about}"
        for protocol, meaning in family.protocols.items():
            yield f"    {protocol:34} {meaning}"
    yield "NET is a view that gives features and logits:"
    for net, recipe in NETS.items():
        yield f"    {net:34} {recipe.about}"
    yield "--weights NAME=PATH takes the name of a view that needs them, or:"
    for name, meaning in FILES.items():
        yield f"    {name:34} {meaning}"
