#include "quantize/awq_tensors.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/half.h"

namespace qw::quantize {

namespace {

float half(float value) {
  return f16_to_f32(f32_to_f16(value));
}

}  // namespace

std::vector<float> f16_values(std::span<const float> values, const std::string& name) {
  std::vector<float> out;
  out.reserve(values.size());
  for (const float value : values) {
    out.push_back(half(value));
    if (std::isfinite(out.back())) continue;
    fail(ErrorKind::kInvalidArgument, "awq", "{}: expected values that f16 holds, got {}",
         printable(name), value);
  }
  return out;
}

std::vector<float> fold_into_norm(std::span<const float> norm, std::vector<float>& scales,
                                  const std::string& name) {
  std::vector<float> out = f16_values(norm, name);
  for (size_t i = 0; i < out.size(); ++i) {
    const float folded = half(norm[i] / scales[i]);
    if (std::isfinite(folded) && folded != 0) out[i] = folded;
    scales[i] = out[i] == 0 ? 1 : norm[i] / out[i];
  }
  return out;
}

std::shared_ptr<const AffineMatrix> divided_rows(const AffineMatrix& matrix,
                                                 std::span<const float> divisors) {
  auto out = std::make_shared<AffineMatrix>(matrix);
  for (size_t i = 0; i < out->scale_values.size(); ++i) {
    float& scale = out->scale_values[i];
    scale = half(scale / divisors[i / static_cast<size_t>(out->n_groups)]);
  }
  return out;
}

LinearSource published_form(const std::string& name, std::shared_ptr<const AffineMatrix> matrix,
                            AwqVersion version) {
  if (version == AwqVersion::kGemvFast) matrix = with_f16_offsets(*matrix);
  return source_of(name, std::move(matrix));
}

RawTensor f16_tensor(std::string name, const Shape& shape, std::span<const float> values) {
  auto halves = std::make_shared<std::vector<uint16_t>>();
  for (const float value : f16_values(values, name))
    halves->push_back(f32_to_f16(value));
  RawTensor out;
  out.name = std::move(name);
  out.dtype = DType::kF16;
  out.shape = shape;
  out.bytes = std::as_bytes(std::span(*halves));
  out.owner = std::move(halves);
  return out;
}

std::optional<WeightDifference> change_of(const LinearSource& source, const ModuleId& id,
                                          std::span<const float> scales,
                                          std::span<const float> divisors,
                                          std::shared_ptr<const AffineMatrix> matrix,
                                          const MatrixTeam& team) {
  if (std::holds_alternative<DenseRows>(source.data)) return std::nullopt;
  const LinearSource made = source_of(source.name, std::move(matrix));
  WeightDifference change = compare_matrices(scaled_source(source, scales, divisors), made, team);
  change.name = hf_name(id);
  change.id = id;
  change.from = source.format_name();
  change.was_quantised = true;
  return change;
}

void add_awq_tensors(const QuantisedModule& module, AwqVersion version,
                     std::vector<RawTensor>& out) {
  const std::string name = hf_name(module.id);
  std::shared_ptr<const AffineMatrix> matrix = module.matrix;
  if (version == AwqVersion::kGemvFast && matrix->form == GroupAffine::Form::kZeroPoint)
    matrix = with_f16_offsets(*matrix);
  const auto owner = std::make_shared<const AwqFile>(publish_awq(*matrix, version, name));
  const AwqFile::Views views = owner->views(name);
  for (const RawTensor* tensor : {&views.qweight, &views.qzeros, &views.scales}) {
    out.push_back(*tensor);
    out.back().owner = owner;
  }
}

}  // namespace qw::quantize
