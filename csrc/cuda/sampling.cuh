// The parts of the CUDA kernels: the sizes of a call, packs of channels, groups of lanes, and one
// sampling position on a level.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace dino::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kMaxLevels = 32;

template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct LevelSize {
  int height, width, start;
};

// Sizes of one call as the kernels need them, passed by value. Item numbers fit 31 bits (see
// geometry_of) and so do offsets inside the value of one image (see check); every other offset has
// 64 bits.
struct Geometry {
  int64_t image_size;    // S * M * D
  unsigned items;        // B * Q * M
  unsigned image_items;  // Q * M
  unsigned heads;        // M
  int token_stride;      // M * D
  int channels;          // D
  int levels;            // L
  int points;            // P
  LevelSize level[kMaxLevels];
};

// The sizes a kernel is compiled for, or zeros where the call decides. A group has one lane for
// each pack of N channels, rounded up to a power of two, and at most a warp; with fixed sizes its
// lanes divide the channels and the points evenly, so that nothing needs a check.
template <int L, int P, int D>
struct Sizes {
  static constexpr bool kFixed = L * P * D > 0;

  static __host__ bool suit(const Geometry& g) {
    return g.levels == L && g.points == P && g.channels == D;
  }
  static __device__ __forceinline__ int points(const Geometry& g) {
    return kFixed ? P : g.points;  // of one level
  }
  static __device__ __forceinline__ int all_points(const Geometry& g) {
    return kFixed ? L * P : g.levels * g.points;
  }
  static __device__ __forceinline__ int channels(const Geometry& g) {
    return kFixed ? D : g.channels;
  }
  template <int N>
  static __device__ __forceinline__ int lanes() {
    if constexpr (kFixed) {
      static_assert(D % N == 0 && L * P % (D / N) == 0);
      return D / N;
    } else {
      return static_cast<int>(blockDim.x);
    }
  }
};

using AnySizes = Sizes<0, 0, 0>;
using CommonSizes = Sizes<4, 4, 32>;  // four levels, four points, 32 channels a head: DINO's

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load(const T* address) {
  return *reinterpret_cast<const Pack<T, N>*>(address);
}

// Number n of a pack in the accumulation type.
template <typename T, int N>
__device__ __forceinline__ Accumulate<T> number(const Pack<T, N>& pack, int n) {
  return static_cast<Accumulate<T>>(pack.at[n]);
}

// Two neighbors as one word, which takes one instruction per number instead of three.
template <int N>
  requires(N % 2 == 0)
__device__ __forceinline__ float number(const Pack<torch::headeronly::BFloat16, N>& pack, int n) {
  uint32_t word;
  memcpy(&word, &pack.at[n - n % 2], sizeof word);
  return __uint_as_float(n % 2 ? word & 0xffff0000u : word << 16);
}

// The value of `number` in lane `source` of the group.
template <typename A>
__device__ __forceinline__ A from_lane(A number, int source, int lanes) {
  return __shfl_sync(kFullWarp, number, source, lanes);
}

// The sum over the lanes of a group, with the same bits in each. Every lane of the warp must take
// part.
template <typename A>
__device__ __forceinline__ A group_sum(A number, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    number += __shfl_xor_sync(kFullWarp, number, distance);
  }
  return number;
}

template <typename A>
__device__ __forceinline__ A group_max(A number, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    const A other = __shfl_xor_sync(kFullWarp, number, distance);
    number = other > number ? other : number;
  }
  return number;
}

// The position in pixels, on one level, of the coordinates (offsets or locations) of one item:
// pixel = origin + coordinate * step.
template <typename A>
struct Frame {
  A origin_x, origin_y, step_x, step_y;
};

// The four pixels around a sampling position, in the order upper left, upper right, lower left,
// lower right, and the weight of the sample in the item's output.
template <typename A>
struct Sample {
  unsigned offset = 0;   // of the upper left in elements, modulo 2^32: it may lie outside
  unsigned corners = 0;  // bit c is set if corner c lies on the level
  A x = 0, y = 0;        // from the upper left
  A weight = 0;

  __device__ __forceinline__ bool has(int corner) const { return corners >> corner & 1; }
  __device__ __forceinline__ A share(int corner) const {
    return (corner % 2 ? x : 1 - x) * (corner / 2 ? y : 1 - y);
  }
};

// Elements from the upper left corner to another one; `row` is the number of elements per row.
__device__ __forceinline__ unsigned to_corner(int corner, int row, int token_stride) {
  return static_cast<unsigned>((corner / 2) * row + (corner % 2) * token_stride);
}

// The sample at pixel (x, y). It has no corners if no pixel is within reach. The comparisons are
// false for NaN and come before any conversion to an integer, so that no position is undefined
// behavior.
template <typename A>
__device__ __forceinline__ Sample<A> sample_at(A x, A y, A weight, const LevelSize& level,
                                               int token_stride) {
  Sample<A> sample;
  if (!(x > -1 && x < static_cast<A>(level.width) && y > -1 && y < static_cast<A>(level.height)))
    return sample;
  const int left = static_cast<int>(floor(x)), upper = static_cast<int>(floor(y));
  const unsigned columns = (left >= 0 ? 0b0101u : 0u) | (left + 1 < level.width ? 0b1010u : 0u);
  const unsigned rows = (upper >= 0 ? 0b0011u : 0u) | (upper + 1 < level.height ? 0b1100u : 0u);
  sample.offset = static_cast<unsigned>(level.start + upper * level.width + left) *
                  static_cast<unsigned>(token_stride);
  sample.corners = columns & rows;
  sample.x = x - static_cast<A>(left);
  sample.y = y - static_cast<A>(upper);
  sample.weight = weight;
  return sample;
}

// Counts an item's points and their levels, without a division per point.
struct Walk {
  int level = 0, point = 0;

  __device__ __forceinline__ void next(int points) {
    if (++point == points) point = 0, ++level;
  }
};

}  // namespace dino::cuda
