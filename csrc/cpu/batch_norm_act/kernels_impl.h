// The CPU kernels of batch_norm_act, included by cpu/kernels_impl.h.
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
  typename Arithmetic<T>::IndexVec is[activation_count];  // masks: of which activation it is
};

using ganfast::activate;
using ganfast::gate;

constexpr auto any = Activation::none;  // of a kernel that is told

// common/activation.h's, bit for bit.
template <Activation, typename V, typename T>
GANFAST_INLINE V activate(V z, const ToldActivation<T>& told) {
  const V slope = told.slope;
  V y = z;
#define GANFAST_ROW(name, value, gradient) \
  y = told.is[static_cast<int>(Activation::name)] ? (value) : y;
  GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW
  return y;
}
template <Activation, typename V, typename T>
GANFAST_INLINE V gate(V dy, V z, const ToldActivation<T>& told) {
  const V slope = told.slope;
  V dz = dy;
#define GANFAST_ROW(name, value, gradient) \
  dz = told.is[static_cast<int>(Activation::name)] ? (gradient) : dz;
  GANFAST_ACTIVATIONS(GANFAST_ROW)
#undef GANFAST_ROW
  return dz;
}

// What the kernels of so many inputs take as the slope.
template <typename T, int inputs>
GANFAST_INLINE auto activation_slope(const Call& call) {
  const auto slope = broadcast<Vec<T>>(static_cast<Scalar<T>>(call.negative_slope));
  if constexpr (told_activation<T, inputs>) {
    using IndexVec = typename Arithmetic<T>::IndexVec;
    ToldActivation<T> told{slope, {}};
    told.is[static_cast<int>(call.activation)] = ~IndexVec{};
    return told;
  } else {
    return slope;
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
  const ChannelStats<S> of_channel = channel_stats<S>(mean, rstd, weight, bias);
  stats[0] = of_channel.mean;
  stats[k.channels] = of_channel.rstd;
  stats[2 * k.channels] = of_channel.scale;
  stats[3 * k.channels] = of_channel.shift;
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
  const int64_t C = k.channels;
  const S* rstd = static_cast<const S*>(k.stats) + C;
  const S* scale = static_cast<const S*>(k.stats) + 2 * C;
  S* factors = static_cast<S*>(k.factors);
  const double per_value = 1 / k.values;
  for (int64_t c = k.begin; c < k.end; ++c) {
    const BackwardFactors f =
        backward_factors(k.sums[c], k.sums[C + c], rstd[c], scale[c], per_value);
    factors[c] = static_cast<S>(f.of_d);
    factors[C + c] = static_cast<S>(f.offset);
  }
}

template <typename S>
void double_backward_finish(const DoubleBackwardChannels& k) {
  const int64_t C = k.channels;
  const S* rstd = static_cast<const S*>(k.stats) + C;
  const S* scale = static_cast<const S*>(k.stats) + 2 * C;
  const S* p = static_cast<const S*>(k.ddweight);
  const S* q = static_cast<const S*>(k.ddbias);
  S* factors = static_cast<S*>(k.factors);
  const double per_value = 1 / k.values;
  for (int64_t c = k.begin; c < k.end; ++c) {
    const double* sum = k.sums + c;
    const DoubleBackwardSums sums{sum[0], sum[C], sum[2 * C], sum[3 * C], sum[4 * C]};
    const DoubleBackwardFactors f =
        k.training
            ? double_backward_factors(sums, rstd[c], scale[c], p[c], q[c], k.values, per_value)
            : double_backward_factors_eval(sums, rstd[c], p[c], q[c]);
    factors[c] = static_cast<S>(f.mixed);
    factors[C + c] = static_cast<S>(f.g_offset);
    factors[2 * C + c] = static_cast<S>(f.of_v);
    factors[3 * C + c] = static_cast<S>(f.of_d);
    factors[4 * C + c] = static_cast<S>(f.u_offset);
    k.d_weight[c] = f.d_weight;
  }
}

// ---------------------------------------------------------------- the table

template <typename T, typename Op, bool channels_last>
constexpr Kernel reduce =
    channels_last ? Traversal<T, Op>::reduce_rows : Traversal<T, Op>::reduce_images;
template <typename T, typename Op, bool channels_last>
constexpr Kernel map = channels_last ? Traversal<T, Op>::map_rows : Traversal<T, Op>::map_images;

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
  } else {
    return with_activation(s.activation, [&](auto a) -> const Kernels& {
      constexpr bool differs = a() != Activation::none;  // both orders are the same without one
      return s.act_norm ? for_layout<T, a(), differs>(s.channels_last)
                        : for_layout<T, a(), false>(s.channels_last);
    });
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
