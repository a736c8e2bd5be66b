// Tokenizer speed in bytes per second of one core: English, Chinese, code, mixed, hostile texts.
//
// Run with --benchmark_filter=... ; the vocabulary is the real one where QIANWEN_SHARED (default:
// ../shared) has it, otherwise the bundled model's; QIANWEN_BENCH_TOKENIZER names another
// directory. Texts are made here from fixed word lists, so figures can be compared between
// machines. With QIANWEN_BENCH_TEXT=FILE the benchmarks BM_File... run on a text of your own: as
// one document, and as messages, which are its lines of 50 to 500 bytes. Their label is the SHA-256
// of all ids (int32, little-endian), so that other tokenizers can be compared
// (compare_tokenizer.sh).
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"
#include "text/detokenizer.h"
#include "text/tokenizer_files.h"

namespace {

constexpr size_t kTextBytes = 1'000'000;

std::string vocabulary_directory() {
  if (const char* named = std::getenv("QIANWEN_BENCH_TOKENIZER")) return named;
  const char* shared = std::getenv("QIANWEN_SHARED");
  const std::string root = QIANWEN_SOURCE_DIR;
  const std::string real = (shared ? shared : root + "/../shared") + std::string("/tokenizer/hf");
  return std::filesystem::exists(real) ? real : root + "/models/qianwen-mini-chat";
}

std::shared_ptr<const qw::Tokenizer> tokenizer() {
  static const auto loaded = qw::load_tokenizer_directory(vocabulary_directory());
  return loaded;
}

/// Sentences of words drawn with Zipf's frequencies, as natural text has them.
std::string text_of(const std::vector<std::string>& words, const std::string& gap,
                    const std::string& stop) {
  std::mt19937 random(1);
  std::vector<double> weights;
  for (size_t i = 0; i < words.size(); ++i)
    weights.push_back(1.0 / static_cast<double>(i + 1));
  std::discrete_distribution<size_t> draw(weights.begin(), weights.end());
  std::string text;
  for (int n = 1; text.size() < kTextBytes; ++n)
    text += words[draw(random)] + (n % 11 == 0 ? stop : gap);
  return text;
}

std::string english() {
  return text_of({"the",           "of",    "and",           "to",      "model",
                  "language",      "is",    "that",          "was",     "which",
                  "tokenization",  "it's",  "Their",         "people",  "because",
                  "understanding", "river", "don't",         "2024",    "through",
                  "extraordinary", "Qwen",  "compatibility", "question"},
                 " ", ". ");
}
std::string chinese() {
  return text_of({"的",       "我们",     "是",   "语言", "模型",       "可以",  "一个",
                  "通义千问", "因为",     "学习", "问题", "中国",       "公园",  "今天天气很好",
                  "人工智能", "支持多种", "计算", "龘",   "二〇二四年", "图书馆"},
                 "", "，");
}
std::string code() {
  return text_of({"return", "x_1", "==", "std::vector<int>", "{", "}", "for (", "int i = 0;",
                  "i < n;", "++i)", "// why", "0x1F", "\n    ", "\n\n", "\t\t", "[\"key\"]",
                  "foo(bar);", "template <typename T>"},
                 " ", ";\n");
}

void encode(benchmark::State& state, const std::string& text) {
  const auto t = tokenizer();
  size_t n_tokens = 0;
  for (auto _ : state) {
    const auto ids = t->encode(text);
    n_tokens = ids.size();
    benchmark::DoNotOptimize(ids.data());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.counters["tokens"] = static_cast<double>(n_tokens);
}

void BM_EncodeEnglish(benchmark::State& state) {
  encode(state, english());
}
void BM_EncodeChinese(benchmark::State& state) {
  encode(state, chinese());
}
void BM_EncodeCode(benchmark::State& state) {
  encode(state, code());
}
void BM_EncodeMixed(benchmark::State& state) {
  encode(state, english() + chinese() + code());
}
void BM_EncodeOneLetter(benchmark::State& state) {
  encode(state, std::string(static_cast<size_t>(state.range(0)), 'a'));
}
void BM_EncodeChatMessage(benchmark::State& state) {
  encode(state,
         "<|im_start|>user\n" + english().substr(0, 200) + "<|im_end|>\n<|im_start|>assistant\n");
}
BENCHMARK(BM_EncodeEnglish)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeChinese)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeCode)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeMixed)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeOneLetter)
    ->Arg(100'000)
    ->Arg(1'000'000)
    ->Arg(10'000'000)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeChatMessage);

void BM_StreamDecode(benchmark::State& state) {
  const auto t = tokenizer();
  const auto ids = t->encode(chinese());
  for (auto _ : state) {
    qw::Detokenizer stream(t);
    size_t n_bytes = 0;
    for (const int32_t id : ids)
      n_bytes += stream.push(id).size();
    benchmark::DoNotOptimize(n_bytes);
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids.size()));
}
BENCHMARK(BM_StreamDecode)->Unit(benchmark::kMillisecond);

// ---- a file of the user's ----------------------------------------------------------------------

/// The text of QIANWEN_BENCH_TEXT, read once; null after telling the benchmark to be left out.
const std::string* file_text(benchmark::State& state) {
  const char* path = std::getenv("QIANWEN_BENCH_TEXT");
  if (path == nullptr) {
    state.SkipWithError("QIANWEN_BENCH_TEXT is not set");
    return nullptr;
  }
  static const std::string text = [path] {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }();
  if (!text.empty()) return &text;
  state.SkipWithError("QIANWEN_BENCH_TEXT is no file with text");
  return nullptr;
}

std::vector<std::string_view> messages_of(std::string_view text) {
  constexpr size_t kMinBytes = 50, kMaxBytes = 500;
  std::vector<std::string_view> messages;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    if (line.size() >= kMinBytes && line.size() <= kMaxBytes) messages.push_back(line);
    begin = end + 1;
  }
  return messages;
}

/// Encodes `texts` one by one; bytes and tokens a second, and the hash of the ids.
void encode_all(benchmark::State& state, const std::vector<std::string_view>& texts) {
  const auto t = tokenizer();
  qw::Sha256 hash;
  int64_t n_bytes = 0, n_tokens = 0;
  for (const std::string_view text : texts) {
    const std::vector<int32_t> ids = t->encode(text);
    hash.update(std::as_bytes(std::span(ids)));
    n_bytes += std::ssize(text);
    n_tokens += std::ssize(ids);
  }
  for (auto _ : state) {
    for (const std::string_view text : texts)
      benchmark::DoNotOptimize(t->encode(text));
  }
  state.SetBytesProcessed(state.iterations() * n_bytes);
  state.SetItemsProcessed(state.iterations() * n_tokens);
  state.SetLabel(qw::to_hex(hash.finish()));
}

void BM_FileDocument(benchmark::State& state) {
  if (const std::string* text = file_text(state)) encode_all(state, {*text});
}
void BM_FileMessages(benchmark::State& state) {
  if (const std::string* text = file_text(state)) encode_all(state, messages_of(*text));
}
void BM_FileDecode(benchmark::State& state) {
  const std::string* const text = file_text(state);
  if (text == nullptr) return;
  const auto t = tokenizer();
  const std::vector<int32_t> ids = t->encode(*text);
  for (auto _ : state)
    benchmark::DoNotOptimize(t->decode(ids));
  state.SetBytesProcessed(state.iterations() * std::ssize(*text));
  state.SetItemsProcessed(state.iterations() * std::ssize(ids));
}
BENCHMARK(BM_FileDocument)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_FileMessages)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_FileDecode)->Unit(benchmark::kMillisecond);

void BM_Load(benchmark::State& state) {
  for (auto _ : state)
    benchmark::DoNotOptimize(qw::load_tokenizer_directory(vocabulary_directory()));
}
BENCHMARK(BM_Load)->Unit(benchmark::kMillisecond);

}  // namespace
