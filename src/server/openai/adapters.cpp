// POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them.
#include <filesystem>

#include "server/openai/common.h"
#include "server/service.h"

namespace qw::server::openai {

namespace {

namespace fs = std::filesystem;

struct AdapterTask {
  std::string model, lora_name, lora_path;
};

const FieldTable<AdapterTask>& load_fields() {
  using Task = AdapterTask;
  static const FieldTable<Task> table = {
      string_field<Task>("lora_name", &Task::lora_name, "what clients will call it"),
      string_field<Task>("lora_path", &Task::lora_path, "within the directory of --lora-dir"),
      string_field<Task>("model", &Task::model, "not vLLM's: its base, by default the first model"),
      refused<Task>("load_inplace", "unload the adapter of that name first"),
  };
  return table;
}

const FieldTable<AdapterTask>& unload_fields() {
  using Task = AdapterTask;
  static const FieldTable<Task> table = {
      string_field<Task>("lora_name", &Task::lora_name),
      ignored<Task>("lora_int_id", "adapters are known by their names"),
  };
  return table;
}

/// Loading reads files that a client names, so whoever runs the server must have allowed it.
void check_allowed(const ServiceOptions& options) {
  if (!options.lora_dir.empty()) return;
  throw RequestError(ErrorKind::kUnsupported,
                     "[server] adapters: expected a server started with --lora-dir, the directory "
                     "that adapters may be loaded from, got one without",
                     "", 403);
}

/// The adapter's path as it is, links resolved. Errors: RequestError, unless it lies in `root`;
/// whether there is anything outside is not told.
std::string path_within(const std::string& root, const std::string& asked) {
  std::error_code error;
  const fs::path base = fs::canonical(root, error);
  if (error) {
    throw RequestError(ErrorKind::kIo,
                       "[server] adapters: expected the directory of --lora-dir, got none that can "
                       "be read any more",
                       "", 503);
  }
  const auto is_within = [&base](const fs::path& path) {
    const fs::path relative = path.lexically_relative(base);
    return !relative.empty() && *relative.begin() != ".." && !relative.is_absolute();
  };
  const fs::path given = (base / asked).lexically_normal();
  const fs::path path = is_within(given) ? fs::weakly_canonical(given, error) : given;
  if (error || !is_within(path) || path == base) {
    throw RequestError(ErrorKind::kInvalidArgument,
                       fmt::format("[request] lora_path: expected a path within the server's "
                                   "--lora-dir, got '{}'",
                                   printable(asked)),
                       "lora_path");
  }
  if (!fs::exists(path, error)) {
    throw RequestError(ErrorKind::kNotFound,
                       fmt::format("[request] lora_path: expected an adapter, got no file or "
                                   "directory at '{}'",
                                   printable(asked)),
                       "lora_path");
  }
  return path.string();
}

/// As vLLM answers: a sentence.
void succeed(const std::shared_ptr<Call>& call, const std::string& name, std::string_view what) {
  http::Response response;
  response.content_type = "text/plain; charset=utf-8";
  response.body = fmt::format("Success: LoRA adapter '{}' {} successfully.", printable(name), what);
  call->respond(std::move(response));
}

/// What is wrong with an adapter is wrong with what the client asked for.
RequestError as_request_error(const Error& error) {
  const bool is_theirs = error.kind() == ErrorKind::kCorrupt || error.kind() == ErrorKind::kIo ||
                         error.kind() == ErrorKind::kUnsupported;
  return {error.kind(), error.message(), "lora_path", is_theirs ? 400 : 0};
}

void load(const std::shared_ptr<Call>& call) {
  AdapterTask task;
  call->read(load_fields(), task);
  check_allowed(call->services().options);
  if (task.lora_name.empty()) refuse_field("lora_name", "expected a name, got none");
  if (!is_model_name(task.lora_name))
    refuse_field("lora_name", "expected {}, got '{}'", kModelNameRule, printable(task.lora_name));
  if (task.lora_path.empty()) refuse_field("lora_path", "expected a path, got none");
  const std::string path = path_within(call->services().options.lora_dir, task.lora_path);
  call->services().hub->load_adapter(
      task.model, {task.lora_name, path}, [call, task] { succeed(call, task.lora_name, "added"); },
      [call](const Error& error) { call->fail(as_request_error(error)); });
}

void unload(const std::shared_ptr<Call>& call) {
  AdapterTask task;
  call->read(unload_fields(), task);
  check_allowed(call->services().options);
  if (task.lora_name.empty()) refuse_field("lora_name", "expected a name, got none");
  call->services().hub->unload_adapter(task.lora_name);
  call->services().metrics.update(*call->services().hub);
  succeed(call, task.lora_name, "removed");
}

}  // namespace

std::vector<Endpoint> adapter_endpoints() {
  std::vector<Endpoint> all = {{"POST",
                                "/v1/load_lora_adapter",
                                &kOpenAi,
                                "Loads an adapter beside the serving of others (with --lora-dir)",
                                load,
                                infos_of(load_fields()),
                                true,
                                {.example = {{"lora_name", "name"}, {"lora_path", "path"}},
                                 .answer = types::string(),
                                 .answer_type = "text/plain",
                                 .needs_setup = true}},
                               {"POST",
                                "/v1/unload_lora_adapter",
                                &kOpenAi,
                                "Unloads one; requests under way end with it (with --lora-dir)",
                                unload,
                                infos_of(unload_fields()),
                                true,
                                {.example = {{"lora_name", "name"}},
                                 .answer = types::string(),
                                 .answer_type = "text/plain",
                                 .needs_setup = true}}};
  for (Endpoint& endpoint : all)
    endpoint.needs_admin = true;
  return all;
}

}  // namespace qw::server::openai
