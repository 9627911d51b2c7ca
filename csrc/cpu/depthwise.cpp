// The weight gradient of a depthwise convolution in channels last, float32, 3 x 3 or 5 x 5 kernels.
// oneDNN takes a seventh of a training step of `dino-nano` for it, since it reads the memory once
// per weight of the kernel.
//
// Each thread owns channels, so that no sum spans threads, and the bits are the same with any
// number of them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "isa.h"
#include "tasks.h"

#define DINO_KERNELS "depthwise.inc"
#include "each_isa.inc"

namespace dino::cpu {
namespace {

using Kernel = void (*)(const DepthwiseTask&, int, int);

template <int K>
Kernel kernel() {
#ifdef DINO_X86
  if (isa() == Isa::kAvx512) return avx512::depthwise<K>;
  if (isa() == Isa::kAvx2) return avx2::depthwise<K>;
#endif
  return baseline::depthwise<K>;
}

constexpr int64_t kChannelsPerTask = 64;

constexpr const char* kOperator = "depthwise_weight_grad";

// Whether (B, C, H, W) is stored as (B, H, W, C). The stride of a dimension of size 1 has no
// meaning.
bool is_channels_last(const Tensor& t) {
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  return (C == 1 || t.stride(1) == 1) && (W == 1 || t.stride(3) == C) &&
         (H == 1 || t.stride(2) == W * C) && (t.size(0) == 1 || t.stride(0) == H * W * C);
}

// Weight gradient (C, 1, K, K) of the convolution of `input` (B, C, H, W) with C groups.
Tensor depthwise_weight_grad(const Tensor& input, const Tensor& grad_output, int64_t kernel_size,
                             int64_t stride, int64_t padding_top, int64_t padding_left) {
  for (const Tensor* t : {&input, &grad_output}) {
    if (t->dim() != 4 || t->scalar_type() != ScalarType::Float || !is_channels_last(*t)) {
      fail(kOperator, "input and grad_output must be float32 (B, C, H, W) in ",
           "channels last, found ", dtype_text(t->scalar_type()), " ", shape_text(*t));
    }
  }
  if (kernel_size != 3 && kernel_size != 5)
    fail(kOperator, "kernel_size must be 3 or 5, found ", kernel_size);
  const bool same = input.size(0) == grad_output.size(0) && input.size(1) == grad_output.size(1);
  if (!same || stride < 1 || padding_top < 0 || padding_left < 0 || padding_top >= kernel_size ||
      padding_left >= kernel_size) {
    fail(kOperator, "input ", shape_text(input), " and grad_output ", shape_text(grad_output),
         " do not fit stride ", stride, " and padding ", padding_top, ", ", padding_left);
  }
  Tensor grad_weight =
      torch::stable::new_empty(input, {input.size(1), 1, kernel_size, kernel_size});
  DepthwiseTask t;
  t.input = static_cast<const float*>(input.data_ptr());
  t.grad_output = static_cast<const float*>(grad_output.data_ptr());
  t.grad_weight = static_cast<float*>(grad_weight.data_ptr());
  t.images = input.size(0);
  t.channels = static_cast<int>(input.size(1));
  t.in_rows = static_cast<int>(input.size(2)), t.in_columns = static_cast<int>(input.size(3));
  t.out_rows = static_cast<int>(grad_output.size(2));
  t.out_columns = static_cast<int>(grad_output.size(3));
  t.stride = static_cast<int>(stride);
  t.padding_top = static_cast<int>(padding_top), t.padding_left = static_cast<int>(padding_left);
  const Kernel run = kernel_size == 3 ? kernel<3>() : kernel<5>();
  const int64_t tasks = (t.channels + kChannelsPerTask - 1) / kChannelsPerTask;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min<int64_t>(end * kChannelsPerTask, t.channels);
    for (int64_t first = begin * kChannelsPerTask; first < last; first += kChannelsPerTask) {
      run(t, static_cast<int>(first),
          static_cast<int>(std::min<int64_t>(first + kChannelsPerTask, t.channels)));
    }
  });
  return grad_weight;
}

}  // namespace
}  // namespace dino::cpu

STABLE_TORCH_LIBRARY_IMPL(dino, CPU, m) {
  m.impl("depthwise_weight_grad", TORCH_BOX(&dino::cpu::depthwise_weight_grad));
}
