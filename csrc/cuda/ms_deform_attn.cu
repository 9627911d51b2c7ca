// Multi-scale deformable attention on CUDA: which kernel runs, its launch and its memory. Forward
// and backward, from ready and from raw points, for float32, float64, float16 and bfloat16 values.
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

#include "kernels.cuh"

namespace dino::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kPackBytes = 16;
constexpr unsigned kMaxBlocks = 65536;  // a grid-stride loop covers the rest

Geometry geometry_of(const Problem& problem) {
  if (problem.levels.size() > kMaxLevels) {
    fail(problem.op, "the CUDA kernels take at most ", kMaxLevels, " levels, found ",
         problem.levels.size());
  }
  const int64_t items = problem.B * problem.Q * problem.M;
  if (items > std::numeric_limits<int32_t>::max()) {
    fail(problem.op, "the CUDA kernels take fewer than 2^31 (batch, query, head) triples, found ",
         items);
  }
  Geometry g{};
  g.image_size = problem.S * problem.M * problem.D;
  g.items = static_cast<unsigned>(items);
  g.image_items = static_cast<unsigned>(problem.Q * problem.M);
  g.heads = static_cast<unsigned>(problem.M);
  g.token_stride = static_cast<int>(problem.M * problem.D);
  g.channels = static_cast<int>(problem.D);
  g.levels = static_cast<int>(problem.L);
  g.points = static_cast<int>(problem.P);
  for (size_t l = 0; l < problem.levels.size(); ++l) {
    const Level& level = problem.levels[l];
    g.level[l] = {static_cast<int>(level.height), static_cast<int>(level.width),
                  static_cast<int>(level.start)};
  }
  return g;
}

// One group of lanes per item: just enough lanes for its packs of channels, at most a whole warp.
cudaLaunchConfig_t launch_config(const Geometry& g, int pack, const Tensor& value) {
  int lanes = 1;
  while (lanes < kWarp && lanes * pack < g.channels) lanes *= 2;
  const unsigned groups = kThreads / lanes;
  void* stream = nullptr;
  // The macro that checks such calls has another name in torch 2.10 than in 2.14.
  if (aoti_torch_get_current_cuda_stream(value.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
    fail("CUDA", "torch provides no stream for device ", value.get_device_index());
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min((g.items + groups - 1) / groups, kMaxBlocks));
  config.blockDim = dim3(lanes, groups);
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

bool fits_packs(const Geometry& g, int pack, std::initializer_list<const void*> pointers) {
  return g.channels % pack == 0 &&
         std::all_of(pointers.begin(), pointers.end(), [](const void* pointer) {
           return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0;
         });
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename T, typename P>
void forward(const Geometry& g, const Tensor& value, const P& points, Tensor& output) {
  constexpr int kPack = kPackBytes / sizeof(T);
  const T* values = data<T>(value);
  T* outputs = mutable_data<T>(output);
  const bool packs = fits_packs(g, kPack, {values, outputs, points.coordinates});
  const auto kernel = !packs                 ? forward_kernel<T, 1, AnySizes, P>
                      : CommonSizes::suit(g) ? forward_kernel<T, kPack, CommonSizes, P>
                                             : forward_kernel<T, kPack, AnySizes, P>;
  const cudaLaunchConfig_t config = launch_config(g, packs ? kPack : 1, value);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, values, points, outputs, g));
}

// The gradients of one call. Those of value and weights have the accumulation type.
struct Gradients {
  Tensor value, coordinates, weights;
};

template <typename T, typename P>
void backward(const Geometry& g, const Tensor& grad_output, const Tensor& value, P points,
              Gradients& gradients) {
  using A = Accumulate<T>;
  constexpr int kPack =
      kPackBytes / sizeof(A);  // the size of the sums counts, not that of the loads
  points.grad_coordinates =
      static_cast<decltype(points.grad_coordinates)>(gradients.coordinates.mutable_data_ptr());
  points.grad_weights = mutable_data<A>(gradients.weights);
  const T *grad_outputs = data<T>(grad_output), *values = data<T>(value);
  A* grad_values = mutable_data<A>(gradients.value);
  const bool packs = fits_packs(g, kPack, {grad_outputs, values, grad_values, points.coordinates});
  const auto kernel = !packs                 ? backward_kernel<T, 1, AnySizes, P>
                      : CommonSizes::suit(g) ? backward_kernel<T, kPack, CommonSizes, P>
                                             : backward_kernel<T, kPack, AnySizes, P>;
  const cudaLaunchConfig_t config = launch_config(g, packs ? kPack : 1, value);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, grad_outputs, values, points, grad_values, g));
}

template <typename T>
ReadyPoints<T> ready_points(const Tensor& locations, const Tensor& weights) {
  ReadyPoints<T> points{};
  points.coordinates = data<Accumulate<T>>(locations);
  points.weights = data<Accumulate<T>>(weights);
  return points;
}

template <typename T>
RawPoints<T> raw_points(const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  RawPoints<T> points{};
  points.coordinates = data<T>(offsets);
  points.logits = data<T>(logits);
  points.references = data<Accumulate<T>>(references);
  points.box = static_cast<int>(references.size(3));
  return points;
}

// Calls `function` with a value of the C++ type of `type`, of which the checks leave these four.
template <typename Function>
void for_type(ScalarType type, Function function) {
  if (type == ScalarType::Float) return function(float{});
  if (type == ScalarType::Double) return function(double{});
  if (type == ScalarType::Half) return function(torch::headeronly::Half{});
  return function(torch::headeronly::BFloat16{});
}

// Allocates the output and calls run(zero of value's type, sizes, output), or returns zeros if
// there are no samples.
template <typename Run>
Tensor with_output(const Problem& problem, const Tensor& value, const Run& run) {
  const Geometry g = geometry_of(problem);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  if (!problem.has_samples())
    return torch::stable::new_zeros(value, {problem.B, problem.Q, problem.M * problem.D});
  Tensor output = torch::stable::new_empty(value, {problem.B, problem.Q, problem.M * problem.D});
  for_type(value.scalar_type(), [&](auto zero) { run(zero, g, output); });
  return output;
}

// The same for gradients. Those of the coordinates have the coordinates' type. Those of value and
// `weights` are summed in the accumulation type and then converted to their own type.
template <typename Run>
std::tuple<Tensor, Tensor, Tensor> with_gradients(const Problem& problem, const Tensor& value,
                                                  const Tensor& coordinates, const Tensor& weights,
                                                  const Run& run) {
  const Geometry g = geometry_of(problem);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  if (!problem.has_samples()) return {zeros_of(value), zeros_of(coordinates), zeros_of(weights)};
  const ScalarType accumulation = accumulation_type(value.scalar_type());
  Gradients gradients{torch::stable::new_zeros(value, value.sizes(), accumulation),
                      torch::stable::empty_like(coordinates),
                      torch::stable::new_empty(weights, weights.sizes(), accumulation)};
  for_type(value.scalar_type(), [&](auto zero) { run(zero, g, gradients); });
  return {torch::stable::to(gradients.value, value.scalar_type()), gradients.coordinates,
          torch::stable::to(gradients.weights, weights.scalar_type())};
}

Tensor ms_deform_attn(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                      const Tensor& locations, const Tensor& weights) {
  const Problem problem = check("ms_deform_attn", value, spatial_shapes, locations, weights);
  return with_output(problem, value, [&](auto zero, const Geometry& g, Tensor& output) {
    using T = decltype(zero);
    forward<T>(g, value, ready_points<T>(locations, weights), output);
  });
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
    const Tensor& locations, const Tensor& weights) {
  const Problem problem = check_backward("ms_deform_attn_backward", grad_output, value,
                                         spatial_shapes, locations, weights);
  const auto run = [&](auto zero, const Geometry& g, Gradients& gradients) {
    using T = decltype(zero);
    backward<T>(g, grad_output, value, ready_points<T>(locations, weights), gradients);
  };
  return with_gradients(problem, value, locations, weights, run);
}

Tensor deformable_attention(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                            const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  const Problem problem =
      check_raw("deformable_attention", value, spatial_shapes, references, offsets, logits);
  return with_output(problem, value, [&](auto zero, const Geometry& g, Tensor& output) {
    using T = decltype(zero);
    forward<T>(g, value, raw_points<T>(references, offsets, logits), output);
  });
}

std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward(
    const Tensor& grad_output, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
    const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  const Problem problem = check_raw("deformable_attention_backward", value, spatial_shapes,
                                    references, offsets, logits);
  check_grad_output(problem, grad_output, value);
  const auto run = [&](auto zero, const Geometry& g, Gradients& gradients) {
    using T = decltype(zero);
    backward<T>(g, grad_output, value, raw_points<T>(references, offsets, logits), gradients);
  };
  return with_gradients(problem, value, offsets, logits, run);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dino, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
  m.impl("deformable_attention", TORCH_BOX(&deformable_attention));
  m.impl("deformable_attention_backward", TORCH_BOX(&deformable_attention_backward));
}

}  // namespace dino::cuda
