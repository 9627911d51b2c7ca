// Checks of tensors that all operators share. Each throws std::runtime_error, which states what was
// expected, what was found and what to do. Kernels check nothing. Everything here uses only
// PyTorch's stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

namespace dino {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws std::runtime_error; `where` is an operator or, in isa.h, an environment variable.
template <typename... Parts>
[[noreturn]] inline void fail(const char* where, const Parts&... parts) {
  std::ostringstream message;
  message << where << ": ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << ")";
  return text.str();
}

inline const char* dtype_text(ScalarType type) { return torch::headeronly::toString(type); }

// Bytes of a number of a type that an operator takes.
inline int64_t item_bytes(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

inline std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "a CPU";
  if (t.is_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  return "neither a CPU nor a GPU";
}

// Whether the product of `sizes` is at most `most`. A zero counts as one, so that the product of
// any selection of the sizes is bounded too.
inline bool product_fits(std::initializer_list<int64_t> sizes, int64_t most) {
  for (const int64_t size : sizes) most /= std::max<int64_t>(size, 1);
  return most > 0;
}

inline void check_device(const char* op, const char* name, const Tensor& t, const char* other_name,
                         const Tensor& other) {
  const bool same_kind = t.is_cpu() == other.is_cpu() && t.is_cuda() == other.is_cuda();
  if ((t.is_cpu() || t.is_cuda()) && same_kind && t.get_device_index() == other.get_device_index())
    return;
  fail(op, name, " must be on the device of ", other_name, ", which is on ", device_text(other),
       "; found it on ", device_text(t));
}

// Checks that the elements of a dense tensor lie inside its storage, which can be resized under a
// tensor, and that its first element is aligned, which torch.frombuffer does not ensure.
inline void check_memory(const char* op, const char* name, const Tensor& t) {
  const int64_t elements = t.numel();
  if (elements == 0) return;
  const int64_t item = item_bytes(t.scalar_type());
  int64_t bytes = 0;
  if (aoti_torch_get_storage_size(t.get(), &bytes) != AOTI_TORCH_SUCCESS)
    fail(op, name, " must be a dense tensor with memory of its own");
  const int64_t needed = t.storage_offset() + elements;
  if (needed > bytes / item) {
    fail(op, name, " needs ", needed, " elements of its storage, which has room for ", bytes / item,
         "; it was resized after the tensor was made");
  }
  if (reinterpret_cast<uintptr_t>(t.const_data_ptr()) % static_cast<uintptr_t>(item) != 0) {
    fail(op, name, " must start at a multiple of ", item,
         " bytes in memory; its clone() does, and so can be passed instead");
  }
}

// What an operator returns where nothing is computed.
inline Tensor zeros_of(const Tensor& t) { return torch::stable::new_zeros(t, t.sizes()); }

}  // namespace dino
