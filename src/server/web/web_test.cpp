// The chat page's files over HTTP: types, caching, and the headers that keep the page harmless.
#include "server/web/web.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/web/page_files.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

using qw::testing::HttpAnswer;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class WebPage : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static HttpAnswer get(const std::string& path, const std::string& more = "") {
    HttpClient client = running_->client();
    client.send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + more + "\r\n");
    return client.read();
  }

  static RunningService* running_;
};
RunningService* WebPage::running_ = nullptr;

TEST_F(WebPage, StandsAtTheRootUnderAStrictPolicy) {
  const HttpAnswer page = get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_EQ(page.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(page.headers.at("content-security-policy"), web::kContentSecurityPolicy);
  EXPECT_EQ(page.headers.at("x-content-type-options"), "nosniff");
  EXPECT_EQ(page.headers.at("referrer-policy"), "no-referrer");
  EXPECT_THAT(page.body, StartsWith("<!doctype html>"));
}

TEST_F(WebPage, SendsEveryFileWithItsTypeAndItsOwnBytes) {
  ASSERT_GE(web::page_files().size(), 4u);
  size_t total = 0;
  for (const web::PageFile& file : web::page_files()) {
    total += file.bytes.size();
    if (file.path == "index.html") continue;
    const HttpAnswer answer = get("/" + std::string(file.path));
    EXPECT_EQ(answer.status, 200) << file.path;
    EXPECT_EQ(answer.body, file.bytes) << file.path;
    EXPECT_EQ(answer.headers.at("x-content-type-options"), "nosniff");
    const bool is_hashed = file.path.find("third-party") == std::string_view::npos;
    EXPECT_THAT(answer.headers.at("cache-control"), HasSubstr(is_hashed ? "immutable" : "no-cache"))
        << file.path;
    if (file.path.ends_with(".js")) {
      EXPECT_EQ(answer.headers.at("content-type"), "text/javascript; charset=utf-8");
    }
    if (file.path.ends_with(".css")) {
      EXPECT_EQ(answer.headers.at("content-type"), "text/css; charset=utf-8");
    }
  }
  EXPECT_LT(total, 1'000'000u);
}

TEST_F(WebPage, NamesNothingOutsideTheServer) {
  const std::string page = get("/").body;
  EXPECT_EQ(page.find("http://"), std::string::npos);
  EXPECT_EQ(page.find("https://"), std::string::npos);
  EXPECT_EQ(page.find("<style"), std::string::npos);
  EXPECT_EQ(page.find("<script>"), std::string::npos);
}

TEST_F(WebPage, IsNotSentAgainToWhoHasIt) {
  const std::string etag = get("/").headers.at("etag");
  EXPECT_THAT(etag, StartsWith("\""));
  EXPECT_THAT(etag, EndsWith("\""));
  for (const std::string& tags : {etag, "W/" + etag, "\"other\", " + etag, std::string("*")}) {
    const HttpAnswer again = get("/", "If-None-Match: " + tags + "\r\n");
    EXPECT_EQ(again.status, 304) << tags;
    EXPECT_EQ(again.body, "");
    EXPECT_EQ(again.headers.count("content-length"), 0u);
    EXPECT_EQ(again.headers.at("etag"), etag);
  }
  EXPECT_EQ(get("/", "If-None-Match: \"other\"\r\n").status, 200);
}

TEST_F(WebPage, HasNoOtherFiles) {
  for (const char* path : {"/assets/none.js", "/assets/../index.html", "/assets/%2e%2e/index.html"})
    EXPECT_EQ(get(path).status, 404) << path;
}

TEST(WebPageOff, TheRootSaysThatTheServerRuns) {
  ServiceOptions options = service_options();
  options.web_page = false;
  const RunningService running(options);
  const HttpAnswer root = running.client().get("/");
  EXPECT_EQ(root.status, 200);
  EXPECT_EQ(root.body, "Qianwen is running\n");
  EXPECT_EQ(running.client().get("/index.html").status, 404);
  EXPECT_EQ(running.client().get("/health").status, 200);
}

}  // namespace
}  // namespace qw::server
