// Fuzz target: a file of the packed cache as anybody could have left it. One that is not whole is
// packed again, with the outcome of a fresh start; one that is whole with other panels multiplies
// and decodes without anything undefined.
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
  std::string path;  // empty: it is not stored
  std::string bytes;
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
  out.path = directory().file_of(context.store->name_of(out.source, plan, panel, context.pool));
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
std::string changed(const std::string& whole, uint8_t how, const std::string& bytes) {
  std::string out = whole;
  switch (how % 4) {
    case 0:  // any file at all
      return bytes;
    case 1:  // other panels, over and over
      for (size_t i = kPanelsAt; i < out.size() && !bytes.empty(); ++i)
        out[i] = bytes[(i - kPanelsAt) % bytes.size()];
      out.replace(out.size() - 16, 16, whole, whole.size() - 16, 16);
      return out;
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
  if (one.path.empty()) return 0;
  const std::vector<IsaLevel> levels = levels_here();
  const auto mode = static_cast<ActivationMode>(data[2] % 4);
  if (mode == ActivationMode::kInt8 && std::holds_alternative<DenseRows>(one.source.data)) return 0;
  const std::string file =
      changed(one.bytes, data[3], std::string(reinterpret_cast<const char*>(data + 4), size - 4));
  std::ofstream(one.path, std::ios::binary) << file;

  CpuContext context = context_of(levels[data[1] % levels.size()], mode);
  const auto weight = pack_cpu_linear({&one.source, 1}, context);
  const auto decoded = decode(*weight);
  for (const int64_t m : {1, 6, 41}) {  // few rows, and a tile
    static const std::vector<float> x = make_x(41, 512, 3);
    run(*weight, x, m, context);
  }
  const bool was_taken = static_cast<const PackedLinear&>(*weight).parts.front().stored != nullptr;
  if (file == one.bytes) expect(was_taken);
  if (!was_taken || file == one.bytes) {
    std::vector<float> expected(decoded.size());
    one.source.decode_rows(0, one.source.n, expected.data());
    expect(std::memcmp(expected.data(), decoded.data(), decoded.size() * sizeof(float)) == 0);
  }
  if (was_taken)
    expect(file.size() == one.bytes.size() && file.starts_with(one.bytes.substr(0, kPanelsAt)));
  return 0;
}
