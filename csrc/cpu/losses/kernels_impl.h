// The CPU kernels of binary_cross_entropy and gan_loss, included by kernels_impl.h.

namespace ganfast::GANFAST_ISA {
namespace {

#include "common/loss_math.h"

// Vectors that a float lane adds up before it goes to double.
constexpr int64_t loss_run = 32;

template <typename T, Loss K, bool plain>
struct LossLoop {
  using S = Scalar<T>;
  using V = Vec<T>;
  using Mask = typename Arithmetic<T>::IndexVec;
  static constexpr int64_t L = lanes<T>;

  template <typename E>
  static GANFAST_INLINE V load_up_to(const E* p, int64_t count) {
    return count >= L ? load(p) : load_some(p, count);
  }
  template <typename E>
  static GANFAST_INLINE V optional(const void* p, int64_t i, int64_t count, double otherwise) {
    if (plain || !p) return broadcast<V>(static_cast<S>(otherwise));
    return load_up_to(static_cast<const E*>(p) + i, count);
  }

  // One vector of elements from i on, the first `count` of which exist.
  struct ScoreVector {
    V x, t, p, w;

    GANFAST_INLINE ScoreVector(const LossCall& call, int64_t i, int64_t count)
        : x(load_up_to(static_cast<const T*>(call.x) + i, count)),
          t(optional<T>(call.target, i, count, call.label)),
          p(K == Loss::logits ? optional<S>(call.pos_weight, i, count, 1) : V{} + S{1}),
          w(optional<S>(call.weight, i, count, 1)) {}
    GANFAST_INLINE V loss() const {
      const V y = loss_of<K, VectorMath>(x, t, p);
      return plain ? y : y * w;
    }
  };

  // Watches for what lies outside [0, 1]; lanes beyond `count` are 0.
  struct Watch {
    Mask input{}, target{};

    GANFAST_INLINE void look(const ScoreVector& o) {
      if constexpr (K != Loss::probabilities) return;
      input |= ~((o.x >= V{}) & (o.x <= V{} + S{1}));
      if constexpr (!plain) target |= ~((o.t >= V{}) & (o.t <= V{} + S{1}));
    }
    GANFAST_INLINE int seen() const {
      typename Arithmetic<T>::Index any_input = 0, any_target = 0;
      for (int64_t i = 0; i < L; ++i) {
        any_input |= input[i];
        any_target |= target[i];
      }
      return (any_input ? input_outside : 0) | (any_target ? target_outside : 0);
    }
  };

  template <bool scored>
  static int sums(const LossCall& given, int64_t begin, int64_t end, double* sums) {
    const LossCall call = given;
    DoubleSum loss{}, score{};
    Watch watch{};
    for (int64_t i = begin; i < end;) {
      const int64_t run_end = end - i > loss_run * L ? i + loss_run * L : end;
      V run_loss{}, run_score{};
      for (; i + L <= run_end; i += L) {
        const ScoreVector o(call, i, L);
        watch.look(o);
        run_loss += o.loss();
        if constexpr (scored) run_score += score_of<K, VectorMath>(o.x);
      }
      if (i < run_end) {
        const int64_t count = run_end - i;
        const ScoreVector o(call, i, count);
        watch.look(o);
        run_loss += keep<T>(o.loss(), 0, count);
        if constexpr (scored) run_score += keep<T>(score_of<K, VectorMath>(o.x), 0, count);
        i = run_end;
      }
      loss.add(run_loss);
      if constexpr (scored) score.add(run_score);
    }
    sums[0] += loss.total();
    if constexpr (scored) sums[1] += score.total();
    return watch.seen();
  }

  static GANFAST_INLINE void store_up_to(const LossCall& call, int64_t i, V v, int64_t count) {
    T* out = static_cast<T*>(call.out) + i;
    if (count >= L) {
      store(out, v);
    } else {
      store_some(out, v, count);
    }
  }

  static int losses(const LossCall& given, int64_t begin, int64_t end) {
    const LossCall call = given;
    Watch watch{};
    for (int64_t i = begin; i < end; i += L) {
      const ScoreVector o(call, i, end - i);
      watch.look(o);
      store_up_to(call, i, o.loss(), end - i);
    }
    return watch.seen();
  }

  static void gradients(const LossCall& given, int64_t begin, int64_t end) {
    const LossCall call = given;
    const V factor = broadcast<V>(static_cast<S>(call.factor));
    for (int64_t i = begin; i < end; i += L) {
      const ScoreVector o(call, i, end - i);
      const V dy = call.dy ? load_up_to(static_cast<const T*>(call.dy) + i, end - i) : factor;
      const V dx = dy * slope_of<K, VectorMath>(o.x, o.t, o.p);
      store_up_to(call, i, plain ? dx : dx * o.w, end - i);
    }
  }
};

template <typename T, Loss K, bool plain>
const LossKernels& loss_table() {
  using Loop = LossLoop<T, K, plain>;
  static constexpr LossKernels kernels = {Loop::template sums<false>, Loop::template sums<true>,
                                          Loop::losses, Loop::gradients};
  return kernels;
}

template <typename T>
const LossKernels& for_loss(const LossSelection& s) {
  switch (s.loss) {
    case Loss::probabilities:
      return s.plain ? loss_table<T, Loss::probabilities, true>()
                     : loss_table<T, Loss::probabilities, false>();
    case Loss::squared:
      return loss_table<T, Loss::squared, true>();
    case Loss::hinge:
      return loss_table<T, Loss::hinge, true>();
    case Loss::linear:
      return loss_table<T, Loss::linear, true>();
    case Loss::logits:
      break;
  }
  return s.plain ? loss_table<T, Loss::logits, true>() : loss_table<T, Loss::logits, false>();
}

}  // namespace

const LossKernels& kernels(const LossSelection& selection) {
#if defined(GANFAST_BF16_INSTRUCTION)
  return for_loss<BFloat16>(selection);
#else
  switch (selection.type) {
    case ElementType::float64:
      return for_loss<double>(selection);
    case ElementType::bfloat16:
      return for_loss<BFloat16>(selection);
    case ElementType::float16:
      return for_loss<Float16>(selection);
    case ElementType::float32:
      break;
  }
  return for_loss<float>(selection);
#endif
}

}  // namespace ganfast::GANFAST_ISA
