// The tokenizer of the Qwen family: text to ids and back, exactly as the published one does it.
//
// Level 3 (text). Order of work (Hugging Face's fast tokenizers): added tokens in the raw text;
// NFC on each part between them; added tokens that want normalised text; pieces by the published
// regular expression; bytes; BPE. Immutable once made, so that any number of threads may share one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "base/cancel.h"
#include "text/splitter.h"
#include "text/token_table.h"
#include "text/tokenizer_spec.h"

namespace qw {

/// What to do with text that is not valid UTF-8.
enum class InvalidUtf8 {
  kError,    // Error{kInvalidArgument} naming the byte offset
  kReplace,  // U+FFFD for each maximal subpart, as Python's errors="replace"
};

struct EncodeOptions {
  /// False: the text of a special token is ordinary text (split_special_tokens of Transformers).
  bool parse_special = true;
  /// Adds what the checkpoint puts around every text (nothing for Qwen1.5).
  bool add_special_tokens = false;
  InvalidUtf8 invalid_utf8 = InvalidUtf8::kError;
  /// Bytes, sorted and disjoint, that no special token may touch although parse_special is true:
  /// the message contents within a rendered chat. The text must then be valid UTF-8.
  std::span<const ByteRange> plain_ranges = {};
  /// Ends the work once it is set; null: nothing does.
  const CancelFlag* cancel = nullptr;
};

class Tokenizer {
 public:
  /// Errors: corrupt (a token twice, a merge of unknown tokens, a byte without token, ...).
  explicit Tokenizer(const TokenizerSpec& spec);

  /// The ids of `text`. Linear time but for merging one piece, which is O(n log n) in its length.
  /// Errors: invalid_argument (invalid UTF-8 under kError, 2 GiB of text or more), cancelled.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// The text of `ids`: their bytes joined, broken UTF-8 as U+FFFD per maximal subpart. Ids that
  /// have no token (padding rows, anything out of range) decode to nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  /// 1 + the highest id that has a token (len(tokenizer) in Transformers). A model's vocabulary
  /// may be larger; ids from size() on are padding and must not be sampled.
  int32_t size() const noexcept { return static_cast<int32_t>(texts_.size()); }

  /// The bytes that an id adds to the text; empty for ids without token.
  std::string_view token_bytes(int32_t id) const noexcept;
  /// The token as the vocabulary writes it ("\u0120the"), as convert_ids_to_tokens gives it;
  /// empty for ids without token.
  std::string_view token_text(int32_t id) const noexcept;
  /// The id of a token by its text, added tokens included.
  std::optional<int32_t> id_of(std::string_view token_text) const noexcept;
  /// Whether skip_special_tokens leaves this id out.
  bool is_special(int32_t id) const noexcept;
  /// Whether there is a token with this id.
  bool has_token(int32_t id) const noexcept { return !token_text(id).empty(); }

  std::optional<int32_t> bos_id() const noexcept { return bos_id_; }
  std::optional<int32_t> eos_id() const noexcept { return eos_id_; }
  std::optional<int32_t> pad_id() const noexcept { return pad_id_; }
  std::optional<int32_t> unk_id() const noexcept { return unk_id_; }
  /// What the checkpoint's tokenizer_config.json says.
  const TokenizerConfig& config() const noexcept { return config_; }
  /// Where the vocabulary came from.
  const std::string& source() const noexcept { return source_; }
  /// Whether decoding drops one space at the start of the text (SentencePiece-like vocabularies).
  bool strips_first_space() const noexcept { return strip_first_space_; }

 private:
  class Encoding;  // one call of encode()

  void add_texts(const TokenizerSpec& spec);
  void add_merges(const TokenizerSpec& spec);
  void add_byte_tokens();
  void add_added_tokens(const TokenizerSpec& spec);
  void resolve_named_tokens(const TokenizerSpec& spec);
  std::string_view normalize(std::string_view text, std::string& buffer, std::string& spare) const;
  uint32_t id_of_byte(unsigned char byte) const noexcept { return byte_ids_[byte]; }

  std::string source_;
  TokenAlphabet alphabet_;
  std::vector<NormalizerStep> normalizer_;
  Splitter splitter_;
  bool ignore_merges_, strip_first_space_;

  StringArena texts_, bytes_;  // by id
  StringIndex index_;          // text -> id
  std::vector<bool> special_;  // by id
  MergeTable merges_;
  std::array<uint32_t, 256> byte_ids_;
  AddedTokenFinder raw_added_, normalized_added_;
  std::vector<int32_t> prefix_ids_, suffix_ids_;
  std::optional<int32_t> bos_id_, eos_id_, pad_id_, unk_id_;
  TokenizerConfig config_;
};

}  // namespace qw
