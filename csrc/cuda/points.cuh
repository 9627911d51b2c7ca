// The sources of an item's points. Ready points are locations and weights. Raw ones are offsets
// from a reference and logits, whose softmax is computed here. Both look the same to the kernels: a
// frame per level, coordinates in it, a weight per point, and the place of their gradients.
#pragma once

#include <cmath>

#include "sampling.cuh"

namespace dino::cuda {

// The coordinates of all points, of type C, and the place of their gradients, which is null in the
// forward kernel.
template <typename T, typename C>
struct Coordinates {
  const C* coordinates;  // (B, Q, M, L, P, 2)
  C* grad_coordinates;

  // Loads two neighbors at once if tensors are aligned.
  template <bool kAligned>
  __device__ __forceinline__ Pack<C, 2> coordinate(int64_t point) const {
    const C* const address = coordinates + 2 * point;
    if constexpr (kAligned) return load<2>(address);
    return {address[0], address[1]};
  }

  __device__ __forceinline__ void put_coordinate(int64_t point, Accumulate<T> x,
                                                 Accumulate<T> y) const {
    grad_coordinates[2 * point] = static_cast<C>(x);
    grad_coordinates[2 * point + 1] = static_cast<C>(y);
  }
};

template <typename T>
struct ReadyPoints : Coordinates<T, Accumulate<T>> {
  using A = Accumulate<T>;
  static constexpr bool kSoftmax = false;
  const A* weights;  // (B, Q, M, L, P)
  A* grad_weights;

  struct Weights {
    const A* weights;
    __device__ __forceinline__ A operator[](int64_t point) const { return weights[point]; }
  };

  template <typename S>
  __device__ __forceinline__ Weights all_weights(int64_t, int, int, int) const {
    return {weights};
  }

  __device__ __forceinline__ Frame<A> frame(const Geometry& g, unsigned, int, int level) const {
    const A half = static_cast<A>(0.5);
    return {-half, -half, static_cast<A>(g.level[level].width),
            static_cast<A>(g.level[level].height)};
  }
};

__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }
// The fast intrinsics. At arguments not above 0, and from 1 on, their errors stay below 2^-21 of
// the largest weight.
__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1, x); }

template <typename T>
struct RawPoints : Coordinates<T, T> {
  using A = Accumulate<T>;
  static constexpr bool kSoftmax = true;
  const A* references;  // (B, Q, L, box)
  const T* logits;      // (B, Q, M, L, P)
  A* grad_weights;      // of the softmax's results until `softmax_backward`, then of the logits
  int box;              // 2 or 4 numbers per reference

  struct Weights {
    const T* logits;
    A most, scale;
    __device__ __forceinline__ A operator[](int64_t point) const {
      return exponential(static_cast<A>(logits[point]) - most) * scale;
    }
  };

  // Softmax over the points [first, first + count), by the lanes of a group.
  template <typename S>
  __device__ __forceinline__ Weights all_weights(int64_t first, int count, int lane,
                                                 int lanes) const {
    A most = static_cast<A>(-INFINITY);
#pragma unroll
    for (int round = 0; round < count; round += lanes) {
      if (!S::kFixed && round + lane >= count) continue;
      const A logit = static_cast<A>(logits[first + round + lane]);
      most = logit > most ? logit : most;
    }
    Weights result{logits, group_max(most, lanes), 1};
    A sum = 0;
#pragma unroll
    for (int round = 0; round < count; round += lanes)
      if (S::kFixed || round + lane < count) sum += result[first + round + lane];
    result.scale = reciprocal(group_sum(sum, lanes));
    return result;
  }

  __device__ __forceinline__ Frame<A> frame(const Geometry& g, unsigned item, int points,
                                            int level) const {
    const A width = static_cast<A>(g.level[level].width);
    const A height = static_cast<A>(g.level[level].height);
    const A half = static_cast<A>(0.5);
    const A* const reference =
        references + (static_cast<int64_t>(item / g.heads) * g.levels + level) * box;
    Frame<A> frame{reference[0] * width - half, reference[1] * height - half, 1, 1};
    if (box == 4) {
      const A share = half / static_cast<A>(points);
      frame.step_x = reference[2] * share * width;
      frame.step_y = reference[3] * share * height;
    }
    return frame;
  }

  // Turns gradients of the softmax's results, whose weighted mean is given, into those of the
  // logits. Each lane reads only what it wrote itself.
  template <typename S>
  __device__ __forceinline__ void softmax_backward(const Weights& all, A mean, int64_t first,
                                                   int count, int lane, int lanes) const {
#pragma unroll
    for (int round = 0; round < count; round += lanes) {
      if (!S::kFixed && round + lane >= count) continue;
      A& gradient = grad_weights[first + round + lane];
      gradient = all[first + round + lane] * (gradient - mean);
    }
  }
};

// The sample of a lane's point, and the steps of its frame. These are zero if the sample has no
// corners, so that its gradients are zero even if the frame is not finite.
template <typename A>
struct Prepared {
  A step_x = 0, step_y = 0;
  Sample<A> sample;
};

// Point `index` of an item whose points start at `first`.
template <typename S, bool kAligned, typename P, typename W>
__device__ __forceinline__ auto prepare(const P& points, const W& weights, const Geometry& g,
                                        unsigned item, int64_t first, int index) {
  using A = typename P::A;
  const int level = index / S::points(g);
  const Frame<A> frame = points.frame(g, item, S::points(g), level);
  const auto at = points.template coordinate<kAligned>(first + index);
  Prepared<A> prepared;
  prepared.sample = sample_at(frame.origin_x + static_cast<A>(at.at[0]) * frame.step_x,
                              frame.origin_y + static_cast<A>(at.at[1]) * frame.step_y,
                              weights[first + index], g.level[level], g.token_stride);
  if (prepared.sample.corners) prepared.step_x = frame.step_x, prepared.step_y = frame.step_y;
  return prepared;
}

}  // namespace dino::cuda
