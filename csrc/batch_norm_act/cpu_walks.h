// In which order the CPU kernels visit memory, whatever the op (cpu_ops.h). Included by
// cpu_kernels_impl.h inside the namespace of an instruction set.
//
// Sums are kept in float lanes for a short run and then added up in double, so that the error does
// not grow with the batch.

// Vectors that a float lane adds up before it goes to double.
constexpr int64_t run_length = 32;
// Independent accumulators, which hide the latency of the additions.
constexpr int64_t unroll = 4;
// Rows of a channels-last tensor that are added up together, to touch the accumulators less often.
constexpr int64_t rows_together = 4;
// Images whose small planes are worked on together, for the same reason.
constexpr int64_t images_together = 4;
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
  static void reduce_images(const Call& call, const Range& range) {
    const int64_t C = call.channels, P = call.positions;
    const int64_t block = range.channel_end - range.channel_begin;
    const V negative_slope = slope(call);
    DoubleSum totals[max_channel_block][Op::results];
    for (int64_t c = 0; c < block; ++c) {
      for (int i = 0; i < Op::results; ++i) totals[c][i] = {DoubleVec{}, DoubleVec{}};
    }
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
      for (int64_t m = n; m < n_end; m += images_together) {
        const int64_t m_end = m + images_together < n_end ? m + images_together : n_end;
        for (int64_t c = 0; c < block; ++c) {
          V k[Op::vectors], together[Op::results] = {};
          broadcast_vectors(call, range.channel_begin + c, k);
          if (P % L == 0 && P <= run_length * L && m_end - m == images_together) {
            const int64_t offset = (m * C + range.channel_begin + c) * P;
            reduce_four_planes(call, offset, k, negative_slope, sums[c]);
            continue;
          }
          for (int64_t j = m; j < m_end; ++j) {
            const int64_t offset = (j * C + range.channel_begin + c) * P;
            if (P <= run_length * L) {
              reduce_run(call, offset, P, k, negative_slope, together);
              continue;
            }
            for (int64_t p = 0; p < P; p += run_length * L) {
              const int64_t length = P - p < run_length * L ? P - p : run_length * L;
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
    const int64_t together = P < unroll * L ? images_together : 1;
    for (int64_t n = range.outer_begin; n < range.outer_end; n += together) {
      const int64_t n_end = n + together < range.outer_end ? n + together : range.outer_end;
      for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
        V k[Op::vectors];
        broadcast_vectors(call, c, k);
        for (int64_t m = n; m < n_end; ++m) {
          const int64_t offset = (m * C + c) * P;
          int64_t p = 0;
          for (; p + L <= P; p += L) map_vector(call, offset + p, L, k, negative_slope);
          if (p < P) map_vector(call, offset + p, P - p, k, negative_slope);
        }
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
