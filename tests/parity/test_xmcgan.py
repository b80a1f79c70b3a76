"""XMC-GAN's mathematics against the numbers of its released code."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contract import Batch, StepContext, TextFeatures
from models.losses.adversarial import hinge_discriminator, hinge_generator
from models.losses.contrastive import Contrast, contrast_scores, nt_xent, word_region_scores
from models.parallel import OneRank
from models.xmcgan import XMCGAN, Discriminator, Generator, XMCGANConfig
from models.xmcgan.networks import attend_to_words

from .conftest import Golden, Load


def rename(name: str) -> str:
    """A golden weight's name in our modules."""
    name = re.sub(r"block(\d+)\.", r"blocks.\1.", name)
    name = name.replace("attention_query.", "attention_queries.0.")
    return re.sub(r"\.u0$", ".u", name)


def load(net: nn.Module, weights: dict[str, Tensor]) -> None:
    net.load_state_dict({rename(name): value for name, value in weights.items()}, strict=True)


def text_of(numbers: Golden) -> TextFeatures:
    words = numbers["in.words"]
    sentence = numbers["in.sentence"] if "in.sentence" in numbers.arrays else words[:, 0]
    return TextFeatures(words, numbers["in.max_len"].reshape(-1), sentence)


def config_of(numbers: Golden, resolution: int = 128) -> XMCGANConfig:
    """The constants a file names; widths come from its arrays."""
    constants = numbers.meta["constants"]
    return XMCGANConfig(
        resolution=resolution,
        channels=constants.get("gf", constants.get("df")),
        text_dim=numbers["in.sentence"].shape[1],
        noise_dim=constants.get("z_dim", 8),
        sentence_dim=constants.get("z_dim", 8),
        rho_0=constants.get("rho", 15),
        tau=constants.get("tau", 0.1),
        rho_1=constants.get("gamma1", 5),
        rho_2=constants.get("gamma2", 5),
        tau_word=1 / constants.get("gamma3", 50),
        image_losses="both",
    )


def check_contrast(numbers: Golden, contrast: Contrast, prefix: str = "out.") -> None:
    for name in ("loss", "accuracy", "entropy"):
        key = f"{prefix}{name}" if f"{prefix}{name}" in numbers.arrays else f"{prefix}{name[:3]}"
        numbers.check(key, getattr(contrast, name))


def test_sentence_contrastive(golden: Load) -> None:
    numbers = golden("xmcgan_sentence_contrastive")
    image, sentence = numbers["in.image_feature"].requires_grad_(), numbers["in.sentence_feature"].requires_grad_()
    contrast = nt_xent(image, sentence, numbers.meta["constants"]["tau"])
    contrast.loss.backward()
    check_contrast(numbers, contrast)
    numbers.check("grad.image_feature", image.grad)
    numbers.check("grad.sentence_feature", sentence.grad)


def test_image_contrastive_and_hinge(golden: Load) -> None:
    numbers = golden("xmcgan_image_contrastive")
    fake = numbers["in.fake_feature"].requires_grad_()
    contrast = nt_xent(numbers["in.real_feature"], fake, numbers.meta["constants"]["tau"])
    contrast.loss.backward()
    check_contrast(numbers, contrast)
    numbers.check("grad.fake_feature", fake.grad)
    numbers.check("out.hinge_d", hinge_discriminator(numbers["in.real_logit"], numbers["in.fake_logit"]))
    numbers.check("out.hinge_g", hinge_generator(numbers["in.fake_logit"]))


def test_word_contrastive(golden: Load) -> None:
    numbers = golden("xmcgan_word_contrastive")
    constants = numbers.meta["constants"]
    regions, words = numbers["in.regions"].requires_grad_(), numbers["in.words"].requires_grad_()
    scores = word_region_scores(
        regions, words, text_of(numbers).padding(), constants["gamma1"], constants["gamma2"], 1 / constants["gamma3"]
    )
    contrast = contrast_scores(scores)
    contrast.loss.backward()
    check_contrast(numbers, contrast)
    numbers.check("grad.regions", regions.grad)
    numbers.check("grad.words", words.grad)


def test_attention_16(golden: Load) -> None:
    numbers = golden("xmcgan_attention_16")
    context, attention = attend_to_words(
        numbers["in.regions"],
        numbers["in.words"],
        text_of(numbers).padding(),
        numbers.meta["constants"]["rho"],
        "normalised",
    )
    numbers.check("out.context", context)
    numbers.check("out.attention", attention)


def check_picture(numbers: Golden, prefix: str, picture: Tensor) -> None:
    """Strided pixels and per-channel mean and deviation of a picture in [-1, 1]; the file holds [0, 1]."""
    picture = (picture + 1) / 2
    strided = next(key for key in numbers.arrays if re.match(re.escape(prefix) + r"image_stride\d+_offset\d+$", key))
    stride, offset = map(int, re.findall(r"\d+", strided.rsplit("image_", 1)[1]))
    numbers.check(strided, picture[..., offset::stride, offset::stride])
    numbers.check(f"{prefix}image_mean", picture.mean((2, 3)))
    numbers.check(f"{prefix}image_std", picture.std((2, 3), correction=0))


def test_generator(golden: Load) -> None:
    numbers = golden("xmcgan_generator_small")
    net = Generator(config_of(numbers))
    load(net, numbers.group("w"))
    with torch.no_grad():
        check_picture(numbers, "out.eval.", net.eval()(text_of(numbers), numbers["in.z"]))
        check_picture(numbers, "out.train.", net.train()(text_of(numbers), numbers["in.z"]))
    state = net.state_dict()
    for name in numbers.group("out.after_train"):
        numbers.check(f"out.after_train.{name}", state[rename(name)])


def test_discriminator(golden: Load) -> None:
    numbers = golden("xmcgan_discriminator_small")
    config, text = config_of(numbers), text_of(numbers)
    net = Discriminator(config)
    load(net, numbers.group("w"))
    images = torch.cat([numbers["in.real_image_pm1"], numbers["in.fake_image_pm1"]])
    with torch.no_grad():
        numbers.check("out.eval.logit", net.eval()(images, text.sentence).logits)
        judgement = net.train()(images, text.sentence)
    numbers.check("out.logit", judgement.logits)
    numbers.check("out.pooled_feature", judgement.features)
    numbers.check("out.sentence_feature", judgement.sentence)
    regions = judgement.regions.transpose(1, 2).unflatten(2, (16, 16))
    numbers.check("out.word_region_feature", regions)

    real, fake = judgement.features.chunk(2)
    for kind, features, maps in zip(("real", "fake"), (real, fake), judgement.regions.chunk(2), strict=True):
        check_contrast(numbers, nt_xent(features, judgement.sentence, config.tau), f"out.stat.{kind}_sentence_")
        scores = word_region_scores(
            maps, text.words, text.padding(), config.rho_1, config.rho_2, config.tau_word, config.region_values
        )
        check_contrast(numbers, contrast_scores(scores), f"out.stat.{kind}_word_")
    check_contrast(numbers, nt_xent(real, fake, config.tau), "out.stat.image_contrastive_")

    state = net.state_dict()
    for name in numbers.group("out.after_train"):
        numbers.check(f"out.after_train.{name}", state[rename(name)])


class BlockMeans(nn.Module):
    """The stand-in for a pretrained net: block means of the [0, 1] picture, row-column-channel, times a matrix."""

    def __init__(self, projection: Tensor) -> None:
        super().__init__()
        self.register_buffer("projection", projection)
        self.side = round((len(projection) / 3) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        blocks = F.adaptive_avg_pool2d((images + 1) / 2, self.side)
        return blocks.permute(0, 2, 3, 1).flatten(1) @ self.projection


def test_joint_training_step(golden: Load) -> None:
    """Losses, gradients and running statistics of one released training step, through the system's own phase."""
    numbers = golden("xmcgan_train_step_losses")
    config = config_of(numbers)
    nets: dict[str, nn.Module] = {
        "generator": Generator(config),
        "discriminator": Discriminator(config),
        "pretrained": BlockMeans(numbers["in.pretrained_projection"]),
    }
    load(nets["generator"], numbers.group("w.g"))
    load(nets["discriminator"], numbers.group("w.d"))
    images = numbers["in.real_image_pm1"]
    batch = Batch(torch.arange(len(images)), images, text_of(numbers))
    context = StepContext(OneRank(), lambda width: numbers["in.z"])
    joint = XMCGAN().phases(config)[-1]
    assert joint.trains == ("discriminator", "generator")
    objectives = joint.losses(nets, batch, context)

    d_terms, g_terms = objectives["discriminator"].terms, objectives["generator"].terms
    numbers.check("out.step.d_loss", objectives["discriminator"].loss)
    numbers.check("out.step.g_loss", objectives["generator"].loss)
    numbers.check("out.step.c_loss_d", d_terms["real_sentence"] + d_terms["real_word"])
    numbers.check("out.step.c_loss_g_pretrained", g_terms["pretrained"])
    numbers.check("out.hinge_d", d_terms["hinge"])
    numbers.check("out.hinge_g", g_terms["hinge"])
    for golden_name, term in {
        "real_word_loss": d_terms["real_word"],
        "real_sentence_loss": d_terms["real_sentence"],
        "fake_word_loss": g_terms["fake_word"],
        "fake_sentence_loss": g_terms["fake_sentence"],
        "image_contrastive_loss": g_terms["image"],
    }.items():
        numbers.check(f"out.term.{golden_name}", term)

    for net_name, short in (("discriminator", "d"), ("generator", "g")):
        parameters = dict(nets[net_name].named_parameters())
        gradients = dict(
            zip(
                parameters,
                torch.autograd.grad(objectives[net_name].loss, list(parameters.values()), retain_graph=True),
                strict=True,
            )
        )
        check_gradients(numbers, short, gradients)

    state = nets["generator"].state_dict()
    for name in numbers.group("out.after.g"):
        numbers.check(f"out.after.g.{name}", state[rename(name)])


def check_gradients(numbers: Golden, short: str, gradients: dict[str, Tensor]) -> None:
    """Every gradient by its norm and sum, some in full, relative to the norm of the whole net's gradient.

    Relative to the whole, because a bias that a batch norm follows has a gradient of pure rounding noise.
    """
    step = f"{short}_step.{short}"
    total = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    full = numbers.group(f"grad.{step}")
    norms, sums = numbers.group(f"out.grad_norm.{step}"), numbers.group(f"out.grad_sum.{step}")
    assert full and {rename(name) for name in norms} == gradients.keys()
    for name, theirs in full.items():
        assert (gradients[rename(name)] - theirs).norm() <= 2e-5 * total, name
    for name, norm in norms.items():
        ours = gradients[rename(name)]
        assert abs(ours.norm() - norm) <= 2e-5 * total, name
        assert abs(ours.sum() - sums[name]) <= 2e-5 * total * ours.numel() ** 0.5, name
