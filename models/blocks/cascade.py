"""The cascaded generator of AttnGAN, on which MirrorGAN and CPGAN build: its settings, its blocks and its stages.

Paper: Xu et al., "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial Networks",
2018. Where paper and released code differ the setting says so.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.blocks.initial import initialise
from models.blocks.noise import NoiseShape, drawn_numbers, shape_noise
from models.blocks.norm import BatchNorm, StatisticsScope
from models.contract import AdamSettings, AverageSettings, Settings, TextFeatures

LOWEST_SIDE = 8


class CascadeSettings(Settings):
    """Generator, discriminators and their training. Defaults are the released configuration for CUB at 256 px."""

    resolution: Literal[8, 16, 32, 64, 128, 256, 512] = Field(
        256, description="side of the last stage's pictures in pixels; 256 in the paper (section 3.1)"
    )
    stages: int = Field(
        3, ge=1, le=6, description="m, generators in the cascade, each twice the side of the one before (section 4: 3)"
    )
    generator_channels: int = Field(
        32, ge=1, description="width of every stage's last feature map; released: 32 for CUB, 48 for COCO"
    )
    discriminator_channels: int = Field(
        64, ge=1, description="width of the 64 px discriminator's first layer; released: 64 for CUB, 96 for COCO"
    )
    residual_blocks: int = Field(
        2, ge=0, description="residual blocks in each later stage; released: 2 for CUB, 3 for COCO; CPGAN: 3"
    )
    text_dim: int = Field(256, ge=1, description="D, width of word and sentence features (section 4: 256)")
    noise_dim: int = Field(100, ge=1, description="width of z (released: 100)")
    condition_dim: int = Field(
        100, ge=1, description="width of the augmented sentence (released: 100; MirrorGAN, section 4.1.3: D' = 100)"
    )

    noise: NoiseShape = Field(
        "normal",
        description='"normal" (AttnGAN, MirrorGAN); "truncated" is exactly truncated (CPGAN, section 4); '
        '"truncated_first_of_four" is CPGAN\'s released form, where a few numbers lie outside',
    )
    noise_threshold: float = Field(2.0, gt=0, description="truncated noise lies in (-threshold, threshold) (CPGAN: 2)")
    legacy_mask: bool = Field(
        False,
        description="give regions the padding of other samples, as the released code does by mistake: for weights that "
        "were trained so; off is the paper's equation",
    )
    batch_norm: StatisticsScope = Field(
        "global", description='batch statistics over all workers, or "rank": of each alone'
    )

    adversarial: Literal["bce", "hinge"] = Field(
        "bce", description='"bce" (AttnGAN, equations 5 and 6; MirrorGAN, 7 and 10) or "hinge" (CPGAN, 4 and 5)'
    )
    generator_terms: Literal["sum", "mean"] = Field(
        "sum",
        description="the generator's unconditional and conditional term: their sum (released), or each with weight 1/2 "
        "(AttnGAN, equation 5; MirrorGAN, equation 7; CPGAN, equation 4)",
    )
    mismatched_pairs: bool = Field(
        True,
        description="show the conditional discriminator real pictures with another sentence; true weighs three fake "
        "terms by 1/3 (released; CPGAN, equation 5), false two by 1/2 (AttnGAN, equation 6; MirrorGAN, 10)",
    )
    kl_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the conditioning augmentation's KL term in its mean form (released: 1; absent from "
        "AttnGAN's equation 3 and MirrorGAN's equation 9)",
    )
    generator_optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=2e-4, beta_1=0.5, beta_2=0.999), description="released"
    )
    discriminator_optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=2e-4, beta_1=0.5, beta_2=0.999), description="released, for every discriminator"
    )
    average: AverageSettings = Field(
        AverageSettings(decay=0.999),
        description="moving average of the generator, used to sample (released: parameters only, live statistics)",
    )

    @model_validator(mode="after")
    def _large_enough(self) -> "CascadeSettings":
        if self.sides[0] < LOWEST_SIDE:
            raise ValueError(
                f"{self.stages} stages up to {self.resolution} px start below {LOWEST_SIDE} px: "
                f"set fewer stages or a resolution of at least {LOWEST_SIDE << (self.stages - 1)}"
            )
        return self

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of every stage's pictures, lowest first."""
        return tuple(self.resolution >> (self.stages - 1 - stage) for stage in range(self.stages))

    @property
    def drawn_noise(self) -> int:
        """Standard normal numbers a picture needs: for z, then for the conditioning augmentation."""
        return drawn_numbers(self.noise_dim, self.noise) + self.condition_dim


class UpBlock(nn.Module):
    """Nearest up-sampling by 2, 3x3 convolution, batch norm, gated linear unit: (B,C,H,W) to (B,out,2H,2W)."""

    def __init__(self, width: int, out: int, scope: StatisticsScope = "global") -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * out, 3, padding=1, bias=False)
        self.bn = BatchNorm(2 * out, scope)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.bn(self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))), 1)


class ResidualBlock(nn.Module):
    """x + norm(conv(glu(norm(conv(x))))) with 3x3 convolutions, nothing after the sum: (B,C,H,W) to the same."""

    def __init__(self, width: int, scope: StatisticsScope = "global") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(2 * width, scope)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(width, scope)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(F.glu(self.bn1(self.conv1(x)), 1)))


class ConditioningAugmentation(nn.Module):
    """Sentence to mean and log-variance of a normal distribution of conditions (StackGAN, section 3.2)."""

    def __init__(self, text_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(text_dim, 4 * condition_dim)

    def forward(self, sentence: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sentence: (B,D), noise: (B,K) standard normal. Returns c = mu + noise * sigma, mu and log sigma^2, (B,K)."""
        mu, log_variance = F.glu(self.linear(sentence), 1).chunk(2, 1)
        return mu + noise.to(mu.dtype) * (0.5 * log_variance).exp(), mu, log_variance


class FirstStage(nn.Module):
    """F_0: condition and noise to the first feature map, from 4x4 up (AttnGAN, equation 1)."""

    def __init__(self, config: CascadeSettings) -> None:
        super().__init__()
        scope, channels = config.batch_norm, config.generator_channels
        doublings = (config.sides[0] // 4).bit_length() - 1
        width = channels << doublings
        self.linear = nn.Linear(config.condition_dim + config.noise_dim, 2 * width * 4 * 4, bias=False)
        self.linear_bn = BatchNorm(2 * width * 4 * 4, scope)
        self.ups = nn.ModuleList([UpBlock(width >> i, width >> (i + 1), scope) for i in range(doublings)])

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        """(B,K) and (B,Z) to (B,C,H,W)."""
        h = F.glu(self.linear_bn(self.linear(torch.cat([condition, noise.to(condition.dtype)], 1))), 1)
        h = h.view(len(h), -1, 4, 4)
        for up in self.ups:
            h = up(h)
        return h


class LaterStage(nn.Module):
    """F_i, i > 0: what a cascade asks of a stage that refines a feature map with the text."""

    def forward(self, h: Tensor, text: TextFeatures, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W), text and (B,K) to (B,C,2H,2W) and the attention over words (B,T,H,W)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CascadeOutput:
    """images: one (B,3,S,S) in [-1, 1] a stage, lowest first; mu, log_variance: (B,K); attention: (B,T,H,W) a later
    stage."""

    images: tuple[Tensor, ...]
    mu: Tensor
    log_variance: Tensor
    attention: tuple[Tensor, ...]


class CascadeGenerator(nn.Module):
    """Conditioning augmentation, F_0, the given later stages, and a picture from each (AttnGAN, section 3.1)."""

    def __init__(self, config: CascadeSettings, later: list[LaterStage]) -> None:
        super().__init__()
        if len(later) != config.stages - 1:
            raise ValueError(f"{config.stages} stages need {config.stages - 1} later stages, not {len(later)}")
        self.config = config
        self.cond_aug = ConditioningAugmentation(config.text_dim, config.condition_dim)
        self.first = FirstStage(config)
        self.later = nn.ModuleList(later)
        self.to_rgb = nn.ModuleList(
            [nn.Conv2d(config.generator_channels, 3, 3, padding=1, bias=False) for _ in range(config.stages)]
        )
        initialise(self)

    def forward(self, text: TextFeatures, noise: Tensor) -> CascadeOutput:
        """Text of B captions and (B, config.drawn_noise) standard normal numbers to pictures of every stage."""
        config = self.config
        drawn, augmentation = noise[:, : -config.condition_dim], noise[:, -config.condition_dim :]
        condition, mu, log_variance = self.cond_aug(text.sentence, augmentation)
        h = self.first(condition, shape_noise(drawn, config.noise, config.noise_threshold))
        images, attention = [torch.tanh(self.to_rgb[0](h))], []
        carried = h
        for stage, to_rgb in zip(self.later, self.to_rgb[1:], strict=True):
            h, weights = stage(h, text, condition)
            h, carried = self.join(h, carried)
            images.append(torch.tanh(to_rgb(h)))
            attention.append(weights)
        return CascadeOutput(tuple(images), mu, log_variance, tuple(attention))

    def join(self, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """A later stage's map (B,C,2H,2W) with what is carried past it, and what is carried on. In AttnGAN nothing is.

        carried: (B,C,H,W), before the first later stage F_0's own map.
        """
        return h, carried
