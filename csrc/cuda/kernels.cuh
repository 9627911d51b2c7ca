// Multi-scale deformable attention on CUDA: the forward and the backward kernel.
//
// The work is cut into items, one per (batch, query, head). A group of neighboring lanes of one
// warp (a power of two) owns an item and splits its D channels into packs of N. Positions, weights
// and border cases of the points are prepared once: each lane prepares one point, then the group
// processes these points one by one, which shuffles distribute. Sums have the accumulation type.
//
// The backward kernel adds to the gradient of value with atomics, because any query may hit any
// pixel. The order of these additions, and so the last bits of that gradient, differ from run to
// run. The gradients of the points are reduced inside a warp and are deterministic.
#pragma once

#include "points.cuh"

namespace dino::cuda {

constexpr int kThreads = 256;
// Number of blocks that a multiprocessor must hold. It leaves each thread 64 registers in the
// forward kernel, whose loads wait for the cache, 80 in the backward kernel, whose atomics wait for
// nothing, and 128 in float64.
template <typename T>
constexpr int kForwardBlocks = std::is_same_v<T, double> ? 2 : 4;
template <typename T>
constexpr int kBackwardBlocks = std::is_same_v<T, double> ? 2 : 3;

// Offset of the item's head in `value`, in elements.
__device__ __forceinline__ int64_t head_offset(const Geometry& g, unsigned item) {
  return item / g.image_items * g.image_size + item % g.heads * static_cast<unsigned>(g.channels);
}

template <typename T, int N, typename S, typename P>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T>)
    forward_kernel(const T* __restrict__ value, const __grid_constant__ P points,
                   T* __restrict__ output, const __grid_constant__ Geometry g) {
  using A = Accumulate<T>;
  const int lanes = S::template lanes<N>(), lane = static_cast<int>(threadIdx.x);
  const int count = S::all_points(g), channels = S::channels(g);
  // Groups past the last item repeat it without storing, so that whole warps meet in the shuffles.
  for (unsigned start = blockIdx.x * blockDim.y; start < g.items; start += gridDim.x * blockDim.y) {
    const bool has_item = start + threadIdx.y < g.items;
    const unsigned item = has_item ? start + threadIdx.y : g.items - 1;
    const int64_t first = static_cast<int64_t>(item) * count;
    const auto weights = points.template all_weights<S>(first, count, lane, lanes);
    for (int begin = 0; begin < channels; begin += lanes * N) {
      const int channel = begin + lane * N;
      const bool has_channels = S::kFixed || channel < channels;
      const T* const pixels = value + head_offset(g, item) + channel;
      A sum[N] = {};
      Walk at;
#pragma unroll 1
      for (int round = 0; round < count; round += lanes) {
        Sample<A> mine;
        if (S::kFixed || round + lane < count)
          mine = prepare<S, N != 1>(points, weights, g, item, first, round + lane).sample;
        A my_factor[4];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner)
          my_factor[corner] = mine.has(corner) ? mine.weight * mine.share(corner) : 0;
#pragma unroll(S::kFixed ? 2 : 1)
        for (int source = 0; source < lanes && (S::kFixed || round + source < count); ++source) {
          const int row = g.level[at.level].width * g.token_stride;
          at.next(S::points(g));
          const unsigned offset = from_lane(mine.offset, source, lanes);
          A factor[4];
          Pack<T, N> pixel[4] = {};  // pixels outside stay zero
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            factor[corner] = from_lane(my_factor[corner], source, lanes);
            if (has_channels && factor[corner] != 0)
              pixel[corner] = load<N>(pixels + (offset + to_corner(corner, row, g.token_stride)));
          }
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
            for (int n = 0; n < N; ++n) sum[n] += factor[corner] * number(pixel[corner], n);
          }
        }
      }
      if (!has_item || !has_channels) continue;
      Pack<T, N> result;
#pragma unroll
      for (int n = 0; n < N; ++n) result.at[n] = static_cast<T>(sum[n]);
      *reinterpret_cast<Pack<T, N>*>(output + static_cast<int64_t>(item) * channels + channel) =
          result;
    }
  }
}

#if __CUDA_ARCH__ >= 900  // these have an atomic instruction for four floats
template <typename A, int N>
constexpr bool kAddsFour = std::is_same_v<A, float> && N % 4 == 0;
#else
template <typename A, int N>
constexpr bool kAddsFour = false;
#endif

// A lane's part of one block of channels of the output's gradient: the pack that it multiplies by
// pixels, and the numbers that it adds to the gradient of value. If four floats are added at once,
// these are the same pack. Otherwise they are every `lanes`-th channel, so that each atomic
// instruction of a group fills whole sectors of 32 bytes.
template <typename T, int N, typename S>
struct GradientBlock {
  using A = Accumulate<T>;
  static constexpr bool kFour = kAddsFour<A, N>;
  Pack<T, N> pack = {};
  A addend[N] = {};
  int begin, lane, lanes, channels;

  __device__ __forceinline__ GradientBlock(const T* gradient, int begin, int lane, int lanes,
                                           int channels)
      : begin(begin), lane(lane), lanes(lanes), channels(channels) {
    if (has_pack()) pack = load<N>(gradient + begin + lane * N);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if constexpr (kFour) {
        addend[n] = number(pack, n);
      } else if (has_addend(n)) {
        addend[n] = static_cast<A>(gradient[begin + lane + n * lanes]);
      }
    }
  }

  __device__ __forceinline__ bool has_pack() const {
    return S::kFixed || begin + lane * N < channels;
  }
  __device__ __forceinline__ bool has_addend(int n) const {
    return S::kFixed || begin + lane + n * lanes < channels;
  }

  __device__ __forceinline__ Pack<T, N> load_pixel(const T* pixel) const {
    return load<N>(pixel + begin + lane * N);
  }
  __device__ __forceinline__ A product(const Pack<T, N>& pixel) const {
    A sum = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) sum += number(pack, n) * number(pixel, n);
    return sum;
  }

  __device__ __forceinline__ void add(A* grad_pixel, A factor) const {
    if constexpr (kFour) {
      if (!has_pack()) return;
#pragma unroll
      for (int n = 0; n < N; n += 4) {
        atomicAdd(reinterpret_cast<float4*>(grad_pixel + begin + lane * N + n),
                  make_float4(factor * addend[n], factor * addend[n + 1], factor * addend[n + 2],
                              factor * addend[n + 3]));
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (has_addend(n)) atomicAdd(grad_pixel + begin + lane + n * lanes, factor * addend[n]);
    }
  }
};

// Gradients of a sample's weight and of its position in pixels, the latter not yet multiplied by
// the weight.
template <typename A>
struct SampleGradient {
  A weight, x, y;
};

// The backward pass of one sample over this lane's channels. `gradient` belongs to the item's
// output, `pixels` and `grad_pixels` point to the head's first token, and `row` is the number of
// elements from row to row.
template <int N, typename S, typename T, typename A>
__device__ __forceinline__ SampleGradient<A> backward_sample(const Sample<A>& sample,
                                                             const T* gradient, const T* pixels,
                                                             A* grad_pixels, int row, int lane,
                                                             int lanes, const Geometry& g) {
  const int channels = S::channels(g);
  A product[4] = {};  // of the output's gradient and each pixel
  for (int begin = 0; begin < channels; begin += lanes * N) {
    const GradientBlock<T, N, S> block(gradient, begin, lane, lanes, channels);
    unsigned offset[4];
    Pack<T, N> pixel[4] = {};  // pixels outside stay zero
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      offset[corner] = sample.offset + to_corner(corner, row, g.token_stride);
      if (sample.has(corner) && block.has_pack())
        pixel[corner] = block.load_pixel(pixels + offset[corner]);
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      product[corner] += block.product(pixel[corner]);
      if (sample.has(corner))
        block.add(grad_pixels + offset[corner], sample.weight * sample.share(corner));
    }
  }
  const A top = product[1] - product[0], bottom = product[3] - product[2];
  const A upper = product[0] + sample.x * top, lower = product[2] + sample.x * bottom;
  return {upper + sample.y * (lower - upper), top + sample.y * (bottom - top), lower - upper};
}

template <typename T, int N, typename S, typename P>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>)
    backward_kernel(const T* __restrict__ grad_output, const T* __restrict__ value,
                    const __grid_constant__ P points, Accumulate<T>* __restrict__ grad_value,
                    const __grid_constant__ Geometry g) {
  using A = Accumulate<T>;
  const int lanes = S::template lanes<N>(), lane = static_cast<int>(threadIdx.x);
  const int count = S::all_points(g), channels = S::channels(g);
  // Groups past the last item go along without points, so that whole warps meet in the shuffles.
  for (unsigned start = blockIdx.x * blockDim.y; start < g.items; start += gridDim.x * blockDim.y) {
    const bool has_item = start + threadIdx.y < g.items;
    const unsigned item = has_item ? start + threadIdx.y : g.items - 1;
    const int64_t first = static_cast<int64_t>(item) * count;
    const T* const gradient = grad_output + static_cast<int64_t>(item) * channels;
    const T* const pixels = value + head_offset(g, item);
    A* const grad_pixels = grad_value + head_offset(g, item);
    const auto weights = points.template all_weights<S>(first, count, lane, lanes);
    A weighted_sum = 0;
    Walk at;
#pragma unroll 1
    for (int round = 0; round < count; round += lanes) {
      const bool has_point = has_item && (S::kFixed || round + lane < count);
      Prepared<A> mine;
      if (has_point) mine = prepare<S, N != 1>(points, weights, g, item, first, round + lane);
      SampleGradient<A> my_gradient{};  // of this lane's point
#pragma unroll(S::kFixed ? 2 : 1)
      for (int source = 0; source < lanes && (S::kFixed || round + source < count); ++source) {
        const int row = g.level[at.level].width * g.token_stride;
        at.next(S::points(g));
        const Sample<A> sample{
            from_lane(mine.sample.offset, source, lanes),
            from_lane(mine.sample.corners, source, lanes), from_lane(mine.sample.x, source, lanes),
            from_lane(mine.sample.y, source, lanes), from_lane(mine.sample.weight, source, lanes)};
        const SampleGradient<A> part =
            backward_sample<N, S>(sample, gradient, pixels, grad_pixels, row, lane, lanes, g);
        const SampleGradient<A> sum{group_sum(part.weight, lanes), group_sum(part.x, lanes),
                                    group_sum(part.y, lanes)};
        if (lane == source) my_gradient = sum;
      }
      if (!has_point) continue;
      const int64_t point = first + round + lane;
      const A weight = mine.sample.weight;
      points.put_coordinate(point, weight * my_gradient.x * mine.step_x,
                            weight * my_gradient.y * mine.step_y);
      points.grad_weights[point] = my_gradient.weight;
      weighted_sum += weight * my_gradient.weight;
    }
    if constexpr (P::kSoftmax) {
      const A mean = group_sum(weighted_sum, lanes);
      if (has_item) points.template softmax_backward<S>(weights, mean, first, count, lane, lanes);
    }
  }
}

}  // namespace dino::cuda
