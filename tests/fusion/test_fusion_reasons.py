"""What `fuse` leaves alone, and the reason it gives for each."""

from __future__ import annotations

import pytest
import torch
from test_fusion import block, frozen_forward, with_hook
from torch import nn

from ganfast import fuse


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Subclass(nn.BatchNorm2d):
    pass


class Skipping(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x))


class Reversed(nn.Sequential):
    def __iter__(self):
        return reversed(self._modules.values())


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * x


def prepared(module):
    module.qconfig = torch.ao.quantization.default_qconfig
    return module


def parametrised():
    norm = nn.BatchNorm2d(4)
    nn.utils.parametrize.register_parametrization(norm, "weight", Doubling())
    return norm


def shared():
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(norm, nn.ReLU(), norm, nn.ReLU())


def between(layer):
    norm_act = block()
    norm_act.insert(2, layer)
    return norm_act


LEFT_ALONE = {
    # What is left alone, the reason, and the options of `fuse`.
    "own forward": (lambda: block(OwnForward(4)), "OwnForward overrides forward"),
    "subclass": (lambda: block(Subclass(4)), "Subclass is a subclass"),
    "forward replaced": (lambda: block(frozen_forward(nn.BatchNorm2d(4))), "its forward was"),
    "forward hook": (lambda: block(with_hook(nn.BatchNorm2d(4), "forward_hook")), "a forward hook"),
    "backward hook": (
        lambda: block(with_hook(nn.BatchNorm2d(4), "full_backward_hook")), "a backward hook",
    ),
    "backward pre-hook": (
        lambda: block(with_hook(nn.BatchNorm2d(4), "full_backward_pre_hook")), "a backward hook",
    ),
    "hook of the activation": (
        lambda: block(act=with_hook(nn.ReLU(), "forward_pre_hook")), "its ReLU has a hook",
    ),
    "state hook of the activation": (
        lambda: block(act=with_hook(nn.ReLU(), "state_dict_post_hook")), "its ReLU has a hook",
    ),
    "activation replaced": (lambda: block(act=frozen_forward(nn.ReLU())), "forward of its ReLU"),
    "lazy": (lambda: block(nn.LazyBatchNorm2d()), "fuse after a first batch"),
    "prepared for quantisation": (lambda: block(prepared(nn.BatchNorm2d(4))), "quantised"),
    "quantised": (lambda: block(torch.ao.nn.quantized.BatchNorm2d(4)), "quantised"),
    "synchronised": (lambda: block(nn.SyncBatchNorm(4)), "convert_sync_batchnorm"),
    "parametrised": (lambda: block(parametrised()), "is parametrised"),
    "spectral norm": (lambda: block(nn.utils.spectral_norm(nn.BatchNorm2d(4))), "by a hook"),
    "shared": (shared, "used in 2 places"),
    "sequential with own forward": (lambda: Skipping(*block()), "Skipping has a forward of"),
    "sequential in another order": (lambda: Reversed(*block()), "Reversed has a forward of"),
    "negative slope": (lambda: block(act=nn.LeakyReLU(-0.1)), "got -0.1"),
    "infinite slope": (lambda: block(act=nn.LeakyReLU(float("inf"))), "got inf"),
    "outside a sequential": (lambda: nn.ModuleList(block()), "outside nn.Sequential"),
    "alone": (lambda: nn.BatchNorm2d(4), "stands alone"),
    "last": (lambda: block()[:2], "last in its Sequential"),
    "dropout": (lambda: block(act=nn.Dropout(0.5)), "followed by Dropout"),
    "dropout between": (lambda: between(nn.Dropout2d(0.5)), "followed by Dropout2d"),
    "alpha dropout between": (lambda: between(nn.AlphaDropout(0.0)), "followed by AlphaDropout"),
    "hook between": (lambda: between(with_hook(nn.Identity(), "forward_hook")), "by Identity"),
    "replaced between": (lambda: between(frozen_forward(nn.Dropout(0.0))), "by Dropout"),
    "nothing behind": (lambda: nn.Sequential(*block()[:2], nn.Identity()), "last in its"),
    "convolution": (lambda: block(act=nn.Conv2d(4, 4, 1)), "followed by Conv2d"),
    "prelu": (lambda: block(act=nn.PReLU()), "followed by PReLU"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone_with_the_reason(case):
    make, reason = LEFT_ALONE[case]
    model = make()
    text, classes = repr(model), [type(m) for m in model.modules()]
    report = fuse(model)
    assert not report.fused
    assert len(report.skipped) == 1
    assert reason in report.skipped[0][1]
    assert reason in str(report)
    assert repr(model) == text
    assert [type(m) for m in model.modules()] == classes
