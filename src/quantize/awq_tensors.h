// The tensors of a layer in AWQ, and divisors that go into norms and rows.
//
// Level 6 (quantize), private to awq_layer.cpp, awq_reference.cpp and
// transcode_directory.cpp.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "quantize/awq_layer.h"

namespace qw::quantize {

/// Values rounded to f16. Errors: invalid_argument, naming `name`, where f16 has none.
std::vector<float> f16_values(std::span<const float> values, const std::string& name);

/// Divides a norm's weights by `scales` and rounds them to f16; `scales` become what that division
/// really is, so nothing is lost. Where f16 cannot hold the quotient, or the weight is 0, the scale
/// is 1 or what rounding the weight itself makes of it.
std::vector<float> fold_into_norm(std::span<const float> norm, std::vector<float>& scales,
                                  const std::string& name);

/// The matrix with each row divided by divisors[row]; scales rounded to f16 again.
std::shared_ptr<const AffineMatrix> divided_rows(const AffineMatrix& matrix,
                                                 std::span<const float> divisors);

/// As it will be read from the file.
LinearSource published_form(const std::string& name, std::shared_ptr<const AffineMatrix> matrix,
                            AwqVersion version);

/// A matrix of f16 as a file has it.
RawTensor f16_tensor(std::string name, const Shape& shape, std::span<const float> values);

/// QuantisedModule::change of W diag(scales), rows divided; none: `source` is of floats.
std::optional<WeightDifference> change_of(const LinearSource& source, const ModuleId& id,
                                          std::span<const float> scales,
                                          std::span<const float> divisors,
                                          std::shared_ptr<const AffineMatrix> matrix,
                                          const MatrixTeam& team);

/// A finished matrix's tensors.
void add_awq_tensors(const QuantisedModule& module, AwqVersion version,
                     std::vector<RawTensor>& out);

}  // namespace qw::quantize
