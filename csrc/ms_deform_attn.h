// Multi-scale deformable attention: the sizes of one call and every argument check, shared by all
// devices.
//
// The operators (schemas in ms_deform_attn.cpp):
//   value               (B, S, M, D)        float32, float64, bfloat16 or float16
//   spatial_shapes      [H0, W0, H1, W1..]  one pair per level, row-major tokens, sum(H * W) == S
//   sampling_locations  (B, Q, M, L, P, 2)  xy in [0, 1] of the level; accumulation type of value
//   attention_weights   (B, Q, M, L, P)     accumulation type of value
//   output              (B, Q, M * D)       type of value
// The accumulation type is float64 for float64 and float32 for every other type: coordinates never
// lose bits. All tensors are contiguous. Everything here uses only PyTorch's stable ABI.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "checks.h"

namespace dino {

struct Level {
  int64_t height;
  int64_t width;
  int64_t start;  // index of the level's first token in S
};

// Sizes of one call, named with the letters of the Python docstrings, and the name of the operator
// that was called, which begins every error about the call.
//
// What the checks below guarantee, so that kernels may compute with 32 bits: S * M * D is less than
// 2^31, D is at most kMostChannels, L * P at most kMostPoints, and no product of sizes overflows 64
// bits. B, Q, M, D and P may be zero, S and L may not.
struct Problem {
  const char* op;
  int64_t B, S, M, D, Q, L, P;
  std::vector<Level> levels;

  // Whether anything is sampled. If not, the output and every gradient are zero or empty, and no
  // kernel is called.
  bool has_samples() const { return B > 0 && Q > 0 && M > 0 && D > 0 && P > 0; }
};

constexpr int64_t kMostChannels = int64_t{1} << 30;
constexpr int64_t kMostPoints = int64_t{1} << 20;

inline ScalarType accumulation_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_shape(const char* op, const char* name, const Tensor& t,
                        const std::vector<int64_t>& expected, const char* meaning) {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i)
    same = t.size(static_cast<int64_t>(i)) == expected[i];
  if (same) return;
  std::ostringstream text;
  for (size_t i = 0; i < expected.size(); ++i) text << (i ? ", " : "") << expected[i];
  fail(op, name, " must have shape ", meaning, " = (", text.str(), "), found ", shape_text(t));
}

// The checks of everything but the shape. Only `value` of a CPU has fewer types: no kernel there
// reads float16.
inline void check_value(const char* op, const Tensor& value) {
  const ScalarType type = value.scalar_type();
  const bool common =
      type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16;
  if (!common && value.is_cpu())
    fail(op, "value on a CPU must be float32, float64 or bfloat16, found ", dtype_text(type));
  if (!common && type != ScalarType::Half)
    fail(op, "value must be float32, float64, float16 or bfloat16, found ", dtype_text(type));
  if (!value.is_cpu() && !value.is_cuda()) fail(op, "value must be on a CPU or a CUDA GPU");
  if (!value.is_contiguous()) fail(op, "value must be contiguous");
  check_memory(op, "value", value);
}

inline void check_like_value(const char* op, const char* name, const Tensor& t, const Tensor& value,
                             ScalarType expected) {
  if (t.scalar_type() != expected) {
    fail(op, name, " must be ", dtype_text(expected), " when value is ",
         dtype_text(value.scalar_type()), ", found ", dtype_text(t.scalar_type()));
  }
  check_device(op, name, t, "value", value);
  if (!t.is_contiguous()) fail(op, name, " must be contiguous");
  check_memory(op, name, t);
}

inline std::vector<Level> check_levels(const char* op, const std::vector<int64_t>& shapes,
                                       int64_t S) {
  if (shapes.empty() || shapes.size() % 2 != 0) {
    fail(op, "spatial_shapes must hold one (height, width) pair per level, found ", shapes.size(),
         " numbers");
  }
  std::vector<Level> levels;
  int64_t start = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    const int64_t height = shapes[i], width = shapes[i + 1];  // S < 2^31 bounds their product
    if (height < 1 || width < 1 || height > S || width > S) {
      fail(op, "spatial_shapes: level ", i / 2, " is ", height, " x ", width,
           "; both must be from 1 to S = ", S);
    }
    levels.push_back({height, width, start});
    start += height * width;
    if (start > std::numeric_limits<int64_t>::max() / 4) break;  // before the sum overflows
  }
  if (start != S) fail(op, "spatial_shapes sum to ", start, " tokens, value has S = ", S);
  return levels;
}

// Reads the sizes from the shapes of `value` and of the locations or offsets (B, Q, M, L, P, 2).
inline Problem check_sizes(const char* op, const Tensor& value,
                           const std::vector<int64_t>& spatial_shapes, const Tensor& points) {
  if (value.dim() != 4)
    fail(op, "value must have 4 dimensions (B, S, M, D), found shape ", shape_text(value));
  if (points.dim() != 6) {
    fail(op,
         "sampling locations or offsets must have 6 dimensions (B, Q, M, L, P, 2), found shape ",
         shape_text(points));
  }
  Problem p;
  p.op = op;
  p.B = value.size(0), p.S = value.size(1), p.M = value.size(2), p.D = value.size(3);
  p.Q = points.size(1), p.L = static_cast<int64_t>(spatial_shapes.size()) / 2;
  p.P = points.size(4);
  if (!product_fits({p.S, p.M, p.D}, std::numeric_limits<int32_t>::max())) {
    fail(op, "value of one image must have fewer than 2^31 elements, found shape ",
         shape_text(value));
  }
  if (p.D > kMostChannels)
    fail(op, "value must have at most 2^30 channels per head, found shape ", shape_text(value));
  if (!product_fits({p.L, p.P}, kMostPoints)) {
    fail(op, "a query must have at most 2^20 points per head, found ", p.L, " levels and ", p.P,
         " points per level");
  }
  constexpr int64_t most = std::numeric_limits<int64_t>::max() / 32;  // x, y of 8 bytes
  if (!product_fits({p.B, p.Q, p.M, std::max(p.L * p.P, p.D)}, most) ||
      !product_fits({p.B, p.S, p.M, p.D}, most)) {
    fail(op, "the sizes of value ", shape_text(value), " and of the points ", shape_text(points),
         " overflow; call the operator with fewer images or queries at once");
  }
  p.levels = check_levels(op, spatial_shapes, p.S);
  return p;
}

// Checks every argument of the forward operator. Throws std::runtime_error, which states what was
// expected and found.
inline Problem check(const char* op, const Tensor& value,
                     const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
                     const Tensor& weights) {
  const Problem p = check_sizes(op, value, spatial_shapes, locations);
  check_shape(op, "sampling_locations", locations, {p.B, p.Q, p.M, p.L, p.P, 2},
              "(B, Q, M, L, P, 2)");
  check_shape(op, "attention_weights", weights, {p.B, p.Q, p.M, p.L, p.P}, "(B, Q, M, L, P)");
  check_value(op, value);
  const ScalarType accumulation = accumulation_type(value.scalar_type());
  check_like_value(op, "sampling_locations", locations, value, accumulation);
  check_like_value(op, "attention_weights", weights, value, accumulation);
  return p;
}

inline void check_grad_output(const Problem& p, const Tensor& grad_output, const Tensor& value) {
  check_shape(p.op, "grad_output", grad_output, {p.B, p.Q, p.M * p.D}, "(B, Q, M * D)");
  check_like_value(p.op, "grad_output", grad_output, value, value.scalar_type());
}

// The same for the backward operator, with the gradient of the output.
inline Problem check_backward(const char* op, const Tensor& grad_output, const Tensor& value,
                              const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
                              const Tensor& weights) {
  Problem p = check(op, value, spatial_shapes, locations, weights);
  check_grad_output(p, grad_output, value);
  return p;
}

// The same for the operator with raw points.
inline Problem check_raw(const char* op, const Tensor& value,
                         const std::vector<int64_t>& spatial_shapes, const Tensor& references,
                         const Tensor& offsets, const Tensor& logits) {
  const Problem p = check_sizes(op, value, spatial_shapes, offsets);
  check_shape(op, "sampling_offsets", offsets, {p.B, p.Q, p.M, p.L, p.P, 2}, "(B, Q, M, L, P, 2)");
  check_shape(op, "attention_logits", logits, {p.B, p.Q, p.M, p.L, p.P}, "(B, Q, M, L, P)");
  const int64_t box = references.dim() == 4 && references.size(3) == 4 ? 4 : 2;
  check_shape(op, "references", references, {p.B, p.Q, p.L, box}, "(B, Q, L, 2 or 4)");
  check_value(op, value);
  check_like_value(op, "sampling_offsets", offsets, value, value.scalar_type());
  check_like_value(op, "attention_logits", logits, value, value.scalar_type());
  check_like_value(op, "references", references, value, accumulation_type(value.scalar_type()));
  return p;
}

// What each device implements, under STABLE_TORCH_LIBRARY_IMPL(dino, <device>, m):
//   Tensor ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
//   std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
//       grad_output, value, spatial_shapes, sampling_locations, attention_weights)
//   -> gradients of value (type of value), sampling_locations and attention_weights (accumulation
//   type)
//
// and the same with raw points:
//   Tensor deformable_attention(value, spatial_shapes, references, sampling_offsets,
//       attention_logits)
//   std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward(grad_output, value, ...)
//   -> gradients of value, sampling_offsets and attention_logits; references get none
//   references          (B, Q, L, 2 or 4)   points or boxes cxcywh; accumulation type of value
//   sampling_offsets    (B, Q, M, L, P, 2)  pixels of the level; with boxes, 0.5 / P of their size
//   attention_logits    (B, Q, M, L, P)     before the softmax over levels and points
//
// Meaning of a location (x, y) on a level of H x W: the bilinear sample at pixel (x * W - 0.5, y *
// H - 0.5), where pixels outside the level are zero. A location with a pixel coordinate not in (-1,
// W) x (-1, H), NaN and infinity included, contributes zero and receives zero gradients (of its
// weight too).

}  // namespace dino
