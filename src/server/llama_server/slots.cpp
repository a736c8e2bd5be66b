// GET /slots; POST /slots/{id}?action=save, restore, erase.
#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "server/generation/sampling_fields.h"
#include "server/llama_server/common.h"
#include "server/llama_server/slot_jobs.h"
#include "server/service.h"

namespace qw::server::llama_server {

namespace {

/// Numbers name what was computed last under them; as many are shown as working as there are
/// requests under way. Who watches neither loads a model nor keeps it loaded: of one that is not,
/// the slots that it will have are shown.
void slots(const std::shared_ptr<Call>& call) {
  const std::string name = asked_model(call);
  const std::shared_ptr<ServedModel> model = call->services().hub->find(name).loaded;
  const OpenOptions& open = call->services().hub->spec(name).open;
  const int64_t n_running = model ? model->host().stats().n_running : 0;
  const int64_t n_slots =
      model ? model->files().engine_options.n_slots : open.engine.n_slots;
  const std::string* fail = call->request().parameter("fail_on_no_slot");
  if (fail != nullptr && *fail == "1" && n_running >= n_slots) {
    throw RequestError(ErrorKind::kOutOfMemory,
                       fmt::format("[server] slots: expected a free one, got {} of {} at work",
                                   n_running, n_slots),
                       "", 503);
  }
  Json list = Json::array();
  for (int64_t id = 0; id < n_slots; ++id) {
    list.push_back({{"id", id},
                    {"n_ctx", model ? model->context() : open.engine.ctx},
                    {"speculative", !open.draft_model.empty()},
                    {"is_processing", id < n_running}});
  }
  call->respond(std::move(list));
}

struct SlotRequest {
  std::string filename, cache_salt;
};

const FieldTable<SlotRequest>& slot_fields() {
  static const FieldTable<SlotRequest> table = {
      string_field<SlotRequest>("filename", &SlotRequest::filename,
                                "a plain name within --slot-save-path"),
      salt_field<SlotRequest>(),
  };
  return table;
}

/// A name within the directory: no path, nothing that is hidden, not the directory's secret, and
/// none that files have while they are written (which go at a start, base/atomic_file.h).
void check_filename(const std::string& name) {
  const bool is_plain =
      !name.empty() && name.size() <= 200 && name.front() != '.' && name != "secret" &&
      name.find(".tmp-") == std::string::npos &&
      std::ranges::none_of(name, [](unsigned char c) { return c == '/' || c == '\\' || c < 32; });
  if (!is_plain) {
    refuse_field("filename", "expected a plain name of up to 200 bytes without .tmp-, got '{}'",
                 printable(name));
  }
}

int64_t read_slot(const Call& call, int64_t n_slots) {
  const std::string& text = call.path_parameter("id");
  int64_t slot = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), slot);
  if (error != std::errc{} || end != text.data() + text.size() || slot < 0 || slot >= n_slots)
    refuse_field("id", "expected a slot from 0 to {}, got '{}'", n_slots - 1, printable(text));
  return slot;
}

void slot_action(const std::shared_ptr<Call>& call) {
  const std::string* given = call->request().parameter("action");
  const std::string action = given == nullptr ? "" : *given;
  if (action != "save" && action != "restore" && action != "erase")
    refuse_field("action", "expected save, restore or erase, got '{}'", printable(action));
  call->limit_time_by_header();
  SlotRequest request;
  const bool erases = action == "erase";
  if (!erases || !call->request().body.empty()) call->read(slot_fields(), request);
  if (erases && !request.filename.empty()) {
    call->warn("filename: ignored (what is erased is in memory)");
    request.filename.clear();
  }
  with_asked_model(call, [call, action, request](const std::shared_ptr<ServedModel>& model) {
    const int64_t slot = read_slot(*call, model->slots().size());
    if (model->files().slot_hash == nullptr) {
      throw RequestError(ErrorKind::kUnsupported,
                         "[request] slots: expected a server that was started with "
                         "--slot-save-path, got one without",
                         "", 501);
    }
    if (action != "erase") check_filename(request.filename);
    const auto start = action == "save"      ? save_slot
                       : action == "restore" ? restore_slot
                                             : erase_slot;
    start({call, model, slot, request.filename, hash_salt(request.cache_salt)});
  });
}

}  // namespace

std::vector<Endpoint> slot_endpoints() {
  return {{"GET",
           "/slots",
           &kLlamaServer,
           "Places for requests, and which are at work",
           slots,
           {},
           true,
           {.answer = types::list(types::object()), .query = {"model", "fail_on_no_slot"}}},
          {"POST",
           "/slots/{id}",
           &kLlamaServer,
           "Saves, restores or erases what was computed last under a number (?action=)",
           slot_action,
           infos_of(slot_fields()),
           true,
           {.example = {{"filename", "a.bin"}},
            .needs_setup = true,
            .query = {"model", "action"},
            .path_example = "0"},
           "",
           /*needs_admin=*/true}};
}

}  // namespace qw::server::llama_server
