// The weight gradient of a depthwise convolution: the sizes of one call and every argument check,
// shared by all devices.
//
// The operator (schema in ms_deform_attn.cpp):
//   input        (B, C, H, W)      float32, in channels last
//   grad_output  (B, C, H', W')    float32, in channels last
//   output       (C, 1, K, K)      float32
// Padding is given for the top and the left only. At the bottom and the right it follows from the
// sizes and may be anything from 0 to K - 1.
#pragma once

#include <cstdint>
#include <limits>

#include "checks.h"

namespace dino {

// What the checks below guarantee, so that kernels may compute with 32 bits: every size is at most
// kMostRows, a row of pixels (W + K) * C is less than 2^31, and `stride` is no larger than the
// padded input, which changes nothing: a larger one has a single output as well.
struct DepthwiseProblem {
  int64_t B, C, in_rows, in_columns, out_rows, out_columns, K, stride, padding_top, padding_left;

  // Whether anything is multiplied. If not, the gradient is zero or empty, and no kernel is called.
  bool has_products() const {
    return B > 0 && C > 0 && in_rows > 0 && in_columns > 0 && out_rows > 0 && out_columns > 0;
  }
};

constexpr int64_t kMostRows = int64_t{1} << 30;

// Whether (B, C, H, W) is stored as (B, H, W, C). The stride of a dimension of size 1, and of an
// empty tensor, has no meaning.
inline bool is_channels_last(const Tensor& t) {
  if (t.numel() == 0) return true;
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  return (C == 1 || t.stride(1) == 1) && (W == 1 || t.stride(3) == C) &&
         (H == 1 || t.stride(2) == W * C) && (t.size(0) == 1 || t.stride(0) == H * W * C);
}

inline void check_maps(const char* op, const char* name, const Tensor& t, const Tensor& input) {
  if (t.dim() != 4 || t.scalar_type() != ScalarType::Float || !is_channels_last(t)) {
    fail(op, name, " must be float32 (B, C, H, W) in channels last, found ",
         dtype_text(t.scalar_type()), " ", shape_text(t));
  }
  check_device(op, name, t, "input", input);
  check_memory(op, name, t);
}

// Throws unless a convolution of `in` rows or columns can have `out` of them.
inline void check_outputs(const char* op, const char* side, int64_t in, int64_t out, int64_t K,
                          int64_t stride, int64_t padding) {
  const int64_t reach = in + padding;
  const int64_t least = reach < K ? 0 : (reach - K) / stride + 1;
  const int64_t most = reach < 1 ? 0 : (reach - 1) / stride + 1;
  if (out >= least && out <= most) return;
  fail(op, "input and grad_output do not fit stride ", stride, " and padding ", padding,
       ": for kernels of ", K, " an input of ", side, " ", in, " has a grad_output of ", side, " ",
       least, " to ", most, ", found ", out);
}

inline DepthwiseProblem check_depthwise(const char* op, const Tensor& input,
                                        const Tensor& grad_output, int64_t K, int64_t stride,
                                        int64_t padding_top, int64_t padding_left) {
  check_maps(op, "input", input, input);
  check_maps(op, "grad_output", grad_output, input);
  if (K != 3 && K != 5) fail(op, "kernel_size must be 3 or 5, found ", K);
  const bool same = input.size(0) == grad_output.size(0) && input.size(1) == grad_output.size(1);
  if (!same || stride < 1 || padding_top < 0 || padding_left < 0 || padding_top >= K ||
      padding_left >= K) {
    fail(op, "input ", shape_text(input), " and grad_output ", shape_text(grad_output),
         " do not fit stride ", stride, " and padding ", padding_top, ", ", padding_left,
         "; both have the same B and C, the stride is at least 1, the padding from 0 to ", K - 1);
  }
  DepthwiseProblem p{input.size(0),
                     input.size(1),
                     input.size(2),
                     input.size(3),
                     grad_output.size(2),
                     grad_output.size(3),
                     K,
                     stride,
                     padding_top,
                     padding_left};
  const int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t longest = std::max(p.in_columns, p.out_columns);
  if (std::max({p.in_rows, p.out_rows, longest}) > kMostRows ||
      !product_fits({longest + K, p.C}, most)) {
    fail(op, "a map must have at most 2^30 rows, and fewer than 2^31 numbers in (W + ", K,
         ") * C, found input ", shape_text(input), " and grad_output ", shape_text(grad_output));
  }
  check_outputs(op, "height", p.in_rows, p.out_rows, K, stride, padding_top);
  check_outputs(op, "width", p.in_columns, p.out_columns, K, stride, padding_left);
  const int64_t largest = std::max(p.in_rows + padding_top, p.in_columns + padding_left);
  p.stride = std::min(stride, std::max<int64_t>(largest, 1));
  return p;
}

}  // namespace dino
