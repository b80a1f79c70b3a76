"""YOLOv3's weights from a file: darknet's published binary form, or safetensors with this project's names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.detectors.yolov3 import Conv, YOLOv3
from models.encoders.image import WeightsMissing

_OLD_HEADER, _HEADER = 16, 20


def load_yolov3(path: Path, classes: int, width: int = 32) -> YOLOv3:
    """The net with the file's weights, in evaluation mode on the CPU. Raises WeightsMissing for another net's file."""
    with torch.device("meta"):
        net = YOLOv3(classes, width)
    state = _safetensors(path, net) if path.suffix == ".safetensors" else read_darknet(path, net)
    net.load_state_dict(state, assign=True)
    return net.eval()


def read_darknet(path: Path, net: YOLOv3) -> dict[str, Tensor]:
    """`net`'s state dict from darknet's .weights file; `net` may be on "meta".

    The file is little-endian: three int32 of the version, then the number of pictures seen (int64 since version 0.2,
    int32 before), then float32 without any names, layer by layer in the cfg's order. A convolution with batch norm
    has its shift, scale, running mean, running variance and kernel (out, in, height, width); one without has its bias
    and kernel. Raises WeightsMissing for a file of another length or another net.
    """
    numbers = _numbers(path)
    places = list(_places(net))
    total = sum(value.numel() for _, value in places)
    if numbers.size != total:
        raise WeightsMissing(_other_length(path, numbers.size, total, net))
    state, start = {}, 0
    for name, value in places:
        part = np.array(numbers[start : start + value.numel()], dtype=np.float32).reshape(value.shape)
        _check_numbers(path, name, part)
        state[name] = torch.from_numpy(part)
        start += value.numel()
    counters = (name for name in net.state_dict() if name.endswith("num_batches_tracked"))
    return state | {name: torch.zeros((), dtype=torch.int64) for name in counters}


def _numbers(path: Path) -> NDArray[np.float32]:
    size = path.stat().st_size
    if size < _HEADER:
        raise WeightsMissing(f"{path} has {size} bytes, less than a darknet file's header: fetch the file again")
    version = np.fromfile(path, dtype="<i4", count=3)
    if (version < 0).any() or (version > 1000).any():
        raise WeightsMissing(f"{path} does not begin as a darknet .weights file does: give one, or a .safetensors file")
    header = _HEADER if version[0] * 10 + version[1] >= 2 else _OLD_HEADER
    if (size - header) % 4:
        raise WeightsMissing(f"{path} ends within a number ({size} bytes), so it is cut short: fetch the file again")
    if size == header:
        return np.empty(0, dtype=np.float32)
    return np.memmap(path, dtype="<f4", mode="r", offset=header)


def _places(net: YOLOv3) -> Iterator[tuple[str, Tensor]]:
    """Names and values of `net` in the order of the file."""
    for name, module in net.named_modules():
        if isinstance(module, Conv):
            bn = module.bn
            assert bn.running_mean is not None and bn.running_var is not None
            yield f"{name}.bn.bias", bn.bias
            yield f"{name}.bn.weight", bn.weight
            yield f"{name}.bn.running_mean", bn.running_mean
            yield f"{name}.bn.running_var", bn.running_var
            yield f"{name}.conv.weight", module.conv.weight
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            yield f"{name}.bias", module.bias
            yield f"{name}.weight", module.weight


def _other_length(path: Path, found: int, total: int, net: YOLOv3) -> str:
    """Why a file that holds `found` numbers is not the net's, which has `total`."""
    # Every class adds a bias and a kernel to each of three anchors at each of three heads.
    per_class = sum(3 * (head.out.in_channels + 1) for head in (net.head_32, net.head_16, net.head_8))
    more, rest = divmod(found - total, per_class)
    start = f"{path} holds {found:,} numbers, YOLOv3 for {net.classes} classes has {total:,}"
    if not rest and net.classes + more > 0:
        return f"{start}: it fits {net.classes + more} classes, so name a file of their names, or give another file"
    which = "cut short" if found < total else "too long"
    return f"{start}: it is {which} or of another cfg (tiny, spp, a bare backbone), so give yolov3.weights whole"


def _check_numbers(path: Path, name: str, part: NDArray[np.float32]) -> None:
    if not np.isfinite(part).all():
        raise WeightsMissing(f"{path} holds values that are no numbers at {name}: fetch the file again")
    if name.endswith("running_var") and (part < 0).any():
        raise WeightsMissing(
            f"{path} holds a negative variance at {name}: it is of another cfg with as many numbers, so give YOLOv3's"
        )


def _safetensors(path: Path, net: YOLOv3) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise WeightsMissing(f"{path} is no whole safetensors file ({error}): fetch or write it again") from error
    wanted = net.state_dict()
    for name in sorted(wanted.keys() ^ state.keys()):
        problem = "lacks" if name in wanted else "has"
        other = "" if name in wanted else f", which YOLOv3 for {net.classes} classes has not"
        raise WeightsMissing(f"{path} {problem} {name}{other}: give a file of this net's state dict")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise WeightsMissing(
                f"{path} has {name} of shape {tuple(value.shape)}, YOLOv3 for {net.classes} classes and width "
                f"{net.width} has {tuple(wanted[name].shape)}: give the file, names and width of one net"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsMissing(f"{path} holds values that are no numbers at {name}: write the file again")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
