// Memory of the CPU backend: activations, vectors, embedding tables and the paged KV cache.
//
// Level 4 (backend), private to the CPU backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "kernels/kv_pages.h"

namespace qw {

/// Zeroed anonymous memory, a multiple of the system's page, in huge pages where the system has
/// them. Pages that are never touched take no memory.
class PageMemory {
 public:
  /// Errors: out_of_memory, naming `what`.
  PageMemory(int64_t size_bytes, std::string_view what);
  ~PageMemory();
  PageMemory(const PageMemory&) = delete;
  PageMemory& operator=(const PageMemory&) = delete;
  std::byte* data() const noexcept { return data_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
};

/// Floats that begin on a cache line: a 64-byte access that straddles two lines costs two.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  /// n zeros. Errors: out_of_memory, naming `what`.
  AlignedFloats(int64_t n, std::string_view what);
  /// Makes room for n floats; what was there is lost if it had to grow.
  void reserve(int64_t n, std::string_view what) {
    if (n > size_) *this = AlignedFloats(n, what);
  }
  float* data() const noexcept { return values_.get(); }

 private:
  struct Free {
    void operator()(float* values) const noexcept;
  };
  std::unique_ptr<float, Free> values_;
  int64_t size_ = 0;
};

/// Activations in f32; rows begin on cache lines.
class CpuRows final : public RowsBuffer {
 public:
  CpuRows(int64_t rows, int64_t cols);

 private:
  AlignedFloats values_;
};

inline float* row_of(const Rows& rows, int64_t r) noexcept {
  return static_cast<float*>(rows.data) + r * rows.stride;
}

class CpuVector final : public DeviceVector {
 public:
  explicit CpuVector(std::span<const float> values) : values_(values.begin(), values.end()) {
    size = static_cast<int64_t>(values_.size());
  }
  const float* data() const noexcept { return values_.data(); }

 private:
  std::vector<float> values_;
};

/// A table that stays in its published bytes: the rows that are wanted are decoded when they are.
class CpuEmbedding final : public EmbeddingWeight {
 public:
  explicit CpuEmbedding(const LinearSource& table) : source(table) {
    vocab = source.n;
    hidden = source.k;
    // resident_bytes stays 0: rows are decoded from the file's mapping when they are asked for, so
    // the table is page cache, not memory of the process.
  }
  const LinearSource source;
};

/// Keys and values, [layer][page][kv head][page of one head]; see kernels/kv_pages.h.
class CpuKv final : public KvCache {
 public:
  /// Errors: unsupported (type), out_of_memory.
  explicit CpuKv(const KvSpec& spec);
  /// Bytes of a cache of this spec. Errors: unsupported, and out_of_memory when no machine has it.
  static int64_t bytes(const KvSpec& spec);

  void copy_page(int32_t from, int32_t to, int n_tokens) override;
  int64_t page_bytes() const override {
    return int64_t{spec.n_layers} * spec.n_kv_heads * layout_.head_bytes;
  }
  void read_page(int32_t page, std::span<std::byte> out) const override;
  void write_page(int32_t page, std::span<const std::byte> in) override;
  std::string layout_name() const override;

  const kernels::KvLayout& layout() const noexcept { return layout_; }
  std::byte* page(int layer, int64_t page, int kv_head) const noexcept {
    return memory_.data() +
           ((layer * spec.n_pages + page) * spec.n_kv_heads + kv_head) * layout_.head_bytes;
  }

 private:
  kernels::KvLayout layout_;
  PageMemory memory_;
};

}  // namespace qw
