// qianwen serve: models over HTTP, for the clients of other systems.
#include <sys/resource.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <exception>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "app/command.h"
#include "app/open.h"
#include "app/version.h"
#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "server/openapi.h"
#include "server/service.h"
#include "text/tools/tool_format.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  server::ServiceOptions service;
  std::string name;                       // of MODEL; "": its directory's or file's
  std::vector<std::string> more_models;   // NAME=PATH
  std::vector<std::string> lora_modules;  // NAME=PATH
  std::vector<std::string> tool_formats;  // FORMAT or NAME=FORMAT
  int64_t slots = 8;
  std::string slot_save_path;
  int64_t kv_tokens = 0;
  bool check_integrity = false;
  int64_t keep_alive_s = -1;
  int64_t drain_s = 30, timeout_s = 0;
  std::string new_key;
  bool new_key_is_admin = false;
  bool openapi = false;
  std::string pooling = "last";
  std::string generation_config = "auto";
};

/// The last part of a path that says something.
std::string name_of_path(const std::string& path) {
  const std::filesystem::path clean = std::filesystem::path(path).lexically_normal();
  const std::filesystem::path last = clean.has_filename() ? clean : clean.parent_path();
  return last.extension() == ".gguf" ? last.stem().string() : last.filename().string();
}

server::ModelSpec spec_of(const Options& options, std::string name, std::string path) {
  server::ModelSpec spec;
  spec.open = open_options(options);
  spec.open.engine.n_slots = options.slots;
  spec.open.slot_save_path = options.slot_save_path;
  spec.open.engine.kv_tokens = options.kv_tokens;
  spec.open.engine.check_integrity = options.check_integrity;
  spec.open.on_warning = [name](const std::string& text) { logger().warn("{}: {}", name, text); };
  if (name != path) spec.aliases.push_back(path);
  spec.name = std::move(name);
  spec.path = std::move(path);
  return spec;
}

/// NAME=PATH, with a name that nothing else has.
std::pair<std::string, std::string> split_named(const std::string& flag, const std::string& text,
                                                const std::vector<server::ModelSpec>& specs) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos || equals + 1 == text.size()) {
    fail(ErrorKind::kInvalidArgument, "command line", "{}: expected NAME=PATH, got '{}'", flag,
         printable(text));
  }
  const std::string name = text.substr(0, equals);
  if (!server::is_model_name(name)) {
    fail(ErrorKind::kInvalidArgument, "command line", "{}: expected {}, got '{}'", flag,
         server::kModelNameRule, printable(name));
  }
  for (const server::ModelSpec& other : specs) {
    const auto& modules = other.lora_modules;
    if (other.name != name &&
        std::ranges::find(modules, name, &server::LoraModule::name) == modules.end())
      continue;
    fail(ErrorKind::kInvalidArgument, "command line",
         "{}: expected every model to have a name of its own, got '{}' twice", flag,
         printable(name));
  }
  return {name, text.substr(equals + 1)};
}

/// FORMAT of all models, or NAME=FORMAT of one; of two that are of a model the last holds. A name
/// may have a '=', a format has none.
void set_tool_formats(const std::vector<std::string>& texts,
                      std::vector<server::ModelSpec>& specs) {
  for (const std::string& text : texts) {
    const size_t equals = text.rfind('=');
    const bool is_of_one = equals != std::string::npos;
    const std::string name = is_of_one ? text.substr(0, equals) : "";
    std::string format = is_of_one ? text.substr(equals + 1) : text;
    if (format == "auto") {
      format.clear();
    } else {
      const std::vector<std::string_view> known = tool_format_names();
      if (std::ranges::find(known, format) == known.end()) {
        fail(ErrorKind::kInvalidArgument, "command line",
             "--tool-format: expected auto, qwen, react or hermes, or NAME= and one of them, got "
             "'{}'",
             printable(text));
      }
    }
    bool is_known = !is_of_one;
    for (server::ModelSpec& spec : specs) {
      if (is_of_one && spec.name != name) continue;
      spec.tool_format = format;
      is_known = true;
    }
    if (!is_known) {
      fail(ErrorKind::kNotFound, "command line",
           "--tool-format: expected a model's name before '=', got '{}'", printable(name));
    }
  }
}

std::vector<server::ModelSpec> specs_of(const Options& options) {
  const std::string path = model_path(options);
  if (!options.name.empty() && !server::is_model_name(options.name)) {
    fail(ErrorKind::kInvalidArgument, "command line", "--served-model-name: expected {}, got '{}'",
         server::kModelNameRule, printable(options.name));
  }
  std::vector<server::ModelSpec> specs;
  specs.push_back(spec_of(options, options.name.empty() ? name_of_path(path) : options.name, path));
  for (const std::string& text : options.more_models) {
    const auto [name, other] = split_named("--model", text, specs);
    specs.push_back(spec_of(options, name, other));
    specs.back().open.adapters.clear();  // those are of MODEL
    specs.back().open.draft_model.clear();
  }
  for (size_t i = 1; i < specs.size(); ++i) {
    std::error_code ignored;
    if (std::filesystem::exists(specs[i].path, ignored)) continue;
    fail(ErrorKind::kNotFound, "command line",
         "--model: expected a checkpoint for {}, got none ({})", printable(specs[i].name),
         printable(specs[i].path, 4096));
  }
  for (const std::string& text : options.lora_modules) {
    auto [name, adapter] = split_named("--lora-modules", text, specs);
    specs.front().lora_modules.push_back({std::move(name), std::move(adapter)});
  }
  set_tool_formats(options.tool_formats, specs);
  if (options.keep_alive_s >= 0) {
    for (server::ModelSpec& spec : specs)
      spec.keep_alive = std::chrono::seconds(options.keep_alive_s);
  }
  return specs;
}

/// As many clients as the system lets one process have files open, up to the server's own limit.
void take_descriptors(http::ServerOptions& http) {
  constexpr size_t kOthers = 128;  // weights, adapters, caches
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min<rlim_t>(limit.rlim_max, http.max_connections + kOthers);
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
    getrlimit(RLIMIT_NOFILE, &limit);
  }
  const size_t room = std::max<rlim_t>(limit.rlim_cur, kOthers + 1) - kOthers;
  if (room >= http.max_connections) return;
  logger().warn("{} clients at most at a time: the system lets this process open {} files", room,
                limit.rlim_cur);
  http.max_connections = room;
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

/// Answers requests on a thread of its own, to the service's end or this object's.
class ServingThread {
 public:
  explicit ServingThread(server::Service& service)
      : service_(service), thread_([this] { run(); }) {}
  ~ServingThread() {
    if (!thread_.joinable()) return;
    service_.stop();
    thread_.join();
  }
  ServingThread(const ServingThread&) = delete;
  ServingThread& operator=(const ServingThread&) = delete;

  /// Waits for the service's end; throws what ended it, if something did.
  void join() {
    thread_.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void run() {
    try {
      service_.run();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  server::Service& service_;
  std::exception_ptr failure_;
  std::thread thread_;
};

std::string url_of(const http::ServerOptions& http, uint16_t port) {
  const bool is_v6 = http.host.find(':') != std::string::npos;
  return fmt::format("{}://{}:{}", http.tls_certificate.empty() ? "http" : "https",
                     is_v6 ? "[" + http.host + "]" : http.host, port);
}

void serve(Options& options) {
  init_logging(options.log_level);
  if (!options.new_key.empty()) {
    const server::KeyRing::NewKey key =
        server::KeyRing::make(options.new_key, options.new_key_is_admin);
    return print_json({{"key", key.key}, {"entry", nlohmann::ordered_json::parse(key.entry)}});
  }
  server::ServiceOptions& settings = options.service;
  settings.models = specs_of(options);
  if (options.openapi) {
    return print_json(server::openapi(server::all_endpoints(settings.web_page),
                                      {QIANWEN_VERSION, settings.models.front().name,
                                       settings.strict, !settings.key_file.empty()}));
  }
  settings.pooling = options.pooling == "mean" ? Pooling::kMean : Pooling::kLast;
  settings.model_defaults = options.generation_config == "auto";
  settings.drain_timeout = std::chrono::seconds(options.drain_s);
  if (options.timeout_s > 0) settings.request_timeout = std::chrono::seconds(options.timeout_s);
  settings.origins.loopback_only = is_loopback(settings.http.host);
  if (!settings.origins.loopback_only && settings.key_file.empty())
    logger().warn("{} is reachable from outside, and everybody may use it (--api-key-file)",
                  settings.http.host);
  take_descriptors(settings.http);
  keep_little_freed_memory();
  settings.stop_asked = &interrupted();
  settings.version = QIANWEN_VERSION;
  settings.build = build_commit();
  server::Service service(settings);
  const std::string url = url_of(settings.http, service.port());
  // Probes are answered while the model is loaded (/health 200, /ready 503), and requests refused.
  ServingThread serving(service);
  logger().info("listening at {}, loading {}", url, settings.models.front().name);
  if (!service.load_default()) {
    logger().info("ended before {} was loaded", settings.models.front().name);
    return;
  }
  logger().info("serving {} at {} ({} slots); Ctrl-C ends", settings.models.front().name, url,
                options.slots);
  if (options.json) {
    print_json({{"url", url}, {"port", service.port()}, {"model", settings.models.front().name}});
  }
  serving.join();
}

CLI::Validator not_empty() {
  return CLI::Validator(
      [](const std::string& text) { return text.empty() ? "expected a name, got none" : ""; }, "");
}

/// "https://chat.example:8443", as browsers send it, or "*".
CLI::Validator an_origin() {
  return CLI::Validator(
      [](const std::string& text) -> std::string {
        const size_t slashes = text.find("://");
        const std::string_view rest =
            std::string_view(text).substr(slashes == std::string::npos ? 0 : slashes + 3);
        const bool is_origin = slashes != std::string::npos && slashes > 0 && !rest.empty() &&
                               rest.find_first_of("/?# ") == std::string_view::npos;
        if (is_origin || text == "*") return "";
        return fmt::format("expected SCHEME://HOST[:PORT] without a path, or *, got '{}'",
                           printable(text));
      },
      "");
}

/// "llm.example", without a port, or "*".
CLI::Validator a_host_name() {
  return CLI::Validator(
      [](const std::string& text) -> std::string {
        if (!text.empty() && text.find_first_of("/:?# ") == std::string::npos) return "";
        return fmt::format("expected a host's name without a port, or *, got '{}'",
                           printable(text));
      },
      "");
}

void add_address_flags(CLI::App& app, Options& options) {
  http::ServerOptions& http = options.service.http;
  app.add_option("--host", http.host,
                 "Address to listen on; others than this machine's own "
                 "loopback make the server reachable from outside")
      ->capture_default_str();
  app.add_option("--port", http.port, "Port to listen on (0: any free one)")
      ->capture_default_str()
      ->check(integer_in(0, 65535));
  app.add_option("--ssl-certfile", http.tls_certificate, "PEM file of a certificate chain: HTTPS");
  app.add_option("--ssl-keyfile", http.tls_key, "PEM file of the certificate's private key");
  app.add_flag_callback(
      "--no-access-log", [&options] { options.service.access_log = false; },
      "Do not log a line for each answer");
  app.add_flag_callback(
      "--no-web", [&options] { options.service.web_page = false; }, "Leave out the chat page at /");
}

void add_model_flags(CLI::App& app, Options& options) {
  app.add_option("--slots", options.slots, "Requests computed at the same time; more wait")
      ->capture_default_str()
      ->check(integer_in(1, 4096));
  app.add_option("--slot-save-path", options.slot_save_path,
                 "Directory for what clients of llama.cpp's server save of their slots");
  app.add_option("--served-model-name", options.name,
                 "What clients call MODEL (default: the name of its directory or file)")
      ->check(not_empty());
  app.add_option("--model", options.more_models,
                 "NAME=PATH: another model, loaded when it is first asked for; may be repeated")
      ->allow_extra_args(false);
  app.add_option("--lora-modules", options.lora_modules,
                 "NAME=PATH: an adapter of MODEL that clients call by a name of its own; may be "
                 "repeated")
      ->allow_extra_args(false);
  app.add_option("--lora-dir", options.service.lora_dir,
                 "Let clients load and unload adapters while the server runs "
                 "(/v1/load_lora_adapter), from this directory only")
      ->check(CLI::ExistingDirectory);
  app.add_option(
         "--tool-format", options.tool_formats,
         "[NAME=]FORMAT: how tools are told and called where a request does not say, of all "
         "models or of one: qwen, react, hermes, or auto (the default: by the chat "
         "template); may be repeated")
      ->allow_extra_args(false);
  app.add_option("--keep-alive", options.keep_alive_s,
                 "Unload a model after so many seconds without a request (-1, the default: never)")
      ->check(CLI::Range(int64_t{-1}, int64_t{1} << 40));
  app.add_option("--generation-config", options.generation_config,
                 "auto: what a request leaves open is as the checkpoint's generation_config.json "
                 "says; none: neutral values")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "none"}));
  app.add_option("--pooling", options.pooling,
                 "What embeddings are of a text's hidden states: last (as vLLM) or mean")
      ->capture_default_str()
      ->check(CLI::IsMember({"last", "mean"}));
  app.add_flag("--strict", options.service.strict, "Unknown fields are errors, not warnings");
  // For tests of the server, not shown: a cache too small for what is asked, and a check of all
  // that the engine keeps after every step.
  app.add_option("--kv-tokens", options.kv_tokens)
      ->check(integer_in(0, int64_t{1} << 40))
      ->group("");
  app.add_flag("--check-integrity", options.check_integrity)->group("");
}

void add_access_flags(CLI::App& app, Options& options) {
  app.add_option("--api-key-file", options.service.key_file,
                 "JSON file of the keys that clients must show, with their quotas");
  CLI::Option* make_key =
      app.add_option("--make-key", options.new_key,
                     "Print a new key and its entry for the key file, under this name, and end")
          ->check(not_empty());
  app.add_flag("--admin", options.new_key_is_admin,
               "With --make-key: one that may change what others get (adapters, caches, slots)")
      ->needs(make_key);
  app.add_option("--cors-origin", options.service.origins.origins,
                 "A web page's origin that may call the server from browsers (*: any); may be "
                 "repeated")
      ->check(an_origin())
      ->allow_extra_args(false);
  app.add_option("--allowed-host", options.service.origins.hosts,
                 "A name under which the server may be called, beside addresses and localhost "
                 "(*: any); may be repeated")
      ->check(a_host_name())
      ->allow_extra_args(false);
}

void add_limit_flags(CLI::App& app, Options& options) {
  app.add_option("--max-queue", options.service.max_queue,
                 "Requests that may wait for a slot; more are refused with status 429")
      ->capture_default_str()
      ->check(integer_in(0, 1'000'000));
  app.add_option("--max-body", options.service.http.max_body_bytes,
                 "Bytes of a request at most; larger ones are refused with status 413")
      ->capture_default_str()
      ->check(integer_in(1024, uint64_t{1} << 32));
  app.add_option("--request-timeout", options.timeout_s,
                 "Seconds that an answer may take, waiting included (0, the default: no limit)")
      ->check(integer_in(0, 86400 * 365));
  app.add_option("--drain-timeout", options.drain_s,
                 "Seconds that answers under way have to end after SIGTERM or Ctrl-C")
      ->capture_default_str()
      ->check(integer_in(0, 86400));
}

}  // namespace

Command register_serve(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("serve", "Serve models over HTTP (default: the bundled one)");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  add_draft_flag(*app, *options);
  add_address_flags(*app, *options);
  add_model_flags(*app, *options);
  add_access_flags(*app, *options);
  add_limit_flags(*app, *options);
  app->add_flag("--openapi", options->openapi,
                "Print the OpenAPI document (also at /openapi.json) and end");
  return {app, [options] { serve(*options); }};
}

}  // namespace qw::app
