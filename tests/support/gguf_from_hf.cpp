#include "support/gguf_from_hf.h"

#include <map>
#include <regex>
#include <stdexcept>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "model/config.h"
#include "quant/ggml_blocks.h"
#include "text/tokenizer_files.h"

namespace qw::test {

namespace {

std::string gguf_name(const std::string& name) {
  static const std::map<std::string, std::string> kTop = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.norm.weight", "output_norm.weight"},
      {"lm_head.weight", "output.weight"}};
  static const std::map<std::string, std::string> kInLayer = {
      {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  if (const auto top = kTop.find(name); top != kTop.end()) return top->second;
  static const std::regex kLayer(R"(model\.layers\.(\d+)\.(.+)\.(weight|bias))");
  std::smatch match;
  if (!std::regex_match(name, match, kLayer)) throw std::runtime_error("no GGUF name for " + name);
  return "blk." + match[1].str() + "." + kInLayer.at(match[2]) + "." + match[3].str();
}

void add_metadata(GgufWriter& writer, const ModelConfig& config) {
  const auto put = [&](const char* key, GgufValue value) {
    writer.entries.emplace_back(key, std::move(value));
  };
  put("general.architecture", GgufValue::string("qwen2"));
  put("qwen2.block_count", GgufValue::u32(static_cast<uint32_t>(config.n_layers)));
  put("qwen2.context_length", GgufValue::u32(static_cast<uint32_t>(config.max_positions)));
  put("qwen2.embedding_length", GgufValue::u32(static_cast<uint32_t>(config.hidden)));
  put("qwen2.feed_forward_length", GgufValue::u32(static_cast<uint32_t>(config.intermediate)));
  put("qwen2.attention.head_count", GgufValue::u32(static_cast<uint32_t>(config.n_heads)));
  put("qwen2.attention.head_count_kv", GgufValue::u32(static_cast<uint32_t>(config.n_kv_heads)));
  put("qwen2.attention.layer_norm_rms_epsilon",
      GgufValue::f32(static_cast<float>(config.rms_norm_eps)));
  put("qwen2.rope.freq_base", GgufValue::f32(static_cast<float>(config.rope.theta)));
}

void add_vocabulary(GgufWriter& writer, const TokenizerSpec& spec, int64_t vocab) {
  std::vector<std::string> tokens = spec.tokens, merges;
  tokens.resize(static_cast<size_t>(vocab));
  std::vector<int64_t> types(tokens.size(), 1);
  for (const AddedToken& added : spec.added_tokens) {
    tokens[static_cast<size_t>(added.id)] = added.content;
    types[static_cast<size_t>(added.id)] = added.special ? 3 : 4;
  }
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) continue;
    tokens[id] = "[PAD" + std::to_string(id) + "]";
    types[id] = 5;
  }
  for (const MergeText& merge : spec.merges)
    merges.push_back(merge.left + " " + merge.right);
  auto& entries = writer.entries;
  entries.emplace_back("tokenizer.ggml.model", GgufValue::string("gpt2"));
  entries.emplace_back("tokenizer.ggml.pre", GgufValue::string("qwen2"));
  entries.emplace_back("tokenizer.ggml.tokens", GgufValue::strings(std::move(tokens)));
  entries.emplace_back("tokenizer.ggml.token_type",
                       GgufValue{GgufType::kArray, GgufType::kI32, std::move(types)});
  entries.emplace_back("tokenizer.ggml.merges", GgufValue::strings(std::move(merges)));
  if (spec.eos_id)
    entries.emplace_back("tokenizer.ggml.eos_token_id",
                         GgufValue::u32(static_cast<uint32_t>(*spec.eos_id)));
}

}  // namespace

void write_gguf_from_hf(const std::string& directory, const std::string& path, DType dtype) {
  const auto checkpoint = Checkpoint::open(directory);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  GgufWriter writer;
  add_metadata(writer, config);
  add_vocabulary(writer, read_tokenizer_directory(directory), config.vocab);
  const auto tensors = checkpoint->tensors.all();
  for (const RawTensor& tensor : tensors) {
    writer.tensors.push_back(
        {gguf_name(tensor.name), tensor.shape.rank() == 2 ? dtype : DType::kF32, tensor.shape});
  }
  write_gguf(path, writer, [&](size_t i, GgufSink sink) {
    const RawTensor& tensor = tensors[i];
    const DType to = writer.tensors[i].dtype;
    const int64_t cols = tensor.shape.cols();
    const int64_t from_bytes = row_bytes(tensor.dtype, cols, tensor.name),
                  to_bytes = row_bytes(to, cols, tensor.name);
    std::vector<float> values(static_cast<size_t>(cols));
    std::vector<std::byte> bytes(static_cast<size_t>(to_bytes));
    for (int64_t row = 0; row < tensor.shape.rows(); ++row) {
      decode_row(tensor.dtype, tensor.bytes.data() + row * from_bytes, cols, values.data());
      encode_row(to, values.data(), cols, bytes.data());
      sink(bytes);
    }
  });
}

}  // namespace qw::test
