// The built chat page (web/dist/), which cmake/web_page.cmake puts into the program.
//
// Level 7 (server).
#pragma once

#include <span>
#include <string_view>

namespace qw::server::web {

struct PageFile {
  std::string_view path;    // "index.html", "assets/index-D4DcOqGS.js"
  std::string_view sha256;  // of the bytes, in hexadecimal digits
  std::string_view bytes;
};

std::span<const PageFile> page_files();

}  // namespace qw::server::web
