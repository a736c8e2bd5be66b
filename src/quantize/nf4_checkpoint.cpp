#include "quantize/nf4_checkpoint.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "checkpoint/bnb_state.h"

namespace qw::quantize {

namespace {

using Json = nlohmann::ordered_json;

std::string_view torch_name(DType dtype) {
  return dtype == DType::kF16 ? "float16" : dtype == DType::kBF16 ? "bfloat16" : "float32";
}

/// As Transformers writes its BitsAndBytesConfig. It would quantise what is not named here, by
/// whole names ("gate" is in "gate_proj" too); its own list, when there is none, has the output
/// matrix.
Json quantization_config(const LayerSource& source, const Nf4Options& options) {
  Json kept = Json::array({"lm_head"});
  if (source.checkpoint.tensors.find("score.weight") != nullptr) kept.push_back("score");
  for (std::string& name : unquantised_modules(source.sources))
    kept.push_back(std::move(name));
  return {{"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"bnb_4bit_compute_dtype", torch_name(options.dtype)},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", "nf4"},
          {"bnb_4bit_use_double_quant", options.double_quant},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", std::move(kept)},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"quant_method", "bitsandbytes"}};
}

std::string job_of(const Nf4Options& options) {
  constexpr int kVersion = 1;  // raised when the same request gives other bits
  const Json job = {{"version", kVersion},
                    {"nf4", options.block_size},
                    {"double", options.double_quant},
                    {"dtype", torch_name(options.dtype)},
                    {"mode", static_cast<int>(options.mode)}};
  return job.dump();
}

/// The tensors of a module, which own what they show.
void add_tensors(const ModuleId& id, std::shared_ptr<const Bnb4File> file,
                 std::vector<RawTensor>& out) {
  struct Owned {
    std::shared_ptr<const Bnb4File> file;
    std::string state;
  };
  const auto owned = std::make_shared<Owned>();
  owned->state = bnb4_state_json(file->state);
  owned->file = std::move(file);
  const Bnb4File::Views views = owned->file->views(hf_name(id));
  RawTensor state;
  state.name = views.weight.name + ".quant_state.bitsandbytes__" + owned->file->state.quant_type;
  state.dtype = DType::kU8;
  state.shape = Shape{std::ssize(owned->state)};
  state.bytes = std::as_bytes(std::span(owned->state));
  for (const RawTensor* tensor :
       {&views.weight, &views.absmax, &views.nested_absmax, &views.nested_quant_map,
        &views.quant_map, static_cast<const RawTensor*>(&state)}) {
    if (tensor->name.empty()) continue;
    out.push_back(*tensor);
    out.back().owner = owned;
  }
}

double squared_error(const LinearSource& source, const Bnb4File& file) {
  LinearSource made;
  made.n = source.n;
  made.k = source.k;
  const Bnb4File::Views views = file.views(source.name);
  made.data = open_bnb4(file.state, views.tensors(source.name));
  std::vector<float> before(static_cast<size_t>(source.k)), after(before.size());
  double sum = 0;
  for (int64_t row = 0; row < source.n; ++row) {
    source.decode_rows(row, 1, before.data());
    made.decode_rows(row, 1, after.data());
    for (size_t i = 0; i < before.size(); ++i) {
      const double difference = static_cast<double>(after[i]) - static_cast<double>(before[i]);
      sum += difference * difference;
    }
  }
  return sum;
}

}  // namespace

DType nf4_dtype(const NetworkSources& sources) {
  const LinearSource& o = sources.layers.front().o.parts.front();
  const auto* dense = std::get_if<DenseRows>(&o.data);
  const DType dtype = dense == nullptr ? DType::kBF16 : dense->dtype;
  return dtype == DType::kF32 || dtype == DType::kF16 ? dtype : DType::kBF16;
}

LayerPlan plan_nf4(const LayerSource& source, const TokenizerSpec* tokenizer,
                   const Nf4Request& request) {
  const Nf4Options& options = request.nf4;
  return plan_layers(source, tokenizer, request, quantization_config(source, options).dump(),
                     [&](const ModuleId&, const LinearSource& matrix) {
                       check_nf4_sizes(matrix.n, matrix.k, options.block_size, matrix.name);
                       return nf4_bytes(matrix.n, matrix.k, options.block_size,
                                        options.double_quant);
                     });
}

void write_nf4(const LayerSource& source, const LayerPlan& plan, Backend& backend, ThreadPool& pool,
               const Nf4Request& request) {
  const auto for_each = [&pool](int64_t n, FunctionRef<void(int64_t)> body) {
    pool.parallel_for(n, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        body(i);
    });
  };
  const auto quantise = [&](const LayerSources& layer, const MatrixTeam&, LayerPass& pass) {
    QuantisedLayer out;
    for_each_quantised(layer, [&](const LinearParts& parts) {
      for (size_t i = 0; i < parts.parts.size(); ++i) {
        if (request.cancel != nullptr) request.cancel->check("quantising");
        const LinearSource& matrix = parts.parts[i];
        auto file = std::make_shared<const Bnb4File>(encode_nf4(matrix, request.nf4, for_each));
        QuantisedModule& module = out.modules.emplace_back();
        module.id = parts.modules[i];
        module.loss = squared_error(matrix, *file);
        add_tensors(module.id, std::move(file), out.tensors);
        if (request.on_quantised) request.on_quantised(matrix.published_bytes());
      }
    });
    pass.set_hidden({}, pass.layer() + 1);
    return out;
  };
  write_layers(source, plan, {}, backend, pool, request, {job_of(request.nf4), quantise});
}

}  // namespace qw::quantize
