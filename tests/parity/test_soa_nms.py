"""Suppression of SOA's evaluation code against its own numbers."""

import torch

from models.detectors.boxes import corners, merge_by_objectness

from .conftest import Load


def test_soa_nms(golden: Load) -> None:
    numbers = golden("soa_nms")
    constants = numbers.meta["constants"]
    for place, rows in enumerate(numbers["in.prediction"]):
        found = merge_by_objectness(
            corners(rows[:, :4]), rows[:, 4], rows[:, 5:], constants["conf_thres"], constants["nms_thres"]
        )
        columns = [found.boxes, found.objectness[:, None], found.class_scores[:, None], found.classes[:, None]]
        ours, key = torch.cat(columns, 1), f"out.detections{place}"
        assert ours.shape == numbers[key].shape
        if len(ours):
            numbers.check(key, ours)
