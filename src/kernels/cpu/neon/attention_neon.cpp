#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/kv_body.h"
#include "kernels/cpu/neon/elementwise_vec.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neon {

const AttentionOps kAttentionOps = AttentionBody<Vec>::table();
const KvOps kKvOps = KvBody<Vec>::table();

}  // namespace qw::kernels::neon
