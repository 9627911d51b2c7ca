// CPU multi-scale deformable attention, forward and backward: threads, memory and the choice of
// instruction set.
//
// A head's tokens are M * D elements apart, so a head uses only 1 in M of the cache's sets. Both
// directions therefore work on dense copies: of one head in the forward pass, if there are enough
// queries to pay for the copy, and of one level of one head in the backward pass. There each such
// level belongs to one task, so that it needs no atomics and gives the same bits with any number of
// threads.
#include "../ms_deform_attn.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "tasks.h"

#define DINO_KERNELS "kernels.inc"
#include "each_isa.inc"

namespace dino::cpu {
namespace {

template <typename T>
Kernels<T> kernels() {
#ifdef DINO_X86
  if (isa() == Isa::kAvx512) return avx512::kernels<T>();
  if (isa() == Isa::kAvx2) return avx2::kernels<T>();
#endif
  return baseline::kernels<T>();
}

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
template <typename A>
inline A widen(A x) {
  return x;
}

inline void narrow(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded =
      (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  out->bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}
template <typename A>
inline void narrow(A x, A* out) {
  *out = x;
}

// Copies a head's strided tokens into dense ones, of their own type or the accumulation type.
template <typename T, typename V>
void copy_tokens(const T* from, int64_t stride, V* to, int64_t tokens, int64_t channels) {
  for (int64_t s = 0; s < tokens; ++s) {
    if constexpr (std::is_same_v<T, V>) {
      std::copy_n(from + s * stride, channels, to + s * channels);
    } else {
      for (int64_t d = 0; d < channels; ++d) to[s * channels + d] = widen(from[s * stride + d]);
    }
  }
}

// Uninitialized memory that starts on a cache line, so that no register-wide access straddles two.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    if (count > 0)
      memory_.reset(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))));
  }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> memory_;
};

// The level of every point of a block of queries, in arrays that the vector loops read.
template <typename A>
struct Table {
  std::vector<A> width, height;
  std::vector<int32_t> columns, rows, start;

  explicit Table(const Problem& p) {
    for (size_t i = 0; i < kQueryBlock * p.levels.size(); ++i) {
      const Level& level = p.levels[i % p.levels.size()];
      width.insert(width.end(), p.P, static_cast<A>(level.width));
      height.insert(height.end(), p.P, static_cast<A>(level.height));
      columns.insert(columns.end(), p.P, static_cast<int32_t>(level.width));
      rows.insert(rows.end(), p.P, static_cast<int32_t>(level.height));
      start.insert(start.end(), p.P, static_cast<int32_t>(level.start));
    }
  }

  PointTable<A> view() const {
    return {width.data(), height.data(), columns.data(), rows.data(), start.data()};
  }
};

// A dense copy of a head pays off from this number of queries per 100 tokens on.
constexpr int64_t kDenseQueriesPer100Tokens = 25;
constexpr int64_t kQueriesPerTask = 256;

// The points of all queries: ready (locations, weights) or, where locations is null, raw.
template <typename T>
struct Points {
  const acc_t<T>* locations = nullptr;
  const acc_t<T>* weights = nullptr;
  const acc_t<T>* references = nullptr;  // (B, Q, L, box)
  const T* offsets = nullptr;            // (B, Q, M, L, P, 2)
  const T* logits = nullptr;             // (B, Q, M, L, P)
  int64_t box = 0;
};

// The raw points of one head from query `first` (of all images) on.
template <typename T>
RawPoints<T> raw_points(const Problem& p, const Points<T>& all, int64_t first, int64_t head) {
  const int64_t points = p.L * p.P, row = (first * p.M + head) * points;
  RawPoints<T> raw{};
  raw.references = all.references + first * p.L * all.box;
  raw.offsets = all.offsets + row * 2;
  raw.logits = all.logits + row;
  raw.reference_stride = p.L * all.box;
  raw.offset_stride = p.M * points * 2;
  raw.logit_stride = p.M * points;
  raw.box = static_cast<int>(all.box);
  raw.levels = static_cast<int>(p.L);
  return raw;
}

// The task of the queries [first, first + kQueriesPerTask) of one head. `tokens` is the head's
// token 0, and `token_stride` the number of elements from token to token.
template <typename T>
ForwardTask<T> forward_task(const Problem& p, const PointTable<acc_t<T>>& table, const T* tokens,
                            int64_t token_stride, const Points<T>& all, T* output, int64_t head,
                            int64_t first) {
  const int64_t points = p.L * p.P;
  const int64_t query = (head / p.M * p.Q + first) * p.M + head % p.M;
  ForwardTask<T> t{};
  t.value = tokens;
  if (all.locations == nullptr) {
    t.raw = raw_points(p, all, head / p.M * p.Q + first, head % p.M);
  } else {
    t.locations = all.locations + query * points * 2;
    t.weights = all.weights + query * points;
  }
  t.output = output + query * p.D;
  t.queries = std::min(kQueriesPerTask, p.Q - first);
  t.token_stride = token_stride;
  t.location_stride = p.M * points * 2;
  t.weight_stride = p.M * points;
  t.output_stride = p.M * p.D;
  t.channels = static_cast<int>(p.D);
  t.points = static_cast<int>(points);
  t.table = table;
  return t;
}

template <typename T>
void forward(const Problem& p, const T* value, const Points<T>& all, T* output) {
  using A = acc_t<T>;
  const Kernels<T> kernel = kernels<T>();
  const Table<A> table(p);
  const int64_t scratch = kQueryBlock * p.L * p.P;
  const int64_t blocks = (p.Q + kQueriesPerTask - 1) / kQueriesPerTask;
  const bool dense = p.M > 1 && 100 * p.Q >= kDenseQueriesPer100Tokens * p.S;
  // Tasks in the order (image, head, block of queries), so that a thread changes heads rarely.
  torch::stable::parallel_for(0, p.B * p.M * blocks, 1, [&](int64_t begin, int64_t end) {
    const Buffer<int32_t> offsets(4 * scratch);
    const Buffer<A> factors(kForwardPlanes * scratch);
    const Buffer<T> copy(dense ? p.S * p.D : 0);
    int64_t copied = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / blocks, first = task % blocks * kQueriesPerTask;
      const T* tokens = value + (head / p.M * p.S * p.M + head % p.M) * p.D;
      int64_t stride = p.M * p.D;
      if (dense) {
        if (copied != head) copy_tokens(tokens, stride, copy.data(), p.S, p.D);
        copied = head, tokens = copy.data(), stride = p.D;
      }
      ForwardTask<T> t = forward_task(p, table.view(), tokens, stride, all, output, head, first);
      t.fetch_ahead = !dense;
      t.offset_scratch = offsets.data();
      t.factor_scratch = factors.data();
      kernel.forward(t);
    }
  });
}

template <typename T>
void backward(const Problem& p, const T* grad_output, const T* value, const acc_t<T>* locations,
              const acc_t<T>* weights, T* grad_value, acc_t<T>* grad_locations,
              acc_t<T>* grad_weights) {
  using A = acc_t<T>;
  const Kernels<T> kernel = kernels<T>();
  const int64_t points = p.L * p.P;
  int64_t largest = 0;
  for (const Level& level : p.levels) largest = std::max(largest, level.height * level.width);
  torch::stable::parallel_for(0, p.B * p.M * p.L, 1, [&](int64_t begin, int64_t end) {
    const Buffer<int32_t> offsets(4 * kQueryBlock * p.P);
    const Buffer<A> factors(kBackwardPlanes * kQueryBlock * p.P);
    const Buffer<A> copy(largest * p.D), grad(largest * p.D);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (p.M * p.L), m = task / p.L % p.M, l = task % p.L;
      const Level& level = p.levels[l];
      const int64_t tokens = level.height * level.width;
      const int64_t base = ((b * p.S + level.start) * p.M + m) * p.D, stride = p.M * p.D;
      copy_tokens(value + base, stride, copy.data(), tokens, p.D);
      std::fill(grad.data(), grad.data() + tokens * p.D, A(0));
      const int64_t query = b * p.Q * p.M + m, point = query * points + l * p.P;
      BackwardTask<T> t;
      t.grad_output = grad_output + query * p.D;
      t.value = copy.data();
      t.grad_value = grad.data();
      t.locations = locations + point * 2;
      t.weights = weights + point;
      t.grad_locations = grad_locations + point * 2;
      t.grad_weights = grad_weights + point;
      t.queries = p.Q;
      t.output_stride = stride;
      t.location_stride = p.M * points * 2;
      t.weight_stride = p.M * points;
      t.channels = static_cast<int>(p.D);
      t.points = static_cast<int>(p.P);
      t.rows = static_cast<int32_t>(level.height);
      t.columns = static_cast<int32_t>(level.width);
      t.offset_scratch = offsets.data();
      t.factor_scratch = factors.data();
      kernel.backward(t);
      for (int64_t s = 0; s < tokens; ++s) {
        for (int64_t d = 0; d < p.D; ++d)
          narrow(grad.data()[s * p.D + d], &grad_value[base + s * stride + d]);
      }
    }
  });
}

// Calls run(T{}) with the C++ type of `type`, of which the checks leave these three.
template <typename Run>
void dispatch(ScalarType type, const Run& run) {
  if (type == ScalarType::Float) return run(float{});
  if (type == ScalarType::Double) return run(double{});
  return run(BFloat16{});
}

Tensor ms_deform_attn(const Tensor& value, std::vector<int64_t> spatial_shapes,
                      const Tensor& locations, const Tensor& weights) {
  const Problem p = check("ms_deform_attn", value, spatial_shapes, locations, weights);
  if (!p.has_samples()) return torch::stable::new_zeros(value, {p.B, p.Q, p.M * p.D});
  Tensor output = torch::stable::new_empty(value, {p.B, p.Q, p.M * p.D});
  dispatch(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    Points<T> all;
    all.locations = data<A>(locations), all.weights = data<A>(weights);
    forward<T>(p, data<T>(value), all, data<T>(output));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output,
                                                           const Tensor& value,
                                                           std::vector<int64_t> spatial_shapes,
                                                           const Tensor& locations,
                                                           const Tensor& weights) {
  const Problem p = check_backward("ms_deform_attn_backward", grad_output, value, spatial_shapes,
                                   locations, weights);
  if (!p.has_samples()) return {zeros_of(value), zeros_of(locations), zeros_of(weights)};
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  dispatch(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    backward<T>(p, data<T>(grad_output), data<T>(value), data<A>(locations), data<A>(weights),
                data<T>(grad_value), data<A>(grad_locations), data<A>(grad_weights));
  });
  return {grad_value, grad_locations, grad_weights};
}

template <typename T>
Points<T> raw_of(const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  Points<T> all;
  all.references = data<acc_t<T>>(references);
  all.offsets = data<T>(offsets), all.logits = data<T>(logits);
  all.box = references.size(3);
  return all;
}

Tensor deformable_attention(const Tensor& value, std::vector<int64_t> spatial_shapes,
                            const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  const Problem p =
      check_raw("deformable_attention", value, spatial_shapes, references, offsets, logits);
  if (!p.has_samples()) return torch::stable::new_zeros(value, {p.B, p.Q, p.M * p.D});
  Tensor output = torch::stable::new_empty(value, {p.B, p.Q, p.M * p.D});
  dispatch(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    forward<T>(p, data<T>(value), raw_of<T>(references, offsets, logits), data<T>(output));
  });
  return output;
}

// Locations and weights of all raw points, into memory of the accumulation type.
template <typename T>
void make_ready(const Problem& p, const Points<T>& all, acc_t<T>* locations, acc_t<T>* weights) {
  const Kernels<T> kernel = kernels<T>();
  const Table<acc_t<T>> table(p);
  const int64_t points = p.L * p.P;
  torch::stable::parallel_for(0, p.B * p.Q, kQueriesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < p.M; ++m) {
      const int64_t row = (begin * p.M + m) * points;
      ReadyTask<T> t{};
      t.raw = raw_points(p, all, begin, m);
      t.locations = locations + row * 2;
      t.weights = weights + row;
      t.queries = end - begin;
      t.location_stride = p.M * points * 2;
      t.weight_stride = p.M * points;
      t.points = static_cast<int>(points);
      t.table = table.view();
      kernel.ready(t);
    }
  });
}

template <typename T>
void make_raw_grad(const Problem& p, const Points<T>& all, const acc_t<T>* weights,
                   const acc_t<T>* grad_locations, const acc_t<T>* grad_weights, T* grad_offsets,
                   T* grad_logits) {
  const Kernels<T> kernel = kernels<T>();
  const Table<acc_t<T>> table(p);
  torch::stable::parallel_for(0, p.B * p.Q, kQueriesPerTask, [&](int64_t begin, int64_t end) {
    const int64_t row = begin * p.M * p.L * p.P;
    RawGradTask<T> t{};
    t.references = all.references + begin * p.L * all.box;
    t.weights = weights + row;
    t.grad_locations = grad_locations + row * 2;
    t.grad_weights = grad_weights + row;
    t.grad_offsets = grad_offsets + row * 2;
    t.grad_logits = grad_logits + row;
    t.queries = end - begin;
    t.heads = static_cast<int>(p.M), t.levels = static_cast<int>(p.L);
    t.points = static_cast<int>(p.P), t.box = static_cast<int>(all.box);
    t.table = table.view();
    kernel.raw_grad(t);
  });
}

std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  const Problem p = check_raw("deformable_attention_backward", value, spatial_shapes, references,
                              offsets, logits);
  check_grad_output(p, grad_output, value);
  if (!p.has_samples()) return {zeros_of(value), zeros_of(offsets), zeros_of(logits)};
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_offsets = torch::stable::empty_like(offsets);
  Tensor grad_logits = torch::stable::empty_like(logits);
  dispatch(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const Points<T> all = raw_of<T>(references, offsets, logits);
    const int64_t count = p.B * p.Q * p.M * p.L * p.P;
    const Buffer<A> locations(2 * count), weights(count), grad_locations(2 * count),
        grad_weights(count);
    make_ready<T>(p, all, locations.data(), weights.data());
    backward<T>(p, data<T>(grad_output), data<T>(value), locations.data(), weights.data(),
                data<T>(grad_value), grad_locations.data(), grad_weights.data());
    make_raw_grad<T>(p, all, weights.data(), grad_locations.data(), grad_weights.data(),
                     data<T>(grad_offsets), data<T>(grad_logits));
  });
  return {grad_value, grad_offsets, grad_logits};
}

}  // namespace
}  // namespace dino::cpu

STABLE_TORCH_LIBRARY_IMPL(dino, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&dino::cpu::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&dino::cpu::ms_deform_attn_backward));
  m.impl("deformable_attention", TORCH_BOX(&dino::cpu::deformable_attention));
  m.impl("deformable_attention_backward", TORCH_BOX(&dino::cpu::deformable_attention_backward));
}
