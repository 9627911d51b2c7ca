// The schemas of the operators; each device registers its kernels for them in its own file.
#include "ms_deform_attn.h"

// SymInt[] rather than a tensor of sizes: the sizes stay symbolic under torch.export and need no
// copy from a device.
STABLE_TORCH_LIBRARY(dino, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  m.def(
      "deformable_attention(Tensor value, SymInt[] spatial_shapes, Tensor references, "
      "Tensor sampling_offsets, Tensor attention_logits) -> Tensor");
  m.def(
      "deformable_attention_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor references, Tensor sampling_offsets, Tensor attention_logits) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "depthwise_weight_grad(Tensor input, Tensor grad_output, int kernel_size, int stride, "
      "int padding_top, int padding_left) -> Tensor");
}
