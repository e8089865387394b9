// The losses of one score that a kernel can compute; loss_math.h has their formulas.
#pragma once

namespace ganfast {

enum class Loss { probabilities, logits, squared, hinge, linear };

}  // namespace ganfast
