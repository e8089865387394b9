// What batch_norm_act computes for one vector of elements, or on a GPU for one value. Included by
// kernels_impl.h inside the namespace of an instruction set, and by loops.cuh.
// Names: ganfast/ops/batch_norm_act/__init__.py. Slope: whatever activate and gate take as such.

template <typename T, Activation A, bool act_norm>
struct Forward {
  using Element = T;
  using V = Vec<T>;

  template <typename Slope>
  static GANFAST_INLINE V input(V x, Slope slope) {
    return act_norm ? activate<A>(x, slope) : x;
  }

  struct Sums {
    static constexpr int inputs = 1, vectors = 1, results = 2;
    template <typename Slope>
    static GANFAST_INLINE void apply(const V* in, const V* k, Slope slope, V* result) {
      const V d = input(in[0], slope) - k[0];
      result[0] = d;
      result[1] = d * d;
    }
  };

  // Centred before it is scaled: the error of z does not grow with mean / standard deviation.
  struct Map {
    static constexpr int inputs = 1, vectors = 3, results = 1;
    template <typename Slope>
    static GANFAST_INLINE void apply(const V* in, const V* k, Slope slope, V* result) {
      const V z = multiply_add(input(in[0], slope) - k[0], k[1], k[2]);
      result[0] = act_norm ? z : activate<A>(z, slope);
    }
  };
};

template <typename T, Activation A, bool act_norm>
struct Backward {
  using V = Vec<T>;

  // u less its mean, and g: the gradient that reaches the normalisation, whose mask comes from the
  // forward's own operations.
  template <typename Slope>
  static GANFAST_INLINE V deviation(V x, const V* k, Slope slope) {
    return Forward<T, A, act_norm>::input(x, slope) - k[0];
  }
  template <typename Slope>
  static GANFAST_INLINE V gradient(V dy, V d, const V* k, Slope slope) {
    return act_norm ? dy : gate<A>(dy, multiply_add(d, k[1], k[2]), slope);
  }

  struct Sums {
    static constexpr int inputs = 2, vectors = 3, results = 2;
    template <typename Slope>
    static GANFAST_INLINE void apply(const V* in, const V* k, Slope slope, V* result) {
      const V d = deviation(in[0], k, slope);
      const V g = gradient(in[1], d, k, slope);
      result[0] = g;
      result[1] = g * d;
    }
  };

  template <bool training>
  struct Map {
    static constexpr int inputs = 2, vectors = training ? 5 : 3, results = 1;
    template <typename Slope>
    static GANFAST_INLINE void apply(const V* in, const V* k, Slope slope, V* result) {
      const V d = deviation(in[0], k, slope);
      V du = gradient(in[1], d, k, slope) * k[1];
      if constexpr (training) du += d * k[3] + k[4];
      result[0] = act_norm ? gate<A>(du, in[0], slope) : du;
    }
  };
};

template <typename T, Activation A, bool act_norm>
struct DoubleBackward {
  using V = Vec<T>;
  using First = Backward<T, A, act_norm>;

  template <typename Slope>
  static GANFAST_INLINE V direction(V ddx, V x, Slope slope) {
    return act_norm ? gate<A>(ddx, x, slope) : ddx;
  }

  struct Sums {
    static constexpr int inputs = 3, vectors = 3, results = 5;
    template <typename Slope>
    static GANFAST_INLINE void apply(const V* in, const V* k, Slope slope, V* result) {
      const V d = First::deviation(in[0], k, slope);
      const V g = First::gradient(in[1], d, k, slope);
      const V v = direction(in[2], in[0], slope);
      result[0] = v;
      result[1] = g;
      result[2] = v * d;
      result[3] = g * d;
      result[4] = v * g;
    }
  };

  // k[3]: factor of d in d_g and of g in d_u.  k[4]: offset of d_g.
  // Training only: k[5], k[6]: factors of v and d in d_u; its offset makes its mean 0, see
  // cpu/batch_norm_act/forward.cpp.
  template <bool training>
  struct Map {
    static constexpr int inputs = 3, vectors = training ? 8 : 5, results = 2;
    template <typename Slope>
    static GANFAST_INLINE void apply(const V* in, const V* k, Slope slope, V* result) {
      const V d = First::deviation(in[0], k, slope);
      const V g = First::gradient(in[1], d, k, slope);
      const V v = direction(in[2], in[0], slope);
      const V d_g = v * k[1] + (d * k[3] + k[4]);
      V d_u = g * k[3];
      if constexpr (training) d_u += v * k[5] + (d * k[6] + k[7]);
      result[0] = act_norm ? d_g : gate<A>(d_g, multiply_add(d, k[1], k[2]), slope);
      result[1] = act_norm ? gate<A>(d_u, in[0], slope) : d_u;
    }
  };
};
