"""TReCS: `weighting` is tf-idf, `alignment` IBM Model 1, `hmm` the constrained Viterbi, `tagger` the three joined: a
label for every word of a narrative. `config` is every choice of the pipeline, `system` what paints its label maps."""

from models.trecs.tagger import Narratives, NarrativeTagger, TaggerSettings, TaggerTables

__all__ = [
    "NarrativeTagger",
    "Narratives",
    "TaggerSettings",
    "TaggerTables",
]
