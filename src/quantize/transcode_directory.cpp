#include "quantize/transcode_directory.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/checked.h"
#include "quant/step_rows.h"
#include "quantize/awq_checkpoint.h"
#include "quantize/awq_tensors.h"
#include "quantize/gptq_checkpoint.h"
#include "quantize/work_directory.h"

namespace qw::quantize {

namespace {

/// What a format says once for all matrices.
struct GridOf {
  int bits = 0;
  int64_t group_size = 0;  // -1: all inputs
  bool operator==(const GridOf&) const = default;
};

const GroupAffine* groups_of(const LinearSource& source) {
  const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data);
  return groups == nullptr ? nullptr : groups->get();
}

/// Integers of these types need more than four bits.
bool is_wide(DType dtype) {
  return dtype == DType::kQ5_0 || dtype == DType::kQ5_1 || dtype == DType::kQ8_0 ||
         dtype == DType::kIQ4_NL;
}

GridOf grid_of(const LinearSource& source, const ModelConfig& config) {
  if (const GroupAffine* groups = groups_of(source)) {
    const std::string module = source.name.substr(0, source.name.rfind('.'));
    return {groups->bits, config.quantization.gptq_of(module).group_size};
  }
  if (std::holds_alternative<DenseRows>(source.data)) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "{}: expected weights that are quantised already, got {} (quantize --to gptq-int4 or awq "
         "quantises)",
         printable(source.name), source.format_name());
  }
  if (!has_steps(source)) {
    fail(ErrorKind::kUnsupported, "convert",
         "{}: expected groups of integers with one scale, got {} (quantize --to gptq-int4 or awq "
         "rounds it)",
         printable(source.name), source.format_name());
  }
  const DType dtype = std::get<BlockRows>(source.data).dtype;
  return {is_wide(dtype) ? 8 : 4, info(dtype).block_elems};
}

/// The grid of all matrices, and what else the configuration says of them.
struct Grids {
  GridOf grid;
  bool is_symmetric = true, has_zero_0 = false, is_reordered = false;
};

void add_zeros(const LinearSource& source, Grids& out) {
  const GroupAffine* groups = groups_of(source);
  if (groups == nullptr) return;  // a zero point in the middle; of Q4_1 see zero_of
  std::vector<float> zeros(static_cast<size_t>(source.n * groups->n_groups));
  groups->zeros(source.row_begin, source.n, zeros.data());
  const auto middle = static_cast<float>(1 << (groups->bits - 1));
  for (const float zero : zeros) {
    out.is_symmetric = out.is_symmetric && zero == middle;
    out.has_zero_0 = out.has_zero_0 || zero == 0;
  }
  out.is_reordered = out.is_reordered || !groups->group_of.empty();
}

Grids grids_of(const LayerSource& source) {
  std::optional<Grids> out;
  std::string first;
  for (const LayerSources& layer : source.sources.layers) {
    for_each_quantised(layer, [&](const LinearParts& parts) {
      for (const LinearSource& part : parts.parts) {
        const GridOf grid = grid_of(part, source.config);
        if (!out) {
          out = Grids{grid};
          first = part.format_name();
        }
        if (grid != out->grid) {
          fail(ErrorKind::kUnsupported, "convert",
               "{}: expected all matrices on grids like the first ({}), got {}",
               printable(part.name), first, part.format_name());
        }
        add_zeros(part, *out);
        const auto* blocks = std::get_if<BlockRows>(&part.data);
        if (blocks != nullptr && (blocks->dtype == DType::kQ4_1 || blocks->dtype == DType::kQ5_1))
          out->is_symmetric = false;
      }
    });
  }
  QW_CHECK(out, "a network has layers");
  return *out;
}

/// The zero point whose step is nearest to an offset.
float zero_of(float step, float offset, int bits) {
  const float zero = step == 0 ? 0.0F : std::nearbyint(-offset / step);
  return std::clamp(zero, 0.0F, static_cast<float>((1 << bits) - 1));
}

/// Codes, scales and zero points (or, with `keeps_offsets`, offsets where the source has them).
std::shared_ptr<AffineMatrix> matrix_of(const LinearSource& source, const GridOf& grid,
                                        bool keeps_offsets) {
  auto out = std::make_shared<AffineMatrix>();
  const GroupAffine* groups = groups_of(source);
  const int64_t n = source.n, k = source.k;
  out->n = n;
  out->k = k;
  out->bits = grid.bits;
  out->group_size = groups != nullptr ? groups->group_size : grid.group_size;
  out->n_groups = groups != nullptr ? groups->n_groups : ceil_div(k, grid.group_size);
  out->code_values.resize(static_cast<size_t>(n * k));
  out->scale_values.resize(static_cast<size_t>(n * out->n_groups));
  out->zero_values.resize(out->scale_values.size());
  bool has_offsets = false;
  if (groups != nullptr) {
    out->group_of = groups->group_of;
    groups->codes(source.row_begin, n, out->code_values.data());
    groups->scales(source.row_begin, n, out->scale_values.data());
    groups->zeros(source.row_begin, n, out->zero_values.data());
    has_offsets = groups->form == GroupAffine::Form::kOffset;
  } else {
    StepRows rows;
    read_steps(source, 0, n, rows);
    const DType dtype = std::get<BlockRows>(source.data).dtype;
    has_offsets = dtype == DType::kQ4_1 || dtype == DType::kQ5_1;
    const int middle = has_offsets ? 0 : 1 << (grid.bits - 1);
    for (size_t i = 0; i < out->code_values.size(); ++i)
      out->code_values[i] = static_cast<uint8_t>(rows.values[i] + middle);
    for (size_t g = 0; g < out->scale_values.size(); ++g) {
      const size_t from = g * static_cast<size_t>(grid.group_size);
      out->scale_values[g] = rows.steps[from];
      out->zero_values[g] = has_offsets ? rows.offsets[from] : static_cast<float>(middle);
    }
  }
  if (has_offsets && keeps_offsets) {
    out->form = GroupAffine::Form::kOffset;
  } else if (has_offsets) {
    for (size_t g = 0; g < out->zero_values.size(); ++g)
      out->zero_values[g] = zero_of(out->scale_values[g], out->zero_values[g], grid.bits);
  }
  return out;
}

GptqRequest gptq_request(const TranscodeRequest& request, const Grids& grids) {
  GptqRequest out;
  static_cast<LayerRequest&>(out) = request;
  out.gptq.bits = grids.grid.bits;
  out.gptq.group_size = grids.grid.group_size;
  out.gptq.sym = grids.is_symmetric;
  out.gptq.desc_act = grids.is_reordered;
  out.gptq.zero_from_0 = request.zero_from_0;
  return out;
}

AwqRequest awq_request(const TranscodeRequest& request, const Grids& grids) {
  AwqRequest out;
  static_cast<LayerRequest&>(out) = request;
  out.awq.group_size = grids.grid.group_size;
  out.awq.version = request.version;
  return out;
}

void check_format(const TranscodeRequest& request, const Grids& grids) {
  if (request.format == TranscodeRequest::Format::kGptq) {
    if (!grids.has_zero_0 || request.zero_from_0) return;
    fail(ErrorKind::kUnsupported, "convert",
         "--to gptq: expected zero points from 1, which v1 stores less one, got some of 0 (--v2 "
         "holds them)");
  }
  if (grids.grid.bits != 4 || grids.is_reordered) {
    fail(ErrorKind::kUnsupported, "convert",
         "--to awq: expected 4 bits and groups of neighbours, got {} bits{}", grids.grid.bits,
         grids.is_reordered ? " in another order (act-order)" : "");
  }
}

}  // namespace

LayerPlan plan_transcode(const LayerSource& source, const TokenizerSpec* tokenizer,
                         const TranscodeRequest& request) {
  const Grids grids = grids_of(source);
  check_format(request, grids);
  LayerPlan plan = request.format == TranscodeRequest::Format::kGptq
                       ? plan_gptq(source, tokenizer, gptq_request(request, grids))
                       : plan_awq(source, tokenizer, awq_request(request, grids));
  plan.warnings.pop_back();  // that it is rounded a second time
  return plan;
}

void write_transcoded(const LayerSource& source, const LayerPlan& plan, ThreadPool& pool,
                      const TranscodeRequest& request) {
  const Grids grids = grids_of(source);
  const bool is_gptq = request.format == TranscodeRequest::Format::kGptq;
  const bool keeps_offsets = !is_gptq && request.version == AwqVersion::kGemvFast;
  const auto transcode = [&](const LayerSources& layer) {
    std::vector<std::pair<ModuleId, const LinearSource*>> modules;
    for_each_quantised(layer, [&](const LinearParts& parts) {
      for (size_t i = 0; i < parts.parts.size(); ++i)
        modules.emplace_back(parts.modules[i], &parts.parts[i]);
    });
    std::vector<std::vector<RawTensor>> tensors(modules.size());
    pool.parallel_for(std::ssize(modules), 1, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first; i < last; ++i) {
        const auto& [id, matrix] = modules[static_cast<size_t>(i)];
        QuantisedModule module;
        module.id = id;
        module.matrix = matrix_of(*matrix, grids.grid, keeps_offsets);
        std::vector<RawTensor>& to = tensors[static_cast<size_t>(i)];
        is_gptq ? add_gptq_tensors(module, request.zero_from_0, to)
                : add_awq_tensors(module, request.version, to);
      }
    });
    std::vector<RawTensor> out;
    for (std::vector<RawTensor>& of_module : tensors)
      std::ranges::move(of_module, std::back_inserter(out));
    return out;
  };
  write_made_layers(source, plan, pool, request, transcode);
}

}  // namespace qw::quantize
