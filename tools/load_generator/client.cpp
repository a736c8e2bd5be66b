#include "load_generator/client.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace qw::load {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Json = nlohmann::json;

/// Takes the events of a stream as their bytes come.
class EventReader {
 public:
  explicit EventReader(Outcome& outcome) : outcome_(outcome) {}

  void take(std::string_view bytes) {
    text_ += bytes;
    size_t end = 0;
    while ((end = text_.find("\n\n")) != std::string::npos) {
      event(std::string_view(text_).substr(0, end));
      text_.erase(0, end + 2);
    }
  }
  bool done() const { return done_; }

 private:
  void event(std::string_view line) {
    if (!line.starts_with("data: ")) return;
    line.remove_prefix(6);
    if (line == "[DONE]") {
      done_ = true;
      return;
    }
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_discarded()) throw std::runtime_error("an event that is no JSON");
    if (json.contains("error")) throw std::runtime_error(json["error"].dump());
    if (json.contains("content")) native(json);
    if (const auto usage = json.find("usage"); usage != json.end() && usage->is_object()) {
      outcome_.n_prompt = usage->value("prompt_tokens", int64_t{0});
      outcome_.n_generated = usage->value("completion_tokens", int64_t{0});
      if (const auto details = usage->find("prompt_tokens_details");
          details != usage->end() && details->is_object())
        outcome_.n_cached = details->value("cached_tokens", int64_t{0});
    }
    for (const Json& choice : json.value("choices", Json::array())) {
      const Json delta = choice.value("delta", Json::object());
      const bool has_text = !choice.value("text", "").empty() ||
                            (delta.contains("content") && delta["content"].is_string() &&
                             !delta["content"].get_ref<const std::string&>().empty());
      const bool has_ids = choice.contains("token_ids") && !choice["token_ids"].empty();
      if (has_text || has_ids) outcome_.tokens.push_back(Clock::now());
    }
  }

  /// As llama.cpp's server says it on its own /completion.
  void native(const Json& json) {
    const bool has_ids = json.contains("tokens") && !json["tokens"].empty();
    done_ = json.value("stop", false);
    if (!done_ && (has_ids || !json["content"].get_ref<const std::string&>().empty()))
      outcome_.tokens.push_back(Clock::now());
    if (!done_) return;
    outcome_.n_prompt = json.value("tokens_evaluated", int64_t{0});
    outcome_.n_generated = json.value("tokens_predicted", int64_t{0});
    outcome_.n_cached = json.value("tokens_cached", int64_t{0});
  }

  Outcome& outcome_;
  std::string text_;
  bool done_ = false;
};

void send(beast::tcp_stream& stream, const Target& target, const std::string& body) {
  http::request<http::string_body> request(http::verb::post, target.path, 11);
  request.set(http::field::host, target.host + ":" + target.port);
  request.set(http::field::content_type, "application/json");
  if (!target.api_key.empty()) request.set(http::field::authorization, "Bearer " + target.api_key);
  request.body() = body;
  request.prepare_payload();
  http::write(stream, request);
}

void read_stream(beast::tcp_stream& stream, Outcome& outcome, Clock::time_point give_up) {
  beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  http::read_header(stream, buffer, parser);
  EventReader events(outcome);
  std::string failure;
  char bytes[16384];
  while (!parser.is_done()) {
    parser.get().body().data = bytes;
    parser.get().body().size = sizeof bytes;
    boost::system::error_code error;
    http::read_some(stream, buffer, parser, error);
    if (error && error != http::error::need_buffer) throw boost::system::system_error(error);
    const std::string_view got(bytes, sizeof bytes - parser.get().body().size);
    if (parser.get().result() == http::status::ok) {
      events.take(got);
    } else {
      failure += got;
    }
    if (Clock::now() > give_up) throw std::runtime_error("not done in time");
  }
  if (parser.get().result() != http::status::ok)
    throw std::runtime_error("status " + std::to_string(parser.get().result_int()) + " " + failure);
  if (!events.done()) throw std::runtime_error("a stream that ends without its last event");
}

}  // namespace

Target target_of(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) throw std::invalid_argument("expected http://HOST:PORT: " + url);
  Target target;
  std::string rest = url.substr(kScheme.size());
  const size_t slash = rest.find('/');
  if (slash != std::string::npos && slash + 1 < rest.size()) target.path = rest.substr(slash);
  rest = rest.substr(0, slash);
  const size_t colon = rest.rfind(':');
  target.host = rest.substr(0, colon);
  target.port = colon == std::string::npos ? "80" : rest.substr(colon + 1);
  if (target.host.empty() || target.port.empty())
    throw std::invalid_argument("expected http://HOST:PORT: " + url);
  return target;
}

Outcome run_request(const Target& target, const std::string& body, Clock::time_point give_up) {
  Outcome outcome;
  outcome.sent = Clock::now();
  try {
    asio::io_context io;
    beast::tcp_stream stream(io);
    asio::ip::tcp::resolver resolver(io);
    stream.connect(resolver.resolve(target.host, target.port));
    stream.socket().set_option(asio::ip::tcp::no_delay(true));
    send(stream, target, body);
    read_stream(stream, outcome, give_up);
    outcome.ok = true;
  } catch (const std::exception& error) {
    outcome.error = error.what();
  }
  return outcome;
}

}  // namespace qw::load
