#include "backend/cpu_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"

namespace qw {

namespace {

constexpr int64_t kRowAlignElems = 16;  // a cache line of floats
/// Raised by every change of where the bytes of a page lie or what they mean (kernels/kv_pages.h):
/// pages are kept on disk.
constexpr int kPageVersion = 1;

kernels::KvType kv_type(DType type) {
  switch (type) {
    case DType::kF32:
      return kernels::KvType::kF32;
    case DType::kF16:
      return kernels::KvType::kF16;
    case DType::kBF16:
      return kernels::KvType::kBF16;
    case DType::kQ8_0:
      return kernels::KvType::kQ8_0;
    case DType::kQ4_0:
      return kernels::KvType::kQ4_0;
    default:
      fail(ErrorKind::kUnsupported, "backend",
           "KV cache type: expected f32, f16, bf16, q8_0 or q4_0, got {}", name_of(type));
  }
}

kernels::KvLayout layout_of(const KvSpec& spec) {
  if (spec.head_dim < 2 || spec.head_dim % 2 != 0) {
    fail(ErrorKind::kUnsupported, "backend", "KV cache: expected an even head size, got {}",
         spec.head_dim);
  }
  return kernels::kv_layout(kv_type(spec.type), spec.head_dim);
}

}  // namespace

PageMemory::PageMemory(int64_t size_bytes, std::string_view what)
    : size_bytes_(static_cast<size_t>(size_bytes)) {
  if (size_bytes == 0) return;
  void* memory =
      mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fail(ErrorKind::kOutOfMemory, "backend", "{}: expected {} bytes from the system, got none",
         what, size_bytes);
  }
  madvise(memory, size_bytes_, MADV_HUGEPAGE);  // a wish: without it, only slower
  data_ = static_cast<std::byte*>(memory);
}

PageMemory::~PageMemory() {
  if (data_ != nullptr) munmap(data_, size_bytes_);
}

AlignedFloats::AlignedFloats(int64_t n, std::string_view what) : size_(n) {
  const int64_t n_bytes =
      round_up<int64_t>(checked_mul<int64_t>(std::max<int64_t>(n, 1), sizeof(float), what), 64);
  values_.reset(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(n_bytes))));
  if (values_ == nullptr)
    fail(ErrorKind::kOutOfMemory, "backend", "{}: expected {} bytes from the system, got none",
         what, n_bytes);
  std::memset(values_.get(), 0, static_cast<size_t>(n_bytes));
}

void AlignedFloats::Free::operator()(float* values) const noexcept {
  std::free(values);
}

CpuRows::CpuRows(int64_t rows, int64_t cols)
    : values_(checked_mul(rows, round_up(cols, kRowAlignElems), "activations"), "activations") {
  view = {values_.data(), rows, cols, round_up(cols, kRowAlignElems), sizeof(float)};
}

int64_t CpuKv::bytes(const KvSpec& spec) {
  QW_CHECK(spec.n_layers > 0 && spec.n_kv_heads > 0 && spec.n_pages >= 0,
           "KV cache of {} layers, {} heads, {} pages", spec.n_layers, spec.n_kv_heads,
           spec.n_pages);
  const int64_t page = int64_t{spec.n_layers} * spec.n_kv_heads * layout_of(spec).head_bytes;
  int64_t out = 0;
  if (__builtin_mul_overflow(page, spec.n_pages, &out)) {
    fail(ErrorKind::kOutOfMemory, "backend",
         "KV cache: expected to fit a memory, got {} pages of {} bytes", spec.n_pages, page);
  }
  return out;
}

CpuKv::CpuKv(const KvSpec& kv_spec)
    : layout_(layout_of(kv_spec)), memory_(bytes(kv_spec), "KV cache") {
  spec = kv_spec;
  page_tokens = kernels::kKvPageTokens;
  resident_bytes = bytes(kv_spec);
}

void CpuKv::copy_page(int32_t from, int32_t to, int n_tokens) {
  QW_CHECK(from >= 0 && from < spec.n_pages && to >= 0 && to < spec.n_pages, "pages {} -> {} of {}",
           from, to, spec.n_pages);
  if (n_tokens <= 0 || from == to) return;
  // Tokens lie interleaved in a page, so the whole page goes; what lies behind n_tokens is never
  // read.
  const auto page_bytes = static_cast<size_t>(spec.n_kv_heads * layout_.head_bytes);
  for (int layer = 0; layer < spec.n_layers; ++layer)
    std::memcpy(page(layer, to, 0), page(layer, from, 0), page_bytes);
}

void CpuKv::read_page(int32_t number, std::span<std::byte> out) const {
  QW_CHECK(number >= 0 && number < spec.n_pages && std::ssize(out) == page_bytes(),
           "page {} of {} to {} bytes", number, spec.n_pages, out.size());
  const size_t size = out.size() / static_cast<size_t>(spec.n_layers);
  for (int layer = 0; layer < spec.n_layers; ++layer)
    std::memcpy(out.data() + static_cast<size_t>(layer) * size, page(layer, number, 0), size);
}

void CpuKv::write_page(int32_t number, std::span<const std::byte> in) {
  QW_CHECK(number >= 0 && number < spec.n_pages && std::ssize(in) == page_bytes(),
           "page {} of {} from {} bytes", number, spec.n_pages, in.size());
  const size_t size = in.size() / static_cast<size_t>(spec.n_layers);
  for (int layer = 0; layer < spec.n_layers; ++layer)
    std::memcpy(page(layer, number, 0), in.data() + static_cast<size_t>(layer) * size, size);
}

std::string CpuKv::layout_name() const {
  return fmt::format("cpu {}: {} layers, {} heads of {}, {}, {} tokens", kPageVersion,
                     spec.n_layers, spec.n_kv_heads, spec.head_dim, name_of(spec.type),
                     page_tokens);
}

}  // namespace qw
