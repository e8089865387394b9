// The losses of one score, for CPU and CUDA code: the mathematics of binary_cross_entropy and
// gan_loss. V is a scalar or a SIMD vector; Math has its logarithms and exponential.
//
// x is a score, t its target, p the weight of positive examples (of logits only). Included in the
// namespace that Math belongs to, after its instruction set is chosen.

// 1 / (1 + exp(-x)), given exp(-|x|).
template <typename V>
GANFAST_INLINE V sigmoid_given(V x, V exp_of_minus_abs) {
  const V larger = 1.0f / (1.0f + exp_of_minus_abs);
  return x < 0.0f ? exp_of_minus_abs * larger : larger;
}

template <Loss L, typename Math, typename V>
GANFAST_INLINE V loss_of(V x, V t, V p) {
  if constexpr (L == Loss::probabilities) {
    const V log_x = Math::at_least(Math::log_of(x), -100.0);
    const V log_rest = Math::at_least(Math::log1p_of_minus(x), -100.0);
    return (t - 1.0f) * log_rest - t * log_x;
  } else if constexpr (L == Loss::logits) {
    // Less than zero rather than min: a NaN is caught by the other term.
    const V log_sigmoid =
        (x < 0.0f ? x : V{}) - Math::log1p_of_unit(Math::exp_of_nonpositive(Math::minus_abs(x)));
    return (1.0f - t) * x - ((p - 1.0f) * t + 1.0f) * log_sigmoid;
  } else if constexpr (L == Loss::squared) {
    return (x - t) * (x - t);
  } else if constexpr (L == Loss::hinge) {
    const V z = 1.0f - t * x;
    return z < 0.0f ? V{} : z;
  } else {
    return -t * x;
  }
}

// The derivative of loss_of in x.
template <Loss L, typename Math, typename V>
GANFAST_INLINE V slope_of(V x, V t, V p) {
  if constexpr (L == Loss::probabilities) {
    return (x - t) / Math::at_least((1.0f - x) * x, 1e-12f);  // float for double too, as in torch
  } else if constexpr (L == Loss::logits) {
    const V s = sigmoid_given(x, Math::exp_of_nonpositive(Math::minus_abs(x)));
    return (p * t + (1.0f - t)) * s - p * t;
  } else if constexpr (L == Loss::squared) {
    return 2.0f * (x - t);
  } else if constexpr (L == Loss::hinge) {
    return 1.0f - t * x <= 0.0f ? V{} : -t;  // at NaN as behind torch's ReLU
  } else {
    return -t;
  }
}

// What a discriminator's score is reported as.
template <Loss L, typename Math, typename V>
GANFAST_INLINE V score_of(V x) {
  if constexpr (L == Loss::logits) {
    return sigmoid_given(x, Math::exp_of_nonpositive(Math::minus_abs(x)));
  } else {
    return x;
  }
}
