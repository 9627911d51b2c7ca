// The weight gradient of a depthwise convolution in channels last, float32, 3 x 3 or 5 x 5 kernels.
// oneDNN takes a seventh of a training step of `dino-nano` for it, since it reads the memory once
// per weight of the kernel.
//
// Each thread owns channels, so that no sum spans threads, and the bits are the same with any
// number of them.
#include "../depthwise.h"

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

// Weight gradient (C, 1, K, K) of the convolution of `input` (B, C, H, W) with C groups.
Tensor depthwise_weight_grad(const Tensor& input, const Tensor& grad_output, int64_t kernel_size,
                             int64_t stride, int64_t padding_top, int64_t padding_left) {
  const DepthwiseProblem p = check_depthwise("depthwise_weight_grad", input, grad_output,
                                             kernel_size, stride, padding_top, padding_left);
  if (!p.has_products()) return torch::stable::new_zeros(input, {p.C, 1, p.K, p.K});
  Tensor grad_weight = torch::stable::new_empty(input, {p.C, 1, p.K, p.K});
  DepthwiseTask t;
  t.input = static_cast<const float*>(input.data_ptr());
  t.grad_output = static_cast<const float*>(grad_output.data_ptr());
  t.grad_weight = static_cast<float*>(grad_weight.data_ptr());
  t.images = p.B;
  t.channels = static_cast<int>(p.C);
  t.in_rows = static_cast<int>(p.in_rows), t.in_columns = static_cast<int>(p.in_columns);
  t.out_rows = static_cast<int>(p.out_rows), t.out_columns = static_cast<int>(p.out_columns);
  t.stride = static_cast<int>(p.stride);
  t.padding_top = static_cast<int>(p.padding_top);
  t.padding_left = static_cast<int>(p.padding_left);
  const Kernel run = p.K == 3 ? kernel<3>() : kernel<5>();
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
