#include "server/web/web.h"

#include <algorithm>
#include <utility>

#include "server/call.h"
#include "server/request_error.h"
#include "server/web/page_files.h"

namespace qw::server::web {

namespace {

Json plain_error(const Error& error, int status) {
  return {{"error", {{"code", status}, {"message", error.message()}}}};
}

const Dialect kWeb{"web", plain_error};

std::string_view content_type(std::string_view path) {
  static constexpr std::pair<std::string_view, std::string_view> kTypes[] = {
      {".html", "text/html; charset=utf-8"}, {".js", "text/javascript; charset=utf-8"},
      {".css", "text/css; charset=utf-8"},   {".svg", "image/svg+xml"},
      {".md", "text/plain; charset=utf-8"},  // licences: browsers show it
  };
  for (const auto& [extension, type] : kTypes) {
    if (path.ends_with(extension)) return type;
  }
  return "application/octet-stream";
}

/// Whether the name holds a hash of the contents ("index-D4DcOqGS.js"): such a file never changes.
bool is_named_by_contents(std::string_view path) {
  constexpr size_t kHashLength = 8;
  const std::string_view stem = path.substr(0, path.rfind('.'));
  return stem.size() > kHashLength && stem[stem.size() - kHashLength - 1] == '-';
}

/// If-None-Match, RFC 9110 13.1.2: "*", or a list of tags, of which weak ones are as good here.
bool has_already(const http::Request& request, std::string_view etag) {
  const std::string* tags = request.header("if-none-match");
  return tags != nullptr && (*tags == "*" || tags->find(etag) != std::string::npos);
}

void send(const std::shared_ptr<Call>& call, std::string_view path) {
  const auto files = page_files();
  const auto file = std::ranges::find(files, path, &PageFile::path);
  if (file == files.end()) {
    throw RequestError(
        ErrorKind::kNotFound,
        fmt::format("[web] file: expected one of the page's, got '{}'", printable(path)));
  }
  const std::string etag = fmt::format("\"{}\"", file->sha256.substr(0, 32));
  http::Response response;
  response.headers = {
      {"Content-Security-Policy", std::string(kContentSecurityPolicy)},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cross-Origin-Resource-Policy", "same-origin"},
      {"ETag", etag},
      {"Cache-Control",
       is_named_by_contents(path) ? "public, max-age=31536000, immutable" : "no-cache"},
  };
  if (has_already(call->request(), etag)) {
    response.status = 304;
    response.content_type.clear();
  } else {
    response.content_type = content_type(path);
    response.body = file->bytes;
  }
  call->respond(std::move(response));
}

}  // namespace

std::vector<Endpoint> endpoints() {
  return {{"GET",
           "/",
           &kWeb,
           "The chat page",
           [](const std::shared_ptr<Call>& call) { send(call, "index.html"); },
           {},
           false,
           {.answer = types::string(), .answer_type = "text/html"}},
          {"GET",
           "/assets/{name...}",
           &kWeb,
           "The chat page's files",
           [](const std::shared_ptr<Call>& call) {
             send(call, "assets/" + call->path_parameter("name"));
           },
           {},
           false,
           {.answer = types::anything(), .answer_type = "*/*", .path_example = "third-party.md"}}};
}

Endpoint root_without_page() {
  return {
      "GET",
      "/",
      &kWeb,
      "Says that the server runs",
      [](const std::shared_ptr<Call>& call) {
        call->respond(http::Response{200, "text/plain; charset=utf-8", {}, "Qianwen is running\n"});
      },
      {},
      false,
      {.answer = types::string(), .answer_type = "text/plain"}};
}

}  // namespace qw::server::web
