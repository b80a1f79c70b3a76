"""RetrieveGAN: `config` is every choice, `retrieval` picks patches, `selection` are the losses on what was picked,
`co_occurrence` the embedding that says which patches go together, `networks` draws, `losses` is equation 7, `system`
the training."""

from models.retrievegan.co_occurrence import CoOccurrence, CoOccurrenceConfig
from models.retrievegan.config import PAPER, RetrieveGANConfig
from models.retrievegan.retrieval import RetrievalSettings
from models.retrievegan.selection import SelectionLossSettings
from models.retrievegan.system import RetrieveGAN

__all__ = [
    "PAPER",
    "CoOccurrence",
    "CoOccurrenceConfig",
    "RetrievalSettings",
    "RetrieveGAN",
    "RetrieveGANConfig",
    "SelectionLossSettings",
]
