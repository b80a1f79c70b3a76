"""AttnGAN's text encoder: a bidirectional LSTM over word embeddings (section 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.attngan.config import TextEncoderSettings
from models.blocks.noise import drop
from models.contract import TextFeatures


class TextEncoder(nn.Module):
    """Word ids to `TextFeatures`: each word's two hidden states, and the last state of each direction as sentence.

    Captions may come in any order; what one caption gives does not depend on the others. vocabulary_size: words it
    knows, with 0 for padding; input_dim: width of what the LSTM reads of a word, the embedding's where not given.
    """

    def __init__(self, settings: TextEncoderSettings, vocabulary_size: int, input_dim: int | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.input_dim = input_dim or settings.embedding_dim
        self.embedding = nn.Embedding(vocabulary_size, settings.embedding_dim)
        self.lstm = nn.LSTM(self.input_dim, settings.text_dim // 2, num_layers=1, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def noise_width(self, steps: int) -> int:
        """Standard normal numbers a caption of `steps` positions needs for dropout."""
        return steps * self.input_dim

    def forward(self, tokens: Tensor, lengths: Tensor, noise: Tensor | None = None) -> TextFeatures:
        """tokens: (B,T) int64, 0 after the caption; lengths: (B,) int64, 1 to T. Words are zero at padding.

        noise: (B, noise_width(T)) standard normal numbers that decide what dropout drops in training, so that the
        number of workers does not change it; None: torch's own generator decides.
        """
        return self.read(self.embed(tokens), lengths, noise)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B,T) int64 to what the LSTM reads of each word, (B,T,input_dim)."""
        embedded: Tensor = self.embedding(tokens)
        return embedded

    def read(self, embedded: Tensor, lengths: Tensor, noise: Tensor | None = None) -> TextFeatures:
        """(B,T,input_dim) to features; lengths and noise as in `forward`."""
        dropped = self._drop(embedded, noise)
        packed = pack_padded_sequence(dropped, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, (last, _) = self.lstm(packed)
        words, _ = pad_packed_sequence(states, batch_first=True, total_length=embedded.shape[1])
        return TextFeatures(words, lengths, torch.cat([last[0], last[1]], 1))

    def _drop(self, embedded: Tensor, noise: Tensor | None) -> Tensor:
        rate = self.settings.dropout
        return drop(embedded, rate, noise) if self.training and rate > 0 else embedded
