#include "quantize/gguf_plan.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <future>
#include <regex>
#include <set>

#include "base/checked.h"
#include "base/error.h"
#include "kernels/scale_search.h"
#include "quant/ggml_blocks.h"
#include "quant/step_rows.h"

namespace qw {

namespace {

/// Decoded values of a tensor that are in memory at a time.
constexpr int64_t kChunkValues = int64_t{1} << 23;

bool is_quantised(DType dtype) {
  return is_block(dtype);
}

/// The type of a source's bytes, where all of them are of one.
std::optional<DType> dtype_of(const LinearSource& source) {
  if (const auto* dense = std::get_if<DenseRows>(&source.data)) return dense->dtype;
  if (const auto* blocks = std::get_if<BlockRows>(&source.data)) return blocks->dtype;
  return std::nullopt;
}

/// "Qwen1.5-0.5B-Chat" of ".../Qwen1.5-0.5B-Chat/", with spaces.
std::string name_of_path(const std::string& path) {
  std::error_code ignored;
  std::filesystem::path full = std::filesystem::absolute(path, ignored).lexically_normal();
  if (full.filename().empty()) full = full.parent_path();
  std::string name =
      full.has_extension() && full.extension() == ".gguf" ? full.stem() : full.filename();
  std::ranges::replace(name, '-', ' ');
  return printable(name);
}

/// The types of a plan's matrices.
class TypeChooser {
 public:
  TypeChooser(const GgufChoices& choices, const ModelConfig& config) : choices_(choices) {
    model_ = {.n_layers = config.n_layers,
              .n_heads = config.n_heads,
              .n_kv_heads = config.n_kv_heads,
              .n_experts = config.moe ? config.moe->n_experts : 0,
              .tied = config.tied_embeddings};
    for (const auto& [pattern, dtype] : choices.tensor_types) {
      try {
        patterns_.push_back({pattern, std::regex(pattern), dtype});
      } catch (const std::regex_error& error) {
        fail(ErrorKind::kInvalidArgument, "quantize",
             "tensor type: expected a regular expression, got '{}': {}", printable(pattern),
             error.what());
      }
    }
    if (model_.tied && choices.embedding && choices.output &&
        *choices.embedding != *choices.output) {
      fail(ErrorKind::kInvalidArgument, "quantize",
           "output type: expected that of the embedding, {}, which this model has for both, got {}",
           name_of(*choices.embedding), name_of(*choices.output));
    }
  }

  /// Errors: invalid_argument, where a pattern has decided no matrix.
  void check_patterns() const {
    std::string unused;
    for (const Pattern& pattern : patterns_) {
      if (pattern.is_used) continue;
      unused += fmt::format("{}'{}'", unused.empty() ? "" : ", ", printable(pattern.text));
    }
    if (unused.empty()) return;
    fail(ErrorKind::kInvalidArgument, "quantize",
         "tensor type: expected what is found in the name of a matrix, such as ffn_down in "
         "blk.0.ffn_down.weight, and not decided before it, got {}",
         unused);
  }

  DType choose(const ModuleId& id, const std::string& name, int64_t cols,
               std::vector<std::string>& warnings) const {
    // llama.cpp computes routers in f32; they are small.
    if (id.slot == Slot::kRouter || id.slot == Slot::kSharedExpertGate) return DType::kF32;
    if (const std::optional<DType> asked = asked_for(id, name)) return fitting(*asked, name, cols);
    const RecipeTensor tensor{id, cols};
    if (!choices_.pure) {
      const DType type =
          recipe_type(*choices_.recipe, model_, tensor, choices_.importance != nullptr);
      note_fallback(id, type, cols, warnings);
      return type;
    }
    const DType base = base_of(*choices_.recipe);
    const std::optional<DType> type = fallback_type(base, cols);
    return fitting(type.value_or(base), name, cols);
  }

 private:
  std::optional<DType> asked_for(const ModuleId& id, const std::string& name) const {
    if (const auto found = choices_.types.find(name); found != choices_.types.end())
      return found->second;
    if (id.slot == Slot::kEmbedding && choices_.embedding) return choices_.embedding;
    // The embedding of a tied model is its output matrix.
    const bool is_output = id.slot == Slot::kLmHead || (id.slot == Slot::kEmbedding && model_.tied);
    if (is_output && choices_.output) return choices_.output;
    for (const Pattern& pattern : patterns_) {
      if (!std::regex_search(name, pattern.regex)) continue;
      pattern.is_used = true;
      return pattern.dtype;
    }
    return std::nullopt;
  }
  static DType fitting(DType dtype, const std::string& name, int64_t cols) {
    if (cols % info(dtype).block_elems == 0) return dtype;
    fail(ErrorKind::kInvalidArgument, "quantize",
         "{}: expected rows of a multiple of {} for {}, got {}", name, info(dtype).block_elems,
         name_of(dtype), cols);
  }
  /// Says once for each kind of matrix that the recipe's type does not fit its rows.
  void note_fallback(const ModuleId& id, DType type, int64_t cols,
                     std::vector<std::string>& warnings) const {
    const DType base = base_of(*choices_.recipe);
    if (cols % info(base).block_elems == 0 || !is_quantised(base)) return;
    const std::string kind = gguf_name(id).substr(gguf_name(id).rfind('.') + 1);
    if (!noted_.insert(kind).second) return;
    warnings.push_back(
        fmt::format("{}: rows of {} are no multiple of {}, so {} is used in place of {}", kind,
                    cols, info(base).block_elems, name_of(type), name_of(base)));
  }

  const GgufChoices& choices_;
  RecipeModel model_;
  struct Pattern {
    std::string text;
    std::regex regex;
    DType dtype;
    mutable bool is_used = false;
  };
  std::vector<Pattern> patterns_;
  mutable std::set<std::string> noted_;
};

/// Tensors in llama-quantize's order: those outside the layers by name, then layer by layer.
bool comes_before(const GgufTensor& a, const GgufTensor& b) {
  return std::pair(a.id.layer, a.name) < std::pair(b.id.layer, b.name);
}

class Planner {
 public:
  Planner(const Checkpoint& checkpoint, const ModelConfig& config, const NetworkSources& sources,
          const GgufChoices& choices)
      : checkpoint_(checkpoint),
        sources_(sources),
        recipe_(*choices.recipe),
        importance_(choices.importance),
        chooser_(choices, config) {
    for (int index = 0; index < std::ssize(sources.layers); ++index) {
      const LayerSources& layer = sources.layers[static_cast<size_t>(index)];
      add_vector({Slot::kInputNorm, index}, ".weight", layer.input_norm);
      add_vector({Slot::kPostNorm, index}, ".weight", layer.post_norm);
      for (const LinearParts* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
        add_matrices(*parts);
      add_experts(layer.moe);
    }
    add_vector({Slot::kFinalNorm}, ".weight", sources.final_norm);
    add_matrices(sources.embedding);
    if (!sources.tied) add_matrices(sources.lm_head);
    chooser_.check_patterns();
    std::ranges::sort(plan_.tensors, comes_before);
    warn_of_rounded_sources();
    if (!choices.collects_importance) warn_of_missing_importances();
    std::ranges::sort(plan_.in_want_of_importance);
  }

  GgufPlan take() { return std::move(plan_); }

 private:
  void add_vector(const ModuleId& id, const char* suffix, std::vector<float> values) {
    if (values.empty()) return;
    GgufTensor tensor;
    tensor.name = gguf_name(id) + suffix;
    tensor.id = id;
    tensor.shape = Shape{std::ssize(values)};
    tensor.values = std::move(values);
    plan_.tensors.push_back(std::move(tensor));
  }
  void add_matrix(ModuleId id, std::vector<LinearSource> parts, bool is_stacked) {
    GgufTensor tensor;
    tensor.name = gguf_name(id) + ".weight";
    tensor.id = id;
    const int64_t n = parts.front().n, k = parts.front().k;
    tensor.dtype = chooser_.choose(id, tensor.name, k, plan_.warnings);
    // llama.cpp keeps the gate of the shared expert as a vector.
    const bool is_vector = id.slot == Slot::kSharedExpertGate;
    tensor.shape = is_stacked ? Shape{std::ssize(parts), n, k} : is_vector ? Shape{k} : Shape{n, k};
    tensor.parts = std::move(parts);
    add_importance(tensor);
    if (is_grid_type(tensor.dtype) && tensor.importance.empty() && !tensor.is_copied() &&
        needs_imatrix(recipe_, {id, k}, tensor.dtype))
      plan_.in_want_of_importance.push_back(tensor.name);
    plan_.tensors.push_back(std::move(tensor));
  }
  void add_importance(GgufTensor& tensor) {
    if (importance_ == nullptr || !is_quantised(tensor.dtype) || tensor.is_copied()) return;
    const int64_t n_parts = std::ssize(tensor.parts);
    for (int64_t i = 0; i < n_parts; ++i) {
      std::vector<float> weights =
          importance_->weights(tensor.name, i, n_parts, tensor.parts.front().k);
      if (weights.empty()) {
        without_importance_.push_back(tensor.name);
        return;
      }
      tensor.importance.push_back(std::move(weights));
    }
  }
  void add_matrices(const LinearParts& linear) {
    auto bias = linear.bias.begin();
    for (size_t i = 0; i < linear.parts.size(); ++i) {
      const int64_t n = linear.parts[i].n;
      add_matrix(linear.modules[i], {linear.parts[i]}, false);
      if (linear.bias.empty()) continue;
      std::vector<float> values(bias, bias + n);
      bias += n;
      // GPTQ files carry biases of zeros for layers that have none.
      const bool is_own = linear.modules[i].slot == Slot::kQ ||
                          linear.modules[i].slot == Slot::kK || linear.modules[i].slot == Slot::kV;
      if (is_own || std::ranges::any_of(values, [](float v) { return v != 0; }))
        add_vector(linear.modules[i], ".bias", std::move(values));
    }
  }
  /// Experts' matrices are stacked, of all experts each.
  void add_experts(const MoeSources& moe) {
    if (moe.router.parts.empty()) return;
    add_matrices(moe.router);
    for (const LinearParts* parts : {&moe.shared_gate_up, &moe.shared_down, &moe.shared_gate})
      add_matrices(*parts);
    for (const std::vector<LinearParts>* experts : {&moe.gate_up, &moe.down}) {
      for (size_t part = 0; part < experts->front().parts.size(); ++part) {
        std::vector<LinearSource> stack;
        for (const LinearParts& expert : *experts)
          stack.push_back(expert.parts[part]);
        ModuleId id = experts->front().modules[part];
        id.expert = -1;
        add_matrix(id, std::move(stack), true);
      }
    }
  }
  /// Rounding what was rounded before adds to its error; where codes can go over as they are, only
  /// the file tells.
  void warn_of_rounded_sources() {
    std::set<std::string> formats;
    for (const GgufTensor& tensor : plan_.tensors) {
      if (tensor.parts.empty() || tensor.is_copied() || !is_quantised(tensor.dtype)) continue;
      const LinearSource& source = tensor.parts.front();
      if (takes_steps(tensor.dtype) && has_steps(source)) continue;
      if (!std::holds_alternative<DenseRows>(source.data)) formats.insert(source.format_name());
    }
    for (const std::string& format : formats) {
      plan_.warnings.push_back(fmt::format(
          "{}: matrices in {} are rounded a second time, which adds to their error; take "
          "the checkpoint that they were made of if there is one",
          printable(checkpoint_.path), format));
    }
  }

  void warn_of_missing_importances() {
    if (without_importance_.empty()) return;
    plan_.warnings.push_back(
        fmt::format("{} tensors are not in the importance matrix, such as {}: their inputs count "
                    "all as much",
                    without_importance_.size(), without_importance_.front()));
  }

  const Checkpoint& checkpoint_;
  const NetworkSources& sources_;
  const GgufRecipe& recipe_;
  const quantize::ImportanceMatrix* importance_;
  TypeChooser chooser_;
  std::vector<std::string> without_importance_;
  GgufPlan plan_;
};

ParameterCount count_parameters(const GgufPlan& plan) {
  ParameterCount count;
  for (const GgufTensor& tensor : plan.tensors) {
    if (tensor.shape.rank() == 3) {
      count.n_experts = static_cast<int>(tensor.shape[0]);
      count.per_expert += tensor.shape.n_elems() / tensor.shape[0];
    } else {
      count.shared += tensor.shape.n_elems();
    }
  }
  return count;
}

/// The metadata of a GGUF file, with what is said of its types said anew.
GgufEntries entries_of_gguf(const GgufMetadata& metadata, uint32_t file_type) {
  GgufEntries out;
  for (const auto& [key, value] : metadata.entries) {
    const bool is_told_anew = key == "general.file_type" || key == "general.quantization_version" ||
                              key == "general.alignment" || key.starts_with("split.");
    if (!is_told_anew) out.emplace_back(key, value);
  }
  out.emplace_back("general.quantization_version", GgufValue::u32(2));
  out.emplace_back("general.file_type", GgufValue::u32(file_type));
  return out;
}

/// What llama-quantize says of the importances.
void add_importance_entries(const quantize::ImportanceMatrix& importance, GgufEntries& entries) {
  const auto set = [&](const char* key, GgufValue value) {
    std::erase_if(entries, [&](const auto& entry) { return entry.first == key; });
    entries.emplace_back(key, std::move(value));
  };
  set("quantize.imatrix.file", GgufValue::string(importance.file));
  if (!importance.datasets.empty())
    set("quantize.imatrix.dataset", GgufValue::string(importance.datasets.front()));
  set("quantize.imatrix.entries_count",
      GgufValue::u32(static_cast<uint32_t>(importance.entries.size())));
  if (importance.n_chunks > 0) {
    set("quantize.imatrix.chunks_count",
        GgufValue::u32(static_cast<uint32_t>(importance.n_chunks)));
  }
}

// ---- writing -----------------------------------------------------------------------------------

/// Rows [begin, begin + n) of a part in the type that is wanted, on all threads.
void write_rows(const GgufTensor& tensor, size_t index, int64_t begin, int64_t n, ThreadPool& pool,
                std::vector<std::byte>& bytes) {
  constexpr int64_t kRows = 16;  // columns of GPTQ and AWQ files are read together
  const LinearSource& part = tensor.parts[index];
  const float* importance = tensor.importance.empty() ? nullptr : tensor.importance[index].data();
  const int64_t bytes_per_row = row_bytes(tensor.dtype, part.k, tensor.name);
  bytes.resize(static_cast<size_t>(n * bytes_per_row));
  const ScaleSearchOps& ops = kernels::scale_search_ops(kernels::choose_isa(""));
  pool.parallel_for(ceil_div(n, kRows), 1, [&](int64_t first, int64_t last, int) {
    const int64_t row = first * kRows, n_rows = std::min(last * kRows, n) - row;
    std::vector<float> decoded(static_cast<size_t>(n_rows * part.k));
    encode_rows(part, begin + row, n_rows, tensor.dtype, importance, decoded.data(),
                bytes.data() + row * bytes_per_row, ops);
  });
}

std::span<const std::byte> bytes_of(const LinearSource& source) {
  const auto of = [&](const auto& rows) {
    return std::span(rows.data, static_cast<size_t>(source.n * rows.row_bytes));
  };
  if (const auto* dense = std::get_if<DenseRows>(&source.data)) return of(*dense);
  return of(std::get<BlockRows>(source.data));
}

void write_tensor(const GgufTensor& tensor, ThreadPool& pool, GgufSink sink,
                  const std::function<void(int64_t)>& done, const CancelFlag* cancel) {
  const auto tell = [&](std::span<const std::byte> bytes) {
    done(std::ssize(bytes));
    if (cancel != nullptr) cancel->check("writing " + tensor.name);
  };
  const auto push = [&](std::span<const std::byte> bytes) {
    sink(bytes);
    tell(bytes);
  };
  if (tensor.parts.empty()) return push(std::as_bytes(std::span(tensor.values)));
  // While a chunk is on its way to the disk, the next one is encoded.
  std::array<std::vector<std::byte>, 2> chunks;
  std::future<void> written;
  size_t current = 0;
  const auto wait = [&] {
    if (!written.valid()) return;
    written.get();
    tell(chunks[1 - current]);
  };
  for (size_t index = 0; index < tensor.parts.size(); ++index) {
    const LinearSource& part = tensor.parts[index];
    if (tensor.is_copied()) {
      push(bytes_of(part));
      continue;
    }
    const int64_t rows = std::max<int64_t>(1, kChunkValues / part.k);
    for (int64_t begin = 0; begin < part.n; begin += rows) {
      write_rows(tensor, index, begin, std::min(rows, part.n - begin), pool, chunks[current]);
      wait();
      written = std::async(std::launch::async, [&sink, &chunk = chunks[current]] { sink(chunk); });
      current = 1 - current;
    }
  }
  wait();
}

}  // namespace

int64_t GgufTensor::bytes() const {
  return shape.rows() * row_bytes(dtype, shape.cols(), name);
}

bool GgufTensor::is_copied() const {
  return !parts.empty() && std::ranges::all_of(parts, [&](const LinearSource& part) {
    return dtype_of(part) == dtype;
  });
}

LinearSource GgufTensor::encoded_part(size_t index, ThreadPool& pool) const {
  const LinearSource& part = parts[index];
  if (is_copied()) return part;
  auto bytes = std::make_shared<std::vector<std::byte>>();
  write_rows(*this, index, 0, part.n, pool, *bytes);
  LinearSource out;
  out.name = part.name;
  out.n = part.n;
  out.k = part.k;
  const int64_t bytes_per_row = row_bytes(dtype, part.k, name);
  if (is_block(dtype)) {
    out.data = BlockRows{dtype, bytes->data(), bytes_per_row};
  } else {
    out.data = DenseRows{dtype, bytes->data(), bytes_per_row};
  }
  out.owner = std::move(bytes);
  return out;
}

int64_t GgufPlan::bytes() const {
  int64_t sum = 0;
  for (const GgufTensor& tensor : tensors)
    sum += tensor.bytes();
  return sum;
}

double GgufPlan::bits_per_weight() const {
  int64_t n_bytes = 0, n_weights = 0;
  for (const GgufTensor& tensor : tensors) {
    if (tensor.parts.empty()) continue;
    n_bytes += tensor.bytes();
    n_weights += tensor.shape.n_elems();
  }
  return n_weights == 0 ? 0 : 8.0 * static_cast<double>(n_bytes) / static_cast<double>(n_weights);
}

GgufPlan plan_gguf(const Checkpoint& checkpoint, const ModelConfig& config,
                   const NetworkSources& sources, const TokenizerSpec* tokenizer,
                   const GgufChoices& choices) {
  QW_CHECK(choices.recipe != nullptr, "a recipe");
  GgufPlan plan = Planner(checkpoint, config, sources, choices).take();
  for (const GgufTensor& tensor : plan.tensors) {
    if (tensor.parts.empty() || tensor.is_copied() || is_float(tensor.dtype) ||
        can_encode(tensor.dtype))
      continue;
    fail(ErrorKind::kUnsupported, "quantize", "{}: expected a type that can be written, got {}",
         tensor.name, name_of(tensor.dtype));
  }
  const uint32_t file_type = file_type_of(*choices.recipe);
  plan.entries =
      checkpoint.gguf != nullptr
          ? entries_of_gguf(*checkpoint.gguf, file_type)
          : gguf_entries(checkpoint, config, tokenizer, count_parameters(plan),
                         choices.name.empty() ? name_of_path(checkpoint.path) : choices.name,
                         file_type);
  if (choices.importance != nullptr) add_importance_entries(*choices.importance, plan.entries);
  return plan;
}

GgufWriter GgufPlan::content() const {
  GgufWriter content;
  content.entries = entries;
  for (const GgufTensor& tensor : tensors)
    content.tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
  return content;
}

void write_gguf_plan(const GgufPlan& plan, const std::string& path, ThreadPool& pool,
                     const std::function<void(int64_t)>& done, const CancelFlag* cancel,
                     const GgufSplitLimits& limits, const GgufStage* stage) {
  check_importances(plan);
  write_split_gguf(
      path, plan.content(), limits,
      [&](size_t i, GgufSink sink) { write_tensor(plan.tensors[i], pool, sink, done, cancel); },
      stage);
}

void check_importances(const GgufPlan& plan) {
  if (plan.in_want_of_importance.empty()) return;
  fail(ErrorKind::kInvalidArgument, "quantize",
       "{}: expected an importance matrix with this tensor, without which IQ1, IQ2 and IQ3_XXS are "
       "worth little, got none ({} tensors in all); qianwen imatrix makes one",
       plan.in_want_of_importance.front(), plan.in_want_of_importance.size());
}

}  // namespace qw
