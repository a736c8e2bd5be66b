#include "checkpoint/torch_file.h"

#include "checkpoint/test_support.h"
#include "checkpoint/torch_test_writer.h"

namespace qw {
namespace {

using namespace torch_test;

std::vector<RawTensor> read(std::string_view bytes) {
  return read_torch_file(map_text(bytes));
}
std::string bytes_of(const RawTensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()};
}

const std::string kSix = "abcdef";
const std::string kStorage = storage("0", "ByteStorage", 6);

TEST(TorchFile, ViewsStridesAndSharedStorages) {
  const std::string all = tensor(kStorage, 0, {2, 3}, {3, 1});
  const auto tensors = read(legacy(
      dict({{"all", all},
            {"column", tensor(kStorage, 1, {2}, {3})},
            {"transposed", tensor(kStorage, 0, {3, 2}, {1, 3})},
            {"tail", tensor(kStorage, 4, {1, 2}, {7, 1})},
            {"scalar", tensor(kStorage, 5, {}, {})},
            {"none", tensor(kStorage, 6, {0, 2}, {2, 1})},
            {"parameter", call(global("torch._utils", "_rebuild_parameter"), {all, "\x88", "}"})}}),
      {{"0", 6, kSix}}));
  ASSERT_EQ(tensors.size(), 7u);
  EXPECT_EQ(bytes_of(tensors[0]), "abcdef");
  EXPECT_EQ(bytes_of(tensors[1]), "be");
  EXPECT_EQ(bytes_of(tensors[2]), "adbecf");
  EXPECT_EQ(tensors[2].shape, (Shape{3, 2}));
  EXPECT_EQ(bytes_of(tensors[3]), "ef");
  EXPECT_EQ(bytes_of(tensors[4]), "f");
  EXPECT_EQ(tensors[5].shape.n_elems(), 0);
  EXPECT_EQ(tensors[6].bytes.data(), tensors[0].bytes.data()) << "a shared storage is not copied";
}

TEST(TorchFile, WrappersAreTakenOff) {
  const std::string inner = dict({{"w", tensor(kStorage, 0, {6}, {1})}});
  for (const std::string& content : {dict({{"epoch", integer(3)}, {"state_dict", inner}}),
                                     dict({{"model", dict({{"module", inner}})}})}) {
    const auto tensors = read(legacy(content, {{"0", 6, kSix}}));
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[0].name, "w");
  }
  expect_error(ErrorKind::kUnsupported, {"epoch", "a tensor", "an int"}, [&] {
    read(legacy(dict({{"epoch", integer(3)}, {"w", tensor(kStorage, 0, {6}, {1})}}),
                {{"0", 6, kSix}}));
  });
}

TEST(TorchFile, UntypedStorageWithDtype) {
  const std::string untyped = tuple({text("storage"), global("torch.storage", "UntypedStorage"),
                                     text("0"), text("cpu"), integer(6)}) +
                              "Q";
  const std::string w = call(
      global("torch._utils", "_rebuild_tensor_v3"),
      {untyped, integer(0), integers({3}), integers({1}), "\x89", "}", global("torch", "uint16")});
  const auto tensors = read(legacy(dict({{"w", w}}), {{"0", 6, kSix}}));
  EXPECT_EQ(tensors.at(0).dtype, DType::kU16);
  EXPECT_EQ(bytes_of(tensors[0]), kSix);
}

TEST(TorchFile, NothingIsExecuted) {
  const std::string marker = "/tmp/qianwen-pickle-was-executed";
  std::filesystem::remove(marker);
  for (const auto& [module, name] :
       std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                        {"builtins", "eval"},
                                                        {"torch", "load"},
                                                        {"torch._utils", "_rebuild_qtensor"},
                                                        {"collections", "deque"}}) {
    const std::string attack = pickle(call(global(module, name), {text("touch " + marker)}));
    expect_error(ErrorKind::kUnsupported, {module + "." + name}, [&] { read(attack); });
    const std::string inside =
        legacy(dict({{"w", call(global(module, name), {text("touch " + marker)})}}), {});
    expect_error(ErrorKind::kUnsupported, {module + "." + name}, [&] { read(inside); });
  }
  EXPECT_FALSE(std::filesystem::exists(marker));
}

TEST(TorchFile, BadFilesAreNamed) {
  struct Case {
    std::string bytes;
    ErrorKind kind;
    std::vector<std::string> parts;
  };
  const auto with = [](const std::string& value) {
    return legacy(dict({{"w", value}}), {{"0", 6, kSix}});
  };
  const int64_t huge = int64_t{1} << 61;
  const std::vector<Case> cases = {
      {"hello", ErrorKind::kUnsupported, {"zip archive or a pickle"}},
      {pickle(integer(5)), ErrorKind::kUnsupported, {"magic"}},
      {"\x80\x06N.", ErrorKind::kUnsupported, {"protocol", "got 6"}},
      {"\x80\x02i", ErrorKind::kUnsupported, {"opcode", "0x69"}},
      {"\x80\x02.", ErrorKind::kCorrupt, {"value on the stack"}},
      {"\x80\x02h\x05.", ErrorKind::kCorrupt, {"empty slot 5"}},
      {"\x80\x02X" + raw(~0u), ErrorKind::kCorrupt, {"the end of the pickle"}},
      {with(tensor(storage("1", "ByteStorage", 6), 0, {6}, {1})),
       ErrorKind::kUnsupported,
       {"storage 0"}},
      {with(tensor(kStorage, 1, {6}, {1})), ErrorKind::kCorrupt, {"w:", "storage 0"}},
      {with(tensor(kStorage, 0, {2, 3}, {4, 1})), ErrorKind::kCorrupt, {"w:", "storage 0"}},
      {with(tensor(kStorage, huge, {huge}, {huge})), ErrorKind::kCorrupt, {"w"}},
      {with(tensor(kStorage, 0, {-1}, {1})), ErrorKind::kCorrupt, {"w:", "sizes"}},
      {with(tensor(kStorage, 0, {1, 1, 1, 1, 6}, {6, 6, 6, 6, 1})),
       ErrorKind::kUnsupported,
       {"shape of w"}},
      {with(tensor(kStorage, 0, {1'000'000, 1'000'000}, {0, 0})),
       ErrorKind::kOutOfMemory,
       {"copy of w"}},
      {with(tensor(storage("0", "ByteStorage", 7), 0, {6}, {1})),
       ErrorKind::kCorrupt,
       {"storage 0", "7", "6"}},
      {with(integer(1)), ErrorKind::kUnsupported, {"w:", "a tensor", "an int"}},
      {legacy(integer(1), {}), ErrorKind::kUnsupported, {"a dict of tensors", "an int"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(printable(c.bytes));
    expect_error(c.kind, c.parts, [&] { read(c.bytes); });
  }
}

TEST(TorchFile, RememberedValuesAreCounted) {
  constexpr char kMemoize = '\x94';
  expect_error(ErrorKind::kUnsupported, {"size", "items"},
               [&] { read("\x80\x04N" + std::string(size_t{5} << 20, kMemoize) + "."); });
}

TEST(TorchFile, ZipErrorsAreNamed) {
  const std::string golden =
      read_text_file(QIANWEN_SOURCE_DIR "/tests/golden/models/bin-zip/pytorch_model.bin");
  expect_error(ErrorKind::kCorrupt, {"end of archive", "cut short"},
               [&] { read(golden.substr(0, golden.size() / 2)); });
  std::string changed = golden;
  changed[changed.find("embed_tokens")] = 'X';
  expect_error(ErrorKind::kCorrupt, {"CRC of pytorch_model/data.pkl"}, [&] { read(changed); });
  changed = golden;
  changed[changed.rfind("PK\x01\x02") + 10] = 8;  // the last entry's method: deflated
  expect_error(ErrorKind::kUnsupported, {"stored", "method 8"}, [&] { read(changed); });
  changed = golden;
  changed[changed.rfind("pytorch_model/data/9")] = 'X';  // in the directory only
  expect_error(ErrorKind::kCorrupt, {"local header"}, [&] { read(changed); });
}

TEST(TorchFile, BigEndianArchive) {
  // The golden's storages are bf16; with another byte order mark every pair of bytes is turned.
  const std::string golden = read_text_file(
      QIANWEN_SOURCE_DIR "/tests/golden/models/bin-sharded/pytorch_model-00001-of-00002.bin");
  std::string big = golden;
  const size_t marker = big.find("little", big.find("/byteorder"));
  ASSERT_NE(marker, std::string::npos);
  big.replace(marker, 6, "middle");
  expect_error(ErrorKind::kCorrupt, {"byteorder", "middle"}, [&] { read(big); });
  // Entries have no CRC check but data.pkl, so the marker can be cut to three bytes in place.
  const size_t record = big.rfind("PK\x01\x02", big.rfind("/byteorder"));
  big.replace(marker, 6, "big\0\0\0", 6);
  big[record + 20] = big[record + 24] = 3;
  const auto little_tensors = read(golden);
  const auto big_tensors = read(big);
  ASSERT_EQ(big_tensors.size(), little_tensors.size());
  for (size_t i = 0; i < big_tensors.size(); ++i) {
    std::string expected = bytes_of(little_tensors[i]);
    for (size_t j = 0; j < expected.size(); j += 2)
      std::swap(expected[j], expected[j + 1]);
    EXPECT_EQ(bytes_of(big_tensors[i]), expected) << big_tensors[i].name;
  }
}

TEST(TorchFile, DamageIsSurvived) {
  const std::string folder = QIANWEN_SOURCE_DIR "/tests/golden/models/";
  const auto attempt = [](const auto& file) { read_torch_file(file); };
  std::string text = legacy(dict({{"w", tensor(kStorage, 0, {3, 2}, {1, 3})}}), {{"0", 6, kSix}});
  EXPECT_GT(expect_damage_is_survived(text, 1, attempt), 300);
  text = read_text_file(folder + "bin-sharded/pytorch_model-00002-of-00002.bin");
  EXPECT_GT(expect_damage_is_survived(text, 997, attempt), 100);
  // The directory, byte by byte.
  const size_t directory = text.find("PK\x01\x02");
  for (size_t at = directory; at < text.size(); ++at) {
    std::string flipped = text;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    try {
      read(flipped);
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::kCorrupt || error.kind() == ErrorKind::kUnsupported)
          << error.message();
    }
  }
}

}  // namespace
}  // namespace qw
