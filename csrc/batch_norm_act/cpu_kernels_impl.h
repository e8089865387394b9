// The CPU kernels, compiled once per instruction set: cpu_<set>.cpp includes this under its target
// pragma with GANFAST_ISA naming the namespace.
//
// An op says what is computed for one vector of elements; the four walks below say in which order
// memory is visited. Sums are kept in float lanes for a short run and then added up in double, so
// that the error does not grow with the batch.

namespace ganfast::GANFAST_ISA {

#include "../simd.h"

namespace {

// Vectors that a float lane adds up before it goes to double.
constexpr int64_t run_length = 32;
// Independent accumulators, which hide the latency of the additions.
constexpr int64_t unroll = 4;
// Rows of a channels-last tensor that are added up together, to touch the accumulators less often.
constexpr int64_t rows_together = 4;
// Channels of a channels-last tensor that are walked together, with accumulators in L1.
constexpr int64_t stripe_vectors = 32;

// ---------------------------------------------------------------- ops on one vector

template <typename T, Activation A, bool act_norm>
struct Forward {
  using Element = T;
  using V = Vec<T>;

  static GANFAST_INLINE V input(V x, V slope) { return act_norm ? activate<A>(x, slope) : x; }

  struct Sums {
    static constexpr int inputs = 1, vectors = 1, results = 2;
    static GANFAST_INLINE void apply(const V* in, const V* k, V slope, V* result) {
      const V d = input(in[0], slope) - k[0];
      result[0] = d;
      result[1] = d * d;
    }
  };

  struct Map {
    static constexpr int inputs = 1, vectors = 2, results = 1;
    static GANFAST_INLINE void apply(const V* in, const V* k, V slope, V* result) {
      const V z = input(in[0], slope) * k[0] + k[1];
      result[0] = act_norm ? z : activate<A>(z, slope);
    }
  };
};

template <typename T, Activation A, bool act_norm>
struct Backward {
  using V = Vec<T>;

  // u less its mean, and g: the gradient that reaches the normalisation.
  static GANFAST_INLINE V deviation(V x, const V* k, V slope) {
    return Forward<T, A, act_norm>::input(x, slope) - k[0];
  }
  static GANFAST_INLINE V gradient(V dy, V x, const V* k, V slope) {
    return act_norm ? dy : gate<A>(dy, x * k[1] + k[2], slope);
  }

  struct Sums {
    static constexpr int inputs = 2, vectors = 3, results = 2;
    static GANFAST_INLINE void apply(const V* in, const V* k, V slope, V* result) {
      const V g = gradient(in[1], in[0], k, slope);
      result[0] = g;
      result[1] = g * deviation(in[0], k, slope);
    }
  };

  template <bool training>
  struct Map {
    static constexpr int inputs = 2, vectors = training ? 5 : 3, results = 1;
    static GANFAST_INLINE void apply(const V* in, const V* k, V slope, V* result) {
      V du = gradient(in[1], in[0], k, slope) * k[1];
      if constexpr (training) du += deviation(in[0], k, slope) * k[3] + k[4];
      result[0] = act_norm ? gate<A>(du, in[0], slope) : du;
    }
  };
};

template <typename T, Activation A, bool act_norm>
struct DoubleBackward {
  using V = Vec<T>;
  using First = Backward<T, A, act_norm>;

  static GANFAST_INLINE V direction(V ddx, V x, V slope) {
    return act_norm ? gate<A>(ddx, x, slope) : ddx;
  }

  struct Sums {
    static constexpr int inputs = 3, vectors = 3, results = 5;
    static GANFAST_INLINE void apply(const V* in, const V* k, V slope, V* result) {
      const V d = First::deviation(in[0], k, slope);
      const V g = First::gradient(in[1], in[0], k, slope);
      const V v = direction(in[2], in[0], slope);
      result[0] = v;
      result[1] = g;
      result[2] = v * d;
      result[3] = g * d;
      result[4] = v * g;
    }
  };

  // k[3]: factor of d in d_g and of g in d_u.  k[4]: offset of d_g.
  // Training only: k[5], k[6]: factors of v and d in d_u; its offset makes its mean 0, see cpu.cpp.
  template <bool training>
  struct Map {
    static constexpr int inputs = 3, vectors = training ? 8 : 5, results = 2;
    static GANFAST_INLINE void apply(const V* in, const V* k, V slope, V* result) {
      const V d = First::deviation(in[0], k, slope);
      const V g = First::gradient(in[1], in[0], k, slope);
      const V v = direction(in[2], in[0], slope);
      const V d_g = v * k[1] + (d * k[3] + k[4]);
      V d_u = g * k[3];
      if constexpr (training) d_u += v * k[5] + (d * k[6] + k[7]);
      result[0] = act_norm ? d_g : gate<A>(d_g, in[0] * k[1] + k[2], slope);
      result[1] = act_norm ? gate<A>(d_u, in[0], slope) : d_u;
    }
  };
};

// ---------------------------------------------------------------- walks over memory

template <typename T, typename Op>
struct Walk {
  using V = Vec<T>;
  static constexpr int64_t L = lanes<T>;

  static GANFAST_INLINE void load_inputs(const Call& call, int64_t offset, V* in) {
    for (int i = 0; i < Op::inputs; ++i) in[i] = load(static_cast<const T*>(call.in[i]) + offset);
  }
  static GANFAST_INLINE void load_inputs(const Call& call, int64_t offset, int64_t count, V* in) {
    for (int i = 0; i < Op::inputs; ++i) {
      in[i] = load_some(static_cast<const T*>(call.in[i]) + offset, count);
    }
  }
  static GANFAST_INLINE void broadcast_vectors(const Call& call, int64_t channel, V* k) {
    for (int i = 0; i < Op::vectors; ++i) {
      k[i] = broadcast<V>(static_cast<const Scalar<T>*>(call.vectors[i])[channel]);
    }
  }
  static GANFAST_INLINE void load_vectors(const Call& call, int64_t channel, int64_t count, V* k) {
    for (int i = 0; i < Op::vectors; ++i) {
      const auto* p = static_cast<const Scalar<T>*>(call.vectors[i]) + channel;
      k[i] = count >= L ? load(p) : load_some(p, count);
    }
  }
  static GANFAST_INLINE V slope(const Call& call) {
    return broadcast<V>(static_cast<Scalar<T>>(call.negative_slope));
  }

  // Adds the op's results over one run of a channel's positions to `sums`.
  static GANFAST_INLINE void reduce_run(const Call& call, int64_t offset, int64_t length,
                                        const V* k, V negative_slope, V* sums) {
    V in[Op::inputs], result[Op::results];
    int64_t p = 0;
    if (length >= unroll * L) {
      V partial[unroll][Op::results] = {};
      for (; p + unroll * L <= length; p += unroll * L) {
        for (int64_t j = 0; j < unroll; ++j) {
          load_inputs(call, offset + p + j * L, in);
          Op::apply(in, k, negative_slope, result);
          for (int i = 0; i < Op::results; ++i) partial[j][i] += result[i];
        }
      }
      for (int i = 0; i < Op::results; ++i) {
        sums[i] += (partial[0][i] + partial[1][i]) + (partial[2][i] + partial[3][i]);
      }
    }
    for (; p + L <= length; p += L) {
      load_inputs(call, offset + p, in);
      Op::apply(in, k, negative_slope, result);
      for (int i = 0; i < Op::results; ++i) sums[i] += result[i];
    }
    if (p < length) {
      load_inputs(call, offset + p, length - p, in);
      Op::apply(in, k, negative_slope, result);
      for (int i = 0; i < Op::results; ++i) sums[i] += keep_first<T>(result[i], length - p);
    }
  }

  // NC*: sums over the images and positions of the range, channel by channel.
  static void reduce_images(const Call& call, const Range& range) {
    const int64_t C = call.channels, P = call.positions;
    const int64_t block = range.channel_end - range.channel_begin;
    const V negative_slope = slope(call);
    DoubleSum totals[max_channel_block][Op::results];
    const int64_t vectors_per_image = (P + L - 1) / L;
    const int64_t images_per_run =
        vectors_per_image < run_length ? run_length / vectors_per_image : 1;
    for (int64_t n = range.outer_begin; n < range.outer_end; n += images_per_run) {
      const int64_t n_end =
          n + images_per_run < range.outer_end ? n + images_per_run : range.outer_end;
      V sums[max_channel_block][Op::results];
      for (int64_t c = 0; c < block; ++c) {
        for (int i = 0; i < Op::results; ++i) sums[c][i] = V{};
      }
      for (int64_t m = n; m < n_end; ++m) {
        for (int64_t c = 0; c < block; ++c) {
          V k[Op::vectors];
          broadcast_vectors(call, range.channel_begin + c, k);
          const int64_t offset = (m * C + range.channel_begin + c) * P;
          for (int64_t p = 0; p < P; p += run_length * L) {
            const int64_t length = P - p < run_length * L ? P - p : run_length * L;
            reduce_run(call, offset + p, length, k, negative_slope, sums[c]);
            if (P > run_length * L) {
              for (int i = 0; i < Op::results; ++i) {
                totals[c][i].add(sums[c][i]);
                sums[c][i] = V{};
              }
            }
          }
        }
      }
      for (int64_t c = 0; c < block; ++c) {
        for (int i = 0; i < Op::results; ++i) totals[c][i].add(sums[c][i]);
      }
    }
    for (int64_t c = 0; c < block; ++c) {
      for (int i = 0; i < Op::results; ++i) {
        call.sums[i * C + range.channel_begin + c] += totals[c][i].total();
      }
    }
  }

  // Channels-last: sums over the rows of the range, all channels.
  static void reduce_rows(const Call& call, const Range& range) {
    const int64_t C = call.channels;
    const V negative_slope = slope(call);
    for (int64_t stripe = 0; stripe < C; stripe += stripe_vectors * L) {
      const int64_t width = C - stripe < stripe_vectors * L ? C - stripe : stripe_vectors * L;
      const int64_t run = run_length * rows_together;
      for (int64_t r = range.outer_begin; r < range.outer_end; r += run) {
        const int64_t r_end = r + run < range.outer_end ? r + run : range.outer_end;
        reduce_stripe(call, stripe, width, r, r_end, negative_slope);
      }
    }
  }

  static GANFAST_INLINE void reduce_stripe(const Call& call, int64_t stripe, int64_t width,
                                           int64_t r, int64_t r_end, V negative_slope) {
    const int64_t C = call.channels;
    V sums[stripe_vectors][Op::results];
    for (int64_t j = 0; j * L < width; ++j) {
      for (int i = 0; i < Op::results; ++i) sums[j][i] = V{};
    }
    for (; r < r_end; r += rows_together) {
      const int64_t rows = r_end - r < rows_together ? r_end - r : rows_together;
      for (int64_t j = 0; j * L < width; ++j) {
        const int64_t c = stripe + j * L;
        const int64_t count = C - c;
        V k[Op::vectors], together[Op::results] = {};
        load_vectors(call, c, count, k);
        for (int64_t i = 0; i < rows; ++i) {
          V in[Op::inputs], result[Op::results];
          if (count >= L) {
            load_inputs(call, (r + i) * C + c, in);
          } else {
            load_inputs(call, (r + i) * C + c, count, in);
          }
          Op::apply(in, k, negative_slope, result);
          for (int s = 0; s < Op::results; ++s) together[s] += result[s];
        }
        for (int s = 0; s < Op::results; ++s) sums[j][s] += together[s];
      }
    }
    for (int64_t j = 0; j * L < width; ++j) {
      const int64_t c = stripe + j * L;
      const int64_t count = C - c < L ? C - c : L;
      for (int s = 0; s < Op::results; ++s) {
        Scalar<T> values[L];
        __builtin_memcpy(values, &sums[j][s], sizeof(values));
        for (int64_t i = 0; i < count; ++i) call.sums[s * C + c + i] += values[i];
      }
    }
  }

  static GANFAST_INLINE void map_vector(const Call& call, int64_t offset, int64_t count, const V* k,
                                        V negative_slope) {
    V in[Op::inputs], result[Op::results];
    if (count >= L) {
      load_inputs(call, offset, in);
    } else {
      load_inputs(call, offset, count, in);
    }
    Op::apply(in, k, negative_slope, result);
    for (int i = 0; i < Op::results; ++i) {
      T* out = static_cast<T*>(call.out[i]) + offset;
      if (count >= L) {
        store(out, result[i]);
      } else {
        store_some(out, result[i], count);
      }
    }
  }

  // NC*: the op on every element of the range.
  static void map_images(const Call& call, const Range& range) {
    const int64_t C = call.channels, P = call.positions;
    const V negative_slope = slope(call);
    for (int64_t n = range.outer_begin; n < range.outer_end; ++n) {
      for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
        V k[Op::vectors];
        broadcast_vectors(call, c, k);
        const int64_t offset = (n * C + c) * P;
        int64_t p = 0;
        for (; p + L <= P; p += L) map_vector(call, offset + p, L, k, negative_slope);
        if (p < P) map_vector(call, offset + p, P - p, k, negative_slope);
      }
    }
  }

  // Channels-last: the op on every element of the rows.
  static void map_rows(const Call& call, const Range& range) {
    const int64_t C = call.channels;
    const V negative_slope = slope(call);
    for (int64_t r = range.outer_begin; r < range.outer_end; ++r) {
      for (int64_t c = 0; c < C; c += L) {
        V k[Op::vectors];
        load_vectors(call, c, C - c, k);
        map_vector(call, r * C + c, C - c, k, negative_slope);
      }
    }
  }
};

// ---------------------------------------------------------------- the table

template <typename T, typename Op, bool channels_last>
constexpr Kernel reduce = channels_last ? Walk<T, Op>::reduce_rows : Walk<T, Op>::reduce_images;
template <typename T, typename Op, bool channels_last>
constexpr Kernel map = channels_last ? Walk<T, Op>::map_rows : Walk<T, Op>::map_images;

template <typename T, Activation A, bool act_norm, bool channels_last>
const Kernels& table() {
  using F = Forward<T, A, act_norm>;
  using B = Backward<T, A, act_norm>;
  using D = DoubleBackward<T, A, act_norm>;
  static constexpr Kernels kernels = {
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
  switch (s.activation) {
    case Activation::relu:
      return s.act_norm ? for_layout<T, Activation::relu, true>(s.channels_last)
                        : for_layout<T, Activation::relu, false>(s.channels_last);
    case Activation::leaky_relu:
      return s.act_norm ? for_layout<T, Activation::leaky_relu, true>(s.channels_last)
                        : for_layout<T, Activation::leaky_relu, false>(s.channels_last);
    case Activation::none:
      break;  // both orders are the same
  }
  return for_layout<T, Activation::none, false>(s.channels_last);
}

}  // namespace

const Kernels& kernels(const Selection& selection) {
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
}

}  // namespace ganfast::GANFAST_ISA
