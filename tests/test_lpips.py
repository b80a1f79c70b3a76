"""The perceptual distance: its nets, their files, what it says of pictures, and what is refused."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import parameter_count
from models.encoders.image import WeightsMissing
from models.encoders.perceptual_trunks import PerceptualName, PerceptualTrunk
from models.losses.lpips import Lpips, LpipsHeads, LpipsSettings, find_heads, of_unit_length, scaled

NETS: tuple[PerceptualName, ...] = ("alex", "vgg", "squeeze")
SQUEEZENET = "weights/squeezenet1_1_imagenet_caffe_fp16.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def squeezenet(shared_data: Path) -> Path:
    path = shared_data / SQUEEZENET
    if not path.is_file():
        pytest.skip(f"real weights are absent: no file {path}")
    return path


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Image.Image]:
    """Twelve at 96 px."""
    files = sorted((shared_data / "coco-mini/val2017").glob("*.jpg"))[:12]
    if len(files) < 12:
        pytest.skip(f"photographs are absent: fewer than 12 in {shared_data / 'coco-mini/val2017'}")
    return [Image.open(file).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC) for file in files]


def random_lpips(net: PerceptualName = "squeeze") -> Lpips:
    return Lpips(LpipsSettings(net=net, weights="random"))


def signed(pictures: list[Image.Image]) -> Tensor:
    """(B,3,H,W) in [-1, 1]."""
    rows = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1


def generated(count: int = 6, side: int = 64) -> list[Image.Image]:
    """Soft random blobs: pictures with edges at several scales."""
    random = np.random.default_rng(0)
    coarse = [Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(count)]
    return [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in coarse]


def blurred(radius: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def noisy(deviation: float) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture) + np.random.default_rng(1).normal(0, deviation, (*picture.size[::-1], 3))
        return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))

    return change


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


@torch.inference_mode()
def mean_distances(
    net: Lpips, pictures: list[Image.Image], changes: list[Callable[[Image.Image], Image.Image]]
) -> list[float]:
    still = signed(pictures)
    return [float(net(still, signed([change(picture) for picture in pictures])).mean()) for change in changes]


LADDERS = {
    "blur": [blurred(radius) for radius in (0.5, 1, 2, 4)],
    "noise": [noisy(deviation) for deviation in (4, 8, 16, 32, 64)],
    "jpeg": [jpeg(quality) for quality in (95, 75, 50, 20)],
}


@pytest.mark.parametrize("ladder", sorted(LADDERS))
def test_distance_of_photographs_grows_with_what_is_done_to_them(
    squeezenet: Path, photographs: list[Image.Image], ladder: str
) -> None:
    net = Lpips(LpipsSettings(net="squeeze", weights=str(squeezenet)))
    found = mean_distances(net, photographs, LADDERS[ladder])
    assert found == sorted(found) and found[0] > 1e-3
    with torch.inference_mode():
        still = signed(photographs)
        assert net(still, still).eq(0).all()
        others = net(still, still.roll(1, 0))
    # Another photograph is further away than any of this.
    assert others.min() > 0.4 and others.mean() > found[-1]


def test_distance_is_one_of_looks_and_not_of_pixels(squeezenet: Path, photographs: list[Image.Image]) -> None:
    """Brighter by eight grey levels hardly counts, noise of as many does."""
    net = Lpips(LpipsSettings(net="squeeze", weights=str(squeezenet)))
    brighter, noise = mean_distances(net, photographs, [lambda picture: picture.point(lambda x: x + 8), noisy(8)])
    assert 5 * brighter < noise


@pytest.mark.parametrize("name", NETS)
def test_generated_pictures_through_untrained_nets(name: PerceptualName) -> None:
    net, pictures = random_lpips(name), generated()
    for ladder in ("blur", "noise"):
        found = mean_distances(net, pictures, LADDERS[ladder])
        assert found == sorted(found) and found[0] > 0
    still, other = signed(pictures), signed(pictures[::-1])
    with torch.inference_mode():
        assert net(still, still).eq(0).all()
        torch.testing.assert_close(net(still, other), net(other, still))
        one_by_one = torch.cat([net(still[i : i + 1], other[i : i + 1]) for i in range(len(still))])
        torch.testing.assert_close(net(still, other), one_by_one, atol=1e-6, rtol=1e-5)


def test_published_sizes_names_and_maps() -> None:
    """torchvision's published counts, less their classifiers: 61,100,840; 138,357,544; 1,235,496."""
    hidden = 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    classifiers = {"alex": 9216 * 4096 + 4096 + hidden, "vgg": 25088 * 4096 + 4096 + hidden, "squeeze": 512_000 + 1000}
    published = {"alex": 61_100_840, "vgg": 138_357_544, "squeeze": 1_235_496}
    shapes = {
        "alex": {
            "features.0.weight": (64, 3, 11, 11),
            "features.10.bias": (256,),
            "features.3.weight": (192, 64, 5, 5),
        },
        "vgg": {"features.0.weight": (64, 3, 3, 3), "features.17.bias": (512,), "features.28.weight": (512, 512, 3, 3)},
        "squeeze": {"features.3.squeeze.weight": (16, 64, 1, 1), "features.12.expand3x3.weight": (256, 64, 3, 3)},
    }
    sides = {"alex": [15, 7, 3, 3, 3], "vgg": [64, 32, 16, 8, 4], "squeeze": [31, 15, 7, 3, 3, 3, 3]}
    for name in NETS:
        net = PerceptualTrunk(name, "random")
        assert parameter_count(net) == published[name] - classifiers[name]
        state = net.state_dict()
        for key, shape in shapes[name].items():
            assert tuple(state[key].shape) == shape, key
        maps = net(torch.zeros(1, 3, 64, 64))
        assert [found.shape[1:] for found in maps] == [
            (width, side, side) for width, side in zip(net.widths, sides[name], strict=True)
        ]
        # Each is what stands behind a ReLU.
        assert all(bool((found >= 0).all()) for found in net(torch.randn(1, 3, 64, 64)))
        side = net.least_side
        assert net(torch.zeros(1, 3, side, side))[-1].numel()
        with pytest.raises(RuntimeError):
            net(torch.zeros(1, 3, side - 1, side - 1))


def test_half_precision_is_read_as_float32(squeezenet: Path) -> None:
    stored = load_file(squeezenet)
    assert stored["features.12.expand3x3.weight"].dtype == torch.float16
    state = PerceptualTrunk("squeeze", str(squeezenet)).state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(value.equal(stored[name].float()) for name, value in state.items())


def test_half_precision_of_generated_weights(tmp_path: Path) -> None:
    net = PerceptualTrunk("squeeze", "random")
    half = {name: value.half() for name, value in net.state_dict().items()}
    save_file({**half, "classifier.1.bias": torch.zeros(1000).half()}, tmp_path / "half.safetensors")
    state = PerceptualTrunk("squeeze", str(tmp_path / "half.safetensors")).state_dict()
    assert all(value.equal(half[name].float()) for name, value in state.items())


def refused(settings: LpipsSettings) -> str:
    with pytest.raises(WeightsMissing) as error:
        Lpips(settings)
    return str(error.value)


def test_files_missing_or_of_another_net(tmp_path: Path) -> None:
    assert refused(LpipsSettings()) == (
        "alex needs its ImageNet weights by path: set lpips.weights=PATH to the file that torchvision publishes as "
        "alexnet-owt-7be5be79.pth, or use an untrained net with lpips.weights=random"
    )
    none, squeeze, broken = tmp_path / "none.pth", tmp_path / "squeeze.safetensors", tmp_path / "broken.safetensors"
    assert refused(LpipsSettings(weights=str(none))) == (
        f"no weights of alex at {none}: give the path of a .safetensors or .pth file"
    )
    state = PerceptualTrunk("squeeze", "random").state_dict()
    save_file(state, squeeze)
    for name, file in (("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")):
        assert refused(LpipsSettings(net=name, weights=str(squeeze))) == (
            f"{squeeze} does not hold the weights of {name} ({file}): give the file of that net"
        )
    save_file({**state, "features.0.bias": torch.full((64,), torch.nan)}, broken)
    assert refused(LpipsSettings(net="squeeze", weights=str(broken))) == (
        f"{broken} has weights that are not finite numbers: check the file"
    )


def test_linear_layers_missing_or_of_another_net(tmp_path: Path) -> None:
    def settings(file: Path) -> LpipsSettings:
        return LpipsSettings(net="squeeze", weights="random", heads=str(file))

    none, other, negative = (tmp_path / f"{name}.safetensors" for name in ("none", "other", "negative"))
    assert refused(settings(none)) == (
        f"no weights of the linear layers of LPIPS for squeeze at {none}: give the path of a .safetensors or .pth file"
    )
    save_file(LpipsHeads((64, 192, 384, 256, 256)).state_dict(), other)
    assert refused(settings(other)) == (
        f"{other} does not hold the weights of the linear layers of LPIPS for squeeze: give the file of that net"
    )
    state = LpipsHeads(PerceptualTrunk("squeeze", "random").widths).state_dict()
    for bad in (-1e-3, float("nan")):
        positive = {name: value.abs() for name, value in state.items()}
        positive["lin6.model.1.weight"][0, 5] = bad
        save_file(positive, negative)
        assert refused(settings(negative)) == (
            f"{negative} has weights that are negative or not numbers: LPIPS has none, check the file"
        )


def test_the_installed_linear_layers_are_the_published_ones(shared_data: Path) -> None:
    for name in NETS:
        published = shared_data / f"weights/lpips_lin_v0.1/{name}.pth"
        if not published.is_file():
            pytest.skip(f"published linear layers are absent: no file {published}")
        assert find_heads(LpipsSettings(net=name)).read_bytes() == published.read_bytes()


def test_installed_linear_layers_fit_their_nets() -> None:
    for name in NETS:
        heads = random_lpips(name).heads
        assert all(bool((weight >= 0).all()) and bool((weight > 0).any()) for weight in heads.parameters())


def test_pictures_too_small_are_named() -> None:
    with pytest.raises(ValueError, match=r"^pictures of 40 x 30 px are too small for alex: it needs 31 px or more$"):
        random_lpips("alex")(torch.zeros(1, 3, 30, 40), torch.zeros(1, 3, 30, 40))


def test_it_is_frozen_and_passes_gradient_to_pictures() -> None:
    net = random_lpips().train()
    assert not any(module.training for module in net.modules())
    still = signed(generated(2))
    images = (still + 0.1 * torch.randn_like(still)).requires_grad_()
    net(images, still).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_maps_of_zeros_have_a_gradient_of_zero() -> None:
    maps = torch.zeros(1, 4, 2, 2).requires_grad_()
    of_unit_length(maps).square().sum().backward()
    assert maps.grad is not None and maps.grad.eq(0).all()


def test_lower_precision_outside_does_not_reach_the_sums() -> None:
    net, still = random_lpips(), signed(generated(2))
    maps = net.maps(still)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.between(maps, [found.flip(0) for found in maps]).dtype == torch.float32
    half = [found.bfloat16() for found in maps]
    assert net.heads(half, [found.flip(0) for found in half]).dtype == torch.float32


def test_directions_of_maps_are_compared_and_not_their_lengths() -> None:
    net, still = random_lpips(), signed(generated(2))
    maps = net.maps(still)
    others = [found.flip(0) for found in maps]
    torch.testing.assert_close(net.between(maps, [3 * found for found in others]), net.between(maps, others))


def test_scaling_is_imagenets() -> None:
    """Constants of the published layer, what they stand for, and that the trunk sees them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(scaled(pixels * 2 - 1), (pixels - mean[:, None, None]) / std[:, None, None])
    net, images = random_lpips(), signed(generated(1))
    assert all(one.equal(other) for one, other in zip(net.maps(images), net.trunk(scaled(images)), strict=True))


def test_on_meta_nothing_is_asked_for() -> None:
    with torch.device("meta"):
        net = Lpips(LpipsSettings(weights="no such file"))
    assert not list(net.parameters())
