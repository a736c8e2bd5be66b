// What constrained decoding costs: microseconds per token at the family's vocabulary of 151,936, of
// compiling, and of the first use of a grammar.
//
// The text of an answer is given; each of its tokens is one row of logits through GrammarProcessor,
// as the engine does it. QIANWEN_TOKENIZER names the directory of a tokenizer (Qwen's own gives the
// figures of docs/constrained-decoding.md; default: the bundled model's).
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/grammar/grammar_cache.h"
#include "engine/grammar/grammar_processor.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"

namespace {

constexpr size_t kVocab = 151'936;
using Clock = std::chrono::steady_clock;

const qw::Tokenizer& tokenizer() {
  static const auto kTokenizer = [] {
    const char* directory = std::getenv("QIANWEN_TOKENIZER");
    return qw::load_tokenizer_directory(
        directory != nullptr ? directory : QIANWEN_SOURCE_DIR "/models/qianwen-mini-chat");
  }();
  return *kTokenizer;
}

struct Case {
  const char* name;
  qw::GrammarSource source;
  std::string answer;
};

/// Texts of 10 letters that have little in common.
std::vector<std::string> many_texts() {
  std::vector<std::string> out(20'000);
  uint32_t state = 1;
  for (std::string& text : out) {
    for (int i = 0; i < 10; ++i) {
      state = state * 1'664'525u + 1'013'904'223u;
      text.push_back(static_cast<char>('a' + (state >> 24) % 26));
    }
  }
  return out;
}

const std::vector<Case>& cases() {
  using Kind = qw::GrammarSource::Kind;
  static const std::vector<Case> kCases = {
      {"tool call",
       {.kind = Kind::kJsonSchema,
        .text = R"({"type":"object","properties":{"city":{"type":"string","description":"City"},
          "country":{"type":"string","minLength":2,"maxLength":40},
          "unit":{"type":"string","enum":["celsius","fahrenheit"]},
          "days":{"type":"integer","minimum":1,"maximum":14},
          "from":{"type":"string","format":"date"},
          "fields":{"type":"array","items":{"type":"string","enum":["wind","rain","snow"]}},
          "note":{"type":["string","null"]}},"required":["city","unit"],"additionalProperties":false})"},
       R"({"city": "Saint-Étienne du Rouvray", "country": "France, Normandie", "unit": "celsius", "days": 12, "from": "2024-02-29", "fields": ["wind", "rain", "snow"], "note": "Please tell me whether I have to bring an umbrella for the walk, and when it rains most."})"},
      {"any object",
       {.kind = Kind::kJsonObject},
       "{\n  \"title\": \"The hobbit\",\n  \"year\": 1937,\n  \"tags\": [\"fantasy\", \"novel\"],\n"
       "  \"author\": {\"name\": \"J. R. R. Tolkien\", \"born\": 1892.5, \"alive\": false}\n}"},
      {"bounded string",
       {.kind = Kind::kJsonSchema, .text = R"({"type":"string","maxLength":120})"},
       "\"A sentence of about a hundred characters that comes near the bound of its length, but "
       "not "
       "too near.\""},
      {"regex",
       {.kind = Kind::kRegex, .text = "(?:[A-Z][a-z]+ ){3,9}[0-9]{1,5}"},
       "The Quick Brown Fox Jumps Over 1234"},
      {"choice",
       {.kind = Kind::kChoice, .choices = {"positive", "negative", "neutral"}},
       "neutral"},
      {"20,000 texts", {.kind = Kind::kChoice, .choices = many_texts()}, many_texts()[7]},
  };
  return kCases;
}

double microseconds(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

/// One answer's tokens, each with a row; returns the time without that of making rows.
double constrain(const std::shared_ptr<qw::GrammarMatcher>& matcher, std::vector<int32_t> ids,
                 double* slowest = nullptr) {
  const int32_t eos = tokenizer().eos_id().value_or(0);
  const qw::GrammarProcessor processor(matcher, {eos});
  std::vector<float> values(kVocab);
  double total = 0;
  for (size_t n = 0; n <= ids.size(); ++n) {
    std::fill(values.begin(), values.end(), 1.0f);
    qw::LogitsRow row(values);
    const auto begin = Clock::now();
    processor.process({std::span(ids).first(n), 0}, row);
    const double time = microseconds(begin);
    total += time;
    if (slowest != nullptr) *slowest = std::max(*slowest, time);
    const int32_t next = n < ids.size() ? ids[n] : eos;
    if (values[static_cast<size_t>(next)] != 1.0f) std::abort();  // the answer must fit
  }
  return total;
}

/// Every answer with a grammar that is known already: what a server does.
void tokens_of_a_known_grammar(benchmark::State& state) {
  const Case& c = cases()[static_cast<size_t>(state.range(0))];
  qw::GrammarCache cache(std::make_shared<const qw::GrammarVocabulary>(tokenizer()));
  const std::vector<int32_t> ids = tokenizer().encode(c.answer);
  constrain(cache.get(c.source), ids);
  for (auto _ : state)
    state.SetIterationTime(constrain(cache.get(c.source), ids) * 1e-6);
  state.SetLabel(c.name);
  state.counters["us_per_token"] = benchmark::Counter(
      static_cast<double>(ids.size() + 1) * 1e-6,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

/// The first answer with a grammar: compiling and all masks, in a process that has seen others.
void first_answer(benchmark::State& state) {
  const Case& c = cases()[static_cast<size_t>(state.range(0))];
  const auto vocabulary = std::make_shared<const qw::GrammarVocabulary>(tokenizer());
  const std::vector<int32_t> ids = tokenizer().encode(c.answer);
  constrain(qw::GrammarCache(vocabulary).get(cases()[1].source),
            tokenizer().encode(cases()[1].answer));
  double compiling = 0, slowest = 0;
  for (auto _ : state) {
    qw::GrammarCache cache(vocabulary);
    const auto begin = Clock::now();
    const auto matcher = cache.get(c.source);
    compiling += microseconds(begin);
    state.SetIterationTime((microseconds(begin) + constrain(matcher, ids, &slowest)) * 1e-6);
  }
  state.SetLabel(c.name);
  state.counters["us_per_token"] = benchmark::Counter(
      static_cast<double>(ids.size() + 1) * 1e-6,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["compile_us"] = compiling / static_cast<double>(state.iterations());
  state.counters["slowest_us"] = slowest;
}

void make_vocabulary(benchmark::State& state) {
  tokenizer();
  for (auto _ : state)
    benchmark::DoNotOptimize(qw::GrammarVocabulary(tokenizer()).nodes().size());
}

BENCHMARK(tokens_of_a_known_grammar)
    ->DenseRange(0, 5)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(first_answer)->DenseRange(0, 5)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(make_vocabulary)->Unit(benchmark::kMillisecond);

}  // namespace
