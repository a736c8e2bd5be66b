#include "app/gguf_output.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/mapped_file.h"

namespace qw::app {
namespace {

namespace fs = std::filesystem;

class UnprovenFile : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directory(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  const fs::path folder_ = fs::temp_directory_path() / fmt::format("qw_unproven_{}", ::getpid());
};

GgufPlan two_norms() {
  GgufPlan plan;
  for (const char* name : {"a", "b"}) {
    GgufTensor& tensor = plan.tensors.emplace_back();
    tensor.name = name;
    tensor.shape = Shape{2};
  }
  return plan;
}

TEST_F(UnprovenFile, ReplacesAnotherWhenItIsProved) {
  GgufOutput output;
  output.path = path("m.gguf");
  std::ofstream(output.path) << "old";
  {
    const UnprovenFiles refused(output);
    std::ofstream(refused.hidden().path) << "worse";
    EXPECT_EQ(read_text_file(output.path), "old");
  }
  EXPECT_EQ(read_text_file(output.path), "old");
  EXPECT_FALSE(fs::exists(output.path + ".unproven"));
  {
    const UnprovenFiles kept(output);
    std::ofstream(kept.hidden().path) << "new";
    kept.give_names(two_norms());
  }
  EXPECT_EQ(read_text_file(output.path), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(UnprovenFile, MayBeSeveral) {
  GgufOutput output;
  output.path = path("m.gguf");
  output.split.max_tensors = 1;
  const UnprovenFiles files(output);
  const auto hidden = gguf_output_paths(files.hidden(), two_norms());
  const auto named = gguf_output_paths(output, two_norms());
  ASSERT_EQ(hidden.size(), 2u);
  std::ofstream(hidden[0]) << "first";
  std::ofstream(hidden[1]) << "second";
  files.give_names(two_norms());
  EXPECT_EQ(named[0], path("m-00001-of-00002.gguf"));
  EXPECT_EQ(read_text_file(named[0]), "first");
  EXPECT_EQ(read_text_file(named[1]), "second");
}

TEST_F(UnprovenFile, NeverTakesTheFolderOfAnother) {
  GgufOutput output;
  output.path = path("m.gguf");
  fs::create_directory(output.path + ".unproven");
  std::ofstream(output.path + ".unproven/thesis") << "text";
  EXPECT_THROW(const UnprovenFiles files(output), Error);
  EXPECT_TRUE(fs::exists(output.path + ".unproven/thesis"));
}

}  // namespace
}  // namespace qw::app
