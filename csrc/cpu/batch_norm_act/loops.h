// In which order the CPU kernels visit memory, whatever the op (pointwise.h). Included by
// kernels_impl.h inside the namespace of an instruction set.
//
// Sums are kept in float lanes for a short run and then added up in double, so that the error does
// not grow with the batch.

// Additions to a float lane before it goes to double.
constexpr int64_t run_length = 32;
// Vectors that are worked on together. Sums: independent chains hide the latency of additions.
// Maps: all loads come before the first store, since vectors of neighbouring rows or images are
// often a multiple of 4096 bytes apart, and a load that follows a store at the same distance into a
// page waits.
constexpr int together = 4;
// NC*: vectors of a channel that become one addition to its sum in double.
constexpr int64_t run_vectors = run_length * together;
// Channels-last: rows that are added up before the accumulators, which lie in L1, are touched.
constexpr int rows_together = 8;
// Channels of a channels-last tensor that are walked together, with accumulators in L1.
constexpr int64_t stripe_vectors = 32;

// The lanes of a vector that belong to a row or plane which does not fill it.
struct Lanes {
  int64_t begin, end;
};

template <typename T, typename Op>
struct Traversal {
  using V = Vec<T>;
  static constexpr int64_t L = lanes<T>;

  // A Call, copied: stores to the output could otherwise change it, and the compiler would read it
  // again for every vector.
  struct Pointers {
    const T* in[Op::inputs];
    T* out[2];
    decltype(activation_slope<T, Op::inputs>(Call{})) slope;

    GANFAST_INLINE explicit Pointers(const Call& call)
        : out{static_cast<T*>(call.out[0]), static_cast<T*>(call.out[1])},
          slope(activation_slope<T, Op::inputs>(call)) {
      for (int i = 0; i < Op::inputs; ++i) in[i] = static_cast<const T*>(call.in[i]);
    }

    // The op's results of the vector at `offset`.
    GANFAST_INLINE void apply(int64_t offset, const V* k, V* result) const {
      V values[Op::inputs];
      for (int i = 0; i < Op::inputs; ++i) values[i] = load(in[i] + offset);
      Op::apply(values, k, slope, result);
    }
    GANFAST_INLINE void apply_some(int64_t offset, int64_t count, const V* k, V* result) const {
      V values[Op::inputs];
      for (int i = 0; i < Op::inputs; ++i) values[i] = load_some(in[i] + offset, count);
      Op::apply(values, k, slope, result);
    }
  };

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

  // What is done with the op's results: they are added up, or stored.
  struct Sum {
    V sums[Op::results];

    GANFAST_INLINE void add(const Sum& other) {
      for (int i = 0; i < Op::results; ++i) sums[i] += other.sums[i];
    }
    template <int N>
    GANFAST_INLINE void full(const Pointers& at, int64_t offset, int64_t step, const V* k) {
      V result[N][Op::results];
      for (int j = 0; j < N; ++j) at.apply(offset + j * step, k, result[j]);
      for (int i = 0; i < Op::results; ++i) {
        V sum = result[0][i];
        if constexpr (N == 4) {
          sum = (result[0][i] + result[1][i]) + (result[2][i] + result[3][i]);
        }
        sums[i] += sum;
      }
    }
    GANFAST_INLINE void some(const Pointers& at, int64_t offset, Lanes l, const V* k) {
      V result[Op::results];
      if (l.end == L) {
        at.apply(offset, k, result);
      } else {
        at.apply_some(offset, l.end, k, result);
      }
      for (int i = 0; i < Op::results; ++i) sums[i] += keep<T>(result[i], l.begin, l.end);
    }
  };
  struct Store {
    template <int N>
    GANFAST_INLINE void full(const Pointers& at, int64_t offset, int64_t step, const V* k) const {
      V values[N][Op::inputs], result[N][Op::results];
      for (int j = 0; j < N; ++j) {
        for (int i = 0; i < Op::inputs; ++i) values[j][i] = load(at.in[i] + offset + j * step);
      }
      for (int j = 0; j < N; ++j) Op::apply(values[j], k, at.slope, result[j]);
      for (int j = 0; j < N; ++j) {
        for (int i = 0; i < Op::results; ++i) store(at.out[i] + offset + j * step, result[j][i]);
      }
    }
    GANFAST_INLINE void some(const Pointers& at, int64_t offset, Lanes l, const V* k) const {
      if (l.end == L) return full<1>(at, offset, 0, k);  // some lanes twice, with the same values
      V result[Op::results];
      at.apply_some(offset, l.end, k, result);
      for (int i = 0; i < Op::results; ++i) store_some(at.out[i] + offset, result[i], l.end);
    }
  };

  // Visits `length` elements from `offset` on in each of some images, `stride` elements apart.
  template <typename Action>
  static GANFAST_INLINE void visit_planes(const Pointers& at, int64_t offset, int64_t images,
                                          int64_t stride, int64_t length, const V* k,
                                          Action& action) {
    const bool across = images == together && length < together * L;
    const int64_t whole = length / L * L, rest = length - whole;
    if (across) {
      for (int64_t p = 0; p < whole; p += L) {
        action.template full<together>(at, offset + p, stride, k);
      }
    }
    if (across && rest == 0) return;
    for (int64_t m = 0; m < images; ++m) {
      const int64_t begin = offset + m * stride;
      if (!across) {
        int64_t p = 0;
        for (; p + together * L <= whole; p += together * L) {
          action.template full<together>(at, begin + p, L, k);
        }
        for (; p < whole; p += L) action.template full<1>(at, begin + p, 0, k);
      }
      if (rest != 0 && whole != 0) {  // the last vector overlaps the one before
        action.some(at, begin + length - L, {L - rest, L}, k);
      } else if (rest != 0) {
        action.some(at, begin, {0, rest}, k);
      }
    }
  }

  // NC*: sums over the images and positions of the range, in runs that float lanes can add up.
  static void reduce_images(const Call& call, const Range& range) {
    const int64_t C = call.channels, P = call.positions;
    const int64_t piece = P < run_vectors * L ? P : run_vectors * L;
    // By `together` images to a lane; see visit_planes.
    const int64_t whole = piece / L, rest = piece % L != 0;
    const int64_t additions = whole < together
                                  ? whole + together * rest
                                  : together * (whole / together + whole % together + rest);
    // Rounding errors average out over the lanes: fewer additions where few lanes are filled.
    const int64_t run = piece < L / 4 ? run_length / 4 : piece < L ? run_length / 2 : run_length;
    const int64_t images_per_run = additions < together * run ? together * run / additions : 1;
    DoubleSum totals[max_channel_block][Op::results];
    for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
      for (DoubleSum& total : totals[c - range.channel_begin]) total = DoubleSum{};
    }
    Range images = range;
    for (int64_t n = range.outer_begin; n < range.outer_end; n += images_per_run) {
      images.outer_begin = n;
      images.outer_end = smaller(n + images_per_run, range.outer_end);
      for (int64_t p = 0; p < P; p += piece) {
        reduce_run(call, images, p, smaller(piece, P - p), totals);
      }
    }
    for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
      for (int i = 0; i < Op::results; ++i) {
        call.sums[i * C + c] += totals[c - range.channel_begin][i].total();
      }
    }
  }

  // Adds `length` positions from p on of a run's images to the totals of its channels.
  static GANFAST_INLINE void reduce_run(const Call& call, const Range& run, int64_t p,
                                        int64_t length, DoubleSum (*totals)[Op::results]) {
    const Pointers at(call);
    const int64_t C = call.channels, P = call.positions;
    const int64_t block = run.channel_end - run.channel_begin;
    Sum sums[max_channel_block];
    for (int64_t c = 0; c < block; ++c) sums[c] = Sum{};
    for (int64_t m = run.outer_begin; m < run.outer_end; m += together) {
      for (int64_t c = 0; c < block; ++c) {
        V k[Op::vectors];
        broadcast_vectors(call, run.channel_begin + c, k);
        const int64_t offset = (m * C + run.channel_begin + c) * P + p;
        Sum sum = sums[c];  // a copy that lives in registers
        visit_planes(at, offset, smaller(together, run.outer_end - m), C * P, length, k, sum);
        sums[c] = sum;
      }
    }
    for (int64_t c = 0; c < block; ++c) {
      for (int i = 0; i < Op::results; ++i) totals[c][i].add(sums[c].sums[i]);
    }
  }

  // NC*: the op on every element of the range.
  static void map_images(const Call& call, const Range& range) {
    const Pointers at(call);
    const int64_t C = call.channels, P = call.positions;
    const Store action;
    for (int64_t n = range.outer_begin; n < range.outer_end; n += together) {
      const int64_t images = smaller(together, range.outer_end - n);
      for (int64_t c = range.channel_begin; c < range.channel_end; ++c) {
        V k[Op::vectors];
        broadcast_vectors(call, c, k);
        visit_planes(at, (n * C + c) * P, images, C * P, P, k, action);
      }
    }
  }

  // Channels-last: sums over the rows and channels of the range.
  static void reduce_rows(const Call& call, const Range& range) {
    const Pointers at(call);
    const int64_t widest = stripe_vectors * L, run = run_length * rows_together;
    for (int64_t c = range.channel_begin; c < range.channel_end; c += widest) {
      const int64_t c_end = smaller(c + widest, range.channel_end);
      for (int64_t r = range.outer_begin; r < range.outer_end; r += run) {
        reduce_stripe(call, at, {c, c_end, r, smaller(r + run, range.outer_end)});
      }
    }
  }

  static GANFAST_INLINE void reduce_stripe(const Call& call, const Pointers& at,
                                           const Range& range) {
    Sum sums[stripe_vectors];
    for (int64_t c = range.channel_begin; c < range.channel_end; c += L) {
      sums[(c - range.channel_begin) / L] = Sum{};
    }
    int64_t r = range.outer_begin;
    for (; r + rows_together <= range.outer_end; r += rows_together) {
      reduce_together<rows_together>(call, at, range, r, sums);
    }
    for (; r < range.outer_end; ++r) reduce_together<1>(call, at, range, r, sums);
    for (int64_t c = range.channel_begin; c < range.channel_end; c += L) {
      for (int s = 0; s < Op::results; ++s) {
        Scalar<T> values[L];
        __builtin_memcpy(values, &sums[(c - range.channel_begin) / L].sums[s], sizeof(values));
        const int64_t count = smaller(L, range.channel_end - c);
        for (int64_t i = 0; i < count; ++i) call.sums[s * call.channels + c + i] += values[i];
      }
    }
  }

  // Adds `rows` rows from r on to the stripe's sums.
  template <int rows>
  static GANFAST_INLINE void reduce_together(const Call& call, const Pointers& at,
                                             const Range& range, int64_t r, Sum* sums) {
    const int64_t C = call.channels;
    int64_t c = range.channel_begin;
    for (; c + L <= range.channel_end; c += L, ++sums) {
      V k[Op::vectors];
      load_vectors(call, c, L, k);
      Sum sum{};
      for (int i = 0; i < rows; ++i) sum.template full<1>(at, (r + i) * C + c, 0, k);
      sums->add(sum);
    }
    if (c == range.channel_end) return;
    const int64_t count = range.channel_end - c;
    V k[Op::vectors];
    load_vectors(call, c, count, k);
    Sum sum{};
    for (int i = 0; i < rows; ++i) sum.some(at, (r + i) * C + c, {0, count}, k);
    sums->add(sum);
  }

  // Channels-last: the op on every element of the range.
  static void map_rows(const Call& call, const Range& range) {
    const Pointers at(call);
    int64_t r = range.outer_begin;
    for (; r + together <= range.outer_end; r += together)
      map_together<together>(call, at, range, r);
    for (; r < range.outer_end; ++r) map_together<1>(call, at, range, r);
  }

  template <int rows>
  static GANFAST_INLINE void map_together(const Call& call, const Pointers& at, const Range& range,
                                          int64_t r) {
    const int64_t C = call.channels;
    const Store action;
    int64_t c = range.channel_begin;
    for (; c + L <= range.channel_end; c += L) {
      V k[Op::vectors];
      load_vectors(call, c, L, k);
      action.template full<rows>(at, r * C + c, C, k);
    }
    if (c == range.channel_end) return;
    const int64_t count = range.channel_end - c;
    V k[Op::vectors];
    load_vectors(call, c, count, k);
    for (int i = 0; i < rows; ++i) action.some(at, (r + i) * C + c, {0, count}, k);
  }
};
