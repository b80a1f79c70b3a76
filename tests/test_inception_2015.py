"""Inception-v3 in the forms that scores come from: pools, published names and counts, and Keras's order of layers."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.contract import parameter_count
from models.encoders.inception import Conv, InceptionV3, SquareBlock, smooth
from models.encoders.inception_2015 import (
    CLASSES_2015,
    CLASSES_IMAGENET,
    POOLS,
    Form,
    InceptionClassifier,
    from_keras,
    greatest,
    smooth_inside,
)

CONVOLUTIONS = 94


def on_meta(form: Form, classes: int) -> InceptionClassifier:
    with torch.device("meta"):
        return InceptionClassifier(form, classes)


def slow_pool(x: NDArray[np.float64], outside: str) -> NDArray[np.float64]:
    """3x3 at stride 1 of a map (h,w), by the definition. outside: "zero", "left out" or "greatest"."""
    height, width = x.shape
    pooled = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            window = [
                x[r, c]
                for r in range(max(row - 1, 0), min(row + 2, height))
                for c in range(max(column - 1, 0), min(column + 2, width))
            ]
            pooled[row, column] = (
                max(window) if outside == "greatest" else sum(window) / (9 if outside == "zero" else len(window))
            )
    return pooled


@pytest.mark.parametrize(("pool", "outside"), [(smooth, "zero"), (smooth_inside, "left out"), (greatest, "greatest")])
def test_pools_by_definition(pool: nn.Module, outside: str) -> None:
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(pool(x)[0, 0].numpy(), slow_pool(x[0, 0].numpy(), outside), atol=1e-12)


def test_where_the_forms_pool_differently() -> None:
    """The 2015 graph: padding left out everywhere, maxima in the last block alone."""
    pooling = ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"]
    wanted = {"2015": (smooth_inside, greatest), "keras": (smooth_inside,) * 2, "torchvision": (smooth,) * 2}
    assert wanted == POOLS
    for form, (pool, last) in POOLS.items():
        net = on_meta(form, 10)
        assert [net.get_submodule(name).pool for name in pooling] == [pool] * len(pooling)
        assert net.Mixed_7c.pool is last


def test_a_block_uses_its_pool() -> None:
    torch.manual_seed(0)
    theirs, ours = SquareBlock(8, 4).eval(), SquareBlock(8, 4, greatest).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(theirs(x)[:, :224], ours(x)[:, :224])
        assert torch.equal(ours(x)[:, 224:], ours.branch_pool(greatest(x)))
        assert torch.equal(theirs(x)[:, 224:], theirs.branch_pool(smooth(x)))


def test_published_counts() -> None:
    """Keras's summary says 23,851,784, moving statistics included and without a scale; torch-fidelity's file has 566
    tensors in 95,628,359 bytes, of which some 86,000 are names."""
    keras = on_meta("keras", CLASSES_IMAGENET).state_dict()
    counted = {key: value for key, value in keras.items() if not key.endswith(("bn.weight", "num_batches_tracked"))}
    assert sum(value.numel() for value in counted.values()) == 23_851_784
    graph = on_meta("2015", CLASSES_2015)
    assert parameter_count(graph) == 23_850_960
    state = graph.state_dict()
    assert len(state) == 566
    assert 0 < 95_628_359 - sum(value.numel() * value.element_size() for value in state.values()) < 100_000


def test_published_names() -> None:
    """A sample of the names and shapes in both converted files."""
    state = on_meta("2015", CLASSES_2015).state_dict()
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.bn.bias": (64,),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert not [name for name in state if name.startswith("AuxLogits")]


@torch.no_grad()
def test_forms_see_the_same_net_differently() -> None:
    """One set of weights: the torchvision form is the trunk, the others are not, nor are they each other."""
    torch.manual_seed(0)
    first = InceptionClassifier("torchvision", 7).eval()
    for module in first.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    trunk = InceptionV3().eval()
    trunk.load_state_dict({key: value for key, value in first.state_dict().items() if not key.startswith("fc.")})
    pixels = torch.rand(1, 3, 107, 107) * 2 - 1
    pooled: dict[Form, Tensor] = {}
    for form in POOLS:
        net = InceptionClassifier(form, 7).eval()
        net.load_state_dict(first.state_dict())
        seen = net.classify(pixels)
        pooled[form] = seen.pooled
        assert seen.pooled.shape == (1, 2048) and seen.logits.shape == (1, 7)
        torch.testing.assert_close(seen.logits, net.fc(seen.pooled))
        torch.testing.assert_close(seen.logits - seen.unbiased, net.fc.bias[None], atol=1e-5, rtol=0)
    assert torch.equal(pooled["torchvision"], trunk(pixels)[1])
    for one, other in itertools.combinations(pooled.values(), 2):
        assert (one - other).abs().max() > 1e-3 * one.abs().max()


# Number of the first convolution of each block in Keras's list, and what it is called here.
KERAS_NUMBERS = {
    1: "Conv2d_1a_3x3",
    5: "Conv2d_4a_3x3",
    6: "Mixed_5b.branch1x1",
    8: "Mixed_5b.branch5x5_2",
    12: "Mixed_5b.branch_pool",
    27: "Mixed_6a.branch3x3",
    31: "Mixed_6b.branch1x1",
    33: "Mixed_6b.branch7x7_2",
    71: "Mixed_7a.branch3x3_1",
    80: "Mixed_7b.branch3x3_2b",
    94: "Mixed_7c.branch_pool",
}


def as_keras(net: InceptionClassifier, first: int = 1) -> dict[str, NDArray[np.float32]]:
    """The arrays of Keras's file for a net; first: number of its first layer, which has none when it is 0."""
    arrays: dict[str, NDArray[np.float32]] = {}
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    names = [name for name, module in net.named_modules() if isinstance(module, Conv)]
    for number, name in enumerate(names, first):
        suffix = f"_{number}" if number else ""
        conv, norm = f"conv2d{suffix}", f"batch_normalization{suffix}"
        arrays[f"{conv}/{conv}/kernel:0"] = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        for theirs, ours in (("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var")):
            arrays[f"{norm}/{norm}/{theirs}:0"] = state[f"{name}.bn.{ours}"]
    arrays["predictions/predictions/kernel:0"] = state["fc.weight"].T
    arrays["predictions/predictions/bias:0"] = state["fc.bias"]
    return arrays


class TestKeras:
    @pytest.fixture(scope="class")
    def net(self) -> InceptionClassifier:
        torch.manual_seed(0)
        net = InceptionClassifier("keras", CLASSES_IMAGENET)
        with torch.no_grad():
            for name, values in net.state_dict().items():
                if name.endswith(("bn.bias", "running_mean", "running_var")):
                    values.uniform_(0.5, 1.5)
        return net

    @pytest.mark.parametrize("first", [0, 1, 95])
    def test_every_tensor_finds_its_place(self, net: InceptionClassifier, first: int) -> None:
        found = from_keras(as_keras(net, first))
        wanted = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(found[key], value), key

    def test_layers_are_numbered_as_keras_makes_them(self, net: InceptionClassifier) -> None:
        arrays, state = as_keras(net), net.state_dict()
        found = from_keras(arrays)
        for number, name in KERAS_NUMBERS.items():
            kernel = arrays[f"conv2d_{number}/conv2d_{number}/kernel:0"]
            assert torch.equal(found[f"{name}.conv.weight"], torch.from_numpy(kernel.copy()).permute(3, 2, 0, 1)), name
            assert state[f"{name}.conv.weight"].shape == found[f"{name}.conv.weight"].shape
        assert sum(name.endswith("kernel:0") for name in arrays) == CONVOLUTIONS + 1

    def test_another_net_is_refused(self, net: InceptionClassifier) -> None:
        arrays = {name: array for name, array in as_keras(net).items() if not name.startswith("conv2d_94/")}
        with pytest.raises(ValueError, match="it has 93 layers conv2d where Inception-v3 has 94"):
            from_keras(arrays)
        with pytest.raises(ValueError, match="it has 0 layers"):
            from_keras({"dense/kernel:0": np.zeros(3)})
