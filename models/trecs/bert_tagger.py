"""TReCS's tagger as a part that is trained before it: a BERT that learned noisy or refined labels (section 2.1,
"Auto-Supervised Training").

"BERT-Large uncased, fine-tuned on HMM tags, Adam 1e-5" (section 4.2) is all that is said. That each word is tagged at
its first piece, how much of a narrative is read, and what is dropped in training are choices.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.attngan.damsm import evaluating
from models.blocks.label_maps import known_classes
from models.blocks.noise import drop
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Given,
    Nets,
    Objective,
    Phase,
    Settings,
    StepContext,
    TaggedWords,
    Trainable,
)
from models.encoders.bert import Bert, BertSettings
from models.parallel import Ranks, mean_over_ranks
from models.precision import at_least_float32

PART, NET = "bert_tagger", "tagger"
_HEAD_STD = 0.02  # as BERT's own layers are initialised


class BertTaggerConfig(Settings):
    """The tagger and its training."""

    tags: Literal["raw", "hmm"] = Field(
        "hmm", description='what it is taught: "hmm", the refined labels (section 2.1), or "raw", the noisy ones'
    )
    bert: BertSettings = Field(BertSettings(), description="the BERT that is fine-tuned (section 4.2: BERT-Large)")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of BERT's output that is dropped in training; not given. Nothing is dropped within BERT, so "
        "that the number of workers does not change what is",
    )
    max_pieces: int = Field(
        256, ge=4, description="word pieces read of a narrative at once, [CLS] and [SEP] included; not given"
    )
    excluded: tuple[str, ...] = Field(
        ("other", "background"),
        description="classes whose probability is 0 in training and inference (section 4.2); words labelled so teach "
        "nothing",
    )
    optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=1e-5, beta_1=0.9, beta_2=0.999),
        description="Adam with a learning rate of 1e-5 (section 4.2); betas are not given",
    )
    resolution: int = Field(
        256, ge=16, description="side of the pictures that come along with the narratives; it does not look at them"
    )

    @model_validator(mode="after")
    def _within_the_positions(self) -> "BertTaggerConfig":
        if self.max_pieces > self.bert.positions:
            raise ValueError(
                f"max_pieces is {self.max_pieces}, and BERT has {self.bert.positions} positions: make it no more"
            )
        return self


class TaggerNet(nn.Module):
    """Word pieces to the logits of classes; those of excluded classes are -inf."""

    def __init__(self, config: BertTaggerConfig, classes: int, excluded: Sequence[int], bert: Bert) -> None:
        super().__init__()
        self.config, self.excluded = config, tuple(excluded)
        self.bert = bert
        self.head = nn.Linear(config.bert.width, classes)
        nn.init.normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, tagged: TaggedWords, chosen: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """(B,T,K), float32 at least; with chosen (B,T) bool at these pieces alone, (M,K).

        noise: (B, noise_width) standard normal numbers that decide what is dropped in training, None: torch's own.
        """
        features = self.bert(tagged.pieces, tagged.counts)
        if self.training and self.config.dropout > 0:
            _, length, width = features.shape
            normal = None if noise is None else noise.view(len(noise), -1, width)[:, :length]
            features = drop(features, self.config.dropout, normal)
        logits = at_least_float32(self.head(features if chosen is None else features[chosen]))
        if self.excluded:
            logits[..., list(self.excluded)] = -torch.inf
        return logits

    @property
    def noise_width(self) -> int:
        """Standard normal numbers that a narrative needs for dropout, however long it is."""
        return self.config.max_pieces * self.config.bert.width


class BertTagger(Trainable[BertTaggerConfig]):
    """Koh et al., "Text-to-Image Generation Grounded by Fine-Grained User Attention", WACV 2021, section 2.1."""

    name = PART
    title = "TReCS's BERT tagger: a class for every word of a narrative (2021)"
    Config = BertTaggerConfig
    needs = frozenset({"images", "narratives", "labels"})
    transform = "xmcgan"
    reads = frozenset({"tagged"})

    def build(self, config: BertTaggerConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "tagger". Raises WeightsMissing, and ValueError without classes, or where none of them is left."""
        classes = known_classes(given, self.name)
        if given.class_names and len(given.class_names) != classes:
            raise ValueError(f"there are {classes} classes and {len(given.class_names)} names of them: give each one")
        excluded = [place for place, name in enumerate(given.class_names) if name in config.excluded]
        if given.class_names and len(excluded) == classes:
            raise ValueError(f"all {classes} classes are excluded: name fewer in excluded, or label other data")
        return {NET: TaggerNet(config, max(classes, 1), excluded, Bert(config.bert, given.encoders))}

    def optimizers(self, config: BertTaggerConfig) -> Mapping[str, AdamSettings]:
        return {NET: config.optimizer}

    def phases(self, config: BertTaggerConfig) -> Sequence[Phase]:
        """The tagger on every word of the batch that has a label."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            net, tagged = cast(TaggerNet, nets[NET]), batch.tagged
            assert tagged is not None
            noise = context.noise(net.noise_width) if config.dropout > 0 else None
            taught = taught_words(tagged, net.excluded)
            return {NET: tagging_objective(net(tagged, taught, noise), tagged.labels[taught], context.ranks)}

        return [Phase(NET, (NET,), losses)]

    def tag(self, nets: Nets, batch: Batch) -> Tensor:
        """(B,T) int64, the likeliest class at each piece; of no meaning where no word begins."""
        net = nets[NET]
        assert batch.tagged is not None
        with torch.no_grad(), evaluating(net):
            likeliest: Tensor = net(batch.tagged).argmax(2)
        return likeliest


def taught_words(tagged: TaggedWords, excluded: Sequence[int] = ()) -> Tensor:
    """(B,T) bool, the pieces at which a word has a label that can be taught."""
    taught = tagged.first & (tagged.labels >= 0)
    for label in excluded:
        taught &= tagged.labels != label
    return taught


def tagging_objective(logits: Tensor, labels: Tensor, ranks: Ranks) -> Objective:
    """The mean cross-entropy of a batch's words, every rank's; logits (M,K), labels (M,) int64. 0 without words.

    Terms: the loss, and the share of words whose likeliest class is the label.
    """
    loss = mean_over_ranks(F.cross_entropy(logits, labels, reduction="none"), ranks)
    right = mean_over_ranks((logits.detach().argmax(1) == labels).to(loss.dtype), ranks)
    return Objective(loss, {"loss": loss.detach(), "accuracy": right.detach()})
