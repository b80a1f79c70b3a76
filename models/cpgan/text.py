"""The memory-attended text encoder, MATE: AttnGAN's, which also reads what each word looks like (section 3.2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attngan.text import TextEncoder
from models.contract import TextFeatures
from models.cpgan.config import MemoryTextSettings

SLOPE = 0.01


class MemoryTextEncoder(TextEncoder):
    """Word ids to `TextFeatures` by a bidirectional LSTM over embeddings and projected memories (equations 8 and 9).

    memory: (V,F), of each word of the vocabulary, row 0 of padding; a buffer, so that the trained net has it. Dropout
    is of what the LSTM reads.
    """

    memory: Tensor

    def __init__(self, settings: MemoryTextSettings, memory: Tensor) -> None:
        joined = settings.embedding_dim + settings.memory_dim
        released = settings.fusion == "released"
        super().__init__(settings, len(memory), settings.embedding_dim if released else joined)
        self.register_buffer("memory", memory)
        self.memory_fc1 = nn.Linear(memory.shape[1], settings.memory_hidden_dim)
        self.memory_fc2 = nn.Linear(settings.memory_hidden_dim, settings.memory_dim, bias=not released)
        self.joint_proj = nn.Linear(joined, settings.embedding_dim, bias=False) if released else None
        if self.joint_proj is not None:
            nn.init.uniform_(self.joint_proj.weight, -0.1, 0.1)
        self.last_word = settings.sentence == "last_word"

    def embed(self, tokens: Tensor) -> Tensor:
        return self.join(tokens, self.memory[tokens])

    def join(self, tokens: Tensor, recalled: Tensor) -> Tensor:
        """f, what the LSTM reads of each word, (B,T,input_dim), from its id (B,T) and its memory m (B,T,F)."""
        joined = torch.cat([self.embedding(tokens), self.project(recalled)], 2)
        return joined if self.joint_proj is None else self.joint_proj(joined.tanh())

    def project(self, recalled: Tensor) -> Tensor:
        """p(m): two linear maps with a leaky ReLU between, (B,T,F) to (B,T,memory_dim)."""
        projected: Tensor = self.memory_fc2(F.leaky_relu(self.memory_fc1(recalled), SLOPE))
        return projected

    def read(self, embedded: Tensor, lengths: Tensor, noise: Tensor | None = None) -> TextFeatures:
        text = super().read(embedded, lengths, noise)
        if not self.last_word:
            return text
        rows = torch.arange(len(lengths), device=lengths.device)
        return TextFeatures(text.words, lengths, text.words[rows, lengths - 1])
