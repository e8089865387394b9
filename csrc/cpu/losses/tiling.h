// How the CPU forms of binary_cross_entropy and gan_loss share scores out to threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <vector>

#include "common/checks.h"
#include "cpu/dispatch.h"
#include "cpu/losses/kernels.h"

namespace ganfast {

// Scores that one task works on. A constant, so that the order of additions, and with it the bits
// of the result, does not depend on the number of threads.
inline constexpr int64_t scores_per_task = 16384;

// Calls f(task, begin, end) for all parts of n scores, in parallel.
template <typename F>
void for_each_part(int64_t n, const F& f) {
  const int64_t tasks = (n + scores_per_task - 1) / scores_per_task;
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      f(task, task * scores_per_task, std::min(n, (task + 1) * scores_per_task));
    }
  });
}

inline void check_inside(int outside) {
  TORCH_CHECK(!(outside & input_outside), "all elements of input should be between 0 and 1");
  TORCH_CHECK(!(outside & target_outside), "all elements of target should be between 0 and 1");
}

// A scalar tensor.
inline at::Tensor scalar(double value, at::ScalarType type) {
  at::Tensor t = at::empty({}, at::TensorOptions(type));
  switch (type) {
    case at::kFloat:
      *t.mutable_data_ptr<float>() = static_cast<float>(value);
      break;
    case at::kDouble:
      *t.mutable_data_ptr<double>() = value;
      break;
    default:
      t.fill_(value);
  }
  return t;
}

inline double value_of(const at::Tensor& scalar) {
  if (scalar.scalar_type() == at::kFloat) return *scalar.const_data_ptr<float>();
  return scalar.item<double>();
}

// Sums of losses and scores of n elements, in the order of the tasks.
inline std::array<double, 2> sum_up(int (*kernel)(const LossCall&, int64_t, int64_t, double*),
                                    const LossCall& call, int64_t n) {
  struct Part {
    double sums[2];
    int outside;
  };
  std::vector<Part> parts((n + scores_per_task - 1) / scores_per_task, Part{});
  for_each_part(n, [&](int64_t task, int64_t begin, int64_t end) {
    parts[task].outside = kernel(call, begin, end, parts[task].sums);
  });
  std::array<double, 2> total{};
  int outside = 0;
  for (const Part& part : parts) {
    total[0] += part.sums[0];
    total[1] += part.sums[1];
    outside |= part.outside;
  }
  check_inside(outside);
  return total;
}

}  // namespace ganfast
