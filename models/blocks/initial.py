"""Initial weights."""

from torch import nn

from models.blocks.norm import BatchNorm


def initialise(net: nn.Module) -> None:
    """AttnGAN's released start: orthogonal weights, zero linear biases, batch-norm weights N(1, 0.02) and biases 0.

    Biases of convolutions keep torch's own start. On the meta device there is nothing to fill.
    """
    for module in net.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.device.type != "meta":
            nn.init.orthogonal_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
