#include "text/unicode.h"

#include <unicode/uchar.h>
#include <unicode/unorm2.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/utf8.h"

namespace qw {
namespace {

constexpr uint8_t kClassAge = 14;  // major Unicode version of \p{L} and \p{N}
constexpr uint8_t kNfcAge = 9;     // and of the normalisation data
constexpr uint32_t kEndOfCodePoints = 0x110000;

bool assigned_by(uint32_t code_point, uint8_t major_version) noexcept {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(code_point), age);
  return age[0] != 0 && age[0] <= major_version;
}

/// The 25 White_Space characters; no version has ever changed them since Unicode 6.3.
constexpr std::array<std::pair<uint32_t, uint32_t>, 10> kWhiteSpace = {{{0x09, 0x0D},
                                                                        {0x20, 0x20},
                                                                        {0x85, 0x85},
                                                                        {0xA0, 0xA0},
                                                                        {0x1680, 0x1680},
                                                                        {0x2000, 0x200A},
                                                                        {0x2028, 0x2029},
                                                                        {0x202F, 0x202F},
                                                                        {0x205F, 0x205F},
                                                                        {0x3000, 0x3000}}};

const UNormalizer2* nfc_instance() {
  UErrorCode status = U_ZERO_ERROR;
  const UNormalizer2* nfc = unorm2_getNFCInstance(&status);
  QW_CHECK(U_SUCCESS(status) && nfc != nullptr, "ICU has no NFC data");
  return nfc;
}

/// NFC_Quick_Check and combining class of a character, as Unicode 9 has them.
struct NfcProperties {
  int32_t quick_check = UNORM_YES;
  uint8_t combining_class = 0;
};

NfcProperties nfc_properties(uint32_t code_point) noexcept {
  const auto c = static_cast<UChar32>(code_point);
  const NfcProperties now{u_getIntPropertyValue(c, UCHAR_NFC_QUICK_CHECK), u_getCombiningClass(c)};
  const bool plain = now.quick_check == UNORM_YES && now.combining_class == 0;
  return plain || assigned_by(code_point, kNfcAge) ? now : NfcProperties{};
}

struct Mark {
  uint32_t code_point;
  uint8_t combining_class;
};

void append_decomposed(const UNormalizer2* nfc, uint32_t code_point, std::vector<Mark>& out) {
  UChar utf16[32];  // the longest canonical decomposition has four characters
  UErrorCode status = U_ZERO_ERROR;
  const auto c = static_cast<UChar32>(code_point);
  const int32_t length =
      assigned_by(code_point, kNfcAge) ? unorm2_getDecomposition(nfc, c, utf16, 32, &status) : -1;
  if (length < 0) {
    out.push_back({code_point, nfc_properties(code_point).combining_class});
    return;
  }
  QW_CHECK(U_SUCCESS(status), "decomposition of U+{:04X}", code_point);
  for (int32_t i = 0; i < length;) {
    UChar32 part = 0;
    U16_NEXT(utf16, i, length, part);
    out.push_back({static_cast<uint32_t>(part), u_getCombiningClass(part)});
  }
}

void order_marks(std::vector<Mark>& text) {
  for (auto begin = text.begin(); begin != text.end();) {
    if (begin->combining_class == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, text.end(), [](Mark m) { return m.combining_class == 0; });
    // A sort, where ICU inserts mark by mark: a text of a million marks must not take hours.
    std::stable_sort(begin, end,
                     [](Mark a, Mark b) { return a.combining_class < b.combining_class; });
    begin = end;
  }
}

void compose(const UNormalizer2* nfc, std::vector<Mark>& text) {
  constexpr size_t kNone = ~size_t{0};
  size_t starter = kNone, n_out = 0;
  uint8_t last_class = 0;
  for (const Mark mark : text) {
    // A mark reaches the starter when nothing of its own class or higher stands between them.
    const bool adjacent = starter != kNone && n_out == starter + 1;
    const bool unblocked = starter != kNone && last_class != 0 && last_class < mark.combining_class;
    if (adjacent || unblocked) {
      const UChar32 composite =
          unorm2_composePair(nfc, static_cast<UChar32>(text[starter].code_point),
                             static_cast<UChar32>(mark.code_point));
      if (composite >= 0 && assigned_by(static_cast<uint32_t>(composite), kNfcAge)) {
        text[starter].code_point = static_cast<uint32_t>(composite);
        continue;
      }
    }
    if (mark.combining_class == 0) starter = n_out;
    last_class = mark.combining_class;
    text[n_out++] = mark;
  }
  text.resize(n_out);
}

/// The quick check of UAX 15: true when the segment is certainly in NFC.
bool certainly_nfc(std::string_view segment) {
  uint8_t last_class = 0;
  for (size_t i = 0; i < segment.size();) {
    const Char c = decode_valid_utf8(segment.data() + i);
    const NfcProperties properties = nfc_properties(c.code_point);
    if (properties.quick_check != UNORM_YES) return false;
    if (properties.combining_class != 0 && last_class > properties.combining_class) return false;
    last_class = properties.combining_class;
    i += c.length;
  }
  return true;
}

void append_normalized(std::string_view segment, std::string& out) {
  const UNormalizer2* nfc = nfc_instance();
  std::vector<Mark> text;
  for (size_t i = 0; i < segment.size();) {
    const Char c = decode_valid_utf8(segment.data() + i);
    append_decomposed(nfc, c.code_point, text);
    i += c.length;
  }
  order_marks(text);
  compose(nfc, text);
  for (const Mark mark : text)
    append_utf8(out, mark.code_point);
}

}  // namespace

CharTable::CharTable() {
  std::vector<uint8_t> flat(kEndOfCodePoints, 0);
  const auto visit = [](const void* context, UChar32 begin, UChar32 end,
                        UCharCategory category) -> UBool {
    if (category == U_UNASSIGNED || category == U_PRIVATE_USE_CHAR || category == U_SURROGATE)
      return true;
    auto* entries = static_cast<uint8_t*>(const_cast<void*>(context));
    const uint32_t bit = U_MASK(category);
    const bool letter = (bit & U_GC_L_MASK) != 0, number = (bit & U_GC_N_MASK) != 0;
    for (auto c = static_cast<uint32_t>(begin); c < static_cast<uint32_t>(end); ++c) {
      if ((letter || number) && assigned_by(c, kClassAge)) {
        entries[c] = static_cast<uint8_t>(letter ? CharClass::kLetter : CharClass::kNumber);
      }
      const NfcProperties nfc = nfc_properties(c);
      if (nfc.quick_check != UNORM_YES || nfc.combining_class != 0) entries[c] |= kNfcFlag;
    }
    return true;
  };
  u_enumCharTypes(visit, flat.data());
  for (const auto& [first, last] : kWhiteSpace) {
    for (uint32_t c = first; c <= last; ++c)
      flat[c] |= static_cast<uint8_t>(CharClass::kSpace);
  }
  flat['\n'] = flat['\r'] = static_cast<uint8_t>(CharClass::kNewline);

  std::map<std::string_view, uint16_t> seen;
  for (size_t block = 0; block < block_of_.size(); ++block) {
    const std::string_view bytes(reinterpret_cast<const char*>(flat.data()) + block * 256, 256);
    const auto [it, fresh] = seen.try_emplace(bytes, static_cast<uint16_t>(seen.size()));
    if (fresh) blocks_.insert(blocks_.end(), bytes.begin(), bytes.end());
    block_of_[block] = it->second;
  }
}

const CharTable& CharTable::get() {
  static const CharTable table;
  return table;
}

bool normalize_nfc(std::string_view text, std::string& out) {
  const CharTable& table = CharTable::get();
  bool changed = false;
  size_t copied = 0;         // text before this is in `out` already
  size_t segment_begin = 0;  // the last character that could begin a segment
  for (size_t i = 0; i < text.size();) {
    if (const size_t n_ascii = ascii_prefix(text.substr(i)); n_ascii != 0) {
      i += n_ascii;
      segment_begin = i - 1;
      continue;
    }
    const Char c = decode_valid_utf8(text.data() + i);
    if (c.code_point < 0x300 || !table.needs_nfc_check(c.code_point)) {
      segment_begin = i;
      i += c.length;
      continue;
    }
    // Normalisation is local: what a cut-safe character begins ends at the next one.
    size_t end = i + c.length;
    while (end < text.size()) {
      const Char next = decode_valid_utf8(text.data() + end);
      if (!table.needs_nfc_check(next.code_point)) break;
      end += next.length;
    }
    const std::string_view segment = text.substr(segment_begin, end - segment_begin);
    if (!certainly_nfc(segment)) {
      if (!changed) out.clear();
      changed = true;
      out.append(text.substr(copied, segment_begin - copied));
      append_normalized(segment, out);
      copied = end;
    }
    segment_begin = i = end;
  }
  if (changed) out.append(text.substr(copied));
  return changed;
}

bool is_word_character(uint32_t code_point) noexcept {
  const auto c = static_cast<UChar32>(code_point);
  constexpr uint32_t kWord = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || (U_GET_GC_MASK(c) & kWord) != 0 ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

}  // namespace qw
