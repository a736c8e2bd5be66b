#include "checkpoint/safetensors.h"

#include <fmt/ranges.h>

#include <chrono>

#include "checkpoint/test_support.h"

namespace qw {
namespace {

std::string file_of(std::string header, std::string_view data) {
  return fmt::format("{}{}{}", raw(uint64_t{header.size()}), header, data);
}

SafetensorsFile read(std::string_view text) {
  return read_safetensors(map_text(text));
}

std::string entry(std::string_view name, std::string_view dtype, std::string_view shape,
                  std::string_view offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape,
                     offsets);
}

std::string object_of(const std::vector<std::string>& members) {
  return fmt::format("{{{}}}", fmt::join(members, ","));
}

TEST(Safetensors, ReadsTensorsInOrderOfTheirBytes) {
  const std::string header =
      object_of({entry("b", "BF16", "[1,3]", "[4,10]"), entry("a", "U8", "[4]", "[0,4]"),
                 R"("__metadata__":{"format":"pt","x":"y"})"}) +
      "  ";
  const SafetensorsFile file = read(file_of(header, "0123456789"));
  ASSERT_EQ(file.tensors.size(), 2u);
  EXPECT_EQ(file.tensors[0].name, "a");
  EXPECT_EQ(file.tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(file.tensors[1].shape, (Shape{1, 3}));
  EXPECT_EQ(file.tensors[1].offset_bytes, 8 + header.size() + 4);
  EXPECT_EQ(static_cast<char>(file.tensors[1].bytes[0]), '4');
  EXPECT_EQ(file.metadata,
            (std::vector<std::pair<std::string, std::string>>{{"format", "pt"}, {"x", "y"}}));
}

TEST(Safetensors, EmptyTensorsAndScalars) {
  const SafetensorsFile file = read(file_of(
      object_of({entry("e", "F32", "[0,4]", "[0,0]"), entry("s", "F32", "[]", "[0,4]")}), "abcd"));
  ASSERT_EQ(file.tensors.size(), 2u);
  EXPECT_EQ(file.tensors[1].shape.n_elems(), 1);
  EXPECT_TRUE(read(file_of("{}", "")).tensors.empty());
}

TEST(Safetensors, BadFilesAreNamed) {
  struct Case {
    std::string text;
    ErrorKind kind;
    std::vector<std::string> parts;
  };
  const auto one = [](std::string_view e) { return fmt::format("{{{}}}", e); };
  const std::string a4 = entry("a", "U8", "[4]", "[0,4]");
  const std::vector<Case> cases = {
      {"", ErrorKind::kCorrupt, {"size"}},
      {raw(uint64_t{1} << 63) + "{}", ErrorKind::kCorrupt, {"header length"}},
      {raw(~uint64_t{0}) + "{}", ErrorKind::kCorrupt, {"header length"}},
      {raw(uint64_t{100}) + "{}", ErrorKind::kCorrupt, {"cut short"}},
      {raw(uint64_t{3}) + "{}", ErrorKind::kCorrupt, {"header: expected 3 bytes", "cut short"}},
      {file_of("[]", ""), ErrorKind::kCorrupt, {"an array"}},
      {file_of("{\"a\":", ""), ErrorKind::kCorrupt, {"header"}},
      {file_of("", ""), ErrorKind::kCorrupt, {"header"}},
      {file_of(one(R"("a":{"dtype":"U8","shape":[4]})"), "abcd"),
       ErrorKind::kCorrupt,
       {"a:", "no data_offsets"}},
      {file_of(one(a4), "abc"), ErrorKind::kCorrupt, {"a", "cut short"}},
      {file_of(one(a4), "abcde"), ErrorKind::kCorrupt, {"expected 4 bytes", "got 5"}},
      {file_of(one(a4 + "," + entry("b", "U8", "[4]", "[2,6]")), "abcdef"),
       ErrorKind::kCorrupt,
       {"b", "overlap"}},
      {file_of(one(a4 + "," + entry("b", "U8", "[1]", "[5,6]")), "abcdef"),
       ErrorKind::kCorrupt,
       {"b", "gap"}},
      {file_of(one(a4 + "," + a4), "abcd"), ErrorKind::kCorrupt, {"'a' twice"}},
      {file_of(one(entry("a", "F32", "[2]", "[0,4]")), "abcd"),
       ErrorKind::kCorrupt,
       {"a", "expected 8", "got 4"}},
      {file_of(one(entry("a", "F32", "[4611686018427387904,4]", "[0,4]")), "abcd"),
       ErrorKind::kCorrupt,
       {"a"}},
      {file_of(one(entry("a", "U8", "[-1]", "[0,4]")), "abcd"), ErrorKind::kCorrupt, {"negative"}},
      {file_of(one(entry("a", "U8", "[4]", "[4,0]")), "abcd"),
       ErrorKind::kCorrupt,
       {"data_offsets of a"}},
      {file_of(one(entry("a", "F8_E4M3", "[4]", "[0,4]")), "abcd"),
       ErrorKind::kUnsupported,
       {"a", "F8_E4M3"}},
      {file_of(one(entry("a", "U8", "[1,1,1,1,4]", "[0,4]")), "abcd"),
       ErrorKind::kUnsupported,
       {"a", "5"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(printable(c.text));
    expect_error(c.kind, c.parts, [&] { read(c.text); });
  }
}

TEST(Safetensors, DamageIsSurvived) {
  const std::string text = file_of(
      object_of({entry("a", "F32", "[2,2]", "[0,16]"), entry("b", "I64", "[1]", "[16,24]")}),
      std::string(24, 'x'));
  EXPECT_GT(expect_damage_is_survived(text, 1, [](const auto& file) { read_safetensors(file); }),
            150);
}

TEST(Safetensors, WriterRoundTrip) {
  const TempDir dir;
  const std::string path = dir / "out.safetensors";
  const std::vector<float> logits = {1.5f, -2.0f, 3.25f, 0.0f, 5.0f, 6.0f};
  const std::string ids = raw(int64_t{7});
  SafetensorsWriter out(
      path,
      {{"logits.0", DType::kF32, {2, 3}}, {"ids", DType::kI64, {1}}, {"none", DType::kF16, {0}}},
      {{"format", "pt"}});
  const auto bytes = std::as_bytes(std::span(logits));
  out.write(bytes.first(5));  // any chunks
  out.write(bytes.subspan(5));
  EXPECT_FALSE(std::filesystem::exists(path)) << "the file must not be there before it is whole";
  out.write(std::as_bytes(std::span(ids)));
  out.finish();
  const SafetensorsFile file = read_safetensors(MappedFile::open(path));
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.metadata.at(0).second, "pt");
  EXPECT_EQ(file.tensors[0].offset_bytes % 8, 0u);
  for (const RawTensor& tensor : file.tensors) {
    if (tensor.name == "logits.0") {
      EXPECT_EQ(tensor.shape, (Shape{2, 3}));
      EXPECT_EQ(std::memcmp(tensor.bytes.data(), logits.data(), tensor.bytes.size()), 0);
    }
  }
}

TEST(Safetensors, WriterRefusesAndCleansUp) {
  const TempDir dir;
  const std::string path = dir / "out.safetensors";
  const auto write = [&](size_t n_bytes) {
    SafetensorsWriter out(path, {{"a", DType::kF32, {2}}});
    out.write(std::vector<std::byte>(n_bytes));
    out.finish();
  };
  expect_error(ErrorKind::kInvalidArgument, {"expected 8", "got 4"}, [&] { write(4); });
  expect_error(ErrorKind::kInvalidArgument, {"expected 8", "more"}, [&] { write(9); });
  expect_error(ErrorKind::kInvalidArgument, {"q4_0"}, [&] {
    SafetensorsWriter(path, {{"a", DType::kQ4_0, {32}}});
  });
  expect_error(ErrorKind::kInvalidArgument, {"'a' again"}, [&] {
    SafetensorsWriter(path, {{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}});
  });
  expect_error(ErrorKind::kInvalidArgument, {"UTF-8"}, [&] {
    SafetensorsWriter(path, {{"a\xFF", DType::kU8, {1}}});
  });
  EXPECT_TRUE(std::filesystem::is_empty(dir.path())) << "nothing may be left behind";
  expect_error(ErrorKind::kNotFound, {"nowhere"},
               [&] { SafetensorsWriter(dir / "nowhere/out", {}); });
}

TEST(Safetensors, FiveThousandTensorsOpenFast) {
  std::string header = "{";
  for (int i = 0; i < 5000; ++i) {
    header += entry(fmt::format("model.layers.{}.mlp.experts.{}.down_proj.weight", i / 60, i), "U8",
                    "[1,1]", fmt::format("[{},{}]", i, i + 1)) +
              ",";
  }
  header.back() = '}';
  const auto file = map_text(file_of(header, std::string(5000, 'x')));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(read_safetensors(file).tensors.size(), 5000u);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count(), 2.0) << "some 10 ms without sanitizers; far more means quadratic work";
  RecordProperty("ms", static_cast<int>(elapsed.count() * 1000));
}

}  // namespace
}  // namespace qw
