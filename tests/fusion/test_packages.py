"""Models of packages that people use, fused in each way: as many pairs, and the same training."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from ganfast.fusion import fuse
from ganfast.fusion.graph import fuse_graph

IMAGES = (2, 3, 64, 64)
ONE_CHANNEL = (2, 1, 32, 32)
UNET = {
    "input_channels": 1, "n_stages": 3, "features_per_stage": (4, 8, 16), "conv_op": nn.Conv2d,
    "kernel_sizes": 3, "strides": (1, 2, 2), "num_classes": 2, "n_conv_per_stage_decoder": 2,
    "conv_bias": True, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True}, "deep_supervision": False,
}  # fmt: skip
MONAI = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}


class Case(NamedTuple):
    package: str
    make: Callable[[Any], nn.Module]  # called with the package's module that `package` names
    shape: tuple[int, ...]
    # Pairs that are found by fuse(model), by fuse(model, example_inputs=x), and in graphs.
    inspected: int
    by_example: int
    compiled: int


CASES = {
    "monai patch discriminator": Case(
        "monai.networks.nets",
        lambda nets: nets.PatchDiscriminator(2, 8, in_channels=1, num_layers_d=3),
        (2, 1, 64, 64), 3, 3, 3,
    ),
    "monai multi-scale discriminator": Case(
        "monai.networks.nets",
        lambda nets: nets.MultiScalePatchDiscriminator(
            2, 2, 2, 8, in_channels=1, minimum_size_im=64
        ),
        (2, 1, 64, 64), 6, 6, 6,
    ),
    "monai basic U-Net": Case(
        "monai.networks.nets",
        lambda nets: nets.BasicUNet(features=(4, 4, 8, 8, 16, 4), **MONAI),
        ONE_CHANNEL, 18, 18, 16,
    ),
    "monai attention U-Net": Case(
        "monai.networks.nets",
        lambda nets: nets.AttentionUnet(channels=(4, 8, 16), strides=(2, 2), **MONAI),
        ONE_CHANNEL, 8, 8, 8,
    ),
    "monai dynamic U-Net": Case(  # one activation module behind two norms
        "monai.networks.nets",
        lambda nets: nets.DynUNet(
            kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], **MONAI
        ),
        ONE_CHANNEL, 0, 0, 10,
    ),
    "nnU-Net": Case(
        "dynamic_network_architectures.architectures.unet",
        lambda unet: unet.PlainConvUNet(n_conv_per_stage=2, norm_op=nn.InstanceNorm2d, **UNET),
        ONE_CHANNEL, 0, 10, 10,
    ),
    "nnU-Net, residual": Case(
        "dynamic_network_architectures.architectures.unet",
        lambda unet: unet.ResidualEncoderUNet(
            n_blocks_per_stage=2, norm_op=nn.InstanceNorm2d, **UNET
        ),
        ONE_CHANNEL, 0, 11, 11,
    ),
    "smp U-Net on a ResNet": Case(
        "segmentation_models_pytorch",
        lambda smp: smp.Unet("resnet18", encoder_weights=None),
        IMAGES, 10, 11, 19,
    ),
    "smp U-Net on a VGG": Case(
        "segmentation_models_pytorch",
        lambda smp: smp.Unet("vgg11_bn", encoder_weights=None),
        IMAGES, 20, 20, 20,
    ),
    "timm ResNet": Case(
        "timm", lambda timm: timm.create_model("resnet18"), IMAGES, 0, 9, 9
    ),
    "timm features of a VGG": Case(
        "timm", lambda timm: timm.create_model("vgg11_bn", features_only=True), IMAGES, 0, 8, 8
    ),
    "torchvision ResNet": Case(  # one activation module behind two norms
        "torchvision.models", lambda models: models.resnet18(), IMAGES, 0, 1, 9
    ),
    "torchvision DenseNet": Case(
        "torchvision.models",
        lambda models: models.DenseNet(4, (2, 2), 8),
        IMAGES, 2, 10, 11,
    ),
    "torchvision VGG": Case(
        "torchvision.models", lambda models: models.vgg11_bn(), IMAGES, 8, 8, 8
    ),
}  # fmt: skip


def tensors(y: Any) -> list[torch.Tensor]:
    return [y] if isinstance(y, torch.Tensor) else [t for part in y for t in tensors(part)]


def train(call: Callable[..., Any], model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return outputs, gradients and buffers of a step, then outputs in evaluation."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # for dropout
    outputs = tensors(call(x))
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in outputs]
    sum((y.sin() * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    gradients = [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    model.eval()
    with torch.no_grad():
        evaluated = tensors(call(x))
    model.train()
    return [*outputs, *gradients, *model.buffers(), *evaluated]


def assert_close(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Compare by norms: what rounds elsewhere in dozens of layers differs most where it is 0."""
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result.shape, right.shape)
        difference = (result.double() - right.double()).norm()
        assert difference <= 1e-8 * max(1.0, right.double().norm())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at inputs of graphs
@pytest.mark.parametrize("name", CASES)
def test_models_of_packages_train_as_before(name):
    case = CASES[name]
    if importlib.util.find_spec(case.package.partition(".")[0]) is None:
        pytest.skip(f"{case.package} is not installed: pip install ganfast[examples]")
    torch.manual_seed(0)
    model = case.make(importlib.import_module(case.package)).double()
    x = torch.randn(case.shape, dtype=torch.float64)
    twin = copy.deepcopy(model)
    expected = train(twin, twin, x)

    found = []
    for examples in (None, x):
        fused = copy.deepcopy(model)
        found.append(len(fuse(fused, example_inputs=examples).fused))
        assert fused.state_dict().keys() == model.state_dict().keys()
        assert_close(train(fused, fused, x), expected)

    pairs = []

    def backend(graph, inputs):
        pairs.extend(fuse_graph(graph).fused)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(copy.deepcopy(model), backend=backend)(x)
    found.append(len(pairs))
    assert_close(train(torch.compile(model, backend=backend), model, x), expected)
    assert found == [case.inspected, case.by_example, case.compiled]
