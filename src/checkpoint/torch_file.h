// PyTorch state dicts, as torch.save writes them: zip archives, and the older plain stream.
//
// Level 3 (checkpoint). Source: torch/serialization.py (`_save`, `_legacy_save`) and
// torch/_utils.py (`_rebuild_tensor_v2` and its kin). The pickle inside is read as data (pickle.h).
#pragma once

#include <memory>
#include <vector>

#include "base/mapped_file.h"
#include "tensor/raw_tensor.h"

namespace qw {

/// The tensors of a state dict, in its order. A dict inside {"state_dict": ..}, {"model": ..} or
/// {"module": ..} is taken out when the outer dict holds no tensor itself. Contiguous tensors are
/// views of the mapping (several may share a storage); others, and those of a big-endian archive,
/// are copied. Errors: corrupt; unsupported for a global that a state dict does not need, a value
/// that is no tensor, a type or rank that we do not hold; out_of_memory when the copies
/// would take more than four times the file.
std::vector<RawTensor> read_torch_file(const std::shared_ptr<const MappedFile>& file);

}  // namespace qw
