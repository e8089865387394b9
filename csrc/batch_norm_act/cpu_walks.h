// In which order the CPU kernels visit memory, whatever the op (ops.h). Included by
// cpu_kernels_impl.h inside the namespace of an instruction set.
//
// Sums are kept in float lanes for a short run and then added up in double, so that the error does
// not grow with the batch.

// Additions to a float lane before it goes to double.
constexpr int64_t run_length = 32;
// Independent accumulators, which hide the latency of the additions.
constexpr int64_t unroll = 4;
// NC*: vectors of a channel that become one addition to its sum in double.
constexpr int64_t run_vectors = run_length * unroll;
// Rows of a channels-last tensor that are added up together, to touch the accumulators less often.
constexpr int64_t rows_together = 4;  // as map_four
// Images whose small planes are worked on together, for the same reason.
constexpr int64_t images_together = 4;  // as map_four
// Channels of a channels-last tensor that are walked together, with accumulators in L1.
constexpr int64_t stripe_vectors = 32;

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

  // Adds the op's results over the small planes of one channel in four images; four independent
  // chains of additions, and no question asked inside.
  static GANFAST_INLINE void reduce_four_planes(const Call& call, int64_t offset, const V* k,
                                                V negative_slope, V* sums) {
    const int64_t step = call.channels * call.positions;
    for (int64_t p = 0; p < call.positions; p += L) {
      V in[Op::inputs], result[images_together][Op::results];
      for (int64_t j = 0; j < images_together; ++j) {
        load_inputs(call, offset + p + j * step, in);
        Op::apply(in, k, negative_slope, result[j]);
      }
      for (int i = 0; i < Op::results; ++i) {
        sums[i] += (result[0][i] + result[1][i]) + (result[2][i] + result[3][i]);
      }
    }
  }

  // NC*: sums over the images and positions of the range, channel by channel.
  static void reduce_images(const Call& given, const Range& range) {
    const Call call = given;
    const int64_t C = call.channels, P = call.positions;
    const int64_t block = range.channel_end - range.channel_begin;
    const V negative_slope = slope(call);
    DoubleSum totals[max_channel_block][Op::results];
    for (int64_t c = 0; c < block; ++c) {
      for (int i = 0; i < Op::results; ++i) totals[c][i] = {DoubleVec{}, DoubleVec{}};
    }
    const int64_t vectors_per_image = (P + L - 1) / L;
    const int64_t images_per_run =
        vectors_per_image < run_vectors ? run_vectors / vectors_per_image : 1;
    for (int64_t n = range.outer_begin; n < range.outer_end; n += images_per_run) {
      const int64_t n_end =
          n + images_per_run < range.outer_end ? n + images_per_run : range.outer_end;
      V sums[max_channel_block][Op::results];
      for (int64_t c = 0; c < block; ++c) {
        for (int i = 0; i < Op::results; ++i) sums[c][i] = V{};
      }
      for (int64_t m = n; m < n_end; m += images_together) {
        const int64_t m_end = m + images_together < n_end ? m + images_together : n_end;
        for (int64_t c = 0; c < block; ++c) {
          V k[Op::vectors], together[Op::results] = {};
          broadcast_vectors(call, range.channel_begin + c, k);
          if (P % L == 0 && P <= run_vectors * L && m_end - m == images_together) {
            const int64_t offset = (m * C + range.channel_begin + c) * P;
            reduce_four_planes(call, offset, k, negative_slope, sums[c]);
            continue;
          }
          for (int64_t j = m; j < m_end; ++j) {
            const int64_t offset = (j * C + range.channel_begin + c) * P;
            if (P <= run_vectors * L) {
              reduce_run(call, offset, P, k, negative_slope, together);
              continue;
            }
            for (int64_t p = 0; p < P; p += run_vectors * L) {
              const int64_t length = P - p < run_vectors * L ? P - p : run_vectors * L;
              V run[Op::results] = {};
              reduce_run(call, offset + p, length, k, negative_slope, run);
              for (int i = 0; i < Op::results; ++i) totals[c][i].add(run[i]);
            }
          }
          for (int i = 0; i < Op::results; ++i) sums[c][i] += together[i];
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

  // Channels-last: sums over the rows and channels of the range.
  static void reduce_rows(const Call& given, const Range& range) {
    const Call call = given;
    const V negative_slope = slope(call);
    const int64_t widest = stripe_vectors * L, run = run_length * rows_together;
    for (int64_t c = range.channel_begin; c < range.channel_end; c += widest) {
      const int64_t c_end = c + widest < range.channel_end ? c + widest : range.channel_end;
      for (int64_t r = range.outer_begin; r < range.outer_end; r += run) {
        const int64_t r_end = r + run < range.outer_end ? r + run : range.outer_end;
        reduce_stripe(call, {c, c_end, r, r_end}, negative_slope);
      }
    }
  }

  static GANFAST_INLINE void reduce_stripe(const Call& call, const Range& range, V negative_slope) {
    const int64_t C = call.channels, stripe = range.channel_begin;
    const int64_t width = range.channel_end - stripe;
    V sums[stripe_vectors][Op::results];
    for (int64_t j = 0; j * L < width; ++j) {
      for (int i = 0; i < Op::results; ++i) sums[j][i] = V{};
    }
    for (int64_t r = range.outer_begin; r < range.outer_end; r += rows_together) {
      const int64_t left = range.outer_end - r;
      const int64_t rows = left < rows_together ? left : rows_together;
      for (int64_t j = 0; j * L < width; ++j) {
        const int64_t c = stripe + j * L;
        const int64_t count = width - j * L;
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
      const int64_t count = width - j * L < L ? width - j * L : L;
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

  // The op on four vectors `step` elements apart. All loads before the first store: steps are often
  // a multiple of 4096 bytes, and a load that follows a store at the same distance into a page
  // waits.
  static GANFAST_INLINE void map_four(const Call& call, int64_t offset, int64_t step, const V* k,
                                      V negative_slope) {
    V in[4][Op::inputs], result[4][Op::results];
    for (int64_t i = 0; i < 4; ++i) load_inputs(call, offset + i * step, in[i]);
    for (int64_t i = 0; i < 4; ++i) Op::apply(in[i], k, negative_slope, result[i]);
    for (int64_t i = 0; i < 4; ++i) {
      for (int j = 0; j < Op::results; ++j) {
        store(static_cast<T*>(call.out[j]) + offset + i * step, result[i][j]);
      }
    }
  }

  // NC*: the op on every element of the range.
  static void map_images(const Call& given, const Range& range) {
    const Call call = given;
    const int64_t C = call.channels, P = call.positions;
    const V negative_slope = slope(call);
    const int64_t together = P < unroll * L ? images_together : 1;
    for (int64_t n = range.outer_begin; n < range.outer_end; n += together) {
      const int64_t n_end = n + together < range.outer_end ? n + together : range.outer_end;
      for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
        V k[Op::vectors];
        broadcast_vectors(call, c, k);
        if (together == 4 && P % L == 0 && n_end - n == 4) {
          for (int64_t p = 0; p < P; p += L) {
            map_four(call, (n * C + c) * P + p, C * P, k, negative_slope);
          }
          continue;
        }
        for (int64_t m = n; m < n_end; ++m) {
          const int64_t offset = (m * C + c) * P;
          int64_t p = 0;
#pragma GCC unroll 4
          for (; p + L <= P; p += L) map_vector(call, offset + p, L, k, negative_slope);
          if (p < P) map_vector(call, offset + p, P - p, k, negative_slope);
        }
      }
    }
  }

  // Channels-last: the op on every element of the range.
  static void map_rows(const Call& given, const Range& range) {
    const Call call = given;
    const int64_t C = call.channels;
    const V negative_slope = slope(call);
    for (int64_t r = range.outer_begin; r < range.outer_end; r += rows_together) {
      const int64_t left = range.outer_end - r;
      const int64_t rows = left < rows_together ? left : rows_together;
      for (int64_t c = range.channel_begin; c < range.channel_end; c += L) {
        const int64_t count = range.channel_end - c;
        V k[Op::vectors];
        load_vectors(call, c, count, k);
        if (rows == rows_together && count >= L) {
          map_four(call, r * C + c, C, k, negative_slope);
          continue;
        }
        for (int64_t i = 0; i < rows; ++i) {
          map_vector(call, (r + i) * C + c, count, k, negative_slope);
        }
      }
    }
  }
};
