// The work of one thread, as plain structs that the dispatcher and the kernels of every instruction
// set share.
#pragma once

#include <cstdint>

namespace dino::cpu {

struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Accumulate<T>::type;

// Queries prepared together: enough to amortize loop ends, few enough for all coefficients to stay
// in L1.
constexpr int kQueryBlock = 8;

// Arrays of kQueryBlock * points numbers in a task's factor scratch. The enums ForwardPlane and
// BackwardPlane of kernels.inc say what each holds, and assert these counts.
constexpr int kForwardPlanes = 7;
constexpr int kBackwardPlanes = 14;

// The level of each of the kQueryBlock * L * P points of a block, in arrays that the coordinate
// loop reads as vectors.
template <typename A>
struct PointTable {
  const A* width;
  const A* height;
  const int32_t* columns;
  const int32_t* rows;
  const int32_t* start;  // first token of the level
};

// The points of head m of consecutive queries of one image, as the network's layers compute them:
// references, offsets and logits. Strides are in elements, from query to query.
template <typename T>
struct RawPoints {
  const acc_t<T>* references;  // (L, box): x, y and, with box 4, width and height
  const T* offsets;            // (L, P, 2)
  const T* logits;             // (L, P), before the softmax over both
  int64_t reference_stride, offset_stride, logit_stride;
  int box, levels;
};

// Head m of `queries` consecutive queries of one image. Strides are in elements. The points are
// either ready (locations and weights) or raw.
template <typename T>
struct ForwardTask {
  const T* value;  // token 0 of the head
  const acc_t<T>* locations;
  const acc_t<T>* weights;
  RawPoints<T> raw;  // used where locations is null
  T* output;
  int64_t queries;
  int64_t token_stride, location_stride, weight_stride, output_stride;
  int channels, points;
  bool fetch_ahead;  // the tokens are rarely in a cache
  PointTable<acc_t<T>> table;
  int32_t* offset_scratch;   // 4 * kQueryBlock * points
  acc_t<T>* factor_scratch;  // kForwardPlanes * kQueryBlock * points
};

// One level of head m for all queries of one image. `value` and `grad_value` are dense (rows *
// columns, channels) copies owned by the thread, so that no two threads ever add to one place.
template <typename T>
struct BackwardTask {
  const T* grad_output;
  const acc_t<T>* value;
  acc_t<T>* grad_value;
  const acc_t<T>* locations;
  const acc_t<T>* weights;
  acc_t<T>* grad_locations;
  acc_t<T>* grad_weights;
  int64_t queries;
  int64_t output_stride, location_stride, weight_stride;
  int channels, points;
  int32_t rows, columns;
  int32_t* offset_scratch;   // 4 * kQueryBlock * points
  acc_t<T>* factor_scratch;  // kBackwardPlanes * kQueryBlock * points
};

// Turns the raw points of consecutive queries into locations and weights.
template <typename T>
struct ReadyTask {
  RawPoints<T> raw;
  acc_t<T>* locations;
  acc_t<T>* weights;
  int64_t queries;
  int64_t location_stride, weight_stride;
  int points;
  PointTable<acc_t<T>> table;
};

// Turns the gradients of the locations and weights of `queries` queries, all heads, into those of
// offsets and logits.
template <typename T>
struct RawGradTask {
  const acc_t<T>* references;
  const acc_t<T>* weights;
  const acc_t<T>* grad_locations;
  const acc_t<T>* grad_weights;
  T* grad_offsets;
  T* grad_logits;
  int64_t queries;
  int heads, levels, points, box;  // points: of one level
  PointTable<acc_t<T>> table;
};

template <typename T>
struct Kernels {
  void (*forward)(const ForwardTask<T>&);
  void (*backward)(const BackwardTask<T>&);
  void (*ready)(const ReadyTask<T>&);
  void (*raw_grad)(const RawGradTask<T>&);
};

// A depthwise convolution in channels last: all images (B, H, W, C) with their output gradient.
struct DepthwiseTask {
  const float* input;
  const float* grad_output;
  float* grad_weight;  // (C, K, K)
  int64_t images;
  int in_rows, in_columns, out_rows, out_columns;
  int channels, stride, padding_top, padding_left;
};

}  // namespace dino::cpu
