#include "text/tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/utf8.h"
#include "text/byte_level.h"
#include "text/unicode.h"
#include "text/word_cache.h"

namespace qw {
namespace {

constexpr std::string_view kComponent = "tokenizer";
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581
constexpr size_t kMaxTextBytes = size_t{1} << 31;
constexpr uint32_t kNoId = 0xFFFFFFFF;

size_t count_ids(const TokenizerSpec& spec) {
  size_t n = spec.tokens.size();
  while (n > 0 && spec.tokens[n - 1].empty())
    --n;  // padding rows at the end
  for (const AddedToken& token : spec.added_tokens) {
    if (token.id < 0 || token.id >= kMaxTokens) {
      fail(ErrorKind::kCorrupt, kComponent, "id of added token '{}': expected 0 to {}, got {} ({})",
           printable(token.content), kMaxTokens - 1, token.id, spec.source);
    }
    n = std::max(n, static_cast<size_t>(token.id) + 1);
  }
  if (n == 0)
    fail(ErrorKind::kCorrupt, kComponent, "vocabulary: expected tokens, got none ({})",
         spec.source);
  if (n > static_cast<size_t>(kMaxTokens)) {
    fail(ErrorKind::kCorrupt, kComponent, "vocabulary: expected at most {} tokens, got {} ({})",
         kMaxTokens, n, spec.source);
  }
  return n;
}

/// The byte of a token <0xNN>, or -1.
int fallback_byte(std::string_view text) noexcept {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const int high = digit(text[3]), low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t found = text.find(from, at);
    out.append(text.substr(at, found - at));
    if (found == std::string_view::npos) return out;
    out.append(to);
    at = found + from.size();
  }
}

/// The bytes that an ordinary token stands for.
std::string bytes_of(TokenAlphabet alphabet, std::string_view text) {
  if (alphabet == TokenAlphabet::kByteLevel) {
    // A text outside the alphabet stands for itself, as in the reference's decoder.
    return bytes_of_byte_level(text).value_or(std::string(text));
  }
  const int byte = fallback_byte(text);
  return byte >= 0 ? std::string(1, static_cast<char>(byte)) : replace_all(text, kSpaceMark, " ");
}

}  // namespace

// ---------------------------------------------------------------------------------------------
// Construction

Tokenizer::Tokenizer(const TokenizerSpec& spec)
    : source_(spec.source),
      alphabet_(spec.alphabet),
      normalizer_(spec.normalizer),
      splitter_(spec.split),
      ignore_merges_(spec.ignore_merges),
      strip_first_space_(spec.strip_first_space),
      index_(count_ids(spec)),
      merges_(spec.merges.size()),
      prefix_ids_(spec.prefix_ids),
      suffix_ids_(spec.suffix_ids),
      config_(spec.config) {
  add_texts(spec);
  add_byte_tokens();
  add_merges(spec);
  add_added_tokens(spec);
  resolve_named_tokens(spec);
}

void Tokenizer::add_texts(const TokenizerSpec& spec) {
  const size_t n_ids = count_ids(spec);
  std::vector<std::string_view> texts(n_ids);
  std::copy_n(spec.tokens.begin(), std::min(n_ids, spec.tokens.size()), texts.begin());
  std::vector<bool> added(n_ids, false);
  for (const AddedToken& token : spec.added_tokens) {
    const auto id = static_cast<size_t>(token.id);
    if (token.content.empty()) {
      fail(ErrorKind::kCorrupt, kComponent, "added token {}: expected a text, got none ({})", id,
           source_);
    }
    if (!texts[id].empty() && texts[id] != token.content) {
      fail(ErrorKind::kCorrupt, kComponent,
           "id {}: expected one token, got both '{}' and '{}' ({})", id, printable(texts[id]),
           printable(token.content), source_);
    }
    texts[id] = token.content;
    added[id] = true;
  }

  size_t n_bytes = 0;
  for (const std::string_view text : texts)
    n_bytes += text.size();
  texts_.reserve(n_ids, n_bytes);
  bytes_.reserve(n_ids, n_bytes);
  special_.resize(n_ids, false);
  for (size_t id = 0; id < n_ids; ++id) {
    const std::string_view text = texts[id];
    texts_.push_back(text);
    // An added token's text is its text: it was found in the input as it stands.
    bytes_.push_back(added[id] || text.empty() ? text
                                               : std::string_view(bytes_of(alphabet_, text)));
    if (text.empty()) continue;
    if (!index_.insert(texts_, static_cast<uint32_t>(id))) {
      fail(ErrorKind::kCorrupt, kComponent, "token '{}': expected one id, got {} and {} ({})",
           printable(text), *index_.find(texts_, text), id, source_);
    }
  }
}

void Tokenizer::add_byte_tokens() {
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const std::string text = alphabet_ == TokenAlphabet::kByteLevel
                                 ? bytes_to_byte_level(std::string(1, static_cast<char>(byte)))
                                 : fmt::format("<0x{:02X}>", byte);
    const auto id = index_.find(texts_, text);
    byte_ids_[byte] = id.value_or(kNoId);
    // Valid UTF-8 never holds C0, C1 or F5 to FF: a vocabulary can do without these.
    const bool can_occur = byte < 0xC0 || (byte >= 0xC2 && byte <= 0xF4);
    if (!id && can_occur) {
      fail(ErrorKind::kCorrupt, kComponent,
           "vocabulary: expected a token '{}' for byte 0x{:02X}, got none ({})", text, byte,
           source_);
    }
  }
}

void Tokenizer::add_merges(const TokenizerSpec& spec) {
  std::string joined;
  const auto id_or_fail = [&](std::string_view text, size_t rank) {
    const auto id = index_.find(texts_, text);
    if (!id || text.empty()) {
      fail(ErrorKind::kCorrupt, kComponent,
           "merge {} ('{}' + '{}'): expected tokens, got '{}', which is none ({})", rank,
           printable(spec.merges[rank].left), printable(spec.merges[rank].right), printable(text),
           source_);
    }
    return *id;
  };
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const MergeText& merge = spec.merges[rank];
    joined.assign(merge.left).append(merge.right);
    const uint32_t left = id_or_fail(merge.left, rank), right = id_or_fail(merge.right, rank);
    merges_.insert(left, right, {static_cast<uint32_t>(rank), id_or_fail(joined, rank)});
  }
}

void Tokenizer::add_added_tokens(const TokenizerSpec& spec) {
  std::string buffer, spare;
  for (const AddedToken& token : spec.added_tokens) {
    if (find_invalid_utf8(token.content) != std::string_view::npos) {
      fail(ErrorKind::kCorrupt, kComponent, "added token: expected valid UTF-8, got '{}' ({})",
           printable(token.content), source_);
    }
    special_[static_cast<size_t>(token.id)] = token.special;
    if (token.normalized) {
      normalized_added_.add(normalize(token.content, buffer, spare), token);
    } else {
      raw_added_.add(token.content, token);
    }
  }
}

void Tokenizer::resolve_named_tokens(const TokenizerSpec& spec) {
  const auto resolve = [&](const char* name, std::optional<int32_t> id,
                           const std::optional<std::string>& text) -> std::optional<int32_t> {
    if (!id && text) {
      const auto found = id_of(*text);
      if (!found) {
        fail(ErrorKind::kCorrupt, kComponent,
             "{}: expected a token of the vocabulary, got '{}' ({})", name, printable(*text),
             source_);
      }
      id = *found;
    }
    if (id && !has_token(*id)) {
      fail(ErrorKind::kCorrupt, kComponent, "{}: expected an id below {}, got {} ({})", name,
           size(), *id, source_);
    }
    return id;
  };
  bos_id_ = resolve("bos_token", spec.bos_id, spec.config.bos_token);
  eos_id_ = resolve("eos_token", spec.eos_id, spec.config.eos_token);
  pad_id_ = resolve("pad_token", spec.pad_id, spec.config.pad_token);
  unk_id_ = resolve("unk_token", spec.unk_id, spec.config.unk_token);
  for (const auto* ids : {&prefix_ids_, &suffix_ids_}) {
    for (const int32_t id : *ids)
      resolve("post_processor", id, std::nullopt);
  }
}

// ---------------------------------------------------------------------------------------------
// Encoding

std::string_view Tokenizer::normalize(std::string_view text, std::string& buffer,
                                      std::string& spare) const {
  for (const NormalizerStep& step : normalizer_) {
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc:
        if (!normalize_nfc(text, spare)) continue;
        break;
      case NormalizerStep::Kind::kPrepend:
        if (text.empty()) continue;
        spare.assign(step.to).append(text);
        break;
      case NormalizerStep::Kind::kReplace:
        if (text.find(step.from) == std::string_view::npos) continue;
        spare = replace_all(text, step.from, step.to);
        break;
    }
    buffer.swap(spare);
    text = buffer;
  }
  return text;
}

class Tokenizer::Encoding {
 public:
  Encoding(const Tokenizer& tokenizer, const EncodeOptions& options, size_t text_bytes)
      : tokenizer_(tokenizer), options_(options), cache_(text_bytes) {
    ids_.reserve(text_bytes / 4 + 16);
    scratch_.cancel = options.cancel;
  }

  std::vector<int32_t> run(std::string_view text) {
    const auto append = [&](const std::vector<int32_t>& ids) {
      if (options_.add_special_tokens) ids_.insert(ids_.end(), ids.begin(), ids.end());
    };
    append(tokenizer_.prefix_ids_);
    const AddedTokenFinder::Options find{options_.parse_special, options_.plain_ranges};
    tokenizer_.raw_added_.split(text, find, [&](std::string_view part, int32_t id) {
      if (id >= 0) {
        ids_.push_back(id);
      } else {
        encode_raw_part(part, static_cast<size_t>(part.data() - text.data()));
      }
    });
    append(tokenizer_.suffix_ids_);
    return std::move(ids_);
  }

 private:
  void encode_raw_part(std::string_view raw, size_t offset) {
    const std::string_view text = tokenizer_.normalize(raw, normalized_, spare_);
    if (tokenizer_.normalized_added_.empty()) return encode_pieces(text);
    // Offsets into the raw text mean nothing here: a part that touches a plain range is plain.
    const auto& ranges = options_.plain_ranges;
    const bool plain = std::any_of(ranges.begin(), ranges.end(), [&](const ByteRange& range) {
      return range.begin < offset + raw.size() && range.end > offset;
    });
    const AddedTokenFinder::Options find{options_.parse_special && !plain, {}};
    tokenizer_.normalized_added_.split(text, find, [&](std::string_view part, int32_t id) {
      if (id >= 0) {
        ids_.push_back(id);
      } else {
        encode_pieces(part);
      }
    });
  }

  void encode_pieces(std::string_view text) {
    for (size_t begin = 0; begin < text.size();) {
      if (options_.cancel != nullptr) options_.cancel->check("tokenizing");
      const size_t end = tokenizer_.splitter_.piece_end(text, begin);
      encode_piece(text.substr(begin, end - begin));
      begin = end;
    }
  }

  void encode_piece(std::string_view piece) {
    WordCache::Entry* const entry = cache_.place_of(piece);
    if (entry != nullptr && entry->holds(piece)) {
      ids_.insert(ids_.end(), entry->ids().begin(), entry->ids().end());
      return;
    }
    symbols_.clear();
    if (!take_whole(piece)) {
      if (tokenizer_.alphabet_ == TokenAlphabet::kByteLevel) {
        for (const char c : piece)
          symbols_.push_back(tokenizer_.id_of_byte(static_cast<unsigned char>(c)));
      } else {
        append_characters(piece);
      }
      bpe_merge(tokenizer_.merges_, symbols_, scratch_);
    }
    ids_.insert(ids_.end(), symbols_.begin(), symbols_.end());
    if (entry != nullptr && symbols_.size() <= WordCache::kMaxTokens) entry->store(piece, symbols_);
  }

  bool take_whole(std::string_view piece) {
    if (!tokenizer_.ignore_merges_) return false;
    const bool byte_level = tokenizer_.alphabet_ == TokenAlphabet::kByteLevel;
    const auto id =
        byte_level ? tokenizer_.id_of(bytes_to_byte_level(piece)) : tokenizer_.id_of(piece);
    if (id) symbols_.push_back(static_cast<uint32_t>(*id));
    return id.has_value();
  }

  void append_characters(std::string_view piece) {
    for (size_t i = 0; i < piece.size();) {
      const std::string_view character =
          piece.substr(i, decode_valid_utf8(piece.data() + i).length);
      if (const auto id = tokenizer_.id_of(character)) {
        symbols_.push_back(static_cast<uint32_t>(*id));
      } else {
        for (const char c : character) {
          symbols_.push_back(tokenizer_.id_of_byte(static_cast<unsigned char>(c)));
        }
      }
      i += character.size();
    }
  }

  const Tokenizer& tokenizer_;
  const EncodeOptions& options_;
  WordCache cache_;
  std::vector<int32_t> ids_;
  std::vector<uint32_t> symbols_;
  BpeScratch scratch_;
  std::string normalized_, spare_;
};

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() >= kMaxTextBytes) {
    fail(ErrorKind::kInvalidArgument, kComponent, "text: expected fewer than {} bytes, got {}",
         kMaxTextBytes, text.size());
  }
  std::string repaired;
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    if (options.invalid_utf8 == InvalidUtf8::kError || !options.plain_ranges.empty()) {
      fail(ErrorKind::kInvalidArgument, kComponent,
           "text: expected valid UTF-8, got byte 0x{:02X} at offset {}",
           static_cast<unsigned char>(text[bad]), bad);
    }
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  return Encoding(*this, options, text.size()).run(text);
}

// ---------------------------------------------------------------------------------------------
// Decoding and lookup

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  bytes.reserve(ids.size() * 4);  // about what natural text needs
  for (const int32_t id : ids) {
    if (!(skip_special_tokens && is_special(id))) bytes.append(token_bytes(id));
  }
  if (strip_first_space_ && bytes.starts_with(' ')) bytes.erase(0, 1);
  if (find_invalid_utf8(bytes) == std::string::npos) return bytes;
  return replace_invalid_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const noexcept {
  return id >= 0 && id < size() ? bytes_[static_cast<size_t>(id)] : std::string_view();
}

std::string_view Tokenizer::token_text(int32_t id) const noexcept {
  return id >= 0 && id < size() ? texts_[static_cast<size_t>(id)] : std::string_view();
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token_text) const noexcept {
  const auto found = index_.find(texts_, token_text);
  return found ? std::optional<int32_t>(static_cast<int32_t>(*found)) : std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const noexcept {
  return id >= 0 && id < size() && special_[static_cast<size_t>(id)];
}

}  // namespace qw
