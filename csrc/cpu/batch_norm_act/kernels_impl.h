// The CPU kernels of batch_norm_act, included by ../cpu_kernels_impl.h.
//
// pointwise.h says what is computed for one vector of elements, loops.h in which order memory is
// visited; here are what happens once a channel, and the table of all kernels.

namespace ganfast::GANFAST_ISA {

namespace {

// Which kernels learn their activation at run time: those of element types that no training loop on
// a CPU is fast in, those of double backward, and all for x86-64 without AVX2. It halves what there
// is to compile.
#if defined(GANFAST_RARE)
template <typename T, int inputs>
inline constexpr bool told_activation = true;
#else
template <typename T, int inputs>
inline constexpr bool told_activation =
    inputs == 3 || std::is_same_v<T, double> || std::is_same_v<T, Float16>;
#endif

// An activation that a kernel is told, in place of pointwise.h's slope.
template <typename T>
struct ToldActivation {
  Vec<T> slope;
  typename Arithmetic<T>::IndexVec relu;  // a mask
};

using ganfast::activate;
using ganfast::gate;

constexpr auto any = Activation::leaky_relu;  // of a kernel that is told

// ../activation.h's, bit for bit; none is leaky_relu with a slope of 1.
template <Activation, typename V, typename T>
GANFAST_INLINE V activate(V z, const ToldActivation<T>& a) {
  const V below = a.relu ? V{} : z * a.slope;
  const auto unchanged = (a.relu & ~(z < V{})) | (~a.relu & (z > V{}));
  return unchanged ? z : below;
}
template <Activation, typename V, typename T>
GANFAST_INLINE V gate(V dy, V z, const ToldActivation<T>& a) {
  const V below = a.relu ? V{} : dy * a.slope;
  const auto unchanged = (a.relu & ~(z <= V{})) | (~a.relu & (z > V{}));
  return unchanged ? dy : below;
}

// What the kernels of so many inputs take as the slope.
template <typename T, int inputs>
GANFAST_INLINE auto activation_slope(const Call& call) {
  const double slope = call.activation == Activation::none ? 1.0 : call.negative_slope;
  const auto v = broadcast<Vec<T>>(static_cast<Scalar<T>>(slope));
  if constexpr (told_activation<T, inputs>) {
    using IndexVec = typename Arithmetic<T>::IndexVec;
    return ToldActivation<T>{v, IndexVec{} - (call.activation == Activation::relu)};
  } else {
    return v;
  }
}

#include "common/pointwise.h"

#include "cpu/batch_norm_act/loops.h"

// A channel's values are summed about a guess of their mean. The sums are exact enough while the
// square of the guess's distance from the mean is below this many variances; beyond, they are taken
// again about the mean that came out.
constexpr double trusted_distance = 3.0;
// Rows of a channels-last tensor whose mean is the guess; NC*: the first vector of a channel.
constexpr int64_t guess_rows = 16;

template <typename T, Activation A, bool act_norm>
struct PerChannel {
  using S = Scalar<T>;
  using V = Vec<T>;
  static constexpr int64_t L = lanes<T>;

  static GANFAST_INLINE V input(V x, const Call& call) {
    return Forward<T, A, act_norm>::input(x, activation_slope<T, 1>(call));
  }
  // A guess that is not finite would spoil sums that torch has finite or infinite.
  static GANFAST_INLINE S usable(S mean) { return mean - mean == 0 ? mean : 0; }

  static void guess_images(const Call& call, const Range& range) {
    S* center = static_cast<S*>(const_cast<void*>(call.vectors[0]));
    const int64_t P = call.positions, count = P < L ? P : L;
    for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
      const T* x = static_cast<const T*>(call.in[0]) + c * P;
      const V u = input(count == L ? load(x) : load_some(x, count), call);
      S sum[L];
      __builtin_memcpy(sum, &u, sizeof(u));
      for (int64_t width = L / 2; width > 0; width /= 2) {
        for (int64_t i = 0; i < width; ++i) sum[i] += sum[i + width];
      }
      center[c] = usable(sum[0] / static_cast<S>(count));
    }
  }

  static void guess_rows_mean(const Call& call, const Range& range) {
    S* center = static_cast<S*>(const_cast<void*>(call.vectors[0]));
    const int64_t C = call.channels, end = range.channel_end;
    const int64_t rows = range.outer_end < guess_rows ? range.outer_end : guess_rows;
    for (int64_t c = range.channel_begin; c < end; c += L) {
      const int64_t count = end - c < L ? end - c : L;
      V sum{};
      for (int64_t r = 0; r < rows; ++r) {
        const T* x = static_cast<const T*>(call.in[0]) + r * C + c;
        sum += input(count == L ? load(x) : load_some(x, count), call);
      }
      S values[L];
      __builtin_memcpy(values, &sum, sizeof(sum));
      for (int64_t i = 0; i < count; ++i) {
        center[c + i] = usable(values[i] / static_cast<S>(rows));
      }
    }
  }
};

template <typename S>
GANFAST_INLINE void write_stats(const Channels& k, int64_t c, double mean, double rstd,
                                double weight, double bias) {
  S* stats = static_cast<S*>(k.stats) + c;
  const double scale = weight * rstd;
  const S rounded = static_cast<S>(mean);
  // What rounding the mean leaves over; nothing where the mean is not finite.
  const double rest = mean - mean == 0 ? mean - rounded : 0;
  stats[0] = rounded;
  stats[k.channels] = static_cast<S>(rstd);
  stats[2 * k.channels] = static_cast<S>(scale);
  stats[3 * k.channels] = static_cast<S>(bias - rest * scale);
}

template <typename S>
bool forward_finish(const ForwardChannels& k) {
  const double* sum = k.sums;
  const double* sum_of_squares = k.sums + k.channels;
  const S* weight = static_cast<const S*>(k.weight);
  const S* bias = static_cast<const S*>(k.bias);
  S* center = static_cast<S*>(k.center);
  const double per_value = 1 / k.values;
  int64_t far = 0;
  for (int64_t c = k.begin; c < k.end; ++c) {
    const double distance = sum[c] * per_value;
    const double var = sum_of_squares[c] * per_value - distance * distance;
    const double mean = center[c] + distance;
    const double rstd = 1 / __builtin_sqrt((var < 0 ? 0 : var) + k.eps);
    far += (distance * distance > trusted_distance * var) & (mean - mean == 0);
    k.mean[c] = mean;
    k.var[c] = var < 0 ? 0 : var;  // NaN stays
    write_stats<S>(k, c, mean, rstd, weight[c], bias[c]);
  }
  if (far == 0 || k.take_guess) return true;
  for (int64_t c = k.begin; c < k.end; ++c) {
    const double distance = sum[c] * per_value;
    if (distance * distance > trusted_distance * k.var[c] && k.mean[c] - k.mean[c] == 0) {
      center[c] = static_cast<S>(k.mean[c]);
    }
  }
  return false;
}

template <typename S>
void evaluate_finish(const EvaluateChannels& k) {
  const S* mean = static_cast<const S*>(k.mean);
  const S* var = static_cast<const S*>(k.var);
  const S* weight = static_cast<const S*>(k.weight);
  const S* bias = static_cast<const S*>(k.bias);
  for (int64_t c = k.begin; c < k.end; ++c) {
    const double rstd = 1 / __builtin_sqrt(var[c] + k.eps);
    write_stats<S>(k, c, mean[c], rstd, weight[c], bias[c]);
  }
}

template <typename S>
void backward_finish(const BackwardChannels& k) {
  const double* sum_g = k.sums;
  const double* sum_gd = k.sums + k.channels;
  const S* rstd = static_cast<const S*>(k.stats) + k.channels;
  const S* scale = static_cast<const S*>(k.stats) + 2 * k.channels;
  S* projection = static_cast<S*>(k.factors);
  S* offset = projection + k.channels;
  const double per_value = 1 / k.values;
  for (int64_t c = k.begin; c < k.end; ++c) {
    const double r = rstd[c], factor = -scale[c] * per_value;
    projection[c] = static_cast<S>(factor * r * r * sum_gd[c]);
    offset[c] = static_cast<S>(factor * sum_g[c]);
  }
}

// The factors of DoubleBackward::Map; their derivation is beside the eager kernel.
template <typename S>
void double_backward_finish(const DoubleBackwardChannels& k) {
  const int64_t C = k.channels;
  const double* sum = k.sums;  // v, g, v d, g d, v g
  const S* rstd = static_cast<const S*>(k.stats) + C;
  const S* scale = static_cast<const S*>(k.stats) + 2 * C;
  const S* p = static_cast<const S*>(k.ddweight);
  const S* q = static_cast<const S*>(k.ddbias);
  S* factors = static_cast<S*>(k.factors);
  if (!k.training) {  // the statistics are constants: their terms vanish
    for (int64_t c = k.begin; c < k.end; ++c) {
      factors[c] = static_cast<S>(rstd[c] * p[c]);
      factors[C + c] = q[c];
      k.d_weight[c] = rstd[c] * sum[4 * C + c];
    }
    return;
  }
  const double per_value = 1 / k.values;
  for (int64_t c = k.begin; c < k.end; ++c) {
    const double r = rstd[c];
    const double mean_v = sum[c] * per_value, mean_g = sum[C + c] * per_value;
    const double mean_vh = r * sum[2 * C + c] * per_value;
    const double mean_gh = r * sum[3 * C + c] * per_value;
    const double s = sum[4 * C + c] - k.values * (mean_v * mean_g + mean_vh * mean_gh);
    // e = g * of_g - v * of_v
    const double of_g = p[c] - scale[c] * mean_vh, of_v = scale[c] * mean_gh;
    const double mean_e = mean_g * of_g - mean_v * of_v;
    const double mean_eh = mean_gh * of_g - mean_vh * of_v;
    factors[c] = static_cast<S>(r * of_g);
    factors[C + c] = static_cast<S>(q[c] - scale[c] * mean_v);
    factors[2 * C + c] = static_cast<S>(-r * of_v);
    factors[3 * C + c] = static_cast<S>(-r * r * (mean_eh + scale[c] * s * per_value));
    factors[4 * C + c] = static_cast<S>(-r * mean_e);
    k.d_weight[c] = r * s;
  }
}

// ---------------------------------------------------------------- the table

template <typename T, typename Op, bool channels_last>
constexpr Kernel reduce = channels_last ? Walk<T, Op>::reduce_rows : Walk<T, Op>::reduce_images;
template <typename T, typename Op, bool channels_last>
constexpr Kernel map = channels_last ? Walk<T, Op>::map_rows : Walk<T, Op>::map_images;

template <typename T, Activation A, bool act_norm, bool channels_last>
const Kernels& table() {
  using F = Forward<T, A, act_norm>;
  using B = Backward<T, A, act_norm>;
  using D = DoubleBackward<T, any, act_norm>;
  using C = PerChannel<T, A, act_norm>;
  static constexpr Kernels kernels = {
      channels_last ? C::guess_rows_mean : C::guess_images,
      forward_finish<Scalar<T>>,
      evaluate_finish<Scalar<T>>,
      backward_finish<Scalar<T>>,
      double_backward_finish<Scalar<T>>,
      reduce<T, typename F::Sums, channels_last>,
      map<T, typename F::Map, channels_last>,
      reduce<T, typename B::Sums, channels_last>,
      map<T, typename B::template Map<true>, channels_last>,
      map<T, typename B::template Map<false>, channels_last>,
      reduce<T, typename D::Sums, channels_last>,
      map<T, typename D::template Map<true>, channels_last>,
      map<T, typename D::template Map<false>, channels_last>,
  };
  return kernels;
}

template <typename T, Activation A, bool act_norm>
const Kernels& for_layout(bool channels_last) {
  return channels_last ? table<T, A, act_norm, true>() : table<T, A, act_norm, false>();
}

template <typename T>
const Kernels& for_activation(const Selection& s) {
  if constexpr (told_activation<T, 1>) {
    return s.act_norm ? for_layout<T, any, true>(s.channels_last)
                      : for_layout<T, any, false>(s.channels_last);
  } else if (s.activation == Activation::none) {  // both orders are the same
    return for_layout<T, Activation::none, false>(s.channels_last);
  } else if (s.activation == Activation::relu) {
    return s.act_norm ? for_layout<T, Activation::relu, true>(s.channels_last)
                      : for_layout<T, Activation::relu, false>(s.channels_last);
  } else {
    return s.act_norm ? for_layout<T, Activation::leaky_relu, true>(s.channels_last)
                      : for_layout<T, Activation::leaky_relu, false>(s.channels_last);
  }
}

}  // namespace

const Kernels& kernels(const Selection& selection) {
#if defined(GANFAST_BF16_INSTRUCTION)
  return for_activation<BFloat16>(selection);
#else
  switch (selection.type) {
    case ElementType::float64:
      return for_activation<double>(selection);
    case ElementType::bfloat16:
      return for_activation<BFloat16>(selection);
    case ElementType::float16:
      return for_activation<Float16>(selection);
    case ElementType::float32:
      break;
  }
  return for_activation<float>(selection);
#endif
}

}  // namespace ganfast::GANFAST_ISA
