#include "model/adapter_file.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/mapped_file.h"
#include "checkpoint/gguf.h"
#include "checkpoint/lfs_pointer.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_file.h"
#include "model/peft_config.h"
#include "model/sources.h"

namespace qw {

namespace {

namespace fs = std::filesystem;

/// The tensors of one module, by their part in the formula.
struct ModuleTensors {
  const RawTensor *a = nullptr, *b = nullptr, *magnitude = nullptr, *weight = nullptr;
  const RawTensor *embedding_a = nullptr, *embedding_b = nullptr;
};

[[noreturn]] void fail_tensor(const RawTensor& tensor, std::string_view expected) {
  fail(ErrorKind::kCorrupt, "adapter", "tensor {}: expected {}, got {} {} ({})",
       printable(tensor.name), expected, name_of(tensor.dtype), tensor.shape.str(),
       printable(tensor.file));
}

/// Errors: not_found, naming what an incomplete pair lacks.
void check_pair(const std::string& module, const RawTensor* a, const RawTensor* b,
                const std::string& path) {
  if (a != nullptr && b != nullptr) return;
  fail(ErrorKind::kCorrupt, "adapter",
       "module {}: expected both lora_A and lora_B, got one of them ({})", printable(module),
       printable(path));
}

// ---- peft -----------------------------------------------------------------------------------

/// What of a module a tensor is: the end of its name, with and without the adapter's name.
struct Ending {
  std::string_view text;
  const RawTensor* ModuleTensors::*part;
};
constexpr Ending kEndings[] = {
    {".lora_A.weight", &ModuleTensors::a},
    {".lora_A.default.weight", &ModuleTensors::a},
    {".lora_B.weight", &ModuleTensors::b},
    {".lora_B.default.weight", &ModuleTensors::b},
    {".lora_embedding_A", &ModuleTensors::embedding_a},
    {".lora_embedding_A.default", &ModuleTensors::embedding_a},
    {".lora_embedding_B", &ModuleTensors::embedding_b},
    {".lora_embedding_B.default", &ModuleTensors::embedding_b},
    {".lora_magnitude_vector", &ModuleTensors::magnitude},
    {".lora_magnitude_vector.weight", &ModuleTensors::magnitude},
    {".lora_magnitude_vector.default.weight", &ModuleTensors::magnitude},
    {".base_layer.weight", &ModuleTensors::weight},
    {".modules_to_save.weight", &ModuleTensors::weight},
    {".modules_to_save.default.weight", &ModuleTensors::weight},
    {".weight", &ModuleTensors::weight},  // the shortest last: the others end so too
};

std::map<std::string, ModuleTensors> sort_peft_tensors(const std::vector<RawTensor>& tensors,
                                                       const std::string& path) {
  constexpr std::string_view kPrefix = "base_model.model.";
  std::map<std::string, ModuleTensors> out;
  for (const RawTensor& tensor : tensors) {
    std::string_view name = tensor.name;
    if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
    const auto ending =
        std::ranges::find_if(kEndings, [&](const Ending& e) { return name.ends_with(e.text); });
    if (ending == std::end(kEndings)) {
      fail(ErrorKind::kUnsupported, "adapter",
           "tensor {}: expected lora_A, lora_B, lora_magnitude_vector, lora_embedding_A, "
           "lora_embedding_B or a whole weight, got another name ({})",
           printable(tensor.name), printable(path));
    }
    name.remove_suffix(ending->text.size());
    out[std::string(name)].*(ending->part) = &tensor;
  }
  return out;
}

ModuleId id_of_peft_module(const std::string& module, const std::string& path) {
  const auto id = parse_hf_name(module);
  if (!id) {
    fail(ErrorKind::kCorrupt, "adapter",
         "module {}: expected a module of a Qwen2 network, got an unknown name ({})",
         printable(module), printable(path));
  }
  return *id;
}

/// A whole weight, of modules_to_save or beside an embedding's deltas.
void add_replacement(AdapterFile& out, const ModuleId& id, const RawTensor& weight) {
  if (is_norm(id.slot)) {
    out.norms.push_back({id, read_vector(weight)});
  } else if (id.slot == Slot::kEmbedding || id.slot == Slot::kLmHead) {
    out.replacements.push_back({id, LinearSource::of_matrix(weight)});
  } else {
    fail(ErrorKind::kUnsupported, "adapter",
         "modules_to_save: expected embed_tokens, lm_head and norms only, got tensor {} ({})",
         printable(weight.name), printable(out.path));
  }
}

void add_peft_module(AdapterFile& out, const PeftConfig& config, const std::string& module,
                     const ModuleTensors& t) {
  const ModuleId id = id_of_peft_module(module, out.path);
  const auto check_rank = [&](const RawTensor& a) {
    if (a.shape.rank() != 2 || a.shape[0] != config.rank_of(module))
      fail_tensor(
          a, fmt::format("[{}, inputs] (rank of adapter_config.json)", config.rank_of(module)));
  };
  if (t.weight != nullptr) add_replacement(out, id, *t.weight);
  if (t.embedding_a != nullptr || t.embedding_b != nullptr) {
    check_pair(module, t.embedding_a, t.embedding_b, out.path);
    check_rank(*t.embedding_a);
    if (t.magnitude != nullptr) {
      fail(ErrorKind::kUnsupported, "adapter",
           "module {}: expected no DoRA of an embedding, got use_dora true ({})", printable(module),
           printable(out.path));
    }
    out.embedding_deltas.push_back({.a = LinearSource::of_matrix(*t.embedding_a),
                                    .b = LinearSource::of_matrix(*t.embedding_b),
                                    .scaling = config.scaling_of(module)});
  }
  if (t.a == nullptr && t.b == nullptr && t.magnitude == nullptr) return;
  check_pair(module, t.a, t.b, out.path);
  check_rank(*t.a);
  if (config.dora != (t.magnitude != nullptr)) {
    fail(ErrorKind::kCorrupt, "adapter",
         "module {}: expected a lora_magnitude_vector exactly when use_dora is true, got use_dora "
         "{} ({})",
         printable(module), config.dora, printable(out.path));
  }
  out.deltas.push_back(
      {.id = id,
       .name = module,
       .a = LinearSource::of_matrix(*t.a),
       .b = LinearSource::of_matrix(*t.b),
       .scaling = config.scaling_of(module),
       .magnitude = t.magnitude ? read_vector(*t.magnitude) : std::vector<float>{}});
}

std::shared_ptr<const MappedFile> open_adapter(const std::string& path) {
  auto file = MappedFile::open(path);
  refuse_lfs_pointer(file->text(), "adapter", path);
  return file;
}

/// Whether a file is one that a peft directory is made of, and so stands for its directory.
bool is_peft_file(const fs::path& path) {
  const fs::path name = path.filename();
  return name == "adapter_config.json" || name == "adapter_model.safetensors" ||
         name == "adapter_model.bin";
}

/// `named`: what the user gave, the directory or a file of it; messages name it.
AdapterFile read_peft(const fs::path& directory, const std::string& named) {
  AdapterFile out;
  out.path = directory.string();
  const std::string config_file = (directory / "adapter_config.json").string();
  if (!path_exists(config_file)) {
    fail(ErrorKind::kNotFound, "adapter",
         "path: expected a peft directory with adapter_config.json or a GGUF adapter, got neither "
         "({})",
         printable(named));
  }
  const std::string config_text = read_text_file(config_file, size_t{1} << 24);
  refuse_lfs_pointer(config_text, "adapter", config_file);
  const PeftConfig config = PeftConfig::parse(config_text, config_file);
  out.config = config_text;
  std::vector<RawTensor> tensors;
  const std::string safetensors = (directory / "adapter_model.safetensors").string();
  const std::string torch = (directory / "adapter_model.bin").string();
  if (path_exists(safetensors)) {
    out.mapping = open_adapter(safetensors);
    tensors = read_safetensors(out.mapping).tensors;
  } else if (path_exists(torch)) {
    out.mapping = open_adapter(torch);
    tensors = read_torch_file(out.mapping);
  } else {
    fail(ErrorKind::kNotFound, "adapter",
         "weights: expected adapter_model.safetensors or adapter_model.bin, got neither ({})",
         printable(out.path));
  }
  for (const auto& [module, parts] : sort_peft_tensors(tensors, out.path))
    add_peft_module(out, config, module, parts);
  return out;
}

// ---- GGUF -----------------------------------------------------------------------------------

/// alpha / r; llama.cpp takes an alpha of 0 as "no scaling".
double gguf_scaling(double alpha, int64_t rank) {
  return alpha == 0 ? 1.0 : alpha / static_cast<double>(rank);
}

void add_gguf_pair(AdapterFile& out, const std::string& name, const RawTensor& a,
                   const RawTensor& b, double alpha) {
  std::string_view module = name;
  if (module.ends_with(".weight")) module.remove_suffix(std::string_view(".weight").size());
  const auto id = parse_gguf_name(module);
  if (!id) {
    fail(ErrorKind::kCorrupt, "adapter",
         "tensor {}: expected a tensor of a Qwen2 network, got an unknown name ({})",
         printable(name), printable(out.path));
  }
  if (id->slot == Slot::kEmbedding) {
    // llama.cpp looks rows of A up by token, so A comes transposed.
    if (a.shape.rank() != 2 || b.shape.rank() != 2) fail_tensor(a, "a matrix");
    out.embedding_deltas.push_back({.a = LinearSource::of_matrix(a),
                                    .a_rows_are_tokens = a.shape[1] == b.shape[1],
                                    .b = LinearSource::of_matrix(b),
                                    .scaling = gguf_scaling(alpha, b.shape[1])});
    return;
  }
  if (a.shape.rank() == 3 && b.shape.rank() == 3 && a.shape[0] == b.shape[0]) {
    for (int64_t e = 0; e < a.shape[0]; ++e) {
      ModuleId expert = *id;
      expert.expert = static_cast<int>(e);
      out.deltas.push_back({.id = expert,
                            .name = name,
                            .a = LinearSource::of_expert(a, e),
                            .b = LinearSource::of_expert(b, e),
                            .scaling = gguf_scaling(alpha, a.shape[1]),
                            .magnitude = {}});
    }
    return;
  }
  out.deltas.push_back({.id = *id,
                        .name = name,
                        .a = LinearSource::of_matrix(a),
                        .b = LinearSource::of_matrix(b),
                        .scaling = gguf_scaling(alpha, a.shape[0]),
                        .magnitude = {}});
}

AdapterFile read_gguf_adapter(const std::string& path) {
  AdapterFile out;
  out.path = path;
  out.mapping = open_adapter(path);
  const GgufFile file = read_gguf(out.mapping);
  const GgufMetadata& metadata = *file.metadata;
  const std::string type = metadata.string_or("general.type", "model");
  const std::string kind = metadata.string_or("adapter.type", "");
  if (type != "adapter" || kind != "lora") {
    fail(ErrorKind::kUnsupported, "adapter",
         "general.type and adapter.type: expected adapter and lora, got {} and {} ({})",
         printable(type), kind.empty() ? "none" : printable(kind), printable(path));
  }
  const std::string architecture = metadata.string("general.architecture");
  if (architecture != "qwen2" && architecture != "qwen2moe") {
    fail(ErrorKind::kUnsupported, "adapter",
         "general.architecture: expected qwen2 or qwen2moe, got {} ({})", printable(architecture),
         printable(path));
  }
  const double alpha = metadata.real("adapter.lora.alpha");
  std::map<std::string, ModuleTensors> pairs;
  for (const RawTensor& tensor : file.tensors) {
    constexpr std::string_view kA = ".lora_a", kB = ".lora_b";
    const std::string_view name = tensor.name;
    if (name.ends_with(kA)) {
      pairs[std::string(name.substr(0, name.size() - kA.size()))].a = &tensor;
    } else if (name.ends_with(kB)) {
      pairs[std::string(name.substr(0, name.size() - kB.size()))].b = &tensor;
    } else {
      fail(ErrorKind::kUnsupported, "adapter",
           "tensor {}: expected .lora_a or .lora_b at its end, got neither ({})", printable(name),
           printable(path));
    }
  }
  for (const auto& [name, pair] : pairs) {
    check_pair(name, pair.a, pair.b, path);
    add_gguf_pair(out, name, *pair.a, *pair.b, alpha);
  }
  return out;
}

/// Errors: corrupt, when A and B do not fit together or the scaling is no number.
void check_delta(const LowRankDelta& delta, const std::string& path) {
  if (delta.a.n != delta.b.k || delta.a.n < 1) {
    fail(ErrorKind::kCorrupt, "adapter",
         "module {}: expected A [r, k] and B [n, r], got [{}, {}] and [{}, {}] ({})",
         printable(delta.name), delta.a.n, delta.a.k, delta.b.n, delta.b.k, printable(path));
  }
  if (!std::isfinite(delta.scaling)) {
    fail(ErrorKind::kCorrupt, "adapter", "module {}: expected a finite scaling, got {} ({})",
         printable(delta.name), delta.scaling, printable(path));
  }
  if (!delta.magnitude.empty() && static_cast<int64_t>(delta.magnitude.size()) != delta.b.n) {
    fail(ErrorKind::kCorrupt, "adapter", "module {}: expected {} magnitudes, got {} ({})",
         printable(delta.name), delta.b.n, delta.magnitude.size(), printable(path));
  }
}

}  // namespace

AdapterFile read_adapter(const std::string& path) {
  if (!path_exists(path)) {
    fail(ErrorKind::kNotFound, "adapter",
         "path: expected a peft directory or a GGUF adapter, got no such path ({})",
         printable(path));
  }
  AdapterFile out;
  if (std::error_code ignored; fs::is_directory(path, ignored)) {
    out = read_peft(path, path);
  } else if (fs::path(path).extension() == ".gguf") {
    out = read_gguf_adapter(path);
  } else if (is_peft_file(path)) {
    out = read_peft(fs::path(path).parent_path(), path);
  } else {
    fail(ErrorKind::kUnsupported, "adapter",
         "path: expected a peft directory or a GGUF adapter (.gguf), got another file ({})",
         printable(path));
  }
  if (out.deltas.empty() && out.embedding_deltas.empty() && out.replacements.empty() &&
      out.norms.empty()) {
    fail(ErrorKind::kCorrupt, "adapter", "tensors: expected at least one, got none ({})",
         printable(out.path));
  }
  for (const LowRankDelta& delta : out.deltas)
    check_delta(delta, out.path);
  return out;
}

}  // namespace qw
