// A sequence's file, written and read piece by piece: right to the last byte, or refused.
#include "engine/kv_sequence_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>

#include "base/error.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPageBytes = 24;

class KvSequenceFile : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(directory_);
    fs::create_directory(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  static KvSequence sequence_of(int64_t n_pages) {
    KvSequence out{kv_root_name("x"), {}, kPageBytes, n_pages};
    for (int64_t i = 0; i + 1 < 4 * n_pages; ++i)
      out.tokens.push_back(static_cast<int32_t>(7 * i));
    return out;
  }
  static std::vector<std::byte> pages_of(int64_t n_pages, int64_t page_bytes = kPageBytes) {
    std::vector<std::byte> out(static_cast<size_t>(n_pages * page_bytes));
    uint32_t state = 7;
    for (std::byte& byte : out) {
      state = state * 1664525 + 1013904223;
      byte = static_cast<std::byte>(state >> 24);
    }
    return out;
  }
  int64_t write(int64_t n_pages, size_t piece_bytes) const {
    KvSequenceWriter writer(path_, sequence_of(n_pages), hash_);
    const std::vector<std::byte> pages = pages_of(n_pages);
    for (size_t at = 0; at < pages.size(); at += piece_bytes)
      writer.write(std::span(pages).subspan(at, std::min(piece_bytes, pages.size() - at)));
    return writer.commit();
  }
  std::vector<std::byte> bytes() const {
    std::ifstream file(path_, std::ios::binary);
    std::vector<std::byte> out;
    for (auto c = std::istreambuf_iterator<char>(file); c != std::istreambuf_iterator<char>(); ++c)
      out.push_back(static_cast<std::byte>(*c));
    return out;
  }
  void put(std::span<const std::byte> bytes) const {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
  }
  void change(int64_t at) const {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const int before = file.get();
    file.seekp(at).put(static_cast<char>(before ^ 0x40));
  }
  /// The file opened and checked.
  std::unique_ptr<KvSequenceReader> open(int64_t piece_bytes) const {
    auto reader = std::make_unique<KvSequenceReader>(path_, hash_, piece_bytes);
    while (reader->check_more()) {
    }
    return reader;
  }
  /// Everything that pieces of so many bytes give.
  std::vector<std::byte> read(int64_t piece_bytes) const {
    const auto opened = open(piece_bytes);
    KvSequenceReader& reader = *opened;
    std::vector<std::byte> out;
    for (int64_t i = 0; i < reader.n_pieces(); ++i) {
      EXPECT_EQ(reader.first_page(i) * kPageBytes, std::ssize(out));
      const auto piece = reader.read_piece(i);
      out.insert(out.end(), piece.begin(), piece.end());
    }
    return out;
  }
  static ErrorKind kind_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_THAT(error.message(), testing::HasSubstr("sequence.bin"));
      return error.kind();
    }
    ADD_FAILURE() << "expected an error";
    return ErrorKind::kInternal;
  }

  const KeyedHash hash_{std::vector<std::byte>(KeyedHash::kSecretBytes, std::byte{9})};
  const std::string directory_ = testing::TempDir() + "kv_sequence_file_" +
                                 testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::string path_ = directory_ + "/sequence.bin";
};

TEST_F(KvSequenceFile, IsTheSameHoweverItIsCut) {
  for (const int64_t n_pages : {0, 1, 5}) {
    const KvSequence sequence = sequence_of(n_pages);
    const std::vector<std::byte> pages = pages_of(n_pages);
    for (const size_t written : {24, 48, 1000}) {
      const int64_t n_bytes = write(n_pages, written);
      EXPECT_EQ(n_bytes, static_cast<int64_t>(fs::file_size(path_)));
      const std::vector<std::byte> whole = bytes();
      const KvFileView view = read_kv_file(whole, hash_);
      EXPECT_EQ(view.head.name, sequence.root);
      EXPECT_EQ(view.tokens, sequence.tokens);
      EXPECT_THAT(pages, testing::ElementsAreArray(view.pages));
      for (const int64_t piece_bytes : {1, 24, 50, 1000})
        EXPECT_EQ(read(piece_bytes), pages) << n_pages << " pages by " << piece_bytes;
      const auto reader = open(50);
      EXPECT_EQ(reader->n_pieces(), (n_pages + 1) / 2);
      EXPECT_EQ(reader->sequence().root, sequence.root);
      EXPECT_EQ(reader->sequence().tokens, sequence.tokens);
      EXPECT_EQ(reader->sequence().page_bytes, kPageBytes);
      EXPECT_EQ(reader->sequence().n_pages, n_pages);
    }
  }
  EXPECT_EQ(fs::status(path_).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(KvSequenceFile, WithAnyByteChangedOrOfAnotherLengthIsRefused) {
  write(5, 48);
  const std::vector<std::byte> whole = bytes();
  for (size_t at = 0; at < whole.size(); ++at) {
    std::vector<std::byte> changed = whole;
    changed[at] ^= std::byte{1};
    put(changed);
    EXPECT_EQ(kind_of([&] { read(48); }), ErrorKind::kCorrupt) << at;
    put(std::span(whole).first(at));
    EXPECT_EQ(kind_of([&] { read(48); }), ErrorKind::kCorrupt) << at;
  }
  std::vector<std::byte> longer = whole;
  longer.push_back(std::byte{0});
  put(longer);
  EXPECT_EQ(kind_of([&] { read(48); }), ErrorKind::kCorrupt);
  put(whole);
  EXPECT_EQ(read(48), pages_of(5));
  const KeyedHash other(std::vector<std::byte>(KeyedHash::kSecretBytes, std::byte{8}));
  EXPECT_EQ(kind_of([&] { KvSequenceReader(path_, other, 48).check_more(); }), ErrorKind::kCorrupt);
}

TEST_F(KvSequenceFile, GivesNothingThatWasNotChecked) {
  write(5, 48);
  const auto front = static_cast<int64_t>(fs::file_size(path_)) - 16 - 5 * kPageBytes;
  const auto opened = open(48);
  KvSequenceReader& reader = *opened;
  const std::vector<std::byte> pages = pages_of(5);
  change(front + 50);  // in the second piece
  EXPECT_THAT(reader.read_piece(0), testing::ElementsAreArray(std::span(pages).first(48)));
  EXPECT_EQ(kind_of([&] { reader.read_piece(1); }), ErrorKind::kCorrupt);
  EXPECT_THAT(reader.read_piece(2), testing::ElementsAreArray(std::span(pages).subspan(96)));
  fs::resize_file(path_, static_cast<uintmax_t>(front + 100));
  EXPECT_EQ(kind_of([&] { reader.read_piece(2); }), ErrorKind::kCorrupt);
  // Under its name is another file now; the one that was opened goes on.
  write(5, 48);
  const auto held = open(48);
  write(1, 48);
  EXPECT_THAT(held->read_piece(1),
              testing::ElementsAreArray(std::span(pages).subspan(48).first(48)));
}

// A file is checked part by part; what is changed between two parts is found as well.
TEST_F(KvSequenceFile, OfManyPartsIsCheckedWhole) {
  const auto part = static_cast<int64_t>(KvSequenceReader::kPartBytes);
  KvSequence sequence = sequence_of(5);
  sequence.page_bytes = part / 2 + 8;
  const std::vector<std::byte> pages = pages_of(5, sequence.page_bytes);
  {
    KvSequenceWriter writer(path_, sequence, hash_);
    writer.write(pages);
    writer.commit();
  }
  for (const int64_t piece_bytes : {part / 2 + 8, part + 16, 10 * part}) {
    KvSequenceReader reader(path_, hash_, piece_bytes);
    int n_parts = 1;
    EXPECT_THROW(reader.read_piece(0), Error) << "not yet";
    while (reader.check_more())
      ++n_parts;
    EXPECT_EQ(n_parts, 3);
    std::vector<std::byte> all;
    for (int64_t i = 0; i < reader.n_pieces(); ++i) {
      const auto piece = reader.read_piece(i);
      all.insert(all.end(), piece.begin(), piece.end());
    }
    EXPECT_TRUE(all == pages) << piece_bytes;
  }
  const auto end = static_cast<int64_t>(fs::file_size(path_));
  // In the head, a token, a page that was and one that was not checked, and the hash.
  for (const int64_t at : {int64_t{50}, int64_t{110}, int64_t{5000}, end - 20, end - 3}) {
    KvSequenceReader reader(path_, hash_, part);
    EXPECT_TRUE(reader.check_more());
    change(at);
    EXPECT_EQ(kind_of([&] {
                while (reader.check_more()) {
                }
                reader.read_piece(0);
              }),
              ErrorKind::kCorrupt)
        << at;
    change(at);
  }
}

TEST_F(KvSequenceFile, SaysWhatIsThere) {
  EXPECT_EQ(kind_of([&] { read(48); }), ErrorKind::kNotFound);
  fs::create_directory(path_);
  EXPECT_EQ(kind_of([&] { read(48); }), ErrorKind::kCorrupt) << "no file";
  EXPECT_EQ(kind_of([&] { KvSequenceWriter(path_, sequence_of(1), hash_); }), ErrorKind::kIo);
}

TEST_F(KvSequenceFile, IsThereOnlyWhenItIsWhole) {
  const auto n_files = [&] {
    return std::distance(fs::directory_iterator(directory_), fs::directory_iterator());
  };
  {
    KvSequenceWriter writer(path_, sequence_of(5), hash_);
    writer.write(pages_of(4));
    EXPECT_THROW(writer.commit(), Error) << "a page is missing";
    EXPECT_EQ(n_files(), 1);
  }
  EXPECT_EQ(n_files(), 0);
  {
    KvSequenceWriter writer(path_, sequence_of(1), hash_);
    EXPECT_THROW(writer.write(pages_of(2)), Error);
  }
  EXPECT_EQ(n_files(), 0);
}

TEST_F(KvSequenceFile, AFullDiskAmidItLeavesWhatWasThere) {
  write(1, 24);
  const std::vector<std::byte> before = bytes();
  struct rlimit limit {};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {rlim_t{3} << 20, limit.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  constexpr int64_t kLarge = int64_t{2} << 20;
  KvSequence sequence = sequence_of(3);
  sequence.page_bytes = kLarge;
  ErrorKind kind = ErrorKind::kInternal;
  {
    KvSequenceWriter writer(path_, sequence, hash_);
    writer.write(pages_of(1, kLarge));
    kind = kind_of([&] { writer.write(pages_of(1, kLarge)); });
  }
  ::setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(kind, ErrorKind::kIo);
  EXPECT_EQ(bytes(), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace qw
