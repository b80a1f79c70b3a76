"""Pixels: ways of resizing against their formulas, and a generator's output as checked bytes."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.evaluation import pixels
from orchestration.evaluation.feature_views import NETS
from orchestration.evaluation.pixels import to_bytes

PREPARATIONS = list(dict.fromkeys(recipe.prepare for recipe in NETS.values()))


def some_pictures(count: int, side: int = 40, seed: int = 0) -> Tensor:
    """Smooth uint8 pictures (B,3,S,S)."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def refused(call: Callable[[], object], kind: type[Exception] = RequestError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def slow_tf1(picture: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """TensorFlow 1's formula for one channel (H,W), pixel by pixel."""
    height, width = picture.shape
    resized = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            upper = picture[top, left] * (1 - dx) + picture[top, right] * dx
            lower = picture[bottom, left] * (1 - dx) + picture[bottom, right] * dx
            resized[i, j] = upper * (1 - dy) + lower * dy
    return resized


def slow_half_pixel(picture: NDArray[np.float64], side: int, row: int, column: int) -> float:
    """One pixel of bilinear resizing with half-pixel centres and no antialiasing."""

    def taps(place: int, length: int) -> tuple[int, int, float]:
        at = max((place + 0.5) * length / side - 0.5, 0.0)
        return int(at), min(int(at) + 1, length - 1), at - int(at)

    (top, bottom, dy), (left, right, dx) = taps(row, picture.shape[0]), taps(column, picture.shape[1])
    upper = picture[top, left] * (1 - dx) + picture[top, right] * dx
    lower = picture[bottom, left] * (1 - dx) + picture[bottom, right] * dx
    return float(upper * (1 - dy) + lower * dy)


class TestResizing:
    def test_tf1_by_hand(self) -> None:
        """The known answer of TensorFlow 1 for 2x2 to 4x4."""
        wanted = [[0, 0.5, 1, 1], [1, 1.5, 2, 2], [2, 2.5, 3, 3], [2, 2.5, 3, 3]]
        assert pixels.tf1_bilinear(torch.tensor([[[[0.0, 1], [2, 3]]]]), 4)[0, 0].tolist() == wanted

    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 25), st.integers(0, 99))
    def test_tf1_by_its_formula(self, height: int, width: int, side: int, seed: int) -> None:
        picture = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float64)
        ours = pixels.tf1_bilinear(torch.from_numpy(picture).float()[None, None], side)[0, 0].numpy()
        np.testing.assert_allclose(ours, slow_tf1(picture, side), atol=1e-3)

    def test_tf1_at_its_real_size(self) -> None:
        picture = some_pictures(1, 64)
        ours = pixels.torch_fidelity(picture)[0, 1].numpy() * 128 + 128
        np.testing.assert_allclose(ours, slow_tf1(picture[0, 1].double().numpy(), 299), atol=2e-3)
        # A picture of the net's own size is left alone.
        same = some_pictures(1, 299)
        assert torch.equal(pixels.torch_fidelity(same), (same.float() - 128) / 128)

    @pytest.mark.parametrize("side", [64, 400])
    def test_pytorch_fid_by_its_formula(self, side: int) -> None:
        picture = some_pictures(1, side)
        ours, unit = pixels.pytorch_fid(picture)[0, 2], picture[0, 2].double().numpy() / 255
        for row, column in ((0, 0), (0, 298), (298, 298), (17, 201), (150, 3)):
            wanted = 2 * slow_half_pixel(unit, 299, row, column) - 1
            assert ours[row, column].item() == pytest.approx(wanted, abs=1e-5)

    @pytest.mark.parametrize("side", [64, 400])
    def test_clean_is_pillow_in_float(self, side: int) -> None:
        pictures = some_pictures(2, side)
        ours = pixels.clean(pictures) * 128 + 128
        for index in range(2):
            for channel in range(3):
                plane = Image.fromarray(pictures[index, channel].numpy().astype(np.float32))
                wanted = np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC))
                np.testing.assert_allclose(ours[index, channel].numpy(), wanted, atol=1e-4)

    def test_clean_is_never_rounded_nor_cut(self) -> None:
        edge = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        edge[..., 32:] = 255
        ours = pixels.clean(edge) * 128 + 128
        assert ours.min() < -1 and ours.max() > 256

    def test_pillow_bilinear_is_pillow_on_bytes(self) -> None:
        pictures = some_pictures(2, 64)
        ours = (pixels.pillow_bilinear(pictures) + 1) * 127.5
        for index in range(2):
            picture = Image.fromarray(pictures[index].permute(1, 2, 0).numpy())
            wanted = np.asarray(picture.resize((299, 299), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            np.testing.assert_allclose(ours[index].numpy(), wanted, atol=1e-4)

    def test_jax_bilinear_smooths_only_what_shrinks(self) -> None:
        small = some_pictures(1, 64)
        torch.testing.assert_close(pixels.jax_bilinear(small), pixels.pytorch_fid(small), atol=1e-5, rtol=0)
        # At half the side each output pixel is a triangle over 4 inputs a side: weights 1, 3, 3, 1 of 8.
        large = some_pictures(1, 598)
        triangle = torch.tensor([1.0, 3, 3, 1]) / 8
        patch = large[0, 0, 199:203, 299:303].float() / 255 * 2 - 1
        assert pixels.jax_bilinear(large)[0, 0, 100, 150].item() == pytest.approx(
            (triangle @ patch @ triangle).item(), abs=1e-4
        )
        extremes = torch.tensor([0, 255], dtype=torch.uint8).repeat(3 * 32).reshape(1, 3, 8, 8)
        assert pixels.jax_bilinear(extremes).abs().max() <= 1

    @pytest.mark.parametrize("prepare", PREPARATIONS, ids=lambda prepare: prepare.__name__)
    def test_no_picture_is_mixed_with_another(self, prepare: pixels.Preparation) -> None:
        pictures = some_pictures(3, 50)
        together = prepare(pictures)
        for index in range(3):
            assert torch.equal(prepare(pictures[index : index + 1])[0], together[index])


class TestBytes:
    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12))
    def test_the_nearest_level(self, values: list[float]) -> None:
        pictures = torch.tensor(values).reshape(1, 3, 2, 2)
        found = pixels.checked_bytes(pictures)
        assert found.dtype == torch.uint8
        assert ((found.double() / 127.5 - 1) - pictures.double()).abs().max() <= 1 / 255 + 1e-6
        assert torch.equal(found, to_bytes(pictures))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rounding_errors_are_forgiven(self, dtype: torch.dtype) -> None:
        pictures = torch.tensor([1.003, -1.003, 0.0]).reshape(1, 3, 1, 1).to(dtype)
        assert pixels.checked_bytes(pictures).flatten()[:2].tolist() == [255, 0]

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (float("nan"), "pictures drawn hold NaN: training has diverged, judge an earlier checkpoint"),
            (1.01, "pictures drawn lie in [0, 1.01], and must lie in [-1, 1]: scale them"),
            (-1.01, "pictures drawn lie in [-1.01, 0], and must lie in [-1, 1]: scale them"),
            (float("inf"), "pictures drawn lie in [0, inf], and must lie in [-1, 1]: scale them"),
            (255.0, "pictures drawn lie in [0, 255], and must lie in [-1, 1]: scale them"),
        ],
    )
    def test_other_values_are_refused(self, value: float, said: str) -> None:
        pictures = torch.zeros(2, 3, 4, 4)
        pictures[1, 2, 3, 0] = value
        assert refused(lambda: pixels.checked_bytes(pictures)) == said

    def test_bytes_are_not_turned_into_bytes(self) -> None:
        message = refused(lambda: pixels.checked_bytes(some_pictures(1)))
        assert message == "pictures drawn are of torch.uint8, and must be of a floating type in [-1, 1]"

    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8), (1, 8, 8, 3)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        for check in (pixels.checked_bytes, lambda x: pixels.check_pictures(x.to(torch.uint8))):
            message = refused(partial(check, torch.zeros(shape)))
            assert message == f"pictures are of shape {shape}, and must be (B,3,H,W) with none of them 0"
