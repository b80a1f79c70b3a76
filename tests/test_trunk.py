"""Frozen image trunks: their shapes, their published names, their weights, and what is said when they are missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from models.contract import parameter_count
from models.encoders.image import PretrainedImageEncoder, PretrainedImageSettings, WeightsMissing
from models.encoders.inception import InceptionV3
from models.encoders.resnet import ResNet
from models.encoders.trunk import ImageTrunk, ImageTrunkSettings, find_trunk_weights


def trunk(**changes: Any) -> ImageTrunk:
    return ImageTrunk(ImageTrunkSettings(**{"name": "efficientnet-lite0", "side": 64, **changes}))


def test_published_sizes() -> None:
    """torchvision's published counts, less their classifiers: 27,161,264; 60,192,808; 25,557,032."""
    classifier = 2048 * 1000 + 1000
    auxiliary = 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 768 * 1000 + 1000
    with torch.device("meta"):
        assert parameter_count(InceptionV3()) == 27_161_264 - classifier - auxiliary
        assert parameter_count(ResNet((3, 8, 36, 3))) == 60_192_808 - classifier
        assert parameter_count(ResNet((3, 4, 6, 3))) == 25_557_032 - classifier


def test_published_names_and_shapes() -> None:
    """A sample of the names and shapes of the published files."""
    with torch.device("meta"):
        inception, residual = InceptionV3().state_dict(), ResNet((3, 8, 36, 3)).state_dict()
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
        "Mixed_7c.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
    }.items():
        assert tuple(inception[name].shape) == shape, name
    for name, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.1.running_mean": (256,),
        "layer2.7.conv2.weight": (128, 128, 3, 3),
        "layer3.35.bn3.bias": (1024,),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
    }.items():
        assert tuple(residual[name].shape) == shape, name


@pytest.mark.parametrize(
    ("name", "side", "regions", "pooled"),
    [
        ("inception-v3", 299, (768, 17, 17), 2048),
        ("resnet50", 224, (1024, 14, 14), 2048),
        ("efficientnet-lite0", 224, (112, 14, 14), 1280),
    ],
)
def test_regions_and_pooled_vectors(name: str, side: int, regions: tuple[int, ...], pooled: int) -> None:
    net = trunk(name=name, side=side, weights="random")
    with torch.no_grad():
        found = net(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert found.regions.shape == (1, *regions) and found.pooled.shape == (1, pooled)
    assert (net.region_dim, net.pooled_dim) == (regions[0], pooled)
    # Untrained activations neither vanish nor explode.
    assert 1e-3 < found.regions.std() < 100 and 1e-3 < found.pooled.std() < 100


def test_the_packaged_net_is_the_one_that_judges() -> None:
    """Its pooled vector is that of the pretrained image encoder at the same side."""
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    judge = PretrainedImageEncoder(PretrainedImageSettings(name="efficientnet-lite0", side=64))
    torch.testing.assert_close(trunk()(images).pooled, judge(images), atol=1e-4, rtol=1e-4)


def test_an_untrained_net_is_the_same_everywhere_and_must_be_asked_for() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = trunk(weights="random")
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    second = trunk(weights="random")
    assert all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not first.net.net._fc.weight.equal(trunk().net.net._fc.weight)  # type: ignore[union-attr, operator]
    for name in ("inception-v3", "resnet152", "resnet50"):
        with pytest.raises(WeightsMissing) as error:
            trunk(name=name)
        assert str(error.value) == (
            f"{name} needs its ImageNet weights by path: set trunk.weights=PATH, or use the installed net with "
            "trunk.name=efficientnet-lite0, or an untrained one with trunk.weights=random"
        )
    with pytest.raises(WeightsMissing, match=r"set model\.damsm\.trunk\.weights=PATH"):
        find_trunk_weights(ImageTrunkSettings(), "model.damsm.trunk")
    assert find_trunk_weights(ImageTrunkSettings(weights="random")) is None


def test_weights_by_path(tmp_path: Path) -> None:
    """The published file holds a classifier and an auxiliary head too; another net's file is refused."""
    torch.manual_seed(0)
    net = InceptionV3().eval()
    extra = {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1)}
    save_file({**net.state_dict(), **extra}, tmp_path / "inception.safetensors")
    loaded = trunk(name="inception-v3", side=80, weights=str(tmp_path / "inception.safetensors"))
    images = torch.rand(1, 3, 80, 80) * 2 - 1
    with torch.no_grad():
        assert loaded(images).pooled.equal(net(images)[1])
    save_file({**net.state_dict(), "fc2.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, file in (("inception-v3", "other.safetensors"), ("resnet50", "inception.safetensors")):
        with pytest.raises(WeightsMissing, match=f"does not hold the weights of {name}: give the file of that net"):
            trunk(name=name, weights=str(tmp_path / file))
    with pytest.raises(WeightsMissing, match="no weights of resnet50 at .*none.pth: give the path"):
        trunk(name="resnet50", weights=str(tmp_path / "none.pth"))


def test_a_trunk_is_frozen_and_passes_gradient_to_pictures() -> None:
    net = trunk()
    assert not any(module.training for module in net.train().modules())
    images = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    features = net(images)
    (features.regions.square().mean() + features.pooled.square().mean()).backward()
    assert images.grad is not None and (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_pictures_are_resized_as_told() -> None:
    images = torch.rand(1, 3, 40, 40) * 2 - 1
    for align in (True, False):
        resized = F.interpolate(images, (64, 64), mode="bilinear", align_corners=align)
        net = trunk(align_corners=align)
        torch.testing.assert_close(net(images).pooled, net(resized).pooled)


def test_on_meta_nothing_is_asked_for() -> None:
    with torch.device("meta"):
        net = trunk(name="inception-v3")
    assert not list(net.parameters()) and (net.region_dim, net.pooled_dim) == (768, 2048)
