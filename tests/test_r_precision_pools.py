"""Stored pools of R-precision: the same ranks again, and no others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from orchestration.errors import RequestError
from orchestration.evaluation.metric import Seen
from orchestration.evaluation.r_precision import RPrecision, draw_others, load_pools, save_pools
from tests.test_r_precision import COUNT, PROTOCOLS, judged, seen, tops, vectors


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class TestStoredPools:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_they_make_the_same_ranks(self, protocol: str, tmp_path: Path) -> None:
        pictures, captions = vectors(0), vectors(0) + 2 * vectors(1)
        first = judged(protocol, pictures, captions, seed=3)
        save_pools(first.pools(), tmp_path / "pools.safetensors")
        pools = load_pools(tmp_path / "pools.safetensors")
        again = judged(protocol, pictures, captions, seed=4, pools=pools)
        assert np.array_equal(first.ranks(), again.ranks())
        assert [result.estimate for result in first.compute()] == [result.estimate for result in again.compute()]
        assert (pools.protocol, pools.seed) == (protocol, 3)
        if not protocol.startswith("batch"):
            assert not np.array_equal(first.ranks(), judged(protocol, pictures, captions, seed=4).ranks())

    def test_they_are_what_is_ranked(self, tmp_path: Path) -> None:
        """Its place, then the places of 12 others: swapped for others, the ranks change."""
        pictures, captions = vectors(0), vectors(0) + 2 * vectors(1)
        pools = judged("1+12", pictures, captions).pools()
        assert pools.listed.shape == (COUNT, 13)
        assert np.array_equal(pools.listed[:, 0], np.arange(COUNT))
        places = np.arange(COUNT)
        assert np.array_equal(pools.listed[:, 1:], draw_others(places, 10 * places, 10 * places, 12, 0))
        pools.listed[:, 1:] = pools.listed[:, :1]
        assert (judged("1+12", pictures, captions, pools=pools).ranks() == 12).all()

    def test_captions_of_one_image_are_no_rivals(self, tmp_path: Path) -> None:
        shown, image_ids = vectors(0, 4).repeat(2, 1), np.tile(np.arange(4), 2)
        metric = RPrecision("batch-8")
        metric.update(seen(np.arange(8) + 16, image_ids, shown, shown))
        save_pools(metric.pools(), tmp_path / "pools")
        pools = load_pools(tmp_path / "pools")
        assert pools.listed[0].tolist() == [16, 17, 18, 19, -1, 21, 22, 23]
        again = RPrecision("batch-8", pools=pools)
        again.update(seen(np.arange(8) + 16, image_ids, shown, shown))
        assert tops(again) == tops(metric) == [1, 1, 1]

    def test_other_data_is_refused(self) -> None:
        pictures, captions = vectors(0), vectors(1)
        pools = judged("1+12", pictures, captions).pools()
        with pytest.raises(
            RequestError, match="stored pools of r_precision/1\\+12 are of other samples than those jud"
        ):
            judged("1+12", pictures[:100], captions[:100], pools=pools).compute()
        other_images = RPrecision("1+12", pools=pools)
        other_images.update(seen(np.arange(COUNT), 11 * np.arange(COUNT), pictures, captions))
        with pytest.raises(RequestError, match="are of other images than those judged: judge the data that they were"):
            other_images.compute()
        other_texts = RPrecision("1+12", pools=pools)
        right = seen(np.arange(COUNT), 10 * np.arange(COUNT), pictures, captions)
        other_texts.update(Seen(replace(right.asked, texts=["else"] * COUNT), right.arrays))
        with pytest.raises(RequestError, match="are of other captions than those judged"):
            other_texts.ranks()
        with pytest.raises(RequestError, match="pools are of r_precision/1\\+12, and r_precision/1\\+99 is asked for"):
            RPrecision("1+99", pools=pools)

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "pools.safetensors"
        save_pools(judged("1+12", vectors(0), vectors(1)).pools(), path)
        right = load_file(path)
        header = {"protocol": "1+12", "seed": "0"}

        def spoil(name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
            return {**right, name: array}

        strange = right["listed"].copy()
        strange[3, 4] = 777
        own_gone = right["listed"].copy()
        own_gone[3, 0] = -1
        for arrays, metadata, why in (
            ({"places": right["places"]}, header, "image_ids"),
            (right, {}, "missing required field `protocol`"),
            (right, {**header, "seed": "x"}, "invalid literal"),
            (spoil("places", right["places"].astype(np.int32)), header, "its numbers are not int64"),
            (spoil("captions", right["captions"][:-1]), header, "its arrays do not fit each other"),
            (spoil("listed", right["listed"][:, :1].copy()), header, "its arrays do not fit each other"),
            (spoil("places", right["places"][::-1].copy()), header, "it lists samples that it does not have"),
            (spoil("listed", strange), header, "it lists samples that it does not have"),
            (spoil("listed", own_gone), header, "a picture's own caption is missing"),
            (spoil("listed", right["listed"][:0]), header, "a picture's own caption is missing"),
        ):
            save_file(arrays, path, metadata)
            with pytest.raises(
                RequestError, match=f"pools.safetensors holds no pools of r_precision .*{why}.*: give a"
            ):
                load_pools(path)
        path.write_bytes(b"no tensors")
        with pytest.raises(RequestError, match="holds no pools of r_precision"):
            load_pools(path)
        with pytest.raises(RequestError, match="absent holds no pools of r_precision"):
            load_pools(tmp_path / "absent")
