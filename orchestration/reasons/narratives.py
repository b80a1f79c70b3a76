"""Every step from a narrative to its label map, as it is told."""

import math
from collections.abc import Sequence

from orchestration.narratives.composed import Composed, Mention
from orchestration.narratives.regions import class_name, coloured, mask_fit, regions_of, stuff_fit
from orchestration.reasons.pictures import base64_png, base64_stencil
from orchestration.reasons.schema import LegendEntry, Mentioned, NarrativeReasons, RetrievedPicture, TaggedWord


def narrative_reasons(composed: Composed, classes: Sequence[str]) -> NarrativeReasons:
    """All of it but the trace. classes: names, by label. Colours are those of the sheet (`t2i show`)."""
    canvas = composed.canvas
    regions = regions_of(composed, classes, canvas.labels, canvas.instances)
    legend = dict.fromkeys((class_name(region.label, classes), region.colour) for region in regions)
    fit = stuff_fit(composed)
    return NarrativeReasons(
        words=[
            TaggedWord(word=word, tag=class_name(label, classes))
            for word, label in zip(composed.words, composed.tags.tolist(), strict=True)
        ],
        mentions=[_mentioned(composed, mention, classes) for mention in composed.mentions],
        retrieved=[
            RetrievedPicture(image=int(found.image_id), score=_finite(found.score) or 0.0)
            for found in composed.retrieved
        ],
        stuff=None if composed.stuff is None else int(composed.retrieved[composed.stuff].image_id),
        stuff_fit=_finite(fit),
        canvas=base64_png(coloured(regions, canvas.labels.shape)),
        legend=[LegendEntry(label=label, colour="#{:02x}{:02x}{:02x}".format(*colour)) for label, colour in legend],
    )


def _mentioned(composed: Composed, mention: Mention, classes: Sequence[str]) -> Mentioned:
    phrase, choice = mention.phrase, mention.choice
    return Mentioned(
        words=" ".join(composed.words[phrase.first : phrase.end]),
        first=phrase.first,
        end=phrase.end,
        tag=class_name(mention.label, classes),
        thing=mention.thing,
        image=None if choice is None else int(composed.retrieved[choice.picture].image_id),
        iou=_finite(mask_fit(mention)),
        why=mention.why,
        mask=None if choice is None else base64_stencil(choice.mask()),
        hull=base64_stencil(mention.hull) if mention.hull.any() else None,
    )


def _finite(value: float | None) -> float | None:
    """JSON has no word for other numbers."""
    return float(value) if value is not None and math.isfinite(value) else None
