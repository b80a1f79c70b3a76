"""Every choice of TReCS's pipeline that changes what is drawn, with the paper's value.

Paper: Koh et al., "Text-to-Image Generation Grounded by Fine-Grained User Attention", WACV 2021.
"""

from typing import Literal

from pydantic import Field

from models.contract import Settings

Labeler = Literal["raw", "hmm", "bert_on_raw", "bert_on_hmm"]
"""Who labels a narrative's words (table 2, and the raw labels of section 2.1)."""


class TReCSConfig(Settings):
    """Which labeler, which masks, which generator."""

    labeler: Labeler = Field(
        "bert_on_hmm",
        description='"raw": the label seen most under each phrase\'s hull; "hmm": those refined; both need the '
        'picture\'s own labels; "bert_on_raw", "bert_on_hmm": a BERT that learned these (the paper\'s: bert_on_hmm)',
    )
    generator: Literal["ccfpse", "spade"] = Field(
        "ccfpse", description="what paints the label map: CC-FPSE (the paper's choice) or SPADE (table 2)"
    )
    masks: Literal["retrieved", "true_masks"] = Field(
        "retrieved",
        description='"retrieved": the composed label map; "true_masks": the picture\'s own, the upper bound of table 3',
    )
    k: int = Field(5, ge=1, le=1000, description="pictures whose masks are offered (section 4.2: 5 is best)")
    missing: Literal["skip", "next"] = Field(
        "skip",
        description='a thing of which none of the k pictures has a mask: "skip" leaves it out (as far as the paper '
        'says), "next" takes it from the nearest picture beyond that has one',
    )
    place: Literal["original", "centred"] = Field(
        "original",
        description='where a mask lies when it is compared with a hull: where its own picture has it ("original", as '
        'section 2.2 reads), or "centred" on the hull, as it is then pasted',
    )
    centre: Literal["box", "centroid"] = Field(
        "box", description="the middle that is put on the trace's: of the box around a mask, or of its pixels. Open"
    )
    resolution: Literal[32, 64, 128, 256] = Field(256, description="side of canvas and picture in pixels (256)")

    @property
    def reads_words(self) -> bool:
        """Whether a narrative alone is enough, without a picture's own labels."""
        return self.labeler != "raw" and self.masks == "retrieved"

    @property
    def tagger(self) -> str | None:
        """The stage of the trained tagger, where it has one."""
        return self.labeler if self.labeler.startswith("bert") and self.masks == "retrieved" else None
