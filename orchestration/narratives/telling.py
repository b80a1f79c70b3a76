"""A data set as it is told: its narratives in the place of its captions."""

import hashlib
from dataclasses import replace
from itertools import count

from orchestration.data.records import Caption, Dataset, carried

VERSION = 1


def told(dataset: Dataset) -> Dataset:
    """Its records with narratives, whose captions are these narratives, numbered through the split.

    So caption c of the split's caption index is narrative c, record after record.
    """
    ids = count()
    records = tuple(
        replace(record, captions=tuple(Caption(next(ids), narrative.caption) for narrative in record.narratives))
        for record in dataset.records
        if record.narratives
    )
    digest = hashlib.sha256(f"{dataset.digest} told {VERSION}".encode()).hexdigest()
    complete = dataset.complete | {"captions", "narratives"}
    return replace(dataset, records=records, carries=carried(records), digest=digest, complete=complete)
