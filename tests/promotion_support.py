"""Records of judging, made up."""

from collections.abc import Sequence

from orchestration.evaluation.record import Judged, MetricRecord

FID = "fid/scenes-net"


def made(
    value: float,
    seed: int = 0,
    half: float = 1.0,
    run: str = "run",
    figure: str = FID,
    drawn: int = 64,
    data: str = "data",
    split: str = "test",
) -> MetricRecord:
    """One record, with an interval of so much to either side."""
    metric, _, protocol = figure.partition("/")
    judged = Judged("xmcgan", "tiny", run, f"digest of {run}", 1.0, "scenes", data, split, "xmcgan 32 centre", seed)
    return MetricRecord(metric, protocol, value, value - half, value + half, drawn, 96, drawn, judged)


def side(
    values: Sequence[float], half: float = 1.0, run: str = "run", figure: str = FID, seed: int = 0
) -> list[MetricRecord]:
    """A record a seed, from this one on."""
    return [made(value, seed + step, half, run, figure) for step, value in enumerate(values)]
