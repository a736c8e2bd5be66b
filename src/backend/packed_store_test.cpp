// Weights from the store of packed weights against weights that are packed.
#include "backend/packed_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "backend/cpu_linear_packed.h"
#include "backend/cpu_linear_test_support.h"

namespace qw {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace): one test program

class PackedStoreTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove_all(directory_); }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  CpuContext context(int n_threads = 2) const {
    BackendOptions options;
    options.n_threads = n_threads;
    options.packed_cache = directory_;
    return CpuContext(options);
  }
  static bool is_stored(const CpuLinear& weight) {
    return static_cast<const PackedLinear&>(weight).parts.front().stored != nullptr;
  }
  std::vector<std::string> files() const {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      if (entry.path().extension() == ".packed") out.push_back(entry.path());
    }
    return out;
  }

  /// Another byte at a place in a file.
  static void flip(const std::string& path, uint64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(byte ^ 1));
    ASSERT_TRUE(file.good());
  }

  const std::string directory_ = testing::TempDir() + "packed_store_" +
                                 testing::UnitTest::GetInstance()->current_test_info()->name();
  const Format q4_k_{"q4_k", DType::kQ4_K};
};

TEST_F(PackedStoreTest, WeightsOfASecondStartAreMappedAndTheSame) {
  for (const Format& format : all_formats()) {
    const int64_t k = format.k_step() * 2, n = 53;
    const LinearSource source = make_source(format, n, k, 7);
    CpuContext plain = make_context(kernels::detect_isa().level, ActivationMode::kAuto),
               first = context(), second = context();
    const auto packed = pack_cpu_linear({&source, 1}, plain);
    const auto kept = pack_cpu_linear({&source, 1}, first);
    EXPECT_FALSE(is_stored(*kept));
    const auto mapped = pack_cpu_linear({&source, 1}, second);
    const auto& part = static_cast<const PackedLinear&>(*packed).parts.front();
    // Codes in memory of the test do not tell their bytes; what stays in rows is not packed.
    EXPECT_EQ(is_stored(*mapped), part.matrix.data != nullptr && PackedStore::can_name(source))
        << format.name;
    EXPECT_EQ(mapped->resident_bytes, packed->resident_bytes);
    for (int64_t m : {1, 50}) {
      const std::vector<float> x = make_x(m, k, 3);
      ASSERT_EQ(run(*mapped, x, m, second), run(*packed, x, m, plain)) << format.name;
    }
    second.store->check_readable();
  }
}

TEST_F(PackedStoreTest, OneChangedByteIsAnotherWeight) {
  LinearSource source = make_source(q4_k_, 64, 512, 7);
  CpuContext one = context();
  pack_cpu_linear({&source, 1}, one);
  auto& rows = std::get<BlockRows>(source.data);
  const_cast<std::byte&>(rows.data[63 * rows.row_bytes + 100]) ^= std::byte{1};
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  EXPECT_TRUE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  EXPECT_EQ(files().size(), 2);
}

TEST_F(PackedStoreTest, SizesAndSecretAreInTheName) {
  const LinearSource source = make_source(q4_k_, 64, 512, 7);
  const kernels::PackPlan plan = kernels::plan_pack(source);
  const std::vector<uint8_t> panel(static_cast<size_t>(plan.matrix.panel_bytes), 5);
  ThreadPool one(1), two(2);
  const PackedStore store(directory_), other(directory_ + "/other");
  const std::string name = store.name_of(source, plan, panel, one);
  EXPECT_EQ(name.size(), 32);
  EXPECT_EQ(store.name_of(source, plan, panel, two), name);
  EXPECT_EQ(PackedStore(directory_).name_of(source, plan, panel, two), name);
  EXPECT_NE(other.name_of(source, plan, panel, one), name);
  EXPECT_NE(store.name_of(source.slice_rows(0, 48), plan, panel, one), name);
  std::vector<uint8_t> otherwise = panel;
  otherwise.back() ^= 1;
  EXPECT_NE(store.name_of(source, plan, otherwise, one), name);
  kernels::PackPlan as_q5 = plan;
  as_q5.layout = kernels::LinearLayout::kQ5_K;
  EXPECT_NE(store.name_of(source, as_q5, panel, one), name);
}

TEST_F(PackedStoreTest, FilesThatAreNotWholeArePackedAgain) {
  const LinearSource source = make_source(q4_k_, 64, 512, 7);
  CpuContext one = context();
  pack_cpu_linear({&source, 1}, one);
  const std::string path = files().at(0);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  EXPECT_TRUE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary) << "something else";
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  EXPECT_TRUE(is_stored(*pack_cpu_linear({&source, 1}, one)));
}

// A file is larger than what one thread hashes at a time.
TEST_F(PackedStoreTest, AFlippedBitAnywhereIsPackedAgain) {
  const LinearSource source = make_source(q4_k_, 2400, 1024, 7);
  const std::vector<float> x = make_x(1, source.k, 3);
  CpuContext plain = make_context(kernels::detect_isa().level, ActivationMode::kAuto),
             one = context();
  const std::vector<float> expected = run(*pack_cpu_linear({&source, 1}, plain), x, 1, plain);
  pack_cpu_linear({&source, 1}, one);
  const std::string path = files().at(0);
  const uint64_t size = std::filesystem::file_size(path), panels = 4096, trailer = size - 54;
  ASSERT_GT(size, 1'300'000u);
  for (const uint64_t at :
       {uint64_t{0}, uint64_t{40}, uint64_t{3000}, panels - 1,           // header
        panels, panels + 700, size / 2, panels + (uint64_t{512} << 10),  // panels
        trailer - 1, trailer, trailer + 20, size - 17, size - 1}) {
    flip(path, at);
    const auto packed = pack_cpu_linear({&source, 1}, one);
    EXPECT_FALSE(is_stored(*packed)) << at;
    EXPECT_EQ(run(*packed, x, 1, one), expected) << at;
    const auto mapped = pack_cpu_linear({&source, 1}, one);
    EXPECT_TRUE(is_stored(*mapped)) << at;
    EXPECT_EQ(run(*mapped, x, 1, one), expected) << at;
  }
}

TEST_F(PackedStoreTest, ThreadsAndNamesAreInTheHashOfAFileAsTheyAreInItsName) {
  const std::vector<uint8_t> panels(size_t{3} << 20, 5);
  const auto n_bytes = static_cast<int64_t>(panels.size());
  ThreadPool one(1), two(2);
  PackedStore store(directory_);
  store.put("a", panels, one);
  EXPECT_NE(store.find("a", n_bytes, two), nullptr);
  // The same name, header and panels in a directory with another secret.
  PackedStore other(directory_ + "/other");
  std::filesystem::copy_file(directory_ + "/a.packed", directory_ + "/other/a.packed");
  EXPECT_EQ(other.find("a", n_bytes, one), nullptr);
  // The panels and hash of another name, under its header and under its own.
  std::vector<uint8_t> others = panels;
  others[0] ^= 1;
  store.put("b", others, one);
  using std::ios;
  std::ifstream in(directory_ + "/b.packed", ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(in), {});
  for (const std::streamoff first : {0, 4096}) {
    std::fstream out(directory_ + "/a.packed", ios::in | ios::out | ios::binary);
    out.seekp(first);
    out.write(bytes.data() + first, static_cast<std::streamsize>(bytes.size()) - first);
    out.close();
    EXPECT_EQ(store.find("a", n_bytes, one), nullptr) << first;
    store.put("a", panels, one);
    EXPECT_NE(store.find("a", n_bytes, one), nullptr);
  }
}

TEST_F(PackedStoreTest, WhatAnotherPackerLeftIsPackedAgain) {
  const LinearSource source = make_source(q4_k_, 64, 512, 7);
  CpuContext one = context();
  pack_cpu_linear({&source, 1}, one);
  one.store = std::make_unique<PackedStore>(directory_, kernels::kPackerVersion + 1);
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  EXPECT_TRUE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  EXPECT_EQ(files().size(), 2);
}

TEST_F(PackedStoreTest, ManyBadFilesAreOneWarning) {
  const auto pack_all = [&](CpuContext& context) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const LinearSource source = make_source(q4_k_, 16, 256, seed);
      pack_cpu_linear({&source, 1}, context);
    }
    context.store->report();
  };
  const auto warnings = [&] {
    CpuContext one = context();
    testing::internal::CaptureStderr();
    pack_all(one);
    pack_all(one);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(warnings(), "");
  const std::vector<std::string> paths = files();
  ASSERT_EQ(paths.size(), 4u);
  flip(paths[0], 5000);
  EXPECT_EQ(warnings(),
            "qianwen: warning: packed cache: 1 of 4 files could not be used and was "
            "packed again; the first: hash: expected that of its weights, got another (" +
                paths[0] + ")\n");
  flip(paths[0], 5);
  std::filesystem::resize_file(paths[1], 5000);
  const std::string said = warnings();
  EXPECT_THAT(said, testing::HasSubstr("2 of 4 files could not be used and were packed again"));
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_EQ(warnings(), "");
}

TEST_F(PackedStoreTest, FilesThatCannotBeReadArePackedAgain) {
  const LinearSource source = make_source(q4_k_, 64, 512, 7);
  CpuContext one = context();
  pack_cpu_linear({&source, 1}, one);
  const std::string path = files().at(0);
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  CpuContext second = context();
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, second)));
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, second)));
  std::filesystem::remove(path);
  CpuContext third = context();
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, third)));
  EXPECT_TRUE(is_stored(*pack_cpu_linear({&source, 1}, third)));
}

TEST_F(PackedStoreTest, AFileThatIsCutInUseIsAnError) {
  const LinearSource source = make_source(q4_k_, 64, 512, 7);
  for (const uint64_t n_left : {0u, 1u}) {
    CpuContext one = context();
    pack_cpu_linear({&source, 1}, one);
    const auto weight = pack_cpu_linear({&source, 1}, one);
    ASSERT_TRUE(is_stored(*weight));
    EXPECT_NO_THROW(one.store->check_readable());
    const auto size = std::filesystem::file_size(files().at(0));
    ASSERT_NE(size % 4096, 1u) << "the second cut is to lie within the last page";
    std::filesystem::resize_file(files().at(0), n_left == 0 ? 4096 : size - 1);
    run(*weight, make_x(1, 512, 1), 1, one);
    EXPECT_THROW(one.store->check_readable(), Error) << n_left;
  }
}

TEST_F(PackedStoreTest, TakesNoFileDescriptors) {
  const auto n_open = [] {
    namespace fs = std::filesystem;
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  CpuContext one = context();
  std::vector<std::unique_ptr<CpuLinear>> weights;
  const auto before = n_open();
  for (int pass = 0; pass < 2; ++pass) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const LinearSource source = make_source(q4_k_, 16, 256, seed);
      weights.push_back(pack_cpu_linear({&source, 1}, one));
      EXPECT_EQ(is_stored(*weights.back()), pass == 1);
    }
  }
  EXPECT_EQ(n_open(), before);
}

TEST_F(PackedStoreTest, ProcessesThatStartTogetherShareASecret) {
  const LinearSource source = make_source(q4_k_, 64, 512, 7);
  const kernels::PackPlan plan = kernels::plan_pack(source);
  const std::vector<uint8_t> panel(static_cast<size_t>(plan.matrix.panel_bytes), 5);
  for (int round = 0; round < 20; ++round) {
    std::filesystem::remove_all(directory_);
    std::array<std::string, 4> names;
    std::vector<std::thread> threads;
    for (std::string& name : names) {
      threads.emplace_back([&] {
        ThreadPool pool(1);
        name = PackedStore(directory_).name_of(source, plan, panel, pool);
      });
    }
    for (std::thread& thread : threads)
      thread.join();
    for (const std::string& name : names)
      EXPECT_EQ(name, names[0]);
  }
  using std::filesystem::perms;
  EXPECT_EQ(std::filesystem::status(directory_ + "/secret").permissions(),
            perms::owner_read | perms::owner_write);
}

TEST_F(PackedStoreTest, RemovesWhatEndedProcessesLeft) {
  PackedStore{directory_};
  const std::string old_file = directory_ + "/a.packed.tmp-1-0",
                    fresh = directory_ + "/b.packed.tmp-1-1", other = directory_ + "/notes.txt";
  for (const std::string& path : {old_file, fresh, other})
    std::ofstream(path) << "half";
  for (const std::string& path : {old_file, other}) {
    std::filesystem::last_write_time(
        path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(2));
  }
  PackedStore{directory_};
  EXPECT_FALSE(std::filesystem::exists(old_file));
  EXPECT_TRUE(std::filesystem::exists(fresh));
  EXPECT_TRUE(std::filesystem::exists(other));
}

TEST_F(PackedStoreTest, WorksOnWhereItCannotWrite) {
  const LinearSource source = make_source(q4_k_, 64, 512, 7);
  CpuContext one = context();
  std::filesystem::remove_all(directory_);
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, one)));
  EXPECT_FALSE(is_stored(*pack_cpu_linear({&source, 1}, one)));
}

TEST_F(PackedStoreTest, DirectoriesThatCannotBeAreRefusedByName) {
  std::ofstream(directory_) << "a file";
  try {
    PackedStore store(directory_);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    EXPECT_NE(std::string(error.what()).find(directory_), std::string::npos);
  }
  std::filesystem::remove(directory_);
  PackedStore store(directory_);
  std::filesystem::resize_file(directory_ + "/secret", 7);
  const auto refusal = [&]() -> std::string {
    try {
      PackedStore again(directory_);
    } catch (const Error& error) {
      return error.message();
    }
    return "no error";
  };
  EXPECT_EQ(refusal(),
            "[packed cache] secret: expected 192 bytes, got 7 (" + directory_ + "/secret)");
  std::filesystem::remove(directory_ + "/secret");
  std::filesystem::create_directory(directory_ + "/secret");
  EXPECT_EQ(refusal(), "[packed cache] secret type: expected a regular file, got a directory (" +
                           directory_ + "/secret)");
  // A link to itself stops even a superuser, who may write anywhere.
  std::filesystem::remove(directory_ + "/secret");
  std::filesystem::create_symlink("secret", directory_ + "/secret");
  EXPECT_EQ(refusal(),
            "[packed cache] secret file: expected to inspect it, got: Too many levels of "
            "symbolic links (" +
                directory_ + "/secret)");
}

}  // namespace
}  // namespace qw
