// Fuzz target: a file of the packed cache as anybody could have left it. One with other bytes than
// were stored is packed again, with the outcome of a fresh start; one that the store itself wrote
// with other panels multiplies and decodes without anything undefined.
//
// The first bytes choose: format, instruction set, form of activations, what becomes of the file.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu_linear_packed.h"
#include "backend/cpu_linear_test_support.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/log.h"

namespace {

using namespace qw;        // NOLINT(google-build-using-namespace): one program
using namespace qw::test;  // NOLINT(google-build-using-namespace)

constexpr int64_t kRows = 20;      // two panels, one of them in part
constexpr int64_t kColumns = 288;  // or the next multiple of what the format takes
constexpr size_t kPanelsAt = 4096;
constexpr size_t kTrailerBytes = 54;
constexpr int kOtherPanels = 1;  // of what becomes of the file

void expect(bool holds) {
  if (!holds) std::abort();
}

/// The directory of one process, with a secret that is always the same.
class Directory {
 public:
  Directory()
      : path_(std::filesystem::temp_directory_path() /
              ("packed_store_fuzz-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "secret", std::ios::binary) << std::string(192, 's');
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  std::string path() const { return path_; }
  std::string file_of(const std::string& name) const { return path_ / (name + ".packed"); }

 private:
  std::filesystem::path path_;
};

const Directory& directory() {
  static const Directory one;
  return one;
}

CpuContext context_of(IsaLevel level, ActivationMode mode) {
  BackendOptions options;
  options.n_threads = 1;
  options.isa = kernels::name_of(level);
  options.activations = mode;
  options.packed_cache = directory().path();
  return CpuContext(options);
}

/// A weight and the file that the store keeps of it.
struct Stored {
  LinearSource source;
  std::string name;  // empty: it is not stored
  std::string path, bytes;
};

Stored store_one(const Format& format) {
  Stored out;
  out.source = make_source(format, kRows, round_up<int64_t>(kColumns, format.k_step()), 7);
  if (auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&out.source.data)) {
    // The store wants to know the bytes that the codes are read from.
    auto told = std::make_shared<RandomGroups>(static_cast<const RandomGroups&>(**groups));
    told->published = {std::as_bytes(std::span(told->codes_))};
    *groups = told;
  }
  const kernels::PackPlan plan = kernels::plan_pack(out.source);
  if (plan.layout == kernels::LinearLayout::kRows) return out;
  CpuContext context = context_of(IsaLevel::kGeneric, ActivationMode::kAuto);
  pack_cpu_linear({&out.source, 1}, context);
  std::vector<uint8_t> panel(static_cast<size_t>(plan.matrix.panel_bytes));
  kernels::pack_panels(out.source, plan, 0, 1, panel.data());
  out.name = context.store->name_of(out.source, plan, panel, context.pool);
  out.path = directory().file_of(out.name);
  std::ifstream in(out.path, std::ios::binary);
  out.bytes.assign(std::istreambuf_iterator<char>(in), {});
  expect(out.bytes.size() > kPanelsAt);
  return out;
}

const Stored& stored(size_t index) {
  static const std::vector<Format> formats = all_formats();
  static std::map<size_t, Stored> known;
  const size_t i = index % formats.size();
  const auto [entry, is_new] = known.try_emplace(i);
  if (is_new) entry->second = store_one(formats[i]);
  return entry->second;
}

/// What may be in the file: `bytes` from the fuzzer.
std::string changed(const std::string& whole, int how, const std::string& bytes) {
  std::string out = whole;
  switch (how) {
    case 0:  // any file at all
      return bytes;
    case 2:  // a few bytes of it: two that say where, one that says what
      for (size_t i = 0; i + 2 < bytes.size(); i += 3) {
        const auto at = static_cast<size_t>(static_cast<uint8_t>(bytes[i])) << 8 |
                        static_cast<uint8_t>(bytes[i + 1]);
        out[at % out.size()] = bytes[i + 2];
      }
      return out;
    default:  // longer or shorter
      return bytes.size() % 2 == 0 ? out + bytes
                                   : out.substr(0, out.size() - std::min(out.size(), bytes.size()));
  }
}

/// Stores `bytes`, over and over, as the panels.
void store_panels(const Stored& one, const std::string& bytes, CpuContext& context) {
  std::vector<uint8_t> panels(one.bytes.begin() + kPanelsAt, one.bytes.end() - kTrailerBytes);
  for (size_t i = 0; i < panels.size() && !bytes.empty(); ++i)
    panels[i] = static_cast<uint8_t>(bytes[i % bytes.size()]);
  context.store->put(one.name, panels, context.pool);
}

std::vector<float> decode(const CpuLinear& weight) {
  std::vector<float> out(static_cast<size_t>(weight.n * weight.k));
  weight.decode_rows(0, weight.n, out.data());
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  init_logging("off");
  const Stored& one = stored(data[0]);
  if (one.name.empty()) return 0;
  const std::vector<IsaLevel> levels = levels_here();
  const auto mode = static_cast<ActivationMode>(data[2] % 4);
  if (mode == ActivationMode::kInt8 && std::holds_alternative<DenseRows>(one.source.data)) return 0;
  const int how = data[3] % 4;
  const std::string bytes(reinterpret_cast<const char*>(data + 4), size - 4);
  CpuContext context = context_of(levels[data[1] % levels.size()], mode);
  bool is_stored = true, is_whole = bytes.empty();
  if (how == kOtherPanels) {
    store_panels(one, bytes, context);
  } else {
    const std::string file = changed(one.bytes, how, bytes);
    std::ofstream(one.path, std::ios::binary) << file;
    is_stored = is_whole = file == one.bytes;
  }

  const auto weight = pack_cpu_linear({&one.source, 1}, context);
  const auto decoded = decode(*weight);
  for (const int64_t m : {1, 6, 41}) {  // few rows, and a tile
    static const std::vector<float> x = make_x(41, 512, 3);
    run(*weight, x, m, context);
  }
  const bool was_taken = static_cast<const PackedLinear&>(*weight).parts.front().stored != nullptr;
  expect(was_taken == is_stored);
  if (!was_taken || is_whole) {
    std::vector<float> expected(decoded.size());
    one.source.decode_rows(0, one.source.n, expected.data());
    expect(std::memcmp(expected.data(), decoded.data(), decoded.size() * sizeof(float)) == 0);
  }
  return 0;
}
