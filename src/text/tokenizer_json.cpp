#include "text/tokenizer_json.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "text/splitter.h"
#include "text/vocab_sax.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::string_view kComponent = "tokenizer";
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

/// The small part of a tokenizer.json, read field by field.
class Reader {
 public:
  Reader(const Json& root, TokenizerSpec& spec) : root_(root), spec_(spec) {}

  void read() {
    if (!root_.is_object()) wrong("document", "an object", root_);
    read_model();
    read_added_tokens();
    read_normalizer(field(root_, "normalizer"), "normalizer");
    read_pre_tokenizer();
    read_decoder();
    read_post_processor(field(root_, "post_processor"), "post_processor");
  }

 private:
  // -- access -----------------------------------------------------------------------------------

  [[noreturn]] void wrong(std::string_view path, std::string_view expected, const Json& got) const {
    fail(ErrorKind::kCorrupt, kComponent, "{}: expected {}, got {} ({})", path, expected,
         printable(dump(got), 80), spec_.source);
  }
  [[noreturn]] void unsupported(std::string_view path, std::string_view expected,
                                const Json& got) const {
    fail(ErrorKind::kUnsupported, kComponent, "{}: expected {}, got {} ({})", path, expected,
         printable(dump(got), 160), spec_.source);
  }
  static std::string dump(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  /// The field, or null where it is absent: the reference makes no difference.
  static const Json& field(const Json& object, const char* name) {
    static const Json kNull;
    const auto it = object.find(name);
    return it == object.end() ? kNull : *it;
  }
  bool flag(const Json& object, const std::string& path, const char* name, bool otherwise) const {
    const Json& value = field(object, name);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) wrong(path + "." + name, "true or false", value);
    return value.get<bool>();
  }
  std::string text(const Json& object, const std::string& path, const char* name) const {
    const Json& value = field(object, name);
    if (!value.is_string()) wrong(path + "." + name, "a text", value);
    return value.get<std::string>();
  }
  const Json& list(const Json& object, const std::string& path, const char* name) const {
    const Json& value = field(object, name);
    if (!value.is_array()) wrong(path + "." + name, "a list", value);
    return value;
  }
  std::string type_of(const Json& object, const std::string& path) const {
    if (!object.is_object()) wrong(path, "an object or null", object);
    return text(object, path, "type");
  }

  // -- sections ---------------------------------------------------------------------------------

  void read_model() {
    const Json& model = field(root_, "model");
    if (!model.is_object()) wrong("model", "an object", model);
    const Json& type = field(model, "type");
    // Files of before 2020 name no type; only BPE has merges.
    if (type.is_null() ? spec_.merges.empty() : type != "BPE")
      unsupported("model.type", "BPE", type);
    const Json& dropout = field(model, "dropout");
    if (!dropout.is_null() && dropout != 0.0) unsupported("model.dropout", "null", dropout);
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& affix = field(model, name);
      if (!affix.is_null() && affix != "") unsupported(std::string("model.") + name, "none", affix);
    }
    byte_fallback_ = flag(model, "model", "byte_fallback", false);
    spec_.ignore_merges = flag(model, "model", "ignore_merges", false);
  }

  void read_added_tokens() {
    const Json& tokens = field(root_, "added_tokens");
    if (tokens.is_null()) return;
    if (!tokens.is_array()) wrong("added_tokens", "a list", tokens);
    for (size_t i = 0; i < tokens.size(); ++i) {
      const std::string path = fmt::format("added_tokens[{}]", i);
      const Json& token = tokens[i];
      if (!token.is_object()) wrong(path, "an object", token);
      const Json& id = field(token, "id");
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t{kMaxTokens}) {
        wrong(path + ".id", fmt::format("an id below {}", kMaxTokens), id);
      }
      spec_.added_tokens.push_back(
          {id.get<int32_t>(), text(token, path, "content"), flag(token, path, "special", false),
           flag(token, path, "normalized", true), flag(token, path, "lstrip", false),
           flag(token, path, "rstrip", false), flag(token, path, "single_word", false)});
    }
  }

  void read_normalizer(const Json& normalizer, const std::string& path) {
    if (normalizer.is_null()) return;
    using Kind = NormalizerStep::Kind;
    const std::string type = type_of(normalizer, path);
    if (type == "Sequence") {
      for (const Json& step : list(normalizer, path, "normalizers")) {
        if (step.is_object() && field(step, "type") == "Sequence")
          unsupported(path, "a flat list", step);
        read_normalizer(step, path + ".normalizers");
      }
    } else if (type == "NFC") {
      spec_.normalizer.push_back({Kind::kNfc, {}, {}});
    } else if (type == "Prepend") {
      spec_.normalizer.push_back({Kind::kPrepend, {}, text(normalizer, path, "prepend")});
    } else if (type == "Replace") {
      const auto [from, to] = replacement(normalizer, path);
      spec_.normalizer.push_back({Kind::kReplace, from, to});
    } else {
      unsupported(path + ".type", "NFC, Prepend, Replace or a Sequence of them", normalizer);
    }
  }

  std::pair<std::string, std::string> replacement(const Json& object,
                                                  const std::string& path) const {
    const Json& pattern = field(object, "pattern");
    const Json& from = pattern.is_object() ? field(pattern, "String") : pattern;
    if (!from.is_string() || from == "") unsupported(path + ".pattern", "a String", pattern);
    return {from.get<std::string>(), text(object, path, "content")};
  }

  void read_pre_tokenizer() {
    const std::string path = "pre_tokenizer";
    const Json& pre = field(root_, "pre_tokenizer");
    if (pre.is_null()) {
      if (!byte_fallback_) {
        unsupported(path, "ByteLevel, or none together with model.byte_fallback", pre);
      }
      spec_.alphabet = TokenAlphabet::kByteFallback;
      spec_.split = SplitPattern::kNone;
      return;
    }
    spec_.alphabet = TokenAlphabet::kByteLevel;
    const std::string type = type_of(pre, path);
    if (type == "ByteLevel") {
      check_byte_level(pre, path);
      spec_.split = flag(pre, path, "use_regex", true) ? SplitPattern::kGpt2 : SplitPattern::kNone;
    } else if (type == "Sequence") {
      const Json& steps = list(pre, path, "pretokenizers");
      if (steps.size() != 2 || type_of(steps[0], path + ".pretokenizers[0]") != "Split" ||
          type_of(steps[1], path + ".pretokenizers[1]") != "ByteLevel") {
        unsupported(path + ".pretokenizers", "Split, then ByteLevel", steps);
      }
      read_split(steps[0], path + ".pretokenizers[0]");
      check_byte_level(steps[1], path + ".pretokenizers[1]");
      if (flag(steps[1], path, "use_regex", true)) {
        unsupported(path + ".pretokenizers[1].use_regex", "false after a Split", steps[1]);
      }
    } else {
      unsupported(path + ".type", "ByteLevel or a Sequence of Split and ByteLevel", pre);
    }
  }

  void check_byte_level(const Json& step, const std::string& path) const {
    if (flag(step, path, "add_prefix_space", true)) {
      unsupported(path + ".add_prefix_space", "false", step);
    }
  }

  void read_split(const Json& split, const std::string& path) {
    const Json& pattern = field(split, "pattern");
    const Json& regex = pattern.is_object() ? field(pattern, "Regex") : pattern;
    if (!regex.is_string()) unsupported(path + ".pattern", "a Regex", pattern);
    const auto known = Splitter::from_regex(regex.get_ref<const std::string&>());
    if (!known)
      unsupported(path + ".pattern", "the regular expression of Qwen2, GPT-4 or GPT-2", pattern);
    spec_.split = *known;
    if (text(split, path, "behavior") != "Isolated")
      unsupported(path + ".behavior", "Isolated", split);
    if (flag(split, path, "invert", false)) unsupported(path + ".invert", "false", split);
  }

  void read_decoder() {
    const std::string path = "decoder";
    const Json& decoder = field(root_, "decoder");
    if (spec_.alphabet == TokenAlphabet::kByteLevel) {
      if (!decoder.is_null() && type_of(decoder, path) != "ByteLevel") {
        unsupported(path, "ByteLevel", decoder);
      }
      return;
    }
    if (type_of(decoder, path) != "Sequence") unsupported(path, "a Sequence", decoder);
    bool spaces = false, bytes = false;
    for (const Json& step : list(decoder, path, "decoders")) {
      const std::string type = type_of(step, path + ".decoders");
      if (type == "Replace") {
        const auto [from, to] = replacement(step, path + ".decoders");
        spaces = from == kSpaceMark && to == " ";
        if (!spaces) unsupported(path + ".decoders", "U+2581 replaced by a space", step);
      } else if (type == "ByteFallback") {
        bytes = true;
      } else if (type == "Strip") {
        if (field(step, "content") != " " || field(step, "start") != 1 ||
            field(step, "stop") != 0) {
          unsupported(path + ".decoders", "Strip of one space at the start", step);
        }
        spec_.strip_first_space = true;
      } else if (type != "Fuse") {
        unsupported(path + ".decoders", "Replace, ByteFallback, Fuse or Strip", step);
      }
    }
    if (!spaces || !bytes)
      unsupported(path + ".decoders", "both Replace and ByteFallback", decoder);
  }

  void read_post_processor(const Json& post, const std::string& path) {
    if (post.is_null()) return;
    const std::string type = type_of(post, path);
    if (type == "ByteLevel") return;  // concerns offsets only
    if (type == "Sequence") {
      for (const Json& step : list(post, path, "processors")) {
        if (step.is_object() && field(step, "type") == "Sequence")
          unsupported(path, "a flat list", step);
        read_post_processor(step, path + ".processors");
      }
    } else if (type == "TemplateProcessing") {
      read_template(post, path);
    } else {
      unsupported(path + ".type", "ByteLevel or TemplateProcessing", post);
    }
  }

  void read_template(const Json& post, const std::string& path) {
    bool after_text = false;
    for (const Json& piece : list(post, path, "single")) {
      if (!piece.is_object()) wrong(path + ".single", "objects", piece);
      if (piece.contains("Sequence")) {
        after_text = true;
        continue;
      }
      const Json& token = field(piece, "SpecialToken");
      if (!token.is_object()) wrong(path + ".single", "Sequence or SpecialToken", piece);
      const std::string name = text(token, path + ".single", "id");
      const Json& table = field(post, "special_tokens");
      const Json& entry = table.is_object() ? field(table, name.c_str()) : table;
      if (!entry.is_object()) wrong(path + ".special_tokens", "an entry for " + name, table);
      for (const Json& id : list(entry, path + ".special_tokens", "ids")) {
        if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t{kMaxTokens}) {
          wrong(path + ".special_tokens", "ids", id);
        }
        (after_text ? spec_.suffix_ids : spec_.prefix_ids).push_back(id.get<int32_t>());
      }
    }
  }

  const Json& root_;
  TokenizerSpec& spec_;
  bool byte_fallback_ = false;
};

}  // namespace

TokenizerSpec read_tokenizer_json(std::string_view json, const std::string& source) {
  VocabSax sax(/*vocab_at_root=*/false, source);
  parse_with(sax, json);
  TokenizerSpec spec;
  spec.source = source;
  spec.tokens = std::move(sax.tokens);
  spec.merges = std::move(sax.merges);
  Reader(sax.rest, spec).read();
  return spec;
}

std::vector<std::string> read_vocab_json(std::string_view json, const std::string& source) {
  VocabSax sax(/*vocab_at_root=*/true, source);
  parse_with(sax, json);
  if (sax.tokens.empty()) {
    fail(ErrorKind::kCorrupt, kComponent,
         "vocabulary: expected an object of texts and ids, got no tokens ({})", source);
  }
  return std::move(sax.tokens);
}

}  // namespace qw
