#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/generic/elementwise_vec.h"
#include "kernels/cpu/kv_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::generic {

const AttentionOps kAttentionOps = AttentionBody<Vec>::table();
const KvOps kKvOps = KvBody<Vec>::table();

}  // namespace qw::kernels::generic
