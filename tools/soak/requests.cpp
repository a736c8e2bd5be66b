#include "soak/requests.h"

#include <fmt/format.h>

#include <array>

namespace qw::soak {

namespace {

const std::array<const char*, 48> kWords = {
    "time", "year",  "people", "way",   "day",    "man",   "thing", "woman", "life", "child",
    "city", "world", "school", "state", "family", "house", "group", "and",   "the",  "of",
    "a",    "to",    "in",     "is",    "you",    "that",  "it",    "he",    "was",  "for",
    "on",   "are",   "as",     "with",  "his",    "they",  "I",     "at",    "be",   "this",
    "have", "from",  "or",     "one",   "had",    "by",    "not",   "what"};

const std::vector<std::string> kQuestions = {
    "What is the weather in Paris?",     "What is the capital of Japan?", "Add 3 and 4.",
    "My name is Anna. What is my name?", "你好，今天天气怎么样？",        "Say 🙂 and é."};

}  // namespace

std::string RequestMaker::words(int64_t n) {
  std::string text;
  for (int64_t i = 0; i < n; ++i) {
    if (i > 0) text += ' ';
    text += kWords[static_cast<size_t>(draw(0, std::ssize(kWords) - 1))];
  }
  return text;
}

/// Short, or long; often one that begins like others, so that prefixes are shared.
std::string RequestMaker::prompt() {
  is_long_ = options_.long_words > 0 && chance(0.08);
  if (is_long_) return words(draw(options_.long_words / 2, options_.long_words));
  std::string text = chance(0.4) ? one_of(kQuestions) : words(draw(1, 20));
  if (options_.long_words > 0 && chance(0.4)) {
    RequestMaker shared(static_cast<uint64_t>(draw(1, 6)), options_);
    text = shared.words(60) + " " + text;
  }
  return text;
}

Json RequestMaker::messages(bool with_system) {
  Json list = Json::array();
  if (with_system && chance(0.3)) list.push_back({{"role", "system"}, {"content", words(8)}});
  if (chance(0.2)) {
    list.push_back({{"role", "user"}, {"content", one_of(kQuestions)}});
    list.push_back({{"role", "assistant"}, {"content", words(6)}});
  }
  list.push_back({{"role", "user"}, {"content", prompt()}});
  return list;
}

Json RequestMaker::schema() {
  static const std::vector<std::string> kSchemas = {
      R"({"type":"object","properties":{"city":{"type":"string","maxLength":12}},"required":["city"]})",
      R"({"type":"array","items":{"type":"integer","minimum":0,"maximum":99},"maxItems":4})",
      R"({"enum":["red","green","blue"]})",
      R"({"type":"object","properties":{"a":{"type":"boolean"},"b":{"anyOf":[{"type":"null"},{"type":"number"}]}},"required":["a","b"],"additionalProperties":false})"};
  return Json::parse(one_of(kSchemas));
}

Json RequestMaker::tool(const char* parameters) {
  Json tool = {{"name", "get_weather"}, {"description", "Get the weather of a city"}};
  tool[parameters] = {{"type", "object"},
                      {"properties", {{"city", {{"type", "string"}}}}},
                      {"required", Json::array({"city"})}};
  return tool;
}

/// Now and then an adapter, which somebody else may be unloading.
void RequestMaker::set_model(Planned& request, Json& owner, const char* field) {
  if (!options_.names_adapters || !chance(0.12)) return;
  owner[field] = adapter();
  request.statuses = {200, 404};
}

/// The parameters that OpenAI's, vLLM's and llama.cpp's clients share.
void RequestMaker::set_sampling(Json& body) {
  if (chance(0.7)) body["temperature"] = one_of<double>({0.0, 0.3, 0.8, 1.0, 1.7});
  if (chance(0.3)) body["top_p"] = one_of<double>({0.1, 0.5, 0.9, 1.0});
  if (chance(0.3)) body["top_k"] = one_of<int>({-1, 1, 5, 40});
  if (chance(0.2)) body["min_p"] = one_of<double>({0.0, 0.05, 0.3});
  if (chance(0.2)) body["presence_penalty"] = one_of<double>({-1.0, 0.5, 2.0});
  if (chance(0.2)) body["frequency_penalty"] = one_of<double>({-1.0, 0.5, 2.0});
  if (chance(0.5)) body["seed"] = draw(0, 1000);
}

/// What an answer may be, in vLLM's words.
void RequestMaker::set_shape(Json& body) {
  switch (draw(0, 6)) {
    case 0:
      body["response_format"] = {{"type", "json_object"}};
      break;
    case 1:
      body["response_format"] = {{"type", "json_schema"},
                                 {"json_schema", {{"name", "answer"}, {"schema", schema()}}}};
      break;
    case 2:
      body["guided_json"] = schema();
      break;
    case 3:
      body["guided_regex"] = one_of<std::string>({"[a-z]{3,9}", "(yes|no)!*", "\\d+ (cats|dogs)"});
      break;
    case 4:
      body["guided_choice"] = {"Paris", "Tokyo", "柏林"};
      break;
    case 5:
      body["guided_grammar"] = "root ::= item (\", \" item)*\nitem ::= [a-z]+ | \"(\" root \")\"";
      break;
    default:
      break;
  }
}

void RequestMaker::set_openai_answers(Planned& request) {
  Json& body = request.body;
  if (chance(0.25)) body["stop"] = one_of<Json>({"\n", Json::array({"e", "the"}), ". "});
  if (chance(0.1)) body["repetition_penalty"] = 1.2;
  if (chance(0.1)) body["logit_bias"] = {{"100", -5}, {"200", 3.5}};
  if (chance(0.15)) body["ignore_eos"] = true;
  // A level is worth 100,000 tokens: one above 0 would wait for as long as anybody else asks.
  if (chance(0.05)) body["priority"] = draw(-2, 0);
  if (chance(0.05)) body["user"] = "ignored, with a warning";
  if (!is_long_ && chance(0.2)) {
    body["n"] = draw(2, 3);
    body["temperature"] = 0.9;
    request.answers = body["n"];
  } else if (!is_long_ && chance(0.05)) {
    body["use_beam_search"] = true;
    body["temperature"] = 0;
    body["n"] = 2;
    request.answers = 2;
  }
  request.form = Form::kChoices;
  if (!chance(0.6) || body.contains("use_beam_search")) return;
  body["stream"] = true;
  if (chance(0.5)) body["stream_options"] = {{"include_usage", true}};
  request.form = Form::kOpenAiStream;
}

Planned RequestMaker::chat() {
  Planned out;
  out.target = "/v1/chat/completions";
  out.body = {{"messages", messages()}, {"max_tokens", limit()}};
  set_model(out, out.body);
  set_sampling(out.body);
  set_openai_answers(out);
  if (chance(0.2)) out.body.update(Json{{"logprobs", true}, {"top_logprobs", draw(0, 5)}});
  if (out.body.contains("use_beam_search")) return out;
  if (chance(0.2)) {
    out.body["tools"] = Json::array({{{"type", "function"}, {"function", tool("parameters")}}});
    if (chance(0.5)) out.body["tool_choice"] = one_of<std::string>({"auto", "none", "required"});
  } else if (chance(0.2)) {
    set_shape(out.body);
  }
  return out;
}

Planned RequestMaker::completion() {
  Planned out;
  out.target = "/v1/completions";
  out.body = {{"prompt", prompt()}, {"max_tokens", limit()}};
  set_model(out, out.body);
  set_sampling(out.body);
  set_openai_answers(out);
  if (chance(0.2)) out.body["logprobs"] = draw(0, 5);
  if (chance(0.15)) out.body["echo"] = true;
  if (!is_long_ && !out.body.contains("n") && chance(0.1)) {
    out.body["prompt"] = {words(3), words(9)};
    out.answers = 2;
  }
  if (chance(0.15) && !out.body.contains("use_beam_search")) set_shape(out.body);
  return out;
}

Planned RequestMaker::responses() {
  Planned out;
  out.target = "/v1/responses";
  out.form = Form::kJson;
  out.body = {{"max_output_tokens", limit()}};
  if (chance(0.5)) {
    out.body["input"] = prompt();
  } else {
    out.body["input"] = messages();
  }
  set_model(out, out.body);
  if (chance(0.3)) out.body["instructions"] = words(6);
  if (chance(0.5)) out.body["temperature"] = 0.7;
  if (chance(0.2)) {
    Json function = tool("parameters");
    function["type"] = "function";
    out.body["tools"] = Json::array({function});
  } else if (chance(0.2)) {
    out.body["text"] = {
        {"format", {{"type", "json_schema"}, {"name", "answer"}, {"schema", schema()}}}};
  }
  if (!chance(0.6)) return out;
  out.body["stream"] = true;
  out.form = Form::kResponsesStream;
  return out;
}

Planned RequestMaker::ollama() {
  Planned out;
  out.form = Form::kOllamaStream;
  const bool chats = chance(0.6);
  out.target = chats ? "/api/chat" : "/api/generate";
  Json options = {{"num_predict", limit()}};
  if (chance(0.5)) options["temperature"] = one_of<double>({0.0, 0.8});
  if (chance(0.3)) options["top_k"] = 20;
  if (chance(0.3)) options["seed"] = draw(0, 100);
  if (chance(0.2)) options["stop"] = {"\n"};
  if (chance(0.2)) options["repeat_penalty"] = 1.1;
  out.body = Json::object();
  if (chats) {
    out.body["messages"] = messages();
  } else {
    out.body["prompt"] = prompt();
    if (chance(0.3)) out.body["system"] = words(5);
  }
  set_model(out, out.body);
  out.body["options"] = options;
  if (chats && chance(0.2)) {
    out.body["tools"] = Json::array({{{"type", "function"}, {"function", tool("parameters")}}});
  } else if (chance(0.2)) {
    out.body["format"] = chance(0.5) ? Json("json") : schema();
  }
  if (chance(0.6)) return out;
  out.body["stream"] = false;
  out.form = Form::kJson;
  return out;
}

Planned RequestMaker::llama_server() {
  Planned out;
  out.target = chance(0.8) ? "/completion" : "/completions";
  out.form = Form::kJson;
  out.body = {{"prompt", prompt()}, {"n_predict", limit()}};
  set_model(out, out.body);
  set_sampling(out.body);
  if (chance(0.2)) out.body["n_probs"] = draw(1, 4);
  if (chance(0.2)) out.body["stop"] = Json::array({"\n"});
  if (chance(0.1)) {
    out.body["grammar"] = "root ::= [a-z]+ \".\"";
  } else if (chance(0.1)) {
    out.body["json_schema"] = schema();
  }
  if (!chance(0.6)) return out;
  out.body["stream"] = true;
  out.form = Form::kLlamaServerStream;
  return out;
}

Planned RequestMaker::sglang() {
  Planned out;
  out.target = "/generate";
  out.form = Form::kJson;
  Json params = {{"max_new_tokens", limit()}};
  set_sampling(params);
  if (params.contains("seed")) {
    params["sampling_seed"] = params["seed"];
    params.erase("seed");
  }
  if (chance(0.1)) {
    params["regex"] = "[0-9]{2,5}";
  } else if (chance(0.1)) {
    params["json_schema"] = schema().dump();
  }
  out.body = {{"text", prompt()}};
  set_model(out, out.body, "lora_path");
  if (!is_long_ && chance(0.15)) {
    params["n"] = 2;
    params["temperature"] = 1.0;
    out.answers = 2;
  }
  out.body["sampling_params"] = params;
  if (chance(0.2)) out.body.update(Json{{"return_logprob", true}, {"top_logprobs_num", 2}});
  if (!chance(0.6)) return out;
  out.body["stream"] = true;
  out.form = Form::kSglangStream;
  return out;
}

Planned RequestMaker::anthropic() {
  Planned out;
  out.target = "/v1/messages";
  out.form = Form::kJson;
  out.body = {{"messages", messages(false)}, {"max_tokens", limit()}};
  set_model(out, out.body);
  if (chance(0.4)) out.body["system"] = words(6);
  if (chance(0.5)) out.body["temperature"] = one_of<double>({0.0, 0.5, 1.0});
  if (chance(0.2)) out.body["stop_sequences"] = Json::array({"\n"});
  if (chance(0.25)) {
    out.body["tools"] = Json::array({tool("input_schema")});
    if (chance(0.5)) out.body["tool_choice"] = {{"type", chance(0.5) ? "any" : "auto"}};
  }
  if (!chance(0.6)) return out;
  out.body["stream"] = true;
  out.form = Form::kAnthropicStream;
  return out;
}

Planned RequestMaker::generation() {
  switch (draw(0, 9)) {
    case 0:
    case 1:
    case 2:
      return chat();
    case 3:
    case 4:
      return completion();
    case 5:
      return responses();
    case 6:
      return ollama();
    case 7:
      return llama_server();
    case 8:
      return sglang();
    default:
      return anthropic();
  }
}

Planned RequestMaker::embedding() {
  Planned out;
  out.form = Form::kJson;
  switch (draw(0, 3)) {
    case 0:
      out.target = "/v1/embeddings";
      out.body = {{"input", chance(0.5) ? Json(words(5)) : Json({words(3), words(4)})}};
      if (chance(0.3)) out.body["encoding_format"] = "base64";
      break;
    case 1:
      out.target = "/api/embed";
      out.body = {{"input", {words(2), words(7)}}};
      break;
    case 2:
      out.target = "/api/embeddings";
      out.body = {{"prompt", words(6)}};
      break;
    default:
      out.target = chance(0.5) ? "/embedding" : "/embeddings";
      out.body = {{"content", words(6)}};
  }
  return out;
}

Planned RequestMaker::scoring() {
  Planned out;
  out.form = Form::kJson;
  if (chance(0.5)) {
    out.target = chance(0.5) ? "/score" : "/v1/score";
    out.body = {{"text_1", words(4)}, {"text_2", {words(5), words(3)}}};
  } else {
    out.target = one_of<std::string>({"/rerank", "/v1/rerank", "/v2/rerank"});
    out.body = {{"query", words(3)}, {"documents", {words(4), words(5), words(2)}}};
    if (chance(0.5)) out.body["top_n"] = 2;
  }
  return out;
}

Planned RequestMaker::tokens() {
  Planned out;
  out.form = Form::kJson;
  switch (draw(0, 3)) {
    case 0:
      out.target = "/tokenize";
      out.body = {{"prompt", prompt()}};
      break;
    case 1:
      out.target = "/detokenize";
      out.body = {{"tokens", {draw(0, 5000), draw(0, 5000)}}};
      break;
    case 2:
      out.target = "/apply-template";
      out.body = {{"messages", messages()}};
      break;
    default:
      out.target = "/v1/messages/count_tokens";
      out.body = {{"messages", messages(false)}};
  }
  return out;
}

/// Of a model; and what is refused.
Planned RequestMaker::facts() {
  Planned out;
  out.form = Form::kJson;
  switch (draw(0, 3)) {
    case 0:
      out.target = "/api/show";
      out.body = {{"model", "nobody-has-this"}};
      out.statuses = {404};
      break;
    case 1:
      out.target = fmt::format("/slots/{}?action={}", draw(0, 7),
                               one_of<std::string>({"save", "restore", "erase"}));
      out.body = {{"filename", one_of<std::string>({"one", "two"})}};
      out.statuses = {200, 400, 404, 409};  // nothing to save (any more), or nothing saved
      break;
    case 2:
      out.target = "/infill";
      out.body = {{"input_prefix", "a"}, {"input_suffix", "b"}};
      out.statuses = {400};
      if (chance(0.7)) break;
      out.target = "/flush_cache";
      out.body = Json::object();
      out.statuses = {200, 400};  // not while requests are under way
      out.form = Form::kAny;
      break;
    default:
      out.target = "/lora-adapters";
      out.body = Json::array();
      out.form = Form::kAny;
  }
  return out;
}

Planned RequestMaker::side_request() {
  switch (draw(0, 3)) {
    case 0:
      return embedding();
    case 1:
      return scoring();
    case 2:
      return tokens();
    default:
      return facts();
  }
}

Planned RequestMaker::look() {
  static const std::vector<std::string> kTargets = {
      "/health",          "/ready",          "/version",      "/metrics",       "/compat",
      "/v1/models",       "/props",          "/slots",        "/lora-adapters", "/api/tags",
      "/api/ps",          "/api/version",    "/openapi.json", "/model_info",    "/get_model_info",
      "/get_server_info", "/health_generate"};
  Planned out;
  out.method = "GET";
  out.target = one_of(kTargets);
  return out;
}

Planned RequestMaker::adapter_change() {
  Planned out;
  const bool loads = chance(0.6);
  out.target = loads ? "/v1/load_lora_adapter" : "/v1/unload_lora_adapter";
  out.body = {{"lora_name", adapter()}};
  if (loads)
    out.body["lora_path"] =
        one_of<std::string>({"plain", options_.names_adapters ? "whole" : "plain", "nothing"});
  out.statuses = {200, 400, 404};  // there already, or not there
  return out;
}

}  // namespace qw::soak
