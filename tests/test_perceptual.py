"""The perceptual distance: what it measures, what learns from it, and what is said where its weights are missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from models.contract import parameter_count
from models.encoders.image import WeightsMissing
from models.encoders.perceptual_trunks import PerceptualTrunk
from models.losses.lpips import scaled
from models.losses.perceptual import PerceptualDistance, PerceptualSettings, require_perceptual_weights
from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.requirements import require_weights
from tests.graph_support import only, retrievegan
from tests.tiny import small_pretrained_nets


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def distance(net: Any = "squeeze", **changes: Any) -> PerceptualDistance:
    """Untrained; EfficientNet-lite0 is a small stand-in."""
    with small_pretrained_nets():
        return PerceptualDistance(PerceptualSettings(net=net, weights="random", **changes))


def pictures(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("net", ["squeeze", "alex", "efficientnet-lite0"])
@pytest.mark.parametrize("form", ["l1", "l2"])
def test_equal_pictures_have_no_distance_and_others_have(net: str, form: str) -> None:
    compare, first = distance(net, distance=form), pictures(3)
    with torch.no_grad():
        assert torch.equal(compare(first, first), torch.zeros(3))
        near, far = first + 0.02 * pictures(3, seed=1), pictures(3, seed=2)
        found = compare(near, first), compare(far, first)
        assert (found[0] > 0).all() and (found[1] > found[0]).all()
        torch.testing.assert_close(compare(first, far), found[1])
        # A picture's does not depend on the others.
        torch.testing.assert_close(compare(far[1:2], first[1:2]), found[1][1:2])


def test_several_pictures_are_to_look_like_one() -> None:
    compare, wanted = distance(), pictures(2)
    shown = [pictures(2, seed=seed) for seed in (1, 2, 3)]
    expected = torch.cat([compare(one, wanted) for one in shown])
    torch.testing.assert_close(compare(torch.cat(shown), wanted), expected)
    assert len(set(expected.tolist())) == 6


@pytest.mark.parametrize("net", ["squeeze", "efficientnet-lite0"])
def test_only_the_first_learns(net: str) -> None:
    compare = distance(net).train()
    first, second = pictures(2).requires_grad_(), pictures(2, seed=1).requires_grad_()
    compare(first, second).sum().backward()
    assert first.grad is not None and first.grad.isfinite().all() and first.grad.abs().max() > 0
    assert second.grad is None
    assert not any(one.requires_grad for one in compare.parameters())
    assert not any(module.training for module in compare.modules())


def test_it_is_the_mean_of_all_maps() -> None:
    first, second = pictures(2), pictures(2, seed=1)
    trunk = PerceptualTrunk("squeeze", "random")
    maps = [trunk(scaled(one)) for one in (first, second)]
    for form in ("l1", "l2"):
        apart = []
        for one, other in zip(*maps, strict=True):
            difference = (one - other).abs() if form == "l1" else (one - other) ** 2
            apart.append(difference.mean((1, 2, 3)))
        assert len(apart) == 7
        torch.testing.assert_close(distance("squeeze", distance=form)(first, second), torch.stack(apart).mean(0))


def test_pictures_are_resized_where_they_must_be() -> None:
    first, second = pictures(2, 48), pictures(2, 48, seed=1)

    def resized(images: Tensor, side: int) -> Tensor:
        return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)

    as_they_are, smaller = distance(), distance(side=32)
    expected = as_they_are(resized(first, 32), resized(second, 32))
    torch.testing.assert_close(smaller(first, second), expected)
    assert not torch.allclose(as_they_are(first, second), expected)
    # SqueezeNet cannot take less than 17 px.
    tiny = [resized(one, 8) for one in (first, second)]
    torch.testing.assert_close(as_they_are(*tiny), as_they_are(*(resized(one, 17) for one in tiny)))
    with pytest.raises(ValidationError, match="greater than or equal to 32"):
        PerceptualSettings(side=16)


@pytest.mark.parametrize("net", ["vgg", "efficientnet-lite0"])
def test_on_meta_nothing_is_read(net: Any) -> None:
    with torch.device("meta"):
        assert parameter_count(PerceptualDistance(PerceptualSettings(net=net, weights="/none/there"))) == 0


# Weights


def test_missing_weights_are_a_sentence() -> None:
    with pytest.raises(WeightsMissing, match=r"vgg needs its ImageNet weights by path: set model\.it\.weights=PATH"):
        require_perceptual_weights(PerceptualSettings(), "model.it")
    for net in ("vgg", "efficientnet-lite0"):
        missing = PerceptualSettings.model_validate({"net": net, "weights": "/none/there"})
        with pytest.raises(WeightsMissing, match=f"no weights of {net} at /none/there"):
            require_perceptual_weights(missing, "model.it")
        require_perceptual_weights(missing.model_copy(update={"weights": "random"}), "model.it")


def wanting(**changes: Any) -> Experiment:
    return retrievegan(**{"model.perceptual": {"net": "vgg"}, **changes})


def test_they_are_asked_for_before_any_work(tmp_path: Path) -> None:
    home = Home(tmp_path)
    said = r"^model\.perceptual: vgg needs its ImageNet weights by path: set model\.perceptual\.weights=PATH to"
    with pytest.raises(RequestError, match=said):
        Preparation(wanting(), home).everything()
    assert not home.stages.exists()
    gone = {"net": "vgg", "weights": str(tmp_path / "gone.pth")}
    with pytest.raises(RequestError, match=r"^model\.perceptual: no weights of vgg at .*gone\.pth: give the path"):
        Preparation(wanting(**{"model.perceptual": gone}), home).everything()
    assert not home.stages.exists()


def test_who_uses_none_needs_none(tmp_path: Path) -> None:
    unweighted = {name: 0.0 for name in only() if "perceptual" in name}
    assert len(unweighted) == 2
    changes = {f"model.{name}": value for name, value in unweighted.items()}
    require_weights(wanting(**changes))
    with pytest.raises(RequestError, match=r"^model\.perceptual: vgg needs"):
        require_weights(wanting(**dict(list(changes.items())[:1])))
    file = tmp_path / "vgg.pth"
    file.touch()
    require_weights(wanting(**{"model.perceptual": {"net": "vgg", "weights": str(file)}}))
    require_weights(retrievegan())
