"""Break the formulas and decisions one at a time, and see a test turn red each time.

Usage::

    python tests/package/mutation.py                  # every backend that can be built
    python tests/package/mutation.py --backend eager  # seconds a mutation; native and cuda compile
    python tests/package/mutation.py --only eps slope # by name, of those that --list shows

Works in a temporary copy of the repository. The native extension is compiled there with less
optimisation, for one instruction set; the CUDA kernels run in the tests' emulator. The exit
code is 1 where a mutation survives its tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from extension_copy import ROOT, Extension, copy_repository

fork = multiprocessing.get_context("fork")
TIME_LIMIT = 600  # seconds, for one run of the tests; a mutated loop may not end
USED = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "baseline")

# A file and the tests of it, then its mutations: name | old text, which must occur once | new text.
TABLE = r"""
ganfast/activations.py: batch_norm_act
slope | "leaky_relu": Activation(\n        functional.leaky_relu, | "leaky_relu": Activation(lambda z, slope: torch.where(z > 0, z, 1.01 * slope * z),
NaN through relu | torch.relu(z) | torch.where(z > 0, z, 0.0)
mask at zero, relu | _aten.threshold_backward.default(dy, z, 0.0) | dy * (z >= 0)
mask at zero, leaky_relu | leaky_relu_backward.default(dy, z, slope | leaky_relu_backward.default(dy, z + 1e-30, slope
ganfast/ops/batch_norm_act/reference.py: batch_norm_act
eps | rstd = (var + eps).rsqrt() | rstd = (var + 2 * eps).rsqrt()
M/(M-1) | correction * var[chunk] | var[chunk]
rest of the mean | shift = b - rest * scale | shift = b.expand_as(scale)
momentum | (1 - step) * running.to(batch.dtype) + step | step * running.to(batch.dtype) + (1 - step)
momentum None | num_batches_tracked.to(u.dtype).reciprocal() | (num_batches_tracked + 1).to(u.dtype).reciprocal()
splits order | t.reshape(splits, images, channels, positions) | t.reshape(images, splits, channels, positions).transpose(0, 1)
mask of backward | act.gate_after(g, torch.addcmul(shift, u - mean, scale)) | act.gate_after(g, (u - mean) * scale)
mean of d_dy | (v - mean_v - h * mean_vh) + p * h | (v - h * mean_vh) + p * h
last term of d_x | (mean_eh + w * rstd * s / count) | mean_eh
statistics of the third derivative | live_mean.reshape(scale.shape), (var + eps).rsqrt() | live_mean.reshape(scale.shape), rstd
ganfast/ops/losses/reference.py: binary_cross_entropy gan_loss
label | torch.full_like(u, label) | torch.full_like(u, float(label > 0.5))
pos_weight | x.sigmoid() * (positive + (1 - t)) | x.sigmoid()
smallest denominator | SMALLEST_DENOMINATOR = 9.999999960041972e-13 | SMALLEST_DENOMINATOR = 1e-12
factor 1/n | dy = dy / u.numel() | dy = dy / u.shape[-1]
weight | else dy * weight.to(dy.dtype) | else dy
log clamp of the target | (-u).log1p() - u.log() | (-u).log1p().clamp_min(-100) - u.log().clamp_min(-100)
label of the other half | mean_loss(fake, form, fake_label) | mean_loss(fake, form, 1 - real_label)
score | (x.sigmoid() if form == "logits" else x for x | (x for x
splits order | zip(parts, (real_label, fake_label), | zip(parts, (fake_label, real_label)[-len(parts) :],
hinge corner | (1 - t * x <= 0) | (1 - t * x < 0)
NaN at the hinge | (1 - t * x <= 0).logical_not() | (1 - t * x > 0)
ganfast/functional/instance_norm_act.py: instance_norm
momentum | (1 - momentum) * running.to(batch.dtype) + momentum * batch | momentum * running.to(batch.dtype) + (1 - momentum) * batch
statistics of an image | None, 1.0, eps, *act, 1) | None, 0.5, eps, *act, 1)
average over images | v.view(images, channels).mean(0) | v.view(images, channels)[0]
average over chunks | device=x.device), None | device=x.device), 0.5
chunk for each image | splits = max(1, x.shape[0]) | splits = 1
repeated weight | .repeat(images) for v | .repeat_interleave(images) for v
csrc/common/activation.h: batch_norm_act
slope | z > V{} ? z : z * slope | z > V{} ? z : z * (slope * 1.01f)
mask at zero, relu | z <= V{} ? V{} : dy | z < V{} ? V{} : dy
mask at zero, leaky_relu | z > V{} ? dy : dy * slope | z >= V{} ? dy : dy * slope
csrc/common/pointwise.h: batch_norm_act
mask of backward | gate<A>(dy, multiply_add(d, k[1], k[2]), slope) | gate<A>(dy, d * k[1], slope)
csrc/common/channel_math.h: batch_norm_act
rest of the mean | bias - rest * scale | bias
projection of dx | factor * rstd * rstd * sum_gd | factor * rstd * sum_gd
mean of d_dy | q - scale * mean_v | q
last term of d_x | (mean_eh + scale * s * per_value) | mean_eh
ddbias in evaluation | {rstd * p, q, 0 | {rstd * p, 0, 0
csrc/cpu/batch_norm_act/loops.h: batch_norm_act
missing tail of planes | if (rest != 0 && whole != 0) { | if (rest > 1 && whole != 0) {
missing tail of short planes | } else if (rest != 0) { | } else if (rest > 4) {
lanes counted twice | {L - rest, L} | {0, L}
missing tail of channels, sums | sum.some(at, (r + i) * C + c, {0, count}, k) | sum.some(at, (r + i) * C + c, {0, count - 1}, k)
missing tail of channels, y | action.some(at, (r + i) * C + c, {0, count}, k) | action.some(at, (r + i) * C + c, {0, count - 1}, k)
runs in float | constexpr int64_t run_length = 32; | constexpr int64_t run_length = 1 << 20;
csrc/cpu/batch_norm_act/kernels_impl.h: batch_norm_act
eps | (var < 0 ? 0 : var) + k.eps | (var < 0 ? 0 : var) + 2 * k.eps
told activation | told.is[static_cast<int>(call.activation)] | told.is[static_cast<int>(any)]
eps in evaluation | __builtin_sqrt(var[c] + k.eps) | __builtin_sqrt(var[c])
far guess | trusted_distance = 3.0 | trusted_distance = 3e30
guess not finite | return mean - mean == 0 ? mean : 0; | return mean;
csrc/cpu/batch_norm_act/tiling.h: batch_norm_act
parts of a sum | total[i + c] += more[i + c] | total[i + c] = more[i + c]
csrc/cpu/batch_norm_act/forward.cpp: batch_norm_act
M/(M-1) | steps, M / (M - 1)) | steps, 1.0)
momentum | (1 - step) * value[c] + step | step * value[c] + (1 - step)
momentum None | 1.0 / static_cast<double>(*count) | 1.0 / static_cast<double>(*count + 1)
splits order | step = steps[split]; | step = steps[tiling.splits - 1 - split];
csrc/cpu/batch_norm_act/backward.cpp: batch_norm_act
splits in dbias | both[C + c] += total[c] | both[C + c] = total[c]
csrc/common/loss_math.h: binary_cross_entropy gan_loss
log clamp | Math::at_least(Math::log_of(x), -100.0) | Math::at_least(Math::log_of(x), -99.0)
pos_weight | ((p - 1.0f) * t + 1.0f) | (p + 0.0f * t)
smallest denominator | 1e-12f) | 1e-12)
hinge corner | 1.0f - t * x <= 0.0f ? V{} : -t | 1.0f - t * x < 0.0f ? V{} : -t
score | return sigmoid_given(x, Math::exp_of_nonpositive(Math::minus_abs(x))); | return x;
csrc/cpu/simd_math.h: binary_cross_entropy gan_loss
coefficient of exp | 0.1666657703f | 0.1666f
log of a subnormal | FloatVec{} - 23.0f | FloatVec{} - 22.0f
rounding in log(1 - x) | return log_of(u) + (u == 0.0f ? FloatVec{} : lost / u); | return log_of(u);
csrc/cpu/losses/kernels_impl.h: binary_cross_entropy gan_loss
missing tail | keep<T>(o.loss(), 0, count) | keep<T>(o.loss(), 0, count - 1)
weight | return plain ? y : y * w; | return y;
runs in float | constexpr int64_t loss_run = 32; | constexpr int64_t loss_run = 1 << 20;
csrc/cpu/losses/tiling.h: binary_cross_entropy gan_loss
parts of the score | total[1] += part.sums[1] | total[1] = part.sums[1]
csrc/cpu/losses/binary_cross_entropy.cpp: binary_cross_entropy
label | call.label = label; | call.label = label > 0.5;
factor 1/n | (reduction == "mean" ? static_cast<double>(n) : 1.0) | static_cast<double>(n)
csrc/cuda/batch_norm_act/finish.cuh: cuda_kernels
eps | 1 / sqrt(var + call.eps) | 1 / sqrt(var + 2 * call.eps)
d_weight | return f.d_weight; | return 0;
M/(M-1) | var * (call.at.values / (call.at.values - 1)) | var
splits order | *call.num_batches_tracked + split + 1 | *call.num_batches_tracked + 1
csrc/cuda/batch_norm_act/partial_sums.cuh: cuda_kernels
merge of chunks | sums[1] += n * distance * distance; | sums[1] += 0;
last block | atomicInc(ticket, wraps_at) == wraps_at | atomicInc(ticket, wraps_at) == 0
ticket after a kernel | atomicInc(ticket, wraps_at) | atomicInc(ticket, 2 * wraps_at)
last group | at.chunks - first < at.group_chunks ? at.chunks - first : at.group_chunks | at.group_chunks
csrc/cuda/batch_norm_act/two_pass.cuh: cuda_kernels
sums moved to the reference | distance * (2 * sums[v][0] + n * distance) | distance * (n * distance)
csrc/cuda/batch_norm_act/single_pass.cuh: cuda_kernels
merge of a cluster | mine[1] + n_r * distance * distance | mine[1]
slice of a cluster | item * part.step + part.thread; | item * part.step;
csrc/cuda/batch_norm_act/loops.cuh: cuda_kernels
missing tail of sums | if (first + j * step < part.end) U::add | if (first + j * step + 1 < part.end) U::add
csrc/cuda/block_sum.cuh: cuda_kernels
last warp | warp < warps; ++warp | warp < warps - 1; ++warp
csrc/cuda/losses/kernels.cu: cuda_kernels
missing tail | group.n - i < V ? static_cast<int>(group.n - i) | group.n - i < V ? 0
factor 1/n | sums[2 * g] / call.groups[g].divisor | sums[2 * g] / call.groups[0].divisor
csrc/cpu/losses/gan_loss.cpp: gan_loss
factor 1/n | incoming / static_cast<double>(scores.count) | incoming / static_cast<double>(real.numel())
label | {&fake, 0, fake.numel(), fake_label} | {&fake, 0, fake.numel(), 1 - real_label}
ganfast/ops/batch_norm_act/triton_forward.py: batch_norm_act triton_forms
eps | rstd = 1.0 / tl.sqrt(var + eps) | rstd = 1.0 / tl.sqrt(var + 2 * eps)
rest of the mean | tl.float64, 0.0) - rest * scale | tl.float64, 0.0) - 0 * scale
momentum | (1.0 - step) * load_vector(running, c, C, tl.float64, 0.0) + step * batch | step * load_vector(running, c, C, tl.float64, 0.0) + (1.0 - step) * batch
momentum None | tl.load(num_batches_tracked) - splits + k + 1 | tl.load(num_batches_tracked) - splits + k + 2
M/(M-1) | follow(running_var, squares / (M - 1), c | follow(running_var, squares / M, c
M/(M-1) of parts | squares / scalar(M - 1, tl.float64) | squares / scalar(M, tl.float64)
slope | return tl.where(z > 0, z, z * slope) | return tl.where(z > 0, z, z * slope * 1.01)
mask at zero, relu | return tl.where(z <= 0, 0.0, dy) | return tl.where(z < 0, 0.0, dy)
mask at zero, leaky_relu | return tl.where(z > 0, dy, dy * slope) | return tl.where(z >= 0, dy, dy * slope)
NaN through relu | return tl.where(z < 0, 0.0, z) | return tl.where(z > 0, z, 0.0)
what rounding left over | mean + rest / M, mean) | mean, mean)
infinite mean | mean = tl.where(rest == rest, mean + rest / M, mean) | mean = mean + rest / M
deviation beyond the end | d = tl.where(exists, u - mean[None, :], 0.0) | d = u - mean[None, :]
deviation beyond the end of parts | d = tl.where(exists, u - center[None, :], 0.0) | d = u - center[None, :]
merge of parts | tl.sum(squares + d * d * weights, axis=0) | tl.sum(squares, axis=0)
weights of parts | weights = tl.where(part < parts, count, 0) | weights = tl.where(part < parts, tiles * BLOCK_M, 0)
splits order | for k in range(splits): | for k in range(splits - 1, -1, -1):
count of batches | tl.load(num_batches_tracked) + splits)\n\n\n@triton.jit(do_not_specialize=SIZES)\ndef train_partial | tl.load(num_batches_tracked) + 1)\n\n\n@triton.jit(do_not_specialize=SIZES)\ndef train_partial
missing tail of y | exists = (m < N * P)[:, None] & (c < C)[None, :]\n        at = base | exists = (m < N * P - 1)[:, None] & (c < C)[None, :]\n        at = base
ganfast/ops/batch_norm_act/triton_backward.py: batch_norm_act triton_forms
mask of backward | gate(dy, affine(d, scale, shift), slope | gate(dy, d * scale[None, :], slope
mean of dx | -scale * (sum_g / M) | 0 * (sum_g / M)
projection of dx | -scale * (rstd * rstd * sum_gd / M) | -scale * (rstd * sum_gd / M)
gate of act_norm | du = gate(du, x, slope, ACTIVATION) | du = gate(du, -x, slope, ACTIVATION)
splits in dbias | of_bias += sum_g | of_bias = sum_g
parts of a sum | exists = (part < parts)[:, None] | exists = (part < parts - 1)[:, None]
ganfast/ops/batch_norm_act/triton_double_backward.py: triton_forms
mean of d_dy | (q - w * mean_v).to(ACC) | q.to(ACC)
last term of d_x | mean_eh + w * s * per_value | mean_eh
ddbias | (q - w * mean_v).to(ACC) | (-w * mean_v).to(ACC)
gate of act_norm | v = gate(v, x_tile, slope, ACTIVATION) | v = v
ganfast/ops/losses/triton_kernels.py: triton_losses binary_cross_entropy gan_loss
log clamp | at_least(log_of(x), -100.0) | at_least(log_of(x), -99.0)
pos_weight | ((p - 1.0) * t + 1.0) | (p + 0.0 * t)
hinge corner | 1.0 - t * x <= 0, | 1.0 - t * x < 0,
score | return sigmoid(x)\n    else | return x\n    else
missing tail | lanes += tl.where(exists, y_block, 0.0) | lanes += y_block
weight | return y * load_or(weight | return y + 0 * load_or(weight
factor 1/n | incoming = divide(incoming, scalar(divisor, ACC)) | incoming = divide(incoming, scalar(divisor + 1, ACC))
parts of the sum | tl.load(partial + part, mask=part < parts, | tl.load(partial + part, mask=part < parts - 1,
label of the other half | fake + fake_begin, n_fake, fake_label, 0 | fake + fake_begin, n_fake, real_label, 0
factor 1/n of a GAN loss | incoming = divide(tl.load(dloss).to(ACC), scalar(n, ACC)) | incoming = divide(tl.load(dloss).to(ACC), scalar(n + 1, ACC))
parts of the score | merged(partial, parts, parts, BLOCK_S) | merged(partial, 0, parts, BLOCK_S)
ganfast/ops/triton_math.py: binary_cross_entropy gan_loss
coefficient of exp | 0.1666657703 | 0.1666
log of a subnormal | -23.0 | -22.0
rounding in log(1 - x) | return log_of(u) + tl.where( | return log_of(u) + 0 * tl.where(
ganfast/ops/losses/bce.py: binary_cross_entropy
gradient of the target | if ctx.needs_input_grad[1]: | if False:
label in backward | ctx.label, ctx.mode = label, mode | ctx.label, ctx.mode = 0.5, mode
ganfast/ops/losses/gan.py: gan_loss
gradient that is not needed | dreal if need_real else None, dfake if need_fake else None | dreal, dfake
scores without gradient | ctx.mark_non_differentiable(real_score, fake_score) | pass
loss without gradient | if dloss is None: | if False:
ganfast/functional/losses.py: gan_loss_nn balancing binary_cross_entropy_nn gan_loss
mean over scales | (torch.stack(each).mean(0) for each | (torch.stack(each).sum(0) for each
generator's form | form: str = getattr(GAN_LOSSES[kind], network) | form: str = GAN_LOSSES[kind].discriminator
labels without a meaning | if real_label != 1.0 or fake_label != 0.0: | if False:
label beyond 1 | if not 0.0 <= label <= 1.0: | if not 0.0 <= label:
float32 under autocast | x = x.float() | pass
dtype of the target | return y if dtype is None else y.to(dtype) | return y
gradient of a weight | if weight.requires_grad and torch.is_grad_enabled(): | if False:
ganfast/nn/losses.py: balancing
first average | share = (self.decay - 1) / torch.expm1(updates * math.log(self.decay)) | share = 1 - self.decay
averages in evaluation | if self.training:\n                self.updates | if True:\n                self.updates
ganfast/fusion/modules.py: fusion fusion_reasons torch_tools
slope | vars(norm).update(pair.config._asdict()) | vars(norm).update(pair.config._replace(negative_slope=0.01)._asdict())
settings of before | vars(module).update(origin.settings) | pass
activation of a lost layer | if norm in undone or placeholder.is_lost(): | if norm in undone:
mode of the activation | placeholder.activation.train(placeholder.training) | pass
half a pair | _check_whole(fused, placeholders)\n    for | for
slots that are taken | taken = {place for pair in pairs for place in pair.places} | taken = set()
chunks of the fused layer | vars(module).setdefault("splits", 1) | vars(module).setdefault("splits", 2)
ganfast/fusion/pairs.py: fusion fusion_reasons
forward hook | if norm._forward_hooks: | if False:
backward hook | if norm._backward_hooks or norm._backward_pre_hooks: | if norm._backward_pre_hooks:
backward pre-hook | if norm._backward_hooks or norm._backward_pre_hooks: | if norm._backward_hooks:
hook in front of the activation | if order == "act_norm" and norm._forward_pre_hooks: | if False:
activation in place | if activation.inplace and not fresh: | if False:
dropout between | (type(module) in _DROPOUTS and module.p == 0) | (type(module) in _DROPOUTS)
layer in two places | if len(places) != 1: | if not places:
order | return first, "act_norm" | return first, "norm_act"
activation of another layer | and first not in taken: | and True:
Sequential with another order | and cls.__iter__ is nn.Sequential.__iter__ | and True
ganfast/fusion/example.py: example
several readers | outputs.pop(id(args[0]) if args else 0, (None, None, None)) | outputs.get(id(args[0]) if args else 0, (None, None, None))
sum in place | _version(output) != before | False
weights of 0 | p.copy_(torch.randn(p.shape, generator=generator)) | pass
pairs that change a result | if self._is_unchanged([*kept, pair], expected): | if True:
evaluation | for training in (True, False): | for training in (True,):
buffers of before | buffer.copy_(before) | pass
random numbers | torch.random.fork_rng(devices): | torch.random.fork_rng(devices, enabled=False):
modes of before | module.training = mode | pass
ganfast/fusion/graph.py: compiler::test_pairs compiler::test_losses compiler::test_in_a_transform_nothing_is_fused compiler::test_the_sigmoid_of_integers_stays
several readers | if len(norm.users) > 1 and not _is_in_place(reader): | if False:
first reader | reader = min(norm.users) | reader = max(norm.users)
active dropout | (given["p"] == 0 or given["training"] is False) | True
recording of gradients | if _changes_mode(norm, reader): | if False:
logits that are written to | return [] if tensors & seen else chain | return chain
slope | act._replace(negative_slope=float(slope)) | act
dtype of the sigmoid | or _dtype(sigmoid) != _dtype(logits): | or False:
inside torch.func | nested = any( | nested = False and any(
ganfast/fusion/placeholder.py: torch_tools
lost layer | if self.is_lost(): | if False:
wrapped layer | return norm not in children and not any( | return norm not in children or not any(
another layer of its class | module is norm for child | type(module) is type(norm) for child
search while compiled | is_lost._dynamo_marked_constant = True | is_lost._dynamo_marked_constant = False
torch.fx | return fx_leaf(self, input) | return input
copies | self._fused = (activation, norm, parent) | self.norm_of_pair, self._fused = norm, (activation, norm, parent)
ganfast/training/step.py: step step_options
penalty of R1 | loss = loss + self.r1 / 2 * r1_penalty | loss = loss + self.r1 * r1_penalty
penalty of R1 in two passes | penalty = self.r1 / 2 * r1_penalty | penalty = self.r1 * r1_penalty
accumulation | loss if self.accumulate == 1 else loss / self.accumulate | loss
clipping | if self.clip_norm is not None: | if False:
clipping of scaled gradients | self.scaler.unscale_(optimizer) | pass
update of the average | self.average.update(self.generator) | pass
updates of the discriminator | for index, part in enumerate(batch.split(self.n_critic)): | for index, part in enumerate([batch] * self.n_critic):
scale between updates | if index:\n                self.scaler.update() | if False:\n                self.scaler.update()
generated images without gradient | self._judge(part, fake.detach()) | self._judge(part, fake)
term of the generator | loss = loss + self.generator_term(fake, part.real) | pass
labels of a penalty | lambda images: self.discriminator(images, *batch.condition) | lambda images: self.discriminator(images)
ganfast/training/ema.py: step
decay at the start | (1 + self._updates) / (10 + self._updates) | (1 + self._updates) / (1 + self._updates)
weight of the average | (1 - keep).float() | keep.float()
integer buffers | old.copy_(new) | pass
running statistics | [*self.generator.parameters(), *self.generator.buffers()] | [*self.generator.parameters()] + [b.clone() for b in self.generator.buffers()]
ganfast/training/penalties.py: step
norm of one | (norms - 1).square() | norms.square()
gradient of R1 | .square().sum(1).mean() | .square().mean()
ganfast/training/pairing.py: step
scores of two passes | return all(map(torch.allclose, found, expected)) | return True
chunks after a pass | layer.splits //= batches | pass
ganfast/training/checkpoints.py: checkpoints
checksum | if _digest(structure, tensors) != metadata.get("sha256"): | if False:
checksum of the weights | digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data) | pass
checksum of the state | digest = hashlib.sha256(structure.encode()) | digest = hashlib.sha256()
memory of a state | return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor) | return tensor
newest first | reverse=True, | reverse=False,
later checkpoints | if _step(p) <= step][keep:] | ][keep:]
tuples | "tuple" if isinstance(value, tuple) else "list" | "list"
ganfast/training/output.py: checkpoints
bytes on disk | os.fsync(file.fileno()) | pass
ganfast/training/trainer.py: training
state of Adam | restore_adam(self.optimizer_d, state["optimizer_d"]) | pass
random numbers of a resumed run | torch.set_rng_state(state["rng"]) | pass
order of a resumed run | self.batches.load_state_dict(state["batches"], | (lambda *_, **__: None)(state["batches"],
longer run | if state["step"] > self.options.steps: | if False:
ganfast/training/batches.py: data
images of another order | if saved != value and not (allow_other_data and name != "batch_size"): | if False:
position | self._position = max(0, min(position, self.batches_per_epoch)) | self._position = 0
images left out of an epoch | self.batches_per_epoch = len(data) // batch_size | self.batches_per_epoch = -(-len(data) // batch_size)
ganfast/training/data.py: data
fingerprint of the bytes | digest.update(part.contiguous().numpy().data) | pass
fingerprint of the shape | hashlib.sha256(str(list(self.images.shape)).encode()) | hashlib.sha256()
"""  # noqa: E501


class Mutation(NamedTuple):
    """One change of one file."""

    file: str
    tests: str
    backend: str
    name: str
    old: str
    new: str


def _backend(file: str) -> str:
    """Return what a file belongs to: a backend's kernels, or the Python that all of them share."""
    if file.startswith("csrc/"):
        return "cuda" if file.startswith("csrc/cuda/") else "native"
    if "triton" in file:
        return "triton"
    parts = ("activations.py", "ops/", "functional/")
    return "eager" if file.startswith(tuple(f"ganfast/{part}" for part in parts)) else "python"


def mutations() -> list[Mutation]:
    """Read the table and hold it to the files."""
    found, file, tests = [], "", ""
    for line in TABLE.strip().splitlines():
        if " | " not in line:
            file, tests = line.split(": ")
            continue
        m = Mutation(file, tests, _backend(file), *line.replace("\\n", "\n").split(" | "))
        count = (ROOT / file).read_text().count(m.old)
        if count != 1:
            sys.exit(f"{file}: {m.name}: the old text occurs {count} times, not once: {m.old}")
        found.append(m)
    return found


SELECTED = {
    "eager": ("-m", "", "-k", "not native"),
    "native": ("-m", "", "-k", "not eager"),
    "triton": ("-m", "", "-k", "triton"),
    "cuda": ("-m", "", "-k", "test_every_form and forwards"),  # builds the emulated kernels itself
    "python": (),
}
"""Which of the tests run, by backend."""

NOT_CALLED = """#include <cstdlib>
#include "cpu/instruction_set.h"
namespace ganfast::{0} {{
const Kernels& kernels(const Selection&) {{ std::abort(); }}
const LossKernels& kernels(const LossSelection&) {{ std::abort(); }}
}}
"""


def compile_extension(copy: Path) -> Extension:
    """Compile what the tests call, so that a mutation needs little compiled again."""
    for name in ("baseline", "avx2", "avx512", "avx512_bf16"):
        file = copy / "csrc" / "cpu" / f"{name}.cpp"
        if name == USED:  # in halves, of which a mutation changes one
            _halve(file)
        else:  # never called: there is only the name
            file.write_text(NOT_CALLED.format(name))
    # The quickest optimisation that still fuses x * y + z.
    return Extension(copy, ["-O1", "-fexpensive-optimizations"])


def _halve(file: Path) -> None:
    """Make two sources of one with all kernels: batch_norm_act's, and those of the losses."""
    impl, source = "kernels_impl.h", file.read_text()
    halves = [f'#include "cpu/{family}/{impl}"' for family in ("batch_norm_act", "losses")]
    for i, other in enumerate(halves):
        text = file.with_name(impl).read_text().replace(other, "")
        file.with_name(f"half_{i}.h").write_text(text)
        file.with_name(f"half_{i}.cpp").write_text(source.replace(f"cpu/{impl}", f"cpu/half_{i}.h"))
    file.unlink()


def red_test(copy: Path, backend: str, tests: list[str]) -> str:
    """Run tests until one fails; return what caught the mutation, or ""."""
    changed = {
        "PYTHONPATH": str(copy),
        "GANFAST_NATIVE": str(int(backend == "native")),
        "GANFAST_REQUIRE": backend,
        "GANFAST_CPU_CAPABILITY": USED,
        "TRITON_INTERPRET": str(int(backend == "triton")),
    }
    output = copy / "output.txt"
    # A fork has imported torch, which takes as long as most of the tests.
    process = fork.Process(target=_run_tests, args=(copy, changed, tests, output))
    process.start()
    process.join(TIME_LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "the time limit"
    if failed := re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output.read_text(), re.MULTILINE):
        return failed[1]
    if process.exitcode < 0:
        return f"a crash of the tests, signal {-process.exitcode}"
    if process.exitcode:
        sys.exit(f"the tests did not run:\n{output.read_text()}")
    return ""


def _run_tests(copy: Path, changed: dict[str, str], tests: list[str], output: Path) -> None:
    """Run tests of the copy, in a process of their own."""
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(changed)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    code = pytest.main(["-x", "-q", "--tb=no", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def run(chosen: list[Mutation], copy: Path) -> list[Mutation]:
    """Try each mutation in the copy; return those that no test notices."""
    copy_repository(copy)
    survivors, extension = [], None
    if any(m.backend == "native" for m in chosen):
        print("compiling the extension", flush=True)
        extension = compile_extension(copy)
    caught_by: dict[str, set[str]] = {}  # tests, by backend
    for m in chosen:
        start = time.monotonic()
        file = copy / m.file
        text = file.read_text()
        file.write_text(text.replace(m.old, m.new))
        if extension is not None and m.backend == "native":
            extension.link(file)
        red = red_test(copy, m.backend, [*_paths(copy, m.tests), *SELECTED[m.backend]])
        file.write_text(text)
        if "::" in red:
            caught_by.setdefault(m.backend, set()).add(red)
        survivors += [] if red else [m]
        verdict = f"caught by {red}" if red else "SURVIVED"
        elapsed = f"{time.monotonic() - start:4.0f} s"
        print(f"{m.name:34}  {m.backend:6}  {m.file:41}  {elapsed}  {verdict}", flush=True)
    if extension is not None:
        extension.link()
    for backend, tests in caught_by.items():
        if red := red_test(copy, backend, ["-m", "", *sorted(tests)]):
            sys.exit(f"{backend}: {red} fails without any mutation")
    return survivors


def _paths(copy: Path, tests: str) -> list[str]:
    """Return the paths of test files given by name, or of single tests: "nn" or "nn::test_x"."""
    names = (each.partition("::") for each in tests.split())
    return [f"{next(copy.glob(f'tests/*/test_{name}.py'))}{sep}{test}" for name, sep, test in names]


def main() -> int:
    """Run the mutations that are asked for; return the exit code."""
    table = mutations()
    names = {m.name for m in table}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="see --list")
    parser.add_argument("--backend", choices=list(SELECTED), help="default: all")
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    args = parser.parse_args()
    chosen = [m for m in table if m.backend in (args.backend or m.backend)]
    chosen = [m for m in chosen if m.name in (args.only or names)]
    if args.list:
        for m in chosen:
            print(f"{m.name:34}  {m.backend:6}  {m.file}\n    - {m.old}\n    + {m.new}")
        return 0
    if args.backend is None and shutil.which(os.environ.get("CXX", "c++")) is None:
        print("native, cuda: left out, there is no C++ compiler")
        chosen = [m for m in chosen if m.backend not in ("native", "cuda")]
    if args.backend is None and importlib.util.find_spec("triton") is None:
        print("triton: left out, it is not installed")
        chosen = [m for m in chosen if m.backend != "triton"]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ganfast-mutation-") as folder:
        survivors = run(chosen, Path(folder).resolve())
    print(f"{len(chosen)} mutations, {len(survivors)} survived, {time.monotonic() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
