"""Arguments that torch refuses, or that would be misread: errors of torch's type."""

from __future__ import annotations

import pytest
import torch

from ganfast import functional
from ganfast.functional import batch_norm_act

C = 3


def arguments(**changed):
    """Return arguments of batch_norm_act by name, the tensors new ones."""
    given = {"running_mean": torch.zeros(C), "running_var": torch.ones(C), "weight": torch.ones(C)}
    given |= {"x": torch.randn(4, C, 2), "bias": torch.zeros(C), "training": True}
    return given | {"num_batches_tracked": torch.tensor(0)} | changed


VECTORS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize("name", ["x", *VECTORS])
@pytest.mark.parametrize("training", [True, False])
def test_tensors_of_another_device_are_refused(backend, name, training):
    if name == "num_batches_tracked" and not training:
        pytest.skip("evaluation has no use for it")
    given = arguments(training=training)
    given[name] = given[name].to("meta")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        batch_norm_act(**given)


def test_statistics_that_load_state_dict_left_on_meta_are_refused(backend):
    import ganfast.nn

    with torch.device("meta"):
        layer = ganfast.nn.BatchNorm2d(C)
    layer.load_state_dict({n: torch.ones(C) for n in ("weight", "bias")}, strict=False, assign=True)
    with pytest.raises(RuntimeError, match="running_mean"):
        layer(torch.randn(2, C, 4, 4))


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("name", ["target", "weight", "pos_weight"])
def test_targets_and_weights_of_another_device_are_refused(backend, loss, name):
    if name == "pos_weight" and loss == "binary_cross_entropy":
        pytest.skip("it has none")
    given = {"input": torch.rand(4), "target": torch.rand(4)} | {name: torch.rand(4).to("meta")}
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        getattr(functional, loss)(**given)


def test_scores_of_another_device_are_refused(backend):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        functional.gan_discriminator_loss(torch.rand(4), torch.rand(4).to("meta"))


@pytest.mark.parametrize("count", [torch.zeros(0, dtype=torch.int64), torch.zeros(())])
def test_counters_that_are_none_are_refused(backend, count):
    with pytest.raises(RuntimeError, match="num_batches_tracked must be one element of int64"):
        batch_norm_act(**arguments(num_batches_tracked=count))


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_require_grad_are_refused(backend, name, training):
    given = arguments(training=training)
    given[name].requires_grad_()
    with pytest.raises(RuntimeError, match=f"not differentiable with respect to {name}"):
        batch_norm_act(**given)
    with torch.no_grad():  # torch allows it here
        batch_norm_act(**given)


@pytest.mark.parametrize("other", ["running_var", "weight", "bias", "x"])
def test_statistics_that_share_memory_are_refused(backend, other):
    given = arguments()
    given["running_mean"] = given[other].flatten()[:C]
    with pytest.raises(RuntimeError, match="running_mean is updated in place and must not share"):
        batch_norm_act(**given)


def test_statistics_in_one_buffer_are_no_alias(backend):
    apart, buffer = arguments(), torch.zeros(4 * C)
    together = apart | {"running_var": torch.ones(C)}
    for i, name in enumerate(["running_mean", "running_var", "weight", "bias"]):
        together[name] = buffer[i * C : (i + 1) * C].copy_(apart[name])
    torch.testing.assert_close(batch_norm_act(**together), batch_norm_act(**apart))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "wrong", [{"training": 1}, {"training": "no"}, {"momentum": "0.1"}, {"splits": 2.5}], ids=str
)
def test_wrong_types_are_refused(backend, training, wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        batch_norm_act(**(arguments(training=training) | wrong))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean"])
def test_complex_vectors_are_refused(backend, name):
    with pytest.raises(RuntimeError, match="mixed dtype"):
        batch_norm_act(**arguments(**{name: torch.ones(C, dtype=torch.complex64)}))


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
def test_losses_refuse_what_torch_refuses(backend, loss):
    x, ours, torchs = torch.rand(4), getattr(functional, loss), getattr(torch.nn.functional, loss)
    complex_weight = torch.ones(4, dtype=torch.complex64)
    for target, weight in (("0.5", None), (None, None), (torch.rand(4), complex_weight)):
        with pytest.raises((RuntimeError, AttributeError)) as refused:
            torchs(x, target, weight)
        with pytest.raises(refused.type):
            ours(x, target, weight)


def test_a_complex_pos_weight_is_refused(backend):
    with pytest.raises(RuntimeError, match="pos_weight must be real"):
        functional.binary_cross_entropy_with_logits(
            torch.rand(4), torch.rand(4), pos_weight=torch.ones(4, dtype=torch.complex64)
        )
