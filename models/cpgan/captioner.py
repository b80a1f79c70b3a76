"""The captioner whose attention says which region of a picture a word means (CPGAN, section 3.2.1).

The net is the top-down part of Anderson et al., "Bottom-Up and Top-Down Attention for Image Captioning and Visual
Question Answering", 2018 (here "BUTD"), sections 3.2.1 to 3.2.3; CPGAN takes its regions from YOLOv3. Sections and
equations without a name are BUTD's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from models.attngan.damsm import evaluating, known_words, load_fitting
from models.blocks.noise import drop
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Given,
    Nets,
    Objective,
    Phase,
    Regions,
    Settings,
    StageMissing,
    StepContext,
    Tokens,
    Trainable,
    after_counts,
)
from models.encoders.regions import DETECTOR
from models.losses.captioning import caption_loss, word_accuracy
from models.parts import PART
from models.precision import at_least_float32

STAGE = "captioner"
NET = "captioner"
START = 0
"""The index whose embedding stands before the first word: the end's, which no word's step reads otherwise."""


class AttentionCaptionerConfig(Settings):
    """The captioner's widths and training. Defaults are BUTD's sizes, with CPGAN's regions.

    How many words it knows is the data's to say.
    """

    region_dim: int = Field(
        1024, ge=1, description="F, width of a region's features: 1024 from YOLOv3 (CPGAN, section 3.2.1)"
    )
    region_scale: Literal["none", "unit", "standard"] = Field(
        "standard",
        description='region features before they are read: "none", as they come (BUTD, of features from Faster R-CNN); '
        '"unit", each region\'s divided by their length; "standard", each region\'s shifted and scaled to mean 0 and '
        "variance 1, this project's choice: CPGAN does not say, and features of a large scale learn no attention as "
        "they come. No statistics of other regions enter",
    )
    embedding_dim: int = Field(1000, ge=1, description="E, width of a word's embedding (BUTD: 1000)")
    hidden_dim: int = Field(1000, ge=1, description="M, width of both LSTMs (BUTD: 1000)")
    attention_dim: int = Field(512, ge=1, description="H, width of the attention's hidden layer (BUTD: 512)")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the language LSTM's outputs dropped in training; BUTD names none"
    )
    learn_end: bool = Field(
        True,
        description="predict the end after a caption's last word, so that descriptions end; not after captions that "
        "fill all positions, which may have been cut. Off: descriptions go on to the longest",
    )
    longest_description: int = Field(20, ge=1, description="words of a description at most")
    resolution: int = Field(
        256, ge=8, description="side of the pictures whose regions are found, in pixels: 256 as the GAN's"
    )
    optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=5e-4, beta_1=0.9, beta_2=0.999, gradient_norm=5.0),
        description="of the captioner: this project's choice. BUTD takes 60,000 steps of momentum SGD, batch 100, "
        "learning rate 0.01 falling to 0 in a line; CPGAN takes a captioner that is trained already",
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the steps read of B pictures: features (B,R,F), 0 at padding; projected (B,R,H); mean (B,F); padding
    (B,R)."""

    features: Tensor
    projected: Tensor
    mean: Tensor
    padding: Tensor


_State = tuple[Tensor, Tensor, Tensor, Tensor]


class TopDownCaptioner(nn.Module):
    """Two LSTMs with an attention over regions between them: the first says where to look, the second what is said.

    vocabulary_size: words it knows, with 0 for start, end and padding. A picture without any region is described all
    the same: no attention, and zeros for both the mean and the attended feature.
    """

    def __init__(self, config: AttentionCaptionerConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        region, embedding, hidden = config.region_dim, config.embedding_dim, config.hidden_dim
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        self.attention_lstm = nn.LSTMCell(hidden + region + embedding, hidden)
        self.region_proj = nn.Linear(region, config.attention_dim, bias=False)
        self.state_proj = nn.Linear(hidden, config.attention_dim, bias=False)
        self.score = nn.Linear(config.attention_dim, 1, bias=False)
        self.language_lstm = nn.LSTMCell(region + hidden, hidden)
        self.word = nn.Linear(hidden, vocabulary_size)

    def noise_width(self, steps: int) -> int:
        """Standard normal numbers a caption of `steps` positions needs for dropout."""
        return steps * self.config.hidden_dim

    def forward(self, tokens: Tensor, regions: Regions, noise: Tensor | None = None) -> Tensor:
        """Captions (B,T) int64 of B pictures to logits (B,T,V); step t predicts word t from the words before (equation
        7).

        noise: (B, noise_width(T)) standard normal numbers that decide what dropout drops in training, so that the
        number of workers does not change it; None: torch's own generator decides. Raises ValueError for regions of
        another width.
        """
        states, _ = self._read(tokens, regions)
        logits: Tensor = self.word(self._drop(states, noise))
        return logits

    @torch.no_grad()
    def attend(self, tokens: Tensor, lengths: Tensor, regions: Regions) -> Tensor:
        """(B,T,R): how much each region of a picture counts in the step that predicts each true word (equation 4).

        tokens: (B,T) int64; lengths: (B,) int64. A word's row sums to 1; it is zero at padding, of words as of regions,
        and all zero in a picture without regions. Wants evaluation mode.
        """
        _, attention = self._read(tokens, regions)
        return attention.masked_fill(after_counts(lengths, tokens.shape[1])[..., None], 0.0)

    @torch.no_grad()
    def describe(self, regions: Regions) -> Tensor:
        """The likeliest word at every step, each fed back in: (B, longest_description) int64, 0 after the end.

        The first word is never the end. BUTD searches with a beam of 5 instead. Wants evaluation mode.
        """
        seen = self._look(regions)
        count = len(regions.counts)
        told = torch.zeros(count, self.config.longest_description, dtype=torch.int64, device=seen.mean.device)
        state, word = self._start(seen), told.new_full((count,), START)
        ended = torch.zeros_like(word, dtype=torch.bool)
        for step in range(self.config.longest_description):
            state, _ = self._step(seen, self.embedding(word), state)
            logits = self.word(state[2])
            if step == 0 and logits.shape[1] > 1:
                logits[:, START] = -torch.inf
            word = logits.argmax(1).masked_fill(ended, 0)
            told[:, step] = word
            ended = word == 0
            if bool(ended.all()):
                break
        return told

    def _read(self, tokens: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """The language LSTM's states (B,T,M) and the attention (B,T,R), reading the true words (B,T)."""
        seen = self._look(regions)
        state, states, attention = self._start(seen), [], []
        words = self.embedding(torch.cat([torch.full_like(tokens[:, :1], START), tokens[:, :-1]], 1))
        for step in range(tokens.shape[1]):
            state, weights = self._step(seen, words[:, step], state)
            states.append(state[2])
            attention.append(weights)
        return torch.stack(states, 1), torch.stack(attention, 1)

    def _look(self, regions: Regions) -> _Seen:
        width = regions.features.shape[2]
        if width != self.config.region_dim:
            raise ValueError(
                f"model.region_dim is {self.config.region_dim} but the regions have {width} features: set "
                f"model.region_dim={width}, or find regions with the detector that was meant"
            )
        padding = regions.padding()
        features = regions.features.to(self.word.weight.dtype)
        if self.config.region_scale == "unit":
            features = nn.functional.normalize(features, dim=2)
        elif self.config.region_scale == "standard":
            features = nn.functional.layer_norm(features, (width,))
        features = features.masked_fill(padding[..., None], 0.0)
        mean = features.sum(1) / regions.counts.clamp(min=1)[:, None]
        return _Seen(features, self.region_proj(features), mean, padding)

    def _start(self, seen: _Seen) -> _State:
        zeros = seen.mean.new_zeros(len(seen.mean), self.config.hidden_dim)
        return zeros, zeros, zeros, zeros

    def _step(self, seen: _Seen, word: Tensor, state: _State) -> tuple[_State, Tensor]:
        """One word further: word (B,E), the embedding of the last one; returns the attention (B,R) as well."""
        first, first_cell, second, second_cell = state
        # Equation 2.
        read = torch.cat([second, seen.mean, word.to(seen.mean.dtype)], 1)
        first, first_cell = self.attention_lstm(read, (first, first_cell))
        # Equations 3 and 4.
        scores = self.score(torch.tanh(seen.projected + self.state_proj(first)[:, None, :])).squeeze(2)
        scores = at_least_float32(scores)
        # Not by infinity: the softmax of a picture without regions would have no value.
        scores = scores.masked_fill(seen.padding, torch.finfo(scores.dtype).min)
        attention = scores.softmax(1).masked_fill(seen.padding, 0.0)
        # Equations 5 and 6.
        attended = torch.bmm(attention[:, None, :].to(seen.features.dtype), seen.features).squeeze(1)
        read = torch.cat([attended, first], 1).to(second_cell.dtype)
        second, second_cell = self.language_lstm(read, (second, second_cell))
        return (first, first_cell, second, second_cell), attention

    def _drop(self, states: Tensor, noise: Tensor | None) -> Tensor:
        rate = self.config.dropout
        return drop(states, rate, noise) if self.training and rate > 0 else states


class AttentionCaptioner(Trainable[AttentionCaptionerConfig]):
    """The captioner with attention over regions, trained on the true captions of real pictures."""

    name = "attention_captioner"
    title = "The Bottom-Up and Top-Down Attention captioner (2018), on the regions of CPGAN (2020)"
    Config = AttentionCaptionerConfig
    needs = frozenset({"images", "captions"})
    transform = "attngan"
    reads = frozenset({"regions", "tokens"})

    def stages(self, config: AttentionCaptionerConfig) -> Mapping[str, str]:
        return {DETECTOR: "grid_detector"}

    def build(self, config: AttentionCaptionerConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "captioner". The regions come with the data. Raises ValueError without a vocabulary."""
        return {NET: TopDownCaptioner(config, known_words(given, "the captioner"))}

    def optimizers(self, config: AttentionCaptionerConfig) -> Mapping[str, AdamSettings]:
        return {NET: config.optimizer}

    def text_dim(self, config: AttentionCaptionerConfig) -> int:
        """Width of its own word embeddings: it reads no text features."""
        return config.embedding_dim

    def phases(self, config: AttentionCaptionerConfig) -> Sequence[Phase]:
        """The captioner on the true captions: cross-entropy (equation 9), mean over the words of all ranks."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            tokens, regions = required(batch)
            captioner, positions = cast(TopDownCaptioner, nets[NET]), tokens.ids.shape[1]
            noise = context.noise(captioner.noise_width(positions)) if config.dropout > 0 else None
            logits = captioner(tokens.ids, regions, noise)
            # The 0 that follows a caption is the end.
            said = (tokens.lengths + 1).clamp(max=positions) if config.learn_end else tokens.lengths
            loss = caption_loss(logits, tokens.ids, said, ranks=context.ranks)
            accuracy = word_accuracy(logits, tokens.ids, said, context.ranks)
            return {NET: Objective(loss, {"caption": loss.detach(), "caption_accuracy": accuracy})}

        return [Phase(NET, (NET,), losses)]

    def describe(self, nets: Nets, batch: Batch) -> Tensor:
        """`batch.regions` to word indices (B,T) int64, 0 after the description, at least one word."""
        assert batch.regions is not None
        with evaluating(nets[NET]):
            return cast(TopDownCaptioner, nets[NET]).describe(batch.regions)


def required(batch: Batch) -> tuple[Tokens, Regions]:
    """What the captioner reads of a batch."""
    assert batch.tokens is not None and batch.regions is not None
    return batch.tokens, batch.regions


def frozen_captioner(given: Given, resolution: int) -> nn.Module:
    """The trained stage's `TopDownCaptioner`, of the settings that it was trained with.

    resolution: side of the pictures whose regions it will read. Raises StageMissing without the stage; ValueError where
    it is of another part, another vocabulary or another side, or cannot be read. On "meta" without the stage: the
    published one, empty.
    """
    words = known_words(given, "the captioner") if STAGE in given.folders else max(given.vocabulary_size, 2)
    if STAGE not in given.folders:
        if torch.empty(0).device.type != "meta":
            raise StageMissing(f"{NET} comes from the trained stage {STAGE!r}, which was not given")
        return TopDownCaptioner(AttentionCaptionerConfig(), words).requires_grad_(False).eval()
    config = _settings_of(given)
    if config.resolution != resolution:
        raise ValueError(
            f"resolution is {resolution}, but the trained stage {STAGE!r} learnt from regions of pictures of side "
            f"{config.resolution}: set resolution={config.resolution}, or train the stage with resolution={resolution}"
        )
    return load_fitting(TopDownCaptioner(config, words), given, STAGE, NET, "the data's vocabulary")


def _settings_of(given: Given) -> AttentionCaptionerConfig:
    file = given.folders[STAGE] / PART
    try:
        described = json.loads(file.read_text())
        system = described["system"]
        if system != AttentionCaptioner.name:
            raise ValueError(f"it holds the part {system!r}, not {AttentionCaptioner.name!r}")
        return AttentionCaptionerConfig.model_validate(described["model"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(
            f"the trained stage {STAGE!r} in {file.parent} cannot be read ({reason}): train it again"
        ) from error
