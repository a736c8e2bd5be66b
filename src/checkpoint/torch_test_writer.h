// PyTorch files by hand, for tests: each function gives the opcodes that push one value.
//
// Level 3 (checkpoint), tests only; header only, so that other folders' tests can write such files.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/test_support.h"

namespace qw::torch_test {

inline std::string text(std::string_view value) {
  return fmt::format("X{}{}", raw(static_cast<uint32_t>(value.size())), value);
}
inline std::string integer(int64_t value) {
  return "\x8a\x08" + raw(value);
}
inline std::string global(std::string_view module, std::string_view name) {
  return fmt::format("c{}\n{}\n", module, name);
}
inline std::string tuple(const std::vector<std::string>& items) {
  std::string out = "(";
  for (const std::string& item : items)
    out += item;
  return out + "t";
}
inline std::string integers(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const int64_t value : values)
    items.push_back(integer(value));
  return tuple(items);
}
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items)
    out += text(key) + value;
  return out + "u";
}
inline std::string call(const std::string& function, const std::vector<std::string>& arguments) {
  return function + tuple(arguments) + "R";
}
inline std::string pickle(const std::string& value) {
  return "\x80\x02" + value + ".";
}

inline std::string storage(std::string_view key, std::string_view type, int64_t n_elems) {
  return tuple({text("storage"), global("torch", type), text(key), text("cpu"), integer(n_elems),
                "N"}) +
         "Q";
}
inline std::string tensor(const std::string& storage, int64_t offset,
                          const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  return call(global("torch._utils", "_rebuild_tensor_v2"),
              {storage, integer(offset), integers(sizes), integers(strides), "\x89",
               global("collections", "OrderedDict") + ")R"});
}

/// The bytes of one storage.
struct Stored {
  std::string key;
  int64_t n_elems;
  std::string bytes;
};

/// The stream of torch.save before zip archives: `content` pickled, then the storages.
inline std::string legacy(const std::string& content, const std::vector<Stored>& storages) {
  std::string out = pickle("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") +
                    pickle(integer(1001)) + pickle("}") + pickle(content);
  std::string keys = "](";
  for (const Stored& stored : storages)
    keys += text(stored.key);
  out += pickle(keys + "e");
  for (const Stored& stored : storages)
    out += raw(stored.n_elems) + stored.bytes;
  return out;
}

}  // namespace qw::torch_test
