#include "checkpoint/gguf.h"

#include <algorithm>

#include "checkpoint/checkpoint.h"
#include "checkpoint/test_support.h"

namespace qw {
namespace {

struct Row {
  std::string name;
  std::vector<uint64_t> ne;  // contiguous axis first
  uint32_t type = 0;
  uint64_t offset = 0;
};

std::string text_of(std::string_view text) {
  return fmt::format("{}{}", raw(uint64_t{text.size()}), text);
}

// A little-endian file of version 3; `entries` are already encoded, `n_entries` of them.
std::string file_of(const std::vector<Row>& rows, std::string_view data, uint64_t n_entries = 0,
                    std::string_view entries = "") {
  std::string out = "GGUF" + raw(uint32_t{3}) + raw(uint64_t{rows.size()}) + raw(n_entries);
  out += entries;
  for (const Row& row : rows) {
    out += text_of(row.name) + raw(static_cast<uint32_t>(row.ne.size()));
    for (const uint64_t size : row.ne)
      out += raw(size);
    out += raw(row.type) + raw(row.offset);
  }
  out.resize((out.size() + 31) / 32 * 32);
  return out.append(data);
}

std::string entry(std::string_view key, uint32_t type, std::string_view value) {
  return fmt::format("{}{}{}", text_of(key), raw(type), value);
}

GgufFile read(std::string_view text) {
  return read_gguf(map_text(text));
}

TEST(Gguf, ShapesAreOutermostFirst) {
  const GgufFile file = read(file_of({{"w", {4, 2, 3}, 0, 0}}, std::string(96, 'x')));
  EXPECT_EQ(file.tensors.at(0).shape, (Shape{3, 2, 4}));
}

TEST(Gguf, BadFilesAreNamed) {
  struct Case {
    std::string text;
    ErrorKind kind;
    std::vector<std::string> parts;
  };
  const std::string d64(64, 'x');
  const std::string start = "GGUF" + raw(uint32_t{3});
  const std::string huge = raw(~uint64_t{0});
  const std::vector<Case> cases = {
      {"", ErrorKind::kCorrupt, {"magic"}},
      {"GGML....", ErrorKind::kCorrupt, {"magic", "GGML"}},
      {"GGUF" + raw(uint32_t{4}), ErrorKind::kUnsupported, {"version", "got 4"}},
      {"GGUF" + raw(uint32_t{0}), ErrorKind::kUnsupported, {"version", "got 0"}},
      {start + huge + raw(uint64_t{0}), ErrorKind::kCorrupt, {"tensor count"}},
      {start + raw(uint64_t{0}) + huge, ErrorKind::kCorrupt, {"metadata count"}},
      {start + raw(uint64_t{1}) + raw(uint64_t{0}) + huge, ErrorKind::kCorrupt, {"tensor count"}},
      {file_of({{"w", {16}, 0, 0}}, std::string(63, 'x')), ErrorKind::kCorrupt, {"w", "cut short"}},
      {file_of({{"w", {16}, 0, 16}}, d64 + d64), ErrorKind::kCorrupt, {"w", "multiple of 32"}},
      {file_of({{"w", {16}, 0, ~uint64_t{31}}}, d64), ErrorKind::kCorrupt, {"w", "cut short"}},
      {file_of({{"w", {16}, 0, 0}, {"v", {8}, 0, 32}}, d64),
       ErrorKind::kCorrupt,
       {"v", "w", "overlap"}},
      {file_of({{"w", {16}, 0, 0}, {"w", {16}, 0, 64}}, d64 + d64),
       ErrorKind::kCorrupt,
       {"w", "twice"}},
      {file_of({{"w", {uint64_t{1} << 62, 8}, 0, 0}}, d64), ErrorKind::kCorrupt, {"w"}},
      {file_of({{"w", {~uint64_t{0}}, 0, 0}}, d64), ErrorKind::kCorrupt, {"w"}},
      {file_of({{"w", {1, 1, 1, 1, 1}, 0, 0}}, d64), ErrorKind::kCorrupt, {"rank of w", "5"}},
      {file_of({{"w", {16}, 12, 0}}, d64), ErrorKind::kCorrupt, {"w", "256", "q4_k"}},
      {file_of({{"w", {32}, 4, 0}}, d64), ErrorKind::kUnsupported, {"w", "id 4", "removed"}},
      {file_of({{"w", {32}, 99, 0}}, d64), ErrorKind::kUnsupported, {"w", "id 99"}},
      {file_of({}, "", 1, entry("k", 13, "")), ErrorKind::kCorrupt, {"type of k", "13"}},
      {file_of({}, "", 1, entry("k", 7, "\x02")), ErrorKind::kCorrupt, {"k", "0 or 1"}},
      {file_of({}, "", 1, entry("k", 8, huge)), ErrorKind::kCorrupt, {"k", "cut short"}},
      {file_of({}, "", 1, entry("k", 9, raw(uint32_t{9}) + raw(uint64_t{1}))),
       ErrorKind::kUnsupported,
       {"nested"}},
      {file_of({}, "", 1, entry("k", 9, raw(uint32_t{0}) + huge)), ErrorKind::kCorrupt, {"k"}},
      {file_of({}, "", 1, entry("k", 9, raw(uint32_t{8}) + raw(uint64_t{1} << 23))),
       ErrorKind::kCorrupt,
       {"k"}},
      {file_of({}, "", 2, entry("k", 0, "a") + entry("k", 0, "a")),
       ErrorKind::kCorrupt,
       {"k", "twice"}},
      {file_of({}, "", 1, entry("general.alignment", 4, raw(uint32_t{0}))),
       ErrorKind::kCorrupt,
       {"general.alignment"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(printable(c.text));
    expect_error(c.kind, c.parts, [&] { read(c.text); });
  }
}

TEST(Gguf, DamageIsSurvived) {
  const std::string golden = QIANWEN_SOURCE_DIR "/tests/golden/gguf/files/";
  for (const char* name : {"nano-v1.gguf", "nano-f16-bigendian.gguf", "nano-lora.gguf"}) {
    std::string text = read_text_file(golden + name);
    text.resize(std::min<size_t>(text.size(), 40'000));  // header; the data is cut short
    EXPECT_GT(expect_damage_is_survived(text, 61, [](const auto& file) { read_gguf(file); }), 200)
        << name;
  }
}

TEST(Gguf, TypedAccess) {
  GgufMetadata metadata;
  metadata.file = "x.gguf";
  metadata.entries = {{"u", GgufValue::u32(7)},          {"f", GgufValue::f32(0.5f)},
                      {"s", GgufValue::string("qwen2")}, {"b", GgufValue::boolean(true)},
                      {"t", GgufValue::strings({"a"})},  {"big", GgufValue::u64(~uint64_t{0})}};
  EXPECT_EQ(metadata.integer("u"), 7);
  EXPECT_EQ(metadata.real("f"), 0.5);
  EXPECT_EQ(metadata.real("u"), 7.0);
  EXPECT_EQ(metadata.string("s"), "qwen2");
  EXPECT_TRUE(metadata.boolean_or("b", false));
  EXPECT_EQ(metadata.integer_or("none", 3), 3);
  EXPECT_EQ(metadata.strings("none"), nullptr);
  EXPECT_EQ(metadata.strings("t")->at(0), "a");
  expect_error(ErrorKind::kCorrupt, {"none", "an integer", "no such key", "x.gguf"},
               [&] { metadata.integer("none"); });
  expect_error(ErrorKind::kCorrupt, {"s:", "an integer", "got string"},
               [&] { metadata.integer_or("s", 1); });
  expect_error(ErrorKind::kCorrupt, {"b:", "an integer", "got bool"},
               [&] { metadata.integer("b"); });
  expect_error(ErrorKind::kCorrupt, {"t:", "integers", "an array of string"},
               [&] { metadata.integers("t"); });
  expect_error(ErrorKind::kCorrupt, {"big:"}, [&] { metadata.integer("big"); });
}

TEST(Gguf, WriterRoundTripOfEveryValueType) {
  const TempDir dir;
  for (const uint32_t alignment : {32u, 128u}) {
    GgufWriter content;
    content.alignment = alignment;
    content.entries = {{"general.architecture", GgufValue::string("qwen2")},
                       {"u8", {GgufType::kU8, {}, uint64_t{255}}},
                       {"i8", {GgufType::kI8, {}, int64_t{-128}}},
                       {"u16", GgufValue::u16(65535)},
                       {"i16", {GgufType::kI16, {}, int64_t{-5}}},
                       {"u32", GgufValue::u32(~0u)},
                       {"i32", GgufValue::i32(-7)},
                       {"u64", GgufValue::u64(~uint64_t{0})},
                       {"i64", {GgufType::kI64, {}, INT64_MIN}},
                       {"f32", GgufValue::f32(1e-6f)},
                       {"f64", {GgufType::kF64, {}, 1e-300}},
                       {"bool", GgufValue::boolean(true)},
                       {"tokens", GgufValue::strings({"a", "", "\xc4\xa0t"})},
                       {"types", GgufValue::i32s({1, -2, 3})},
                       {"scores", GgufValue::f32s({0.5, -1.0})},
                       {"flags", {GgufType::kArray, GgufType::kBool, std::vector<int64_t>{0, 1}}},
                       {"none", GgufValue::strings({})}};
    content.tensors = {
        {"w", DType::kQ8_0, {3, 64}}, {"b", DType::kF32, {5}}, {"e", DType::kF16, {2, 3, 4}}};
    const std::vector<size_t> sizes = {3 * 2 * 34, 20, 48};
    const std::string path = dir / "out.gguf";
    write_gguf(path, content, [&](size_t i, GgufSink sink) {
      const std::vector<std::byte> bytes(sizes[i], static_cast<std::byte>(i + 1));
      sink(std::span(bytes).first(7));
      sink(std::span(bytes).subspan(7));
    });
    const auto checkpoint = Checkpoint::open(path);
    const GgufMetadata& metadata = *checkpoint->gguf;
    EXPECT_EQ(metadata.alignment, alignment);
    ASSERT_EQ(metadata.entries.size(), content.entries.size() + (alignment == 32 ? 0 : 1));
    for (size_t i = 0; i < content.entries.size(); ++i) {
      EXPECT_EQ(metadata.entries[i].first, content.entries[i].first);
      EXPECT_EQ(metadata.entries[i].second.type, content.entries[i].second.type);
      EXPECT_EQ(metadata.entries[i].second.value, content.entries[i].second.value)
          << content.entries[i].first;
    }
    ASSERT_EQ(checkpoint->tensors.all().size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      const RawTensor& tensor = checkpoint->tensors.all()[i];
      EXPECT_EQ(tensor.name, content.tensors[i].name);
      EXPECT_EQ(tensor.shape, content.tensors[i].shape);
      EXPECT_EQ(tensor.offset_bytes % alignment, 0u);
      ASSERT_EQ(tensor.bytes.size(), sizes[i]);
      EXPECT_EQ(std::ranges::count(tensor.bytes, static_cast<std::byte>(i + 1)),
                static_cast<ptrdiff_t>(sizes[i]));
    }
  }
}

TEST(Gguf, WriterRefuses) {
  const TempDir dir;
  const auto attempt = [&](GgufWriter content, size_t n_bytes) {
    return [&dir, content, n_bytes] {
      write_gguf(dir / "out.gguf", content,
                 [&](size_t, GgufSink sink) { sink(std::vector<std::byte>(n_bytes)); });
    };
  };
  GgufWriter good;
  good.tensors = {{"w", DType::kF32, {2}}};
  expect_error(ErrorKind::kInvalidArgument, {"bytes of w", "expected 8", "got 4"},
               attempt(good, 4));
  expect_error(ErrorKind::kInvalidArgument, {"bytes of w", "got 12"}, attempt(good, 12));
  GgufWriter bad = good;
  bad.tensors.push_back(bad.tensors.front());
  expect_error(ErrorKind::kInvalidArgument, {"tensor w"}, attempt(bad, 8));
  bad = good;
  bad.tensors[0].dtype = DType::kU8;
  expect_error(ErrorKind::kInvalidArgument, {"tensor w", "u8"}, attempt(bad, 2));
  bad = good;
  bad.entries = {{"k", {GgufType::kU8, {}, uint64_t{256}}}};
  expect_error(ErrorKind::kInvalidArgument, {"k", "8 bits", "256"}, attempt(bad, 8));
  bad.entries = {{"k", {GgufType::kU8, {}, std::string("x")}}};
  expect_error(ErrorKind::kInvalidArgument, {"k", "u8"}, attempt(bad, 8));
  bad.entries = {{"k", GgufValue::u32(1)}, {"k", GgufValue::u32(1)}};
  expect_error(ErrorKind::kInvalidArgument, {"k", "twice"}, attempt(bad, 8));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path())) << "nothing may be left behind";
}

// ---- Splits ----

class GgufSplit : public ::testing::Test {
 protected:
  static std::string part_name(int number) { return fmt::format("m-{:05}-of-00002.gguf", number); }
  void write_part(int number, uint16_t no, uint16_t count, int total, const std::string& tensor) {
    GgufWriter content;
    content.entries = {{"split.no", GgufValue::u16(no)},
                       {"split.count", GgufValue::u16(count)},
                       {"split.tensors.count", GgufValue::i32(total)}};
    content.tensors = {{tensor, DType::kF32, {1}}};
    write_gguf(dir_ / part_name(number), content,
               [](size_t, GgufSink sink) { sink(std::vector<std::byte>(4)); });
  }
  void expect_open_fails(ErrorKind kind, const std::vector<std::string>& parts) {
    for (const int number : {1, 2}) {
      if (!std::filesystem::exists(dir_ / part_name(number))) continue;
      expect_error(kind, parts, [&] { Checkpoint::open(dir_ / part_name(number)); });
    }
    expect_error(kind, parts, [&] { Checkpoint::open(dir_.path()); });
  }
  TempDir dir_;
};

TEST_F(GgufSplit, DirectoryAndAnyPart) {
  write_part(1, 0, 2, 2, "a");
  write_part(2, 1, 2, 2, "b");
  for (const std::string& path : {dir_.path(), dir_ / part_name(1), dir_ / part_name(2)}) {
    EXPECT_EQ(Checkpoint::open(path)->tensors.all().size(), 2u);
  }
}

TEST_F(GgufSplit, MissingPartIsNamed) {
  write_part(2, 1, 2, 2, "b");
  expect_open_fails(ErrorKind::kNotFound, {"m-00001-of-00002.gguf"});
}

TEST_F(GgufSplit, WrongNumbers) {
  write_part(1, 0, 2, 2, "a");
  write_part(2, 0, 2, 2, "b");
  expect_open_fails(ErrorKind::kCorrupt, {"expected part 1 of 2", "got part 0"});
  write_part(2, 1, 2, 3, "b");
  expect_open_fails(ErrorKind::kCorrupt, {"tensors in all"});
  write_part(1, 0, 2, 3, "a");
  expect_open_fails(ErrorKind::kCorrupt, {"split.tensors.count", "expected 3", "got 2"});
}

TEST_F(GgufSplit, SameTensorInTwoParts) {
  write_part(1, 0, 2, 2, "a");
  write_part(2, 1, 2, 2, "a");
  expect_open_fails(ErrorKind::kCorrupt, {"tensor a", "once"});
}

TEST_F(GgufSplit, RenamedPart) {
  write_part(1, 0, 2, 2, "a");
  std::filesystem::rename(dir_ / part_name(1), dir_ / "model.gguf");
  expect_error(ErrorKind::kNotFound, {"file name of a part", "model.gguf"},
               [&] { Checkpoint::open(dir_.path()); });
}

}  // namespace
}  // namespace qw
