// The CPU kernels of this compiler's own architecture against plain loops in double, without torch:
// what tests/ops/test_arm64.py runs in an emulator. Prints the largest error of each, in roundings.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/batch_norm_act/kernels.h"
#include "cpu/losses/kernels.h"

using namespace ganfast;

namespace {

constexpr double eps = 1e-5, slope = 0.2;
constexpr int64_t images = 5, channels = 19, positions = 23;  // tails everywhere
constexpr int64_t count = images * channels * positions, values = images * positions;
double worst = 0;

double draw() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 40) / (1 << 23) - 1;
}

void compare(const char* what, const std::vector<float>& ours, const std::vector<double>& exact,
             double size) {
  double error = 0;
  for (size_t i = 0; i < ours.size(); ++i) error = std::max(error, std::abs(ours[i] - exact[i]));
  const double roundings = error / (size * 0x1p-24);
  std::printf("%-28s %.3f\n", what, roundings);
  worst = std::isnan(roundings) ? INFINITY : std::max(worst, roundings);
}

double activated(Activation a, double z) {
  if (a == Activation::relu) return z < 0 ? 0 : z;
  return a == Activation::leaky_relu && z <= 0 ? z * slope : z;
}
double gated(Activation a, double dy, double z) {
  if (a == Activation::relu) return z <= 0 ? 0 : dy;
  return a == Activation::leaky_relu && z <= 0 ? dy * slope : dy;
}

void batch_norm(Activation a, bool channels_last) {
  const auto at = [&](int64_t n, int64_t c, int64_t p) {
    return channels_last ? (n * positions + p) * channels + c : (n * channels + c) * positions + p;
  };
  std::vector<float> x(count), dy(count), y(count), dx(count);
  for (auto* t : {&x, &dy}) std::generate(t->begin(), t->end(), draw);
  std::vector<float> weight(channels), bias(channels), center(channels), stats(4 * channels);
  std::generate(weight.begin(), weight.end(), [] { return 1.5 + draw(); });
  std::generate(bias.begin(), bias.end(), draw);
  std::vector<double> mean(channels), var(channels), sums(2 * channels);

  const Kernels& k = baseline::kernels({ElementType::float32, a, false, channels_last});
  Call call{};
  call.in[0] = x.data();
  call.in[1] = dy.data();
  call.channels = channels;
  call.positions = channels_last ? 1 : positions;
  call.activation = a;
  call.negative_slope = slope;
  call.sums = sums.data();
  const Range all{0, channels, 0, channels_last ? values : images};
  call.vectors[0] = center.data();
  k.guess(call, all);
  k.forward_sums(call, all);
  ForwardChannels f{};
  f.end = f.channels = channels;
  f.sums = sums.data();
  f.values = values;
  f.stats = stats.data();
  f.eps = eps;
  f.weight = weight.data();
  f.bias = bias.data();
  f.center = center.data();
  f.mean = mean.data();
  f.var = var.data();
  f.take_guess = true;
  k.forward_finish(f);
  call.vectors[0] = &stats[0];
  call.vectors[1] = &stats[2 * channels];
  call.vectors[2] = &stats[3 * channels];
  call.out[0] = y.data();
  k.forward_map(call, all);

  std::fill(sums.begin(), sums.end(), 0);
  k.backward_sums(call, all);
  std::vector<float> factors(2 * channels);
  BackwardChannels b{};
  b.end = b.channels = channels;
  b.sums = sums.data();
  b.values = values;
  b.stats = stats.data();
  b.factors = factors.data();
  k.backward_finish(b);
  call.vectors[3] = &factors[0];
  call.vectors[4] = &factors[channels];
  call.out[0] = dx.data();
  k.backward_map(call, all);

  std::vector<double> exact_y(count), exact_dx(count);
  for (int64_t c = 0; c < channels; ++c) {
    double m = 0, v = 0, of_g = 0, of_gh = 0;
    const auto each = [&](const auto& f) {
      for (int64_t n = 0; n < images; ++n) {
        for (int64_t p = 0; p < positions; ++p) f(at(n, c, p));
      }
    };
    each([&](int64_t i) { m += x[i] / double{values}; });
    each([&](int64_t i) { v += (x[i] - m) * (x[i] - m) / double{values}; });
    const double rstd = 1 / std::sqrt(v + eps);
    const auto z = [&](int64_t i) { return (x[i] - m) * rstd * weight[c] + bias[c]; };
    each([&](int64_t i) {
      exact_y[i] = activated(a, z(i));
      const double g = gated(a, dy[i], z(i));
      of_g += g / values;
      of_gh += g * (x[i] - m) * rstd / values;
    });
    each([&](int64_t i) {
      const double h = (x[i] - m) * rstd;
      exact_dx[i] = weight[c] * rstd * (gated(a, dy[i], z(i)) - of_g - h * of_gh);
    });
  }
  compare(channels_last ? "forward, channels-last" : "forward, NC*", y, exact_y, 8);
  compare(channels_last ? "backward, channels-last" : "backward, NC*", dx, exact_dx, 8);
}

void logits() {
  std::vector<float> x(count), out(count);
  std::generate(x.begin(), x.end(), [] { return 20 * draw(); });
  LossCall call{};
  call.x = x.data();
  call.out = out.data();
  call.label = 0.9;
  call.factor = 1;
  const LossKernels& k = baseline::kernels(LossSelection{ElementType::float32, Loss::logits, true});
  std::vector<double> exact(count);
  for (int64_t i = 0; i < count; ++i) {
    exact[i] = 0.1 * x[i] + std::log1p(std::exp(-std::abs(x[i]))) - std::min<double>(x[i], 0);
  }
  k.losses(call, 0, count);
  compare("logits' loss", out, exact, 20);
  for (int64_t i = 0; i < count; ++i) exact[i] = 1 / (1 + std::exp(-double{x[i]})) - 0.9;
  k.gradients(call, 0, count);
  compare("logits' gradient", out, exact, 1);
}

void half_types() {
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16}) {
    std::vector<uint16_t> x(channels), y(channels);  // small powers of two and their halves: exact
    const uint16_t one = type == ElementType::bfloat16 ? 0x3f80 : 0x3c00;
    for (int64_t i = 0; i < channels; ++i) x[i] = one | (i % 2 ? 0x8000 : 0);
    std::vector<float> mean(channels), scale(channels, 0.5f), shift(channels, 1.5f);
    Call call{};
    call.in[0] = x.data();
    call.out[0] = y.data();
    call.channels = channels;
    call.positions = 1;
    call.vectors[0] = mean.data();
    call.vectors[1] = scale.data();
    call.vectors[2] = shift.data();
    const Kernels& k = baseline::kernels({type, Activation::none, false, true});
    k.forward_map(call, {0, channels, 0, 1});
    const uint16_t two = type == ElementType::bfloat16 ? 0x4000 : 0x4000;
    bool right = true;
    for (int64_t i = 0; i < channels; ++i) right &= y[i] == (i % 2 ? one : two);
    std::printf("%-28s %s\n", type == ElementType::bfloat16 ? "bfloat16" : "float16",
                right ? "exact" : "wrong");
    if (!right) worst = INFINITY;
  }
}

}  // namespace

int main() {
  for (const bool channels_last : {false, true}) {
    for (const Activation a : {Activation::none, Activation::relu, Activation::leaky_relu}) {
      batch_norm(a, channels_last);
    }
  }
  logits();
  half_types();
  return worst < 4 ? EXIT_SUCCESS : EXIT_FAILURE;
}
