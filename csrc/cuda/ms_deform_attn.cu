// Multi-scale deformable attention on CUDA: forward and backward for float32, float64, float16 and
// bfloat16 values.
//
// The work is cut into items, one per (batch, query, head). A group of `blockDim.x` neighbouring
// lanes of one warp (a power of two) owns an item and splits its D channels into packs of N, N *
// sizeof(T) = 16 bytes where D and the pointers allow it and N = 1 otherwise. Every lane of a group
// computes the sampling positions of its item itself: that costs less than sharing them. Sums are
// kept in the accumulation type.
//
// The backward kernel adds to the gradient of value with atomics, because any query may hit any
// pixel: the order of these additions, and so the last bits of that gradient, changes from run to
// run. The gradients of locations and weights are reduced inside a warp and are deterministic.
#include "../ms_deform_attn.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <type_traits>

namespace dino {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kMinBlocks =
    3;  // a multiprocessor; leaves each thread 80 registers, enough not to spill
constexpr unsigned kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr unsigned kPackBytes = 16;
constexpr int kMaxLevels = 32;
constexpr unsigned kMaxBlocks = 65536;  // a grid-stride loop covers the rest

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
  unsigned channels;     // D
  int token_stride;      // M * D
  int levels;            // L
  int points;            // P
  LevelSize level[kMaxLevels];
};

template <typename T, unsigned N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <unsigned N, typename T>
__device__ __forceinline__ Pack<T, N> load(const T* address) {
  return *reinterpret_cast<const Pack<T, N>*>(address);
}

// Offset of the first channel of the item's head in the value of its image.
__device__ __forceinline__ int64_t head_offset(const Geometry& g, unsigned item) {
  return item / g.image_items * g.image_size + item % g.heads * g.channels;
}

// The four pixels around a sampling position, in the order upper left, upper right, lower left,
// lower right.
template <typename A>
struct Corners {
  int left, upper;
  A x_fraction, y_fraction;

  __device__ __forceinline__ int column(int corner) const { return left + corner % 2; }
  __device__ __forceinline__ int row(int corner) const { return upper + corner / 2; }
  __device__ __forceinline__ bool inside(int corner, const LevelSize& level) const {
    return column(corner) >= 0 && column(corner) < level.width && row(corner) >= 0 &&
           row(corner) < level.height;
  }
  // Index of a corner that is inside among the tokens of its image.
  __device__ __forceinline__ int token(int corner, const LevelSize& level) const {
    return level.start + row(corner) * level.width + column(corner);
  }

  __device__ __forceinline__ A weight(int corner) const {
    const A horizontal = corner % 2 ? x_fraction : 1 - x_fraction;
    const A vertical = corner / 2 ? y_fraction : 1 - y_fraction;
    return horizontal * vertical;
  }
};

// Whether any pixel of the level is within reach of the location; finds its corners if so. The
// comparisons are false for NaN, and run before any conversion to an integer, so that no location
// is undefined behaviour.
template <typename A>
__device__ __forceinline__ bool find_corners(const A* location, const LevelSize& level,
                                             Corners<A>& corners) {
  const A x = location[0] * static_cast<A>(level.width) - static_cast<A>(0.5);
  const A y = location[1] * static_cast<A>(level.height) - static_cast<A>(0.5);
  if (!(x > -1 && x < static_cast<A>(level.width) && y > -1 && y < static_cast<A>(level.height)))
    return false;
  corners.left = static_cast<int>(floor(x));
  corners.upper = static_cast<int>(floor(y));
  corners.x_fraction = x - floor(x);
  corners.y_fraction = y - floor(y);
  return true;
}

template <typename T, unsigned N>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    forward_kernel(const T* __restrict__ value, const Accumulate<T>* __restrict__ locations,
                   const Accumulate<T>* __restrict__ weights, T* __restrict__ output,
                   const __grid_constant__ Geometry g) {
  using A = Accumulate<T>;
  const int64_t item_points = g.levels * g.points;
  for (unsigned item = blockIdx.x * blockDim.y + threadIdx.y; item < g.items;
       item += gridDim.x * blockDim.y) {
    const T* const head_value = value + head_offset(g, item);
    for (unsigned channel = threadIdx.x * N; channel < g.channels; channel += blockDim.x * N) {
      const A* location = locations + item * item_points * 2;
      const A* weight = weights + item * item_points;
      A sum[N] = {};
      for (int l = 0; l < g.levels; ++l) {
        const LevelSize level = g.level[l];
        for (int p = 0; p < g.points; ++p, location += 2, ++weight) {
          Corners<A> corners;
          if (!find_corners(location, level, corners)) continue;
          Pack<T, N> pixel[4] = {};  // pixels outside stay zero
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            if (corners.inside(corner, level)) {
              pixel[corner] =
                  load<N>(head_value + corners.token(corner, level) * g.token_stride + channel);
            }
          }
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            const A corner_weight = *weight * corners.weight(corner);
#pragma unroll
            for (unsigned n = 0; n < N; ++n)
              sum[n] += corner_weight * static_cast<A>(pixel[corner].at[n]);
          }
        }
      }
      Pack<T, N> result;
#pragma unroll
      for (unsigned n = 0; n < N; ++n) result.at[n] = static_cast<T>(sum[n]);
      *reinterpret_cast<Pack<T, N>*>(output + static_cast<int64_t>(item) * g.channels + channel) =
          result;
    }
  }
}

// Adds N neighbouring numbers to global memory; each addition is atomic by itself.
template <unsigned N, typename A>
__device__ __forceinline__ void atomic_add(A* address, const A (&addend)[N]) {
#pragma unroll
  for (unsigned n = 0; n < N; ++n) atomicAdd(address + n, addend[n]);
}

#if __CUDA_ARCH__ >= 900  // has one instruction for four
template <unsigned N>
  requires(N % 4 == 0)
__device__ __forceinline__ void atomic_add(float* address, const float (&addend)[N]) {
#pragma unroll
  for (unsigned n = 0; n < N; n += 4) {
    atomicAdd(reinterpret_cast<float4*>(address + n),
              make_float4(addend[n], addend[n + 1], addend[n + 2], addend[n + 3]));
  }
}
#endif

// Sum over the `lanes` neighbouring lanes of a group; every lane of the warp must take part.
template <typename A>
__device__ __forceinline__ A group_sum(A number, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    number += __shfl_xor_sync(kFullWarp, number, distance);
  }
  return number;
}

template <typename T, unsigned N>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    backward_kernel(const T* __restrict__ grad_output, const T* __restrict__ value,
                    const Accumulate<T>* __restrict__ locations,
                    const Accumulate<T>* __restrict__ weights,
                    Accumulate<T>* __restrict__ grad_value,
                    Accumulate<T>* __restrict__ grad_locations,
                    Accumulate<T>* __restrict__ grad_weights, const __grid_constant__ Geometry g) {
  using A = Accumulate<T>;
  const int64_t item_points = g.levels * g.points;
  for (unsigned first = blockIdx.x * blockDim.y; first < g.items; first += gridDim.x * blockDim.y) {
    // Groups past the last item stay in the loop without work, so that whole warps meet in
    // group_sum.
    const bool has_item = first + threadIdx.y < g.items;
    const unsigned item = has_item ? first + threadIdx.y : first;
    const T* const item_gradient = grad_output + static_cast<int64_t>(item) * g.channels;
    const int64_t item_offset = head_offset(g, item);
    int64_t point = item * item_points;
    for (int l = 0; l < g.levels; ++l) {
      const LevelSize level = g.level[l];
      for (int p = 0; p < g.points; ++p, ++point) {
        A grad_weight = 0, grad_x = 0, grad_y = 0;
        Corners<A> corners;
        if (has_item && find_corners(locations + point * 2, level, corners)) {
          const A weight = weights[point];
          A product[4] =
              {};  // of the output's gradient and each pixel, summed over this lane's channels
          for (unsigned channel = threadIdx.x * N; channel < g.channels;
               channel += blockDim.x * N) {
            const Pack<T, N> gradient = load<N>(item_gradient + channel);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              if (!corners.inside(corner, level)) continue;
              const int64_t offset =
                  item_offset + corners.token(corner, level) * g.token_stride + channel;
              const Pack<T, N> pixel = load<N>(value + offset);
              const A corner_weight = weight * corners.weight(corner);
              A addend[N];
#pragma unroll
              for (unsigned n = 0; n < N; ++n) {
                product[corner] += static_cast<A>(gradient.at[n]) * static_cast<A>(pixel.at[n]);
                addend[n] = corner_weight * static_cast<A>(gradient.at[n]);
              }
              atomic_add(grad_value + offset, addend);
            }
          }
          const A x = corners.x_fraction, y = corners.y_fraction;
          grad_weight = (1 - y) * ((1 - x) * product[0] + x * product[1]) +
                        y * ((1 - x) * product[2] + x * product[3]);
          grad_x = weight * static_cast<A>(level.width) *
                   ((1 - y) * (product[1] - product[0]) + y * (product[3] - product[2]));
          grad_y = weight * static_cast<A>(level.height) *
                   ((1 - x) * (product[2] - product[0]) + x * (product[3] - product[1]));
        }
        grad_weight = group_sum(grad_weight, blockDim.x);
        grad_x = group_sum(grad_x, blockDim.x);
        grad_y = group_sum(grad_y, blockDim.x);
        if (has_item && threadIdx.x == 0) {
          grad_weights[point] = grad_weight;
          grad_locations[point * 2] = grad_x;
          grad_locations[point * 2 + 1] = grad_y;
        }
      }
    }
  }
}

Geometry geometry_of(const Problem& problem) {
  if (problem.levels.size() > kMaxLevels) {
    fail("the CUDA kernels take at most ", kMaxLevels, " levels, found ", problem.levels.size());
  }
  const int64_t items = problem.B * problem.Q * problem.M;
  if (items > std::numeric_limits<int32_t>::max()) {
    fail("the CUDA kernels take fewer than 2^31 (batch, query, head) triples, found ", items);
  }
  Geometry g{};
  g.image_size = problem.S * problem.M * problem.D;
  g.items = static_cast<unsigned>(items);
  g.image_items = static_cast<unsigned>(problem.Q * problem.M);
  g.heads = static_cast<unsigned>(problem.M);
  g.channels = static_cast<unsigned>(problem.D);
  g.token_stride = static_cast<int>(problem.M * problem.D);
  g.levels = static_cast<int>(problem.L);
  g.points = static_cast<int>(problem.P);
  for (size_t l = 0; l < problem.levels.size(); ++l) {
    const Level& level = problem.levels[l];
    g.level[l] = {static_cast<int>(level.height), static_cast<int>(level.width),
                  static_cast<int>(level.start)};
  }
  return g;
}

// One group of lanes an item: just enough lanes for its packs of N channels, a whole warp at most.
cudaLaunchConfig_t launch_config(const Geometry& g, unsigned pack, const Tensor& value) {
  unsigned lanes = 1;
  while (lanes < kWarp && lanes * pack < g.channels) lanes *= 2;
  const unsigned groups = kThreads / lanes;
  const unsigned blocks = std::min((g.items + groups - 1) / groups, kMaxBlocks);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(value.get_device_index(), &stream));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(lanes, groups);
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

bool fits_packs(const Geometry& g, unsigned pack, std::initializer_list<const void*> pointers) {
  return g.channels % pack == 0 &&
         std::all_of(pointers.begin(), pointers.end(), [](const void* pointer) {
           return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0;
         });
}

template <typename T>
Tensor forward(const Geometry& g, const Tensor& value, const Tensor& locations,
               const Tensor& weights, Tensor output) {
  using A = Accumulate<T>;
  constexpr unsigned kPack = kPackBytes / sizeof(T);
  const T* value_data = static_cast<const T*>(value.const_data_ptr());
  T* output_data = static_cast<T*>(output.mutable_data_ptr());
  const bool packs = fits_packs(g, kPack, {value_data, output_data});
  const cudaLaunchConfig_t config = launch_config(g, packs ? kPack : 1, value);
  STD_CUDA_CHECK(
      cudaLaunchKernelEx(&config, packs ? forward_kernel<T, kPack> : forward_kernel<T, 1>,
                         value_data, static_cast<const A*>(locations.const_data_ptr()),
                         static_cast<const A*>(weights.const_data_ptr()), output_data, g));
  return output;
}

struct Gradients {
  Tensor value, locations, weights;
};

template <typename T>
void backward(const Geometry& g, const Tensor& grad_output, const Tensor& value,
              const Tensor& locations, const Tensor& weights, Gradients& gradients) {
  using A = Accumulate<T>;
  constexpr unsigned kPack = kPackBytes / sizeof(T);
  const T* grad_output_data = static_cast<const T*>(grad_output.const_data_ptr());
  const T* value_data = static_cast<const T*>(value.const_data_ptr());
  A* grad_value_data = static_cast<A*>(gradients.value.mutable_data_ptr());
  const bool packs = fits_packs(g, kPack, {grad_output_data, value_data, grad_value_data});
  const cudaLaunchConfig_t config = launch_config(g, packs ? kPack : 1, value);
  STD_CUDA_CHECK(cudaLaunchKernelEx(
      &config, packs ? backward_kernel<T, kPack> : backward_kernel<T, 1>, grad_output_data,
      value_data, static_cast<const A*>(locations.const_data_ptr()),
      static_cast<const A*>(weights.const_data_ptr()), grad_value_data,
      static_cast<A*>(gradients.locations.mutable_data_ptr()),
      static_cast<A*>(gradients.weights.mutable_data_ptr()), g));
}

// Calls `function` with a value of the C++ type of `type`.
template <typename Function>
void for_type(ScalarType type, Function function) {
  switch (type) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Double:
      return function(double{});
    case ScalarType::Half:
      return function(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return function(torch::headeronly::BFloat16{});
    default:
      fail("value must be float32, float64, float16 or bfloat16, found ", dtype_text(type));
  }
}

Tensor ms_deform_attn(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                      const Tensor& locations, const Tensor& weights) {
  const Problem problem = check(value, spatial_shapes, locations, weights);
  const Geometry g = geometry_of(problem);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Tensor output = torch::stable::new_empty(value, {problem.B, problem.Q, problem.M * problem.D});
  for_type(value.scalar_type(), [&](auto zero) {
    if (g.items > 0) forward<decltype(zero)>(g, value, locations, weights, output);
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
    const Tensor& locations, const Tensor& weights) {
  const Problem problem = check_backward(grad_output, value, spatial_shapes, locations, weights);
  const Geometry g = geometry_of(problem);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const ScalarType accumulation = accumulation_type(value.scalar_type());
  Gradients gradients{torch::stable::new_zeros(value, value.sizes(), accumulation),
                      torch::stable::empty_like(locations), torch::stable::empty_like(weights)};
  for_type(value.scalar_type(), [&](auto zero) {
    if (g.items > 0) backward<decltype(zero)>(g, grad_output, value, locations, weights, gradients);
  });
  return {torch::stable::to(gradients.value, value.scalar_type()), gradients.locations,
          gradients.weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dino, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace dino
