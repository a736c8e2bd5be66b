// The chat page at "/", for people with a browser.
//
// Level 7 (server). It is a client like any other: what it does, it does over OpenAI's addresses.
#pragma once

#include <string_view>
#include <vector>

#include "server/endpoint.h"

namespace qw::server::web {

/// What the page may do, whatever a model writes into it: run and fetch what this server sends,
/// nothing else (Content Security Policy Level 3).
inline constexpr std::string_view kContentSecurityPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'";

std::vector<Endpoint> endpoints();
/// "/" where the page is left out: a line for those who ask whether a server is there, as clients of
/// Ollama do.
Endpoint root_without_page();

}  // namespace qw::server::web
