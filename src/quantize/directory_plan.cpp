#include "quantize/directory_plan.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/atomic_directory.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "checkpoint/safetensors.h"
#include "quant/ggml_blocks.h"
#include "quantize/directory_config.h"
#include "text/tokenizer_writer.h"

namespace qw {

namespace {

namespace fs = std::filesystem;

/// Decoded values of a tensor that are in memory at a time.
constexpr int64_t kChunkValues = int64_t{1} << 23;

/// What a checkpoint's directory has beside weights and config.json that its copy should have, too.
constexpr std::array<const char*, 14> kCompanions = {"generation_config.json",
                                                     "tokenizer.json",
                                                     "tokenizer_config.json",
                                                     "vocab.json",
                                                     "merges.txt",
                                                     "qwen.tiktoken",
                                                     "special_tokens_map.json",
                                                     "added_tokens.json",
                                                     "chat_template.jinja",
                                                     "chat_template.json",
                                                     "LICENSE",
                                                     "LICENSE.txt",
                                                     "LICENSE.md",
                                                     "NOTICE"};

/// A matrix whose bytes can be copied, if it is one.
std::span<const std::byte> bytes_as(const LinearSource& source, DType dtype) {
  const auto* dense = std::get_if<DenseRows>(&source.data);
  if (dense == nullptr || dense->dtype != dtype ||
      dense->row_bytes != row_bytes(dtype, source.k, source.name))
    return {};
  return {dense->data, static_cast<size_t>(source.n * dense->row_bytes)};
}

RowDecoder rows_of(const LinearSource& source) {
  return [source](int64_t begin, int64_t n, float* out) { source.decode_rows(begin, n, out); };
}

RowDecoder rows_of(std::vector<float> values) {
  return [values = std::move(values)](int64_t, int64_t, float* out) {
    std::ranges::copy(values, out);
  };
}

class Planner {
 public:
  Planner(const Checkpoint& checkpoint, const NetworkSources& sources,
          const DirectoryChoices& choices)
      : checkpoint_(checkpoint), sources_(sources), choices_(choices), merge_(choices.merge) {
    is_tied_ = sources.tied && !(merge_ != nullptr && merge_->unties());
    add_matrices(sources.embedding);
    for (int index = 0; index < std::ssize(sources.layers); ++index) {
      const LayerSources& layer = sources.layers[static_cast<size_t>(index)];
      add_norm({Slot::kInputNorm, index}, layer.input_norm);
      for (const LinearParts* parts : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
        add_matrices(*parts);
      add_experts(layer.moe);
      add_norm({Slot::kPostNorm, index}, layer.post_norm);
    }
    add_norm({Slot::kFinalNorm}, sources.final_norm);
    // Of tied checkpoints the source is the embedding's, under its id.
    const bool has_head = checkpoint.tensors.find("score.weight") == nullptr;
    if (!is_tied_ && has_head) add_matrix({Slot::kLmHead}, sources.lm_head.parts.front());
    add_head_of_classifier();
    warn();
  }

  DirectoryPlan take() { return std::move(plan_); }
  bool is_tied() const { return is_tied_; }

 private:
  void add_matrix(const ModuleId& id, const LinearSource& source) {
    DirectoryTensor tensor;
    tensor.name = hf_name(id) + ".weight";
    tensor.dtype = choices_.dtype;
    tensor.shape = Shape{source.n, source.k};
    if (merge_ != nullptr && merge_->changes(id)) {
      tensor.rows = merge_->rows(id, source);
      tensor.base = rows_of(source);
    } else {
      tensor.bytes = bytes_as(source, choices_.dtype);
      if (tensor.bytes.empty()) tensor.rows = rows_of(source);
    }
    if (tensor.rows && !std::holds_alternative<DenseRows>(source.data))
      rounded_.insert(source.format_name());
    plan_.tensors.push_back(std::move(tensor));
  }
  void add_vector(std::string name, std::vector<float> values) {
    DirectoryTensor tensor;
    tensor.name = std::move(name);
    tensor.dtype = choices_.dtype;
    tensor.shape = Shape{std::ssize(values)};
    tensor.rows = rows_of(std::move(values));
    plan_.tensors.push_back(std::move(tensor));
  }
  void add_norm(const ModuleId& id, const std::vector<float>& values) {
    const std::vector<float>* merged = merge_ == nullptr ? nullptr : merge_->norm(id);
    add_vector(hf_name(id) + ".weight", merged == nullptr ? values : *merged);
    if (merged != nullptr) plan_.tensors.back().base = rows_of(values);
  }
  void add_matrices(const LinearParts& linear) {
    auto bias = linear.bias.begin();
    for (size_t i = 0; i < linear.parts.size(); ++i) {
      add_matrix(linear.modules[i], linear.parts[i]);
      if (linear.bias.empty()) continue;
      std::vector<float> values(bias, bias + linear.parts[i].n);
      bias += linear.parts[i].n;
      // GPTQ files carry biases of zeros for layers that have none.
      const Slot slot = linear.modules[i].slot;
      const bool is_own = slot == Slot::kQ || slot == Slot::kK || slot == Slot::kV;
      if (is_own) {
        add_vector(hf_name(linear.modules[i]) + ".bias", std::move(values));
      } else if (std::ranges::any_of(values, [](float v) { return v != 0; })) {
        fail(
            ErrorKind::kUnsupported, "convert",
            "{}.bias: expected none or zeros, since Transformers' Qwen2 has none there, got others",
            hf_name(linear.modules[i]));
      }
    }
  }
  void add_experts(const MoeSources& moe) {
    if (moe.router.parts.empty()) return;
    add_matrices(moe.router);
    for (size_t expert = 0; expert < moe.gate_up.size(); ++expert) {
      add_matrices(moe.gate_up[expert]);
      add_matrices(moe.down[expert]);
    }
    for (const LinearParts* parts : {&moe.shared_gate_up, &moe.shared_down, &moe.shared_gate})
      add_matrices(*parts);
  }
  void add_head_of_classifier() {
    const RawTensor* score = checkpoint_.tensors.find("score.weight");
    if (score == nullptr) return;
    const LinearSource source = LinearSource::of_matrix(*score);
    DirectoryTensor tensor;
    tensor.name = "score.weight";
    tensor.dtype = choices_.dtype;
    tensor.shape = Shape{source.n, source.k};
    tensor.rows = rows_of(source);
    plan_.tensors.push_back(std::move(tensor));
  }
  void warn() {
    std::set<std::string> formats;
    for (const std::string& format : rounded_) {
      if (!dtype_from_name(format) || is_block(*dtype_from_name(format))) formats.insert(format);
    }
    if (choices_.dtype != DType::kF32) {
      for (const std::string& format : formats) {
        plan_.warnings.push_back(
            fmt::format("{}: weights in {} are rounded to {}; f32 keeps every bit of them",
                        printable(checkpoint_.path), format, name_of(choices_.dtype)));
      }
    }
    if (sources_.tied && !is_tied_) {
      plan_.warnings.push_back(
          "the adapters change the embedding or the output matrix, which the base shares: the "
          "directory has one of each");
    }
  }

  const Checkpoint& checkpoint_;
  const NetworkSources& sources_;
  const DirectoryChoices& choices_;
  const AdapterMerge* merge_;
  bool is_tied_ = false;
  std::set<std::string> rounded_;  // formats of sources that are decoded
  DirectoryPlan plan_;
};

// ---- writing -----------------------------------------------------------------------------------

/// Which tensors a file holds: [begin, end).
struct Shard {
  std::string name;
  size_t begin = 0, end = 0;
};

std::vector<Shard> shards_of(const DirectoryPlan& plan) {
  std::vector<Shard> shards(1);
  int64_t size = 0;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const int64_t n = plan.tensors[i].n_bytes();
    if (size > 0 && size + n > plan.shard_bytes) {
      shards.push_back({"", i, i});
      size = 0;
    }
    size += n;
    shards.back().end = i + 1;
  }
  if (shards.size() == 1) {
    shards.front().name = "model.safetensors";
    return shards;
  }
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

std::string index_json(const DirectoryPlan& plan, const std::vector<Shard>& shards) {
  nlohmann::json map = nlohmann::json::object();
  for (const Shard& shard : shards) {
    for (size_t i = shard.begin; i < shard.end; ++i)
      map[plan.tensors[i].name] = shard.name;
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", plan.n_bytes()}}},
                                        {"weight_map", std::move(map)}};
  return index.dump(2) + "\n";
}

/// Decodes rows of a tensor, rounds them, and says what came of an adapter's change.
class RowRounder {
 public:
  RowRounder(const DirectoryTensor& tensor, ThreadPool& pool) : tensor_(tensor), pool_(pool) {}

  /// Rows [begin, begin + n) as they lie in the file.
  std::span<const std::byte> round(int64_t begin, int64_t n) {
    const int64_t k = tensor_.shape.cols();
    const int64_t bytes_per_row = row_bytes(tensor_.dtype, k, tensor_.name);
    bytes_.resize(static_cast<size_t>(n * bytes_per_row));
    figures_.assign(static_cast<size_t>(n), {});
    pool_.parallel_for(n, 4, [&](int64_t first, int64_t last, int) {
      std::vector<float> rows(static_cast<size_t>((last - first) * k));
      tensor_.rows(begin + first, last - first, rows.data());
      for (int64_t r = first; r < last; ++r) {
        const std::span<const float> row(rows.data() + (r - first) * k, static_cast<size_t>(k));
        std::byte* out = bytes_.data() + r * bytes_per_row;
        encode(row, begin + r, out);
        if (tensor_.base) figures_[static_cast<size_t>(r)] = figures_of(row, begin + r, out);
      }
    });
    for (const MergeFigures& one : figures_) {  // in the order of the rows, whatever the threads
      sum_.change += one.change;
      sum_.lost += one.lost;
    }
    return bytes_;
  }
  const MergeFigures& figures() const { return sum_; }

 private:
  void encode(std::span<const float> row, int64_t index, std::byte* out) const {
    try {
      encode_row(tensor_.dtype, row.data(), std::ssize(row), out);
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("{} (row {} of {})", error.message(), index,
                                            printable(tensor_.name)));
    }
  }
  MergeFigures figures_of(std::span<const float> row, int64_t index, const std::byte* out) const {
    std::vector<float> before(row.size()), after(row.size());
    tensor_.base(index, 1, before.data());
    decode_row(tensor_.dtype, out, std::ssize(row), after.data());
    MergeFigures figures;
    for (size_t i = 0; i < row.size(); ++i) {
      const double change = static_cast<double>(row[i]) - static_cast<double>(before[i]);
      const double lost = static_cast<double>(after[i]) - static_cast<double>(row[i]);
      figures.change += change * change;
      figures.lost += lost * lost;
    }
    return figures;
  }

  const DirectoryTensor& tensor_;
  ThreadPool& pool_;
  std::vector<std::byte> bytes_;
  std::vector<MergeFigures> figures_;
  MergeFigures sum_;
};

}  // namespace

int64_t DirectoryTensor::n_bytes() const {
  return shape.rows() * row_bytes(dtype, shape.cols(), name);
}

int64_t DirectoryPlan::n_bytes() const {
  int64_t sum = 0;
  for (const DirectoryTensor& tensor : tensors)
    sum += tensor.n_bytes();
  return sum;
}

DirectoryPlan plan_directory(const Checkpoint& checkpoint, const ModelConfig& config,
                             const NetworkSources& sources, const TokenizerSpec* tokenizer,
                             const DirectoryChoices& choices) {
  if (choices.dtype != DType::kF32 && choices.dtype != DType::kF16 &&
      choices.dtype != DType::kBF16) {
    fail(ErrorKind::kInvalidArgument, "convert", "type: expected f32, f16 or bf16, got {}",
         name_of(choices.dtype));
  }
  Planner planner(checkpoint, sources, choices);
  DirectoryPlan plan = planner.take();
  plan.shard_bytes = choices.shard_bytes;
  plan.texts.emplace_back("config.json",
                          directory_config(checkpoint, config, choices.dtype, planner.is_tied()));
  if (checkpoint.gguf == nullptr) {
    plan.companions = companions_of(checkpoint);
    return plan;
  }
  plan.texts.emplace_back("generation_config.json",
                          directory_generation_config(checkpoint, config, choices.eos_ids));
  if (tokenizer != nullptr) {
    for (auto& file : tokenizer_files_of(*tokenizer))
      plan.texts.push_back(std::move(file));
  }
  return plan;
}

std::vector<std::string> companions_of(const Checkpoint& checkpoint) {
  std::vector<std::string> out;
  for (const char* name : kCompanions) {
    const fs::path path = fs::path(checkpoint.directory) / name;
    std::error_code ignored;
    if (fs::is_regular_file(path, ignored)) out.push_back(path.string());
  }
  return out;
}

MergeFigures write_tensor(const DirectoryTensor& tensor, ThreadPool& pool,
                          FunctionRef<void(std::span<const std::byte>)> push) {
  if (!tensor.rows) {
    push(tensor.bytes);
    return {};
  }
  RowRounder rounder(tensor, pool);
  const int64_t n_rows = std::max<int64_t>(1, kChunkValues / tensor.shape.cols());
  for (int64_t begin = 0; begin < tensor.shape.rows(); begin += n_rows)
    push(rounder.round(begin, std::min(n_rows, tensor.shape.rows() - begin)));
  return rounder.figures();
}

MergeFigures write_directory(const DirectoryPlan& plan, const std::string& path, ThreadPool& pool,
                             const std::function<void(int64_t)>& done, const CancelFlag* cancel) {
  AtomicDirectory directory(path);
  for (const auto& [name, text] : plan.texts)
    write_file_atomically(directory.file(name), std::as_bytes(std::span(text)));
  for (const std::string& companion : plan.companions) {
    const auto file = MappedFile::open(companion);
    write_file_atomically(directory.file(fs::path(companion).filename().string()), file->bytes());
    file->check_readable();
  }
  const std::vector<Shard> shards = shards_of(plan);
  if (shards.size() > 1) {
    const std::string index = index_json(plan, shards);
    write_file_atomically(directory.file("model.safetensors.index.json"),
                          std::as_bytes(std::span(index)));
  }
  MergeFigures sum;
  for (const Shard& shard : shards) {
    std::vector<SafetensorsEntry> entries;
    for (size_t i = shard.begin; i < shard.end; ++i)
      entries.push_back({plan.tensors[i].name, plan.tensors[i].dtype, plan.tensors[i].shape});
    SafetensorsWriter out(directory.file(shard.name), entries, {{"format", "pt"}});
    for (size_t i = shard.begin; i < shard.end; ++i) {
      const DirectoryTensor& tensor = plan.tensors[i];
      const auto push = [&](std::span<const std::byte> bytes) {
        out.write(bytes);
        done(std::ssize(bytes));
        if (cancel != nullptr) cancel->check("writing " + tensor.name);
      };
      const MergeFigures figures = write_tensor(tensor, pool, push);
      sum.change += figures.change;
      sum.lost += figures.lost;
    }
    out.finish();
  }
  directory.commit();
  return sum;
}

}  // namespace qw
