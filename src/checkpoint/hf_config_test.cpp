#include "checkpoint/hf_config.h"

#include <nlohmann/json.hpp>

#include "checkpoint/test_support.h"

namespace qw {
namespace {

const char* kFile = "config.json";

TEST(HfConfig, TypedFields) {
  const auto config =
      parse_json_object(R"({"hidden_size":64,"rope_theta":1000000,"eps":1e-6,"tied":true,
      "model_type":"qwen2","scaled":4096.0,"nothing":null,"twice":1,"twice":2})",
                        kFile);
  EXPECT_EQ(required_int(config, "hidden_size", kFile), 64);
  EXPECT_EQ(required_int(config, "scaled", kFile), 4096);
  EXPECT_EQ(required_int(config, "twice", kFile), 2);
  EXPECT_EQ(required_real(config, "rope_theta", kFile), 1e6);
  EXPECT_EQ(required_real(config, "eps", kFile), 1e-6);
  EXPECT_TRUE(required_bool(config, "tied", kFile));
  EXPECT_EQ(required_string(config, "model_type", kFile), "qwen2");
  EXPECT_EQ(optional_int(config, "nothing", kFile), std::nullopt);
  EXPECT_EQ(optional_string(config, "absent", kFile), std::nullopt);
}

TEST(HfConfig, ErrorsNameFieldExpectedAndFound) {
  const auto config =
      parse_json_object(R"({"a":"64","b":1.5,"c":true,"d":18446744073709551615,"e":[1,2]})", kFile);
  expect_error(ErrorKind::kCorrupt, {"hidden_size", "expected an integer", "got nothing", kFile},
               [&] { required_int(config, "hidden_size", kFile); });
  expect_error(ErrorKind::kCorrupt, {"a:", "an integer", "\"64\""},
               [&] { required_int(config, "a", kFile); });
  expect_error(ErrorKind::kCorrupt, {"b:", "1.5"}, [&] { required_int(config, "b", kFile); });
  expect_error(ErrorKind::kCorrupt, {"c:", "true"}, [&] { required_int(config, "c", kFile); });
  expect_error(ErrorKind::kCorrupt, {"c:", "a number"}, [&] { required_real(config, "c", kFile); });
  expect_error(ErrorKind::kCorrupt, {"d:", "18446744073709551615"},
               [&] { required_int(config, "d", kFile); });
  expect_error(ErrorKind::kCorrupt, {"e:", "[1,2]"}, [&] { required_string(config, "e", kFile); });
  expect_error(ErrorKind::kCorrupt, {"a:", "true or false"},
               [&] { required_bool(config, "a", kFile); });
}

TEST(HfConfig, BadJson) {
  const auto parse = [](const std::string& text) {
    return [text] { parse_json_object(text, kFile); };
  };
  expect_error(ErrorKind::kCorrupt, {"byte 6", kFile}, parse(R"({"a":})"));
  expect_error(ErrorKind::kCorrupt, {"byte"}, parse(""));
  expect_error(ErrorKind::kCorrupt, {"byte"}, parse("{\"a\":NaN}"));
  expect_error(ErrorKind::kCorrupt, {"JSON"}, parse("{\"a\":1e999}"));
  expect_error(ErrorKind::kCorrupt, {"JSON"}, parse("{\"a\":\"\xff\"}"));
  expect_error(ErrorKind::kCorrupt, {"an object", "[1]"}, parse("[1]"));
  expect_error(ErrorKind::kCorrupt, {"nesting"}, parse(std::string(100'000, '[')));
  std::string wide = "{";
  for (int i = 0; i < 20'000; ++i)
    wide += fmt::format("\"{}\":0,", i);
  wide.back() = '}';
  expect_error(ErrorKind::kCorrupt, {"keys of one object"}, parse(wide));
  expect_error(ErrorKind::kCorrupt, {"size"}, [] { parse_json("[1,2]", kFile, {.max_bytes = 4}); });
}

}  // namespace
}  // namespace qw
