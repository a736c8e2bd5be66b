// The dependency ladder, checked: every #include of src/ against the DEPS of CMakeLists.txt.
//
// The one table is CMakeLists.txt's qw_add_folder lines; a folder may include itself, its DEPS
// and what those may include. Also checked: no intrinsics outside kernels/cpu/<isa>/, no element
// type, quantised format, ISA or device named inside model/ or engine/, and dialects of the server
// apart from each other (docs/architecture.md).
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = QIANWEN_SOURCE_DIR;

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// folder -> folders it may include, itself among them.
std::map<std::string, std::set<std::string>> ladder() {
  std::map<std::string, std::set<std::string>> allowed;
  const std::string text = read(kRoot / "CMakeLists.txt");
  const std::regex call(R"(qw_add_folder\(\s*(\w+)([^)]*)\))");
  for (std::sregex_iterator it(text.begin(), text.end(), call), end; it != end; ++it) {
    const std::string name = (*it)[1];
    std::set<std::string>& set = allowed[name];
    set.insert(name);
    std::istringstream words((*it)[2].str());
    bool in_deps = false;
    for (std::string word; words >> word;) {
      if (word == "DEPS" || word == "LINK") {
        in_deps = word == "DEPS";
      } else if (in_deps) {
        EXPECT_TRUE(allowed.count(word))
            << name << " depends on " << word << ", which does not stand before it";
        set.insert(allowed[word].begin(), allowed[word].end());
      }
    }
  }
  return allowed;
}

struct Include {
  fs::path file;
  std::string folder, target;
};

std::vector<Include> includes() {
  std::vector<Include> found;
  const std::regex line(R"re(^\s*#\s*include\s+"([^"]+)")re");
  for (const auto& entry : fs::recursive_directory_iterator(kRoot / "src")) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".h" && extension != ".cpp" && extension != ".cu") continue;
    const std::string folder = (*fs::relative(entry.path(), kRoot / "src").begin()).string();
    std::istringstream text(read(entry.path()));
    for (std::string row; std::getline(text, row);) {
      std::smatch match;
      if (std::regex_search(row, match, line)) found.push_back({entry.path(), folder, match[1]});
    }
  }
  return found;
}

TEST(Layering, EveryIncludeGoesDownTheLadder) {
  const auto allowed = ladder();
  ASSERT_TRUE(allowed.count("base") && allowed.count("app"));
  size_t checked = 0;
  for (const Include& include : includes()) {
    ASSERT_TRUE(allowed.count(include.folder)) << include.folder << " is not on the ladder";
    const size_t slash = include.target.find('/');
    ASSERT_NE(slash, std::string::npos)
        << include.file << ": include \"" << include.target << "\" by its path from src/";
    const std::string target = include.target.substr(0, slash);
    if (target == "support" || target == "qianwen") continue;  // test helpers; the public headers
    ++checked;
    EXPECT_TRUE(allowed.at(include.folder).count(target))
        << include.file << ": " << include.folder << " must not include " << include.target;
  }
  EXPECT_GT(checked, 20u);
}

TEST(Layering, ForbiddenPairsAreForbiddenByTheTable) {
  const auto allowed = ladder();
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{"text", "model"},
                                                        {"text", "checkpoint"},
                                                        {"engine", "server"},
                                                        {"model", "engine"},
                                                        {"kernels", "backend"},
                                                        {"quant", "checkpoint"},
                                                        {"checkpoint", "model"},
                                                        {"server", "agent"},
                                                        {"eval", "server"}}) {
    EXPECT_FALSE(allowed.at(from).count(to)) << from << " -> " << to;
  }
  for (const auto& [from, set] : allowed)
    EXPECT_TRUE(from == "app" || !set.count("app")) << from;
}

TEST(Layering, DialectsKnowNothingOfEachOtherAndNothingKnowsOfThem) {
  const std::set<std::string> dialects = {"anthropic", "llama_server", "ollama",
                                          "openai",    "sglang",       "web"};
  const auto folder_of = [](const fs::path& path) {  // of a path from src/
    return std::distance(path.begin(), path.end()) > 2 ? std::next(path.begin())->string() : "";
  };
  std::set<std::string> seen;
  for (const Include& include : includes()) {
    if (include.folder != "server" || !include.target.starts_with("server/")) continue;
    const std::string file = include.file.filename().string();
    const std::string from = folder_of(fs::relative(include.file, kRoot / "src"));
    const std::string to = folder_of(include.target);
    seen.insert(to);
    // The one place that lists them.
    if (from.empty() && (file == "service.cpp" || file.ends_with("_test.cpp"))) continue;
    EXPECT_TRUE(from == to || !dialects.count(to)) << include.file << ": " << include.target;
    EXPECT_TRUE(from != "http" || to == "http") << include.file << ": " << include.target;
  }
  for (const std::string& dialect : dialects)
    EXPECT_TRUE(seen.count(dialect)) << dialect << " is no folder of src/server/";
}

TEST(Layering, IntrinsicsStayInIsaFolders) {
  for (const auto& entry : fs::recursive_directory_iterator(kRoot / "src")) {
    if (!entry.is_regular_file()) continue;
    const std::string path = fs::relative(entry.path(), kRoot / "src").string();
    const bool isa_folder =
        path.rfind("kernels/cpu/", 0) == 0 && path.rfind("kernels/cpu/generic/", 0) != 0;
    if (isa_folder) continue;
    for (const char* header : {"<immintrin.h>", "<arm_neon.h>"})
      EXPECT_EQ(read(entry.path()).find(header), std::string::npos) << path;
  }
}

TEST(Layering, ModelNamesNoElementTypeNoFormatNoDeviceAndNoInstructionSet) {
  const std::regex forbidden(
      R"(\b(DType::k\w+|bf16|gptq|awq|avx2|avx512\w*|neon|cuda|q[2-8]_[k0-1]|iq[1-4]_\w+)\b)",
      std::regex::icase);
  for (const char* folder : {"model", "engine"}) {
    if (!fs::exists(kRoot / "src" / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / "src" / folder)) {
      const std::string name = entry.path().filename().string();
      if (!entry.is_regular_file() || name.find("_test.cpp") != std::string::npos) continue;
      std::istringstream text(read(entry.path()));
      int number = 0;
      for (std::string row; std::getline(text, row);) {
        ++number;
        const std::string code = row.substr(0, row.find("//"));
        EXPECT_FALSE(std::regex_search(code, forbidden))
            << entry.path() << ":" << number << ": " << row;
      }
    }
  }
}

}  // namespace
