"""STREAM, MirrorGAN's captioner (section 3.3)."""

import torch
from torch import Tensor, nn

from models.blocks.norm import BatchNorm
from models.encoders.trunk import ImageTrunk, TrunkFeatures
from models.mirrorgan.config import StreamConfig

BATCH_NORM_MOMENTUM = 0.01
LONGEST_DESCRIPTION = 20


class CaptionDecoder(nn.Module):
    """An LSTM that reads the image feature, then the words, and predicts each next word (equation 6).

    vocabulary_size: words it knows, with 0 for padding.
    """

    def __init__(self, config: StreamConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_dim)
        self.lstm = nn.LSTM(config.embedding_dim, config.hidden_dim, num_layers=1, batch_first=True)
        self.linear = nn.Linear(config.hidden_dim, vocabulary_size)

    def train(self, mode: bool = True) -> "CaptionDecoder":
        """Always in training mode: nothing here depends on it, and cuDNN gives LSTMs a gradient in no other."""
        return super().train(True)

    def forward(self, feature: Tensor, tokens: Tensor) -> Tensor:
        """feature: (B,E), read first; tokens: (B,T) the true words. Returns logits (B,T,V), step t of word t.

        The image predicts word 0, word t predicts word t + 1 (teacher forcing); there are no start and end words.
        """
        inputs = torch.cat([feature[:, None, :], self.embedding(tokens[:, :-1]).to(feature.dtype)], 1)
        hidden, _ = self.lstm(inputs)
        logits: Tensor = self.linear(hidden)
        return logits

    @torch.no_grad()
    def describe(self, feature: Tensor, steps: int = LONGEST_DESCRIPTION) -> Tensor:
        """The most likely word at every step, (B,steps) int64, each fed back in.

        feature: (B,E). As no end is ever predicted, a description goes on for all steps.
        """
        inputs, state, words = feature[:, None, :], None, []
        for _ in range(steps):
            hidden, state = self.lstm(inputs, state)
            word = self.linear(hidden[:, 0]).argmax(1)
            words.append(word)
            inputs = self.embedding(word)[:, None, :].to(feature.dtype)
        return torch.stack(words, 1)


class Stream(nn.Module):
    """A linear map with batch norm, and the decoder: a frozen trunk's features to words.

    The trunk is a net of its own, so that what is trained and saved here is trained here.
    """

    def __init__(self, config: StreamConfig, trunk: ImageTrunk, vocabulary_size: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(trunk.pooled_dim, config.embedding_dim)
        self.image_bn = BatchNorm(config.embedding_dim, momentum=BATCH_NORM_MOMENTUM)
        self.decoder = CaptionDecoder(config, vocabulary_size)

    def encode(self, features: TrunkFeatures) -> Tensor:
        """The trunk's pooled vector (B,F) to x_{-1} (B,E)."""
        feature: Tensor = self.image_bn(self.image_proj(features.pooled))
        return feature

    def forward(self, features: TrunkFeatures, tokens: Tensor) -> Tensor:
        """Features of B pictures and their captions (B,T) to logits (B,T,V) of every word."""
        logits: Tensor = self.decoder(self.encode(features), tokens)
        return logits

    @torch.no_grad()
    def describe(self, features: TrunkFeatures, steps: int = LONGEST_DESCRIPTION) -> Tensor:
        """Descriptions (B,steps) int64 of B pictures, see `CaptionDecoder.describe`. Wants evaluation mode."""
        return self.decoder.describe(self.encode(features), steps)
