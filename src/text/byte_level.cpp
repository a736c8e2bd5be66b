#include "text/byte_level.h"

#include <array>

#include "base/utf8.h"

namespace qw {
namespace {

constexpr uint32_t kFirstStandIn = 0x100;
constexpr size_t kAlphabetEnd = 0x100 + 68;

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<uint16_t, 256> code_point_of{};
  std::array<int16_t, kAlphabetEnd> byte_of{};
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.byte_of)
    byte = -1;
  uint32_t next = kFirstStandIn;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const uint32_t code_point = stands_for_itself(byte) ? byte : next++;
    alphabet.code_point_of[byte] = static_cast<uint16_t>(code_point);
    alphabet.byte_of[code_point] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

uint32_t byte_level_code_point(uint8_t byte) noexcept {
  return kAlphabet.code_point_of[byte];
}

std::string bytes_to_byte_level(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (const char c : bytes)
    append_utf8(out, byte_level_code_point(static_cast<uint8_t>(c)));
  return out;
}

std::optional<std::string> bytes_of_byte_level(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    // ASCII by itself first: it is nearly all of a vocabulary.
    const Utf8Step step =
        lead < 0x80 ? Utf8Step{lead, 1, true, false} : decode_utf8(text.substr(i));
    if (!step.valid || step.code_point >= kAlphabetEnd) return std::nullopt;
    const int16_t byte = kAlphabet.byte_of[step.code_point];
    if (byte < 0) return std::nullopt;
    out.push_back(static_cast<char>(byte));
    i += step.length;
  }
  return out;
}

}  // namespace qw
