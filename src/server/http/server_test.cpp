#include "server/http/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "base/error.h"
#include "support/http_client.h"

namespace qw::http {
namespace {

using qw::testing::HttpAnswer;
using qw::testing::HttpClient;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

ServerOptions quick_options() {
  ServerOptions options;
  options.port = 0;
  options.max_header_bytes = 2048;
  options.max_body_bytes = 4096;
  options.header_timeout = 300ms;
  options.body_timeout = 300ms;
  options.idle_timeout = 20s;
  return options;
}

/// A server on a thread of its own.
class RunningServer {
 public:
  RunningServer(const ServerOptions& options, Handler handler, HeadCheck check_head = {})
      : server(options, std::move(handler), std::move(check_head)),
        thread_([this] { server.run(); }) {}
  ~RunningServer() {
    server.stop();
    thread_.join();
  }
  HttpClient client() const { return HttpClient(server.port()); }

  Server server;

 private:
  std::thread thread_;
};

void echo(const std::shared_ptr<Exchange>& exchange) {
  const Request& request = exchange->request();
  exchange->respond({200,
                     "text/plain",
                     {{"X-Test", "1"}},
                     request.method + " " + request.path + " " + request.body});
}

TEST(HttpServer, AnswersRequestsOnOneConnection) {
  RunningServer running(quick_options(), echo);
  HttpClient client = running.client();
  HttpAnswer answer = client.get("/a%20b?x=1");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "GET /a b ");
  EXPECT_EQ(answer.headers["x-test"], "1");
  answer = client.post("/c", "body");
  EXPECT_EQ(answer.body, "POST /c body");
}

TEST(HttpServer, ReadsRequestsThatComeTogetherAndInBits) {
  RunningServer running(quick_options(), echo);
  HttpClient client = running.client();
  client.send(HttpClient::post_text("/1", "a") + HttpClient::post_text("/2", "b"));
  EXPECT_EQ(client.read().body, "POST /1 a");
  EXPECT_EQ(client.read().body, "POST /2 b");
  for (const char c : HttpClient::post_text("/3", "c"))
    client.send(std::string_view(&c, 1));
  EXPECT_EQ(client.read().body, "POST /3 c");
}

TEST(HttpServer, RequestsThatWaitBehindAnAnswerAreReadAsTheyWereSent) {
  // A read is under way when the second request, which has waited, is parsed: what comes next must
  // not be mistaken for bytes that were there before.
  RunningServer* server = nullptr;
  RunningServer running(quick_options(), [&server](const std::shared_ptr<Exchange>& exchange) {
    if (exchange->request().path != "/1") return echo(exchange);
    std::thread([&server, exchange] {
      std::this_thread::sleep_for(100ms);
      server->server.post([exchange] { echo(exchange); });
    }).detach();
  });
  server = &running;
  HttpClient client = running.client();
  client.send(HttpClient::post_text("/1", "a"));
  std::this_thread::sleep_for(20ms);
  client.send(HttpClient::post_text("/2", "b"));
  EXPECT_EQ(client.read().body, "POST /1 a");
  EXPECT_EQ(client.read().body, "POST /2 b");
  EXPECT_EQ(client.post("/3", "c").body, "POST /3 c");
  EXPECT_EQ(client.post("/4", "other").body, "POST /4 other");
}

TEST(HttpServer, ReadsChunkedBodiesAndSays100Continue) {
  RunningServer running(quick_options(), echo);
  HttpClient client = running.client();
  client.send("POST /x HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
  client.send("2\r\nde\r\n0\r\n\r\n");
  EXPECT_EQ(client.read().body, "POST /x abcde");
  client.send("POST /y HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_THAT(client.read_until("\r\n\r\n"), HasSubstr("100 Continue"));
  client.send("ok");
  EXPECT_EQ(client.read().body, "POST /y ok");
}

TEST(HttpServer, AnswersHeadWithoutABody) {
  RunningServer running(quick_options(), echo);
  HttpClient client = running.client();
  client.send("HEAD /h HTTP/1.1\r\nHost: t\r\n\r\n");
  const HttpAnswer answer = client.read(/*is_head=*/true);
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers.at("content-length"), "8");  // "HEAD /h "
  EXPECT_EQ(client.get("/g").body, "GET /g ");
}

TEST(HttpServer, RefusesWhatIsTooLargeOrNotHttp) {
  RunningServer running(quick_options(), echo);
  const HttpAnswer large = running.client().post("/", std::string(5000, 'x'));
  EXPECT_EQ(large.status, 413);
  EXPECT_EQ(large.body, "[http] body: expected at most 4096 bytes, got more\n");
  const HttpAnswer long_header =
      running.client().post("/", "", "X: " + std::string(3000, 'x') + "\r\n");
  EXPECT_EQ(long_header.status, 431);
  EXPECT_THAT(long_header.body, HasSubstr("header: expected at most 2048 bytes"));
  HttpClient garbage = running.client();
  garbage.send("\x16\x03\x01 not http at all\r\n\r\n");
  EXPECT_EQ(garbage.read().status, 400);
  EXPECT_EQ(running.client().get("/%zz").status, 400);
  EXPECT_EQ(running.client().get("/%00").status, 400);
  EXPECT_EQ(running.client().get("/fine").status, 200);
}

TEST(HttpServer, ClosesConnectionsOfSlowClients) {
  RunningServer running(quick_options(), echo);
  HttpClient header = running.client();
  header.send("GET / HTTP/1.1\r\nHost:");
  HttpClient body = running.client();
  body.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n12");
  EXPECT_EQ(header.read().status, 0);
  EXPECT_EQ(body.read().status, 0);
}

TEST(HttpServer, StreamsInChunksAndByConnectionEndForOldClients) {
  const auto stream = [](const std::shared_ptr<Exchange>& exchange) {
    exchange->begin({200, "text/plain", {}, "one "});
    exchange->write("two ");
    exchange->write("");
    exchange->end();
  };
  RunningServer running(quick_options(), stream);
  HttpClient client = running.client();
  HttpAnswer answer = client.get("/");
  EXPECT_EQ(answer.body, "one two ");
  EXPECT_EQ(answer.headers["transfer-encoding"], "chunked");
  EXPECT_EQ(client.get("/").body, "one two ");
  HttpClient old = running.client();
  old.send("GET / HTTP/1.0\r\n\r\n");
  answer = old.read();
  EXPECT_EQ(answer.body, "one two ");
  EXPECT_EQ(answer.headers.count("transfer-encoding"), 0u);
}

TEST(HttpServer, TellsWhenTheClientGoes) {
  std::promise<void> asked, gone;
  std::shared_ptr<Exchange> held;
  RunningServer running(quick_options(), [&](std::shared_ptr<Exchange> exchange) {
    exchange->begin({200, "text/plain", {}, "x"});
    exchange->on_close([&] { gone.set_value(); });
    held = std::move(exchange);
    asked.set_value();
  });
  HttpClient client = running.client();
  client.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
  asked.get_future().wait();
  client.close();
  EXPECT_EQ(gone.get_future().wait_for(10s), std::future_status::ready);
  std::promise<bool> closed;
  running.server.post([&] {
    held->write("dropped");
    closed.set_value(held->closed());
    held.reset();
  });
  EXPECT_TRUE(closed.get_future().get());
}

// RFC 9112, 3.2.
TEST(HttpServer, WantsOneHost) {
  RunningServer running(quick_options(), echo);
  for (const char* head : {"GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
                           "POST / HTTP/1.1\r\nContent-Length: 1\r\n"}) {
    HttpClient client = running.client();
    client.send(std::string(head) + "\r\nx");
    const HttpAnswer answer = client.read();
    EXPECT_EQ(answer.status, 400) << head;
    EXPECT_THAT(answer.body, HasSubstr("Host"));
    EXPECT_FALSE(answer.keep_alive);
  }
  for (const char* head : {"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"}) {
    HttpClient client = running.client();
    client.send(head);
    EXPECT_EQ(client.read().status, 200) << head;
  }
}

// A client that closes its half of the connection is taken for gone, but for an answer that is
// whole.
TEST(HttpServer, TakesAHalfClosedClientForGone) {
  std::promise<void> gone;
  std::shared_ptr<Exchange> held;
  const std::string body(size_t{20} << 20, 'x');
  RunningServer running(quick_options(), [&](std::shared_ptr<Exchange> exchange) {
    if (exchange->request().path == "/whole")
      return exchange->respond({200, "text/plain", {}, body});
    exchange->on_close([&] { gone.set_value(); });
    held = std::move(exchange);
  });
  HttpClient waiting = running.client(), whole = running.client();
  waiting.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
  waiting.shutdown_send();
  EXPECT_EQ(gone.get_future().wait_for(10s), std::future_status::ready);
  whole.send("GET /whole HTTP/1.1\r\nHost: t\r\n\r\n");
  whole.shutdown_send();
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(whole.read().body.size(), body.size());
  EXPECT_EQ(whole.read().status, 0) << "and closed after it";
}

TEST(HttpServer, LetsGoOfClientsThatDoNotRead) {
  ServerOptions options = quick_options();
  options.max_unsent_bytes = size_t{1} << 20;
  std::promise<void> gone;
  RunningServer running(options, [&](const std::shared_ptr<Exchange>& exchange) {
    exchange->on_close([&] { gone.set_value(); });
    exchange->begin({200, "text/plain", {}, ""});
    for (int i = 0; i < 1000 && !exchange->closed(); ++i)
      exchange->write(std::string(size_t{1} << 16, 'x'));
  });
  HttpClient client = running.client();
  client.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(gone.get_future().wait_for(10s), std::future_status::ready);
}

TEST(HttpServer, WholeAnswersMayBeLargerThanWhatMayWait) {
  ServerOptions options = quick_options();
  options.max_unsent_bytes = size_t{1} << 20;
  const std::string body(size_t{5} << 20, 'x');
  RunningServer running(options, [&](const std::shared_ptr<Exchange>& exchange) {
    exchange->respond({200, "text/plain", {}, body});
  });
  HttpClient client = running.client();
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(client.get("/").body.size(), body.size());
}

TEST(HttpServer, RefusesByTheHeaderWithoutReadingTheBody) {
  RunningServer running(quick_options(), echo,
                        [](const Request& request) -> std::optional<Response> {
                          if (request.header("x-key") != nullptr) return std::nullopt;
                          return Response{401, "text/plain", {}, "no key for " + request.path};
                        });
  const std::string rest = " HTTP/1.1\r\nHost: t\r\nContent-Length: 4000\r\n";
  HttpClient without = running.client(), with = running.client();
  without.send("POST /a" + rest + "\r\nbegun");
  const HttpAnswer answer = without.read();
  EXPECT_EQ(answer.status, 401);
  EXPECT_EQ(answer.body, "no key for /a");
  EXPECT_FALSE(answer.keep_alive);
  with.send("POST /b" + rest + "X-Key: 1\r\n\r\n" + std::string(4000, 'y'));
  EXPECT_EQ(with.read().status, 200);
}

TEST(HttpServer, BodiesOfAllRequestsTogetherHaveALimit) {
  ServerOptions options = quick_options();
  options.max_bodies_bytes = 6000;
  options.body_timeout = 20s;
  RunningServer running(options, echo);
  const std::string head = "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4000\r\n\r\n";
  {
    HttpClient first = running.client(), second = running.client();
    first.send(head + std::string(3900, 'x'));
    std::this_thread::sleep_for(100ms);
    second.send(head + std::string(3900, 'x'));
    const HttpAnswer answer = second.read();
    EXPECT_EQ(answer.status, 503);
    EXPECT_EQ(answer.headers.count("retry-after"), 1u);
    first.send(std::string(100, 'x'));
    EXPECT_EQ(first.read().status, 200);
  }
  for (int i = 0; i < 4; ++i)  // what has been answered, or has gone, no longer counts
    EXPECT_EQ(running.client().post("/", std::string(4000, 'x')).status, 200);
}

TEST(HttpServer, DrainsIdleConnectionsAtOnceAndOthersAfterTheirAnswer) {
  std::promise<std::shared_ptr<Exchange>> taken;
  RunningServer running(quick_options(), [&](std::shared_ptr<Exchange> exchange) {
    if (exchange->request().path == "/now")
      return exchange->respond({200, "text/plain", {}, "now"});
    taken.set_value(std::move(exchange));
  });
  HttpClient idle = running.client(), busy = running.client();
  EXPECT_EQ(idle.get("/now").body, "now");
  busy.send("GET /later HTTP/1.1\r\nHost: t\r\n\r\n");
  std::shared_ptr<Exchange> exchange = taken.get_future().get();
  running.server.drain();
  EXPECT_EQ(idle.read().status, 0);
  EXPECT_ANY_THROW(running.client());
  running.server.post([exchange = std::move(exchange)] {
    exchange->respond({200, "text/plain", {}, "later"});
  });
  EXPECT_EQ(busy.read().body, "later");
  EXPECT_EQ(busy.read().status, 0);
}

TEST(HttpServer, AnswersAHandlersExceptionWith500) {
  RunningServer running(quick_options(),
                        [](const std::shared_ptr<Exchange>&) { throw std::runtime_error("oops"); });
  EXPECT_EQ(running.client().get("/").status, 500);
}

TEST(HttpServer, SaysWhyItCannotListen) {
  RunningServer running(quick_options(), echo);
  ServerOptions options = quick_options();
  options.port = running.server.port();
  try {
    Server second(options, echo);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    EXPECT_THAT(error.message(), HasSubstr("address: expected to listen on 127.0.0.1:"));
  }
  options.host = "example.invalid";
  EXPECT_THROW(Server(options, echo), Error);
  options = quick_options();
  options.tls_certificate = "cert.pem";
  EXPECT_THROW(Server(options, echo), Error);
}

TEST(SplitTarget, DecodesPathAndQuery) {
  Request request;
  ASSERT_TRUE(split_target("/v1/models/Qwen%2FQwen1.5?a=1+2&b=%E4%BD%A0&c&=d#f", request));
  EXPECT_EQ(request.path, "/v1/models/Qwen/Qwen1.5");
  ASSERT_EQ(request.query.size(), 4u);
  EXPECT_EQ(*request.parameter("a"), "1 2");
  EXPECT_EQ(*request.parameter("b"), "你");
  EXPECT_EQ(*request.parameter("c"), "");
  EXPECT_EQ(request.parameter("d"), nullptr);
  EXPECT_FALSE(split_target("/%2", request));
}

// As proxies are asked; the host that it names is the one that counts.
TEST(SplitTarget, TakesAbsoluteOnes) {
  Request request;
  request.headers = {{"host", "other.example"}, {"Accept", "*/*"}};
  ASSERT_TRUE(split_target("http://127.0.0.1:8000/v1/models?a=b", request));
  EXPECT_EQ(request.path, "/v1/models");
  EXPECT_EQ(*request.parameter("a"), "b");
  EXPECT_EQ(*request.header("Host"), "127.0.0.1:8000");
  EXPECT_EQ(request.headers.size(), 2u);
  ASSERT_TRUE(split_target("HTTPS://a.example?x=1", request));
  EXPECT_EQ(request.path, "/");
  EXPECT_EQ(*request.parameter("x"), "1");
  EXPECT_EQ(*request.header("Host"), "a.example");
  ASSERT_TRUE(split_target("/http://a", request));
  EXPECT_EQ(request.path, "/http://a");
}

}  // namespace
}  // namespace qw::http
