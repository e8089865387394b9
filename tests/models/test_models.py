"""Models: the numbers and checkpoint keys of plain torch, initialisation, errors."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from ganfast import models

SLOPE = 0.2


class Main(nn.Module):
    """Hold a Sequential under the name the model uses, and end as the model ends."""

    def __init__(self, name: str, layers: list[nn.Module], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))
        self.name = name
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x).reshape(-1, *self.shape)


def dcgan_twin(size: int, channels: int, width: int, latent: int, activation: str) -> list[Main]:
    """Build the plain-torch DCGAN of pytorch/examples, one module a layer, at any size."""

    def act() -> nn.Module:
        return nn.ReLU(True) if activation == "relu" else nn.LeakyReLU(SLOPE, True)

    multiples = [2**i for i in range(size.bit_length() - 3)]  # 64 pixels: 1, 2, 4, 8
    widths = [width * multiple for multiple in reversed(multiples)]
    pairs = list(itertools.pairwise(widths))
    up = [nn.ConvTranspose2d(latent, widths[0], 4, 1, 0, bias=False)]
    up += [nn.BatchNorm2d(widths[0]), act()]
    for wide, narrow in pairs:
        up += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), act()]
    up += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]
    down = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(SLOPE, True)]
    for wide, narrow in reversed(pairs):
        down += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide)]
        down += [nn.LeakyReLU(SLOPE, True)]
    down += [nn.Conv2d(widths[0], 1, 4, 1, 0, bias=False)]
    return [Main("main", up, (channels, size, size)), Main("main", down, ())]


def mlp_twin(size: int, channels: int, width: int, latent: int, eps: float) -> list[Main]:
    pixels = channels * size * size
    up: list[nn.Module] = [nn.Linear(latent, width), nn.LeakyReLU(SLOPE, True)]
    for features in (width, 2 * width, 4 * width):
        up += [nn.Linear(features, 2 * features), nn.BatchNorm1d(2 * features, eps)]
        up += [nn.LeakyReLU(SLOPE, True)]
    up += [nn.Linear(8 * width, pixels), nn.Tanh()]
    down = [nn.Flatten(), nn.Linear(pixels, 4 * width), nn.LeakyReLU(SLOPE, True)]
    down += [nn.Linear(4 * width, 2 * width), nn.LeakyReLU(SLOPE, True), nn.Linear(2 * width, 1)]
    twins = [Main("model", up, (channels, size, size)), Main("model", down[1:], ())]
    twins[1].register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(1),))
    return twins


def keras_twin(size: int, channels: int, width: int, latent: int) -> list[Main]:
    """Build TensorFlow's DCGAN of torch's layers: eps 1e-3, momentum 1 - 0.99, slope 0.3."""

    def norm_act(norm: nn.Module) -> list[nn.Module]:
        norm.eps, norm.momentum = 1e-3, 0.01
        return [norm, nn.LeakyReLU(0.3)]

    widths = [width * 2**i for i in range(size.bit_length() - 2)]  # 32 pixels: 1, 2, 4, 8
    up: list[nn.Module] = [nn.Linear(latent, 16 * widths[-1], bias=False)]
    up += [*norm_act(nn.BatchNorm1d(16 * widths[-1])), nn.Unflatten(1, (widths[-1], 4, 4))]
    for narrow, wide in reversed(list(itertools.pairwise(widths[1:]))):
        up += [nn.ConvTranspose2d(wide, narrow, 5, 2, 2, 1, bias=False)]
        up += norm_act(nn.BatchNorm2d(narrow))
    up += [nn.ConvTranspose2d(2 * width, channels, 5, 2, 2, 1, bias=False), nn.Tanh()]
    down: list[nn.Module] = []
    for before, after in itertools.pairwise([channels, *widths[:-1]]):
        down += [nn.Conv2d(before, after, 5, 2, 2), nn.LeakyReLU(0.3), nn.Dropout(0.3)]
    down += [nn.Flatten(), nn.Linear(8 * widths[-1], 1)]
    return [Main("main", up, (channels, size, size)), Main("main", down, ())]


CASES = {
    **{f"dcgan-{size}": ("dcgan", size, 1, {}) for size in (16, 32, 64, 128, 256)},
    "dcgan-rgb": ("dcgan", 32, 3, {"activation": "leaky_relu"}),
    **{f"keras-dcgan-{size}": ("keras-dcgan", size, 1, {}) for size in (16, 32, 64)},
    "keras-dcgan-rgb": ("keras-dcgan", 32, 3, {}),
    "mlp": ("mlp", 9, 3, {"eps": 1e-5}),
    "mlp-eps": ("mlp", 28, 1, {"eps": 0.8}),
}


def build_pair(case: str) -> tuple[models.GAN, list[Main]]:
    name, size, channels, options = CASES[case]
    width, latent = (2, 5) if size > 64 else (4, 5)
    gan = models.build(
        name, image_size=size, channels=channels, width=width, latent=latent, **options
    )
    if name == "dcgan":
        return gan, dcgan_twin(size, channels, width, latent, options.get("activation", "relu"))
    if name == "keras-dcgan":
        return gan, keras_twin(size, channels, width, latent)
    return gan, mlp_twin(size, channels, width, latent, options["eps"])


def randomise(module: nn.Module) -> None:
    """Move a layer away from its initial values, negative weights and statistics included."""
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter, 0.1, 0.5)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_checkpoints_load_in_both_directions(case: str, which: str) -> None:
    gan, twins = build_pair(case)
    ours, theirs = getattr(gan, which), twins[which == "discriminator"]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.apply(randomise)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    ours.apply(randomise)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", ["generator", "discriminator"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_outputs_gradients_and_statistics_are_those_of_plain_torch(
    case: str, which: str, training: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    gan, twins = build_pair(case)
    ours, theirs = getattr(gan, which).to(dtype), twins[which == "discriminator"].to(dtype)
    theirs.apply(randomise)
    ours.load_state_dict(theirs.state_dict())
    ours.train(training)
    theirs.train(training)
    x = torch.randn(4, *(gan.latent if which == "generator" else gan.image_shape), dtype=dtype)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]

    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = []
    for model, model_input in zip((ours, theirs), inputs, strict=True):
        torch.manual_seed(2)  # of dropout
        outputs.append(model(model_input))
    assert outputs[0].shape == outputs[1].shape
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()

    def close(actual: Tensor, expected: Tensor, scale: float) -> None:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)

    close(outputs[0], outputs[1], 1.0)
    close(inputs[0].grad, inputs[1].grad, inputs[1].grad.abs().max().item())
    # One scale for all: a bias before a normalisation has no gradient but rounding.
    scale = max(p.grad.abs().max().item() for p in theirs.parameters())
    assert scale > 0
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, scale)
    for buffer, expected in zip(ours.buffers(), theirs.buffers(), strict=True):
        close(buffer.double(), expected.double(), 1.0)


def test_activations_are_fused_and_leave_their_place_empty() -> None:
    gan = models.dcgan(image_size=32, width=4)
    kinds = [type(layer).__name__ for layer in gan.generator.main]
    assert kinds[:3] == ["ConvTranspose2d", "BatchNorm2d", "Identity"]
    assert not any(isinstance(m, nn.ReLU) for m in gan.generator.modules())
    # Only the discriminator's first layer, which has no normalisation, keeps its own.
    assert sum(isinstance(m, nn.LeakyReLU) for m in gan.discriminator.modules()) == 1


def test_dcgan_is_initialised_as_the_paper_says() -> None:
    torch.manual_seed(0)
    gan = models.dcgan(image_size=64, channels=3, width=64)
    for model in gan[:2]:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                count = module.weight.numel()
                assert abs(module.weight.mean().item()) < 5 * 0.02 / count**0.5
                assert module.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * count) ** 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                count = module.weight.numel()
                assert module.weight.mean().item() == pytest.approx(1, abs=5 * 0.02 / count**0.5)
                assert module.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * count) ** 0.5)
                assert not module.bias.any()


def test_dcgan_has_as_many_parameters_as_the_pytorch_example() -> None:
    gan = models.dcgan()  # the counts of pytorch/examples/dcgan at its defaults
    generator, discriminator = (sum(p.numel() for p in m.parameters()) for m in gan[:2])
    assert (generator, discriminator) == (3_576_704, 2_765_568)


def test_keras_dcgan_has_kerass_sizes_and_initialisation() -> None:
    gan = models.keras_dcgan()
    dense = gan.generator.main[0]
    assert tuple(dense.weight.shape) == (4 * 4 * 512, 100)
    counts = [m.out_channels for m in gan.discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert counts == [64, 128, 256]
    for model in gan[:2]:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                kernel = module.weight[0, 0].numel()
                limit = (6 / (kernel * sum(module.weight.shape[:2]))) ** 0.5  # Glorot uniform
                assert 0.98 * limit < module.weight.abs().max() <= limit
                assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", sorted(models.BUILDERS))
def test_generated_images_are_in_range_and_judged_one_by_one(name: str) -> None:
    gan = models.build(name, image_size=16, channels=3, width=4, latent=6)
    images = gan.generator(torch.randn(3, *gan.latent) * 100)
    assert images.shape == (3, *gan.image_shape)
    assert images.abs().max() <= 1
    assert gan.discriminator(images).shape == (3,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dcgan", {"image_size": 48}, "image_size must be one of 16, 28, 32, 64, 128, 256, got 48"),
        ("dcgan", {"image_size": 8}, "got 8"),
        ("dcgan", {"channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
        ("dcgan", {"width": 0}, "width must be a positive integer, got 0"),
        ("dcgan", {"latent": -1}, "latent must be a positive integer, got -1"),
        ("dcgan", {"activation": "gelu"}, "activation must be 'relu' or 'leaky_relu', got 'gelu'"),
        ("keras-dcgan", {"image_size": 28}, "image_size must be one of 16, 32, 64, got 28"),
        ("keras-dcgan", {"channels": 2}, "channels must be"),
        ("keras-dcgan", {"width": 0}, "width must be a positive integer, got 0"),
        ("mlp", {"image_size": 2.5}, "image_size must be a positive integer, got 2.5"),
        ("mlp", {"channels": 4}, "channels must be"),
        ("mlp", {"width": True}, "width must be a positive integer, got True"),
        ("biggan", {}, "no model is named 'biggan'; known models: dcgan, keras-dcgan, mlp"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)


def test_discriminator_rejects_images_of_another_size() -> None:
    gan = models.dcgan(image_size=16, channels=1, width=4)
    with pytest.raises(RuntimeError):
        gan.discriminator(torch.zeros(2, 1, 32, 32))
