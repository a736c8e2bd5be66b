#include "app/text_ids.h"

#include <nlohmann/json.hpp>

#include "app/input.h"
#include "app/open.h"
#include "base/error.h"
#include "text/tokenizer.h"

namespace qw::app {

std::vector<int32_t> read_text_ids(const TextFile& file, const ModelFiles& files,
                                   const std::string& model, std::string_view component) {
  const std::string text = read_input(file.path);
  const bool named_json = file.path.ends_with(".json");
  if (named_json || (text.starts_with('{') && text.find("\"ids\"") != std::string::npos)) {
    const auto json = parse_user_json(text, file.path);
    if (json.is_object() && json.contains("ids")) return parse_ids(json["ids"].dump(), "ids");
    if (named_json) {
      fail(ErrorKind::kInvalidArgument, component, "file: expected {{\"ids\": [...]}}, got {} ({})",
           printable(json.dump(), 60), printable(file.path, 4096));
    }
  }
  EncodeOptions encode;
  encode.parse_special = !file.plain;
  return tokenizer_of(files, model).encode(text, encode);
}

}  // namespace qw::app
