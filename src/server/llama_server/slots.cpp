// GET /slots; POST /slots/{id}?action=save, restore, erase.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <type_traits>

#include "base/error.h"
#include "base/log.h"
#include "engine/current_error.h"
#include "engine/kv_snapshot.h"
#include "server/generation/sampling_fields.h"
#include "server/llama_server/common.h"
#include "server/service.h"

namespace qw::server::llama_server {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Numbers name what was computed last under them; as many are shown as working as there are
/// requests under way.
void slots(const std::shared_ptr<Call>& call) {
  with_asked_model(call, [call](const std::shared_ptr<ServedModel>& model) {
    const HostStats stats = model->host().stats();
    const int64_t n_slots = model->files().engine_options.n_slots;
    const std::string* fail = call->request().parameter("fail_on_no_slot");
    if (fail != nullptr && *fail == "1" && stats.n_running >= n_slots) {
      throw RequestError(ErrorKind::kOutOfMemory,
                         fmt::format("[server] slots: expected a free one, got {} of {} at work",
                                     stats.n_running, n_slots),
                         "", 503);
    }
    Json list = Json::array();
    for (int64_t id = 0; id < n_slots; ++id) {
      list.push_back({{"id", id},
                      {"n_ctx", model->context()},
                      {"speculative", model->files().draft_model != nullptr},
                      {"is_processing", id < stats.n_running}});
    }
    call->respond(std::move(list));
  });
}

struct SlotTask {
  std::string filename, cache_salt;
};

/// One action on one slot: the parts run on the threads that they belong to, each within try_().
class SlotAction : public std::enable_shared_from_this<SlotAction> {
 public:
  SlotAction(std::shared_ptr<Call> call, std::shared_ptr<ServedModel> model, int64_t slot,
             const SlotTask& task)
      : call_(std::move(call)),
        model_(std::move(model)),
        slot_(slot),
        filename_(task.filename),
        salt_(hash_salt(task.cache_salt)),
        start_(Clock::now()) {}

  void save() {
    SlotBoard::Sequence last = model_->slots().last(slot_);
    on_engine([last = std::move(last)](SlotAction& self, Engine& engine) {
      auto taken = std::make_shared<KvSnapshot>(
          engine.snapshot(last.scope, last.tokens, self.model_->files().slot_hash_index));
      self.on_worker([taken](SlotAction& action) {
        const int64_t n_bytes = action.with_file(
            "write", [&] { return write_snapshot(action.path(), *taken, action.hash()); });
        action.answer({{"n_saved", std::ssize(taken->tokens)},
                       {"n_written", n_bytes},
                       {"timings", {{"save_ms", milliseconds_since(action.start_)}}}});
      });
    });
  }

  void restore() {
    auto found = std::make_shared<KvSnapshot>(
        with_file("read", [&] { return read_snapshot(path(), hash()); }));
    on_engine([found](SlotAction& self, Engine& engine) {
      const BlockScope scope = self.restore_to(engine, *found);
      const int64_t n_kept = engine.restore(scope, *found, self.model_->files().slot_hash_index);
      found->tokens.resize(static_cast<size_t>(n_kept));
      self.model_->slots().set(self.slot_, {found->tokens, scope});
      self.answer({{"n_restored", n_kept},
                   {"n_read", std::ssize(found->pages)},
                   {"timings", {{"restore_ms", milliseconds_since(self.start_)}}}});
    });
  }

  void erase() {
    SlotBoard::Sequence last = model_->slots().last(slot_);
    model_->slots().set(slot_, {});
    on_engine([last = std::move(last)](SlotAction& self, Engine& engine) {
      self.answer({{"n_erased", engine.forget(last.scope, last.tokens)}});
    });
  }

 private:
  template <typename Task>
  void try_(const Task& task) {
    try {
      task();
    } catch (const Error& error) {
      call_->fail(error);
    } catch (...) {
      call_->fail(current_error());
    }
  }
  template <typename Task>
  void on_engine(Task task) {
    model_->host().run([self = shared_from_this(), task = std::move(task)](Engine& engine) {
      self->try_([&] { task(*self, engine); });
    });
  }
  template <typename Task>
  void on_worker(Task task) {
    call_->services().workers->post(
        [self = shared_from_this(), task = std::move(task)] { self->try_([&] { task(*self); }); });
  }

  /// What `use` gives. Errors: as it throws them, with the client's name of the file for its path,
  /// which the log alone tells; what is wrong with a file is wrong with what the client asked for.
  template <typename Use>
  std::invoke_result_t<const Use&> with_file(std::string_view action, const Use& use) const {
    try {
      return use();
    } catch (const Error& error) {
      logger().warn("{}", error.message());
      const std::string name = printable(filename_);
      switch (error.kind()) {
        case ErrorKind::kNotFound:
          throw RequestError(
              error.kind(),
              fmt::format("[slot] filename: expected a file that was saved, got none ('{}')", name),
              "filename");
        case ErrorKind::kCorrupt:
          throw RequestError(
              error.kind(),
              fmt::format("[slot] filename: expected a file that this server saved, got one that "
                          "was changed or is of another ('{}')",
                          name),
              "filename", 400);
        case ErrorKind::kIo:
          throw RequestError(error.kind(),
                             fmt::format("[slot] filename: expected to {} it, got an error that "
                                         "the server's log tells ('{}')",
                                         action, name),
                             "filename");
        default:
          throw;
      }
    }
  }

  /// Of the adapter that the file is of: the one that requests get, or none.
  BlockScope restore_to(const Engine& engine, const KvSnapshot& found) const {
    const BlockScope own(model_->adapter(), salt_);
    return engine.takes(own, found, model_->files().slot_hash_index) ? own : BlockScope(-1, salt_);
  }
  std::string path() const { return model_->spec().open.slot_save_path + "/" + filename_; }
  const KeyedHash& hash() const { return *model_->files().slot_hash; }
  void answer(Json what) {
    Json json = {{"id_slot", slot_}};
    if (!filename_.empty()) json["filename"] = filename_;
    json.update(what);
    call_->respond(std::move(json));
  }

  std::shared_ptr<Call> call_;
  std::shared_ptr<ServedModel> model_;
  int64_t slot_;
  std::string filename_;
  CacheSalt salt_;  // of what is restored
  Clock::time_point start_;
};

const FieldTable<SlotTask>& slot_fields() {
  static const FieldTable<SlotTask> table = {
      string_field<SlotTask>("filename", &SlotTask::filename,
                             "a plain name within --slot-save-path"),
      salt_field<SlotTask>(),
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
  SlotTask task;
  const bool erases = action == "erase";
  if (!erases || !call->request().body.empty()) call->read(slot_fields(), task);
  if (erases && !task.filename.empty()) {
    call->warn("filename: ignored (what is erased is in memory)");
    task.filename.clear();
  }
  with_asked_model(call, [call, action, task](const std::shared_ptr<ServedModel>& model) {
    const int64_t slot = read_slot(*call, model->slots().size());
    if (model->files().slot_hash == nullptr) {
      throw RequestError(ErrorKind::kUnsupported,
                         "[request] slots: expected a server that was started with "
                         "--slot-save-path, got one without",
                         "", 501);
    }
    if (action != "erase") check_filename(task.filename);
    const auto job = std::make_shared<SlotAction>(call, model, slot, task);
    if (action == "save") {
      job->save();
    } else if (action == "restore") {
      job->restore();
    } else {
      job->erase();
    }
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
