#include "server/llama_server/slot_jobs.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "engine/current_error.h"
#include "engine/kv_sequence_file.h"
#include "server/service.h"

namespace qw::server::llama_server {

namespace {

/// What the jobs share: parts that run one after the other, each on the thread that it belongs to.
/// What one throws ends the job and is the call's failure.
class SlotJob : public std::enable_shared_from_this<SlotJob> {
 public:
  explicit SlotJob(SlotTask task) : task_(std::move(task)) {}
  virtual ~SlotJob() { let_go(); }
  SlotJob(const SlotJob&) = delete;
  SlotJob& operator=(const SlotJob&) = delete;

  /// Begins. The job ends early when its client goes or its time is over.
  void start() {
    // The job holds the call, so the call must not hold the job.
    call().post([call = task_.call, weak = weak_from_this()] {
      call->on_close([weak] {
        if (const auto job = weak.lock()) job->cancel();
      });
      call->on_expire([weak](const Error& error) {
        if (const auto job = weak.lock()) {
          job->cancel();
          job->call().fail(error);
        }
      });
      // Its time may have come while the model was loaded.
      if (const auto job = weak.lock(); job && call->expired()) job->cancel();
    });
    begin();
  }

 protected:
  virtual void begin() = 0;
  /// The job ends without having come to its end. On the thread of its last part.
  virtual void drop_file() {}

  /// Runs `part` between two steps.
  template <typename Job>
  void on_engine(void (Job::*part)(Engine& engine)) {
    host().run([self = shared_from_this(), part](Engine& engine) mutable {
      self->run([&] { (static_cast<Job&>(*self).*part)(engine); });
      give_back(std::move(self));
    });
  }
  /// Runs `part` on the thread for files.
  template <typename Job>
  void on_files(void (Job::*part)()) {
    call().services().file_worker->post([self = shared_from_this(), part] {
      self->run([&] { (static_cast<Job&>(*self).*part)(); });
    });
  }

  /// Others may have the pages from now on. Any thread.
  void let_go() {
    if (const int64_t hold = hold_.exchange(0); hold != 0)
      host().run([hold](Engine& engine) { engine.let_go(hold); });
  }
  /// `time`: the name of how long it took; "": not told.
  void answer(const char* time, Json what) const {
    Json json = {{"id_slot", slot()}};
    if (!task_.filename.empty()) json["filename"] = task_.filename;
    json.update(what);
    const std::chrono::duration<double, std::milli> elapsed = Clock::now() - start_;
    if (*time != '\0') json["timings"] = {{time, elapsed.count()}};
    call().respond(std::move(json));
  }
  template <typename Use>
  std::invoke_result_t<const Use&> with_file(std::string_view action, const Use& use) const;

  Call& call() const { return *task_.call; }
  ServedModel& model() const { return *task_.model; }
  EngineHost& host() const { return task_.model->host(); }
  int64_t slot() const { return task_.slot; }
  const CacheSalt& salt() const { return task_.salt; }
  std::string path() const { return model().spec().open.slot_save_path + "/" + task_.filename; }
  const KeyedHash& hash() const { return *model().files().slot_hash; }
  size_t hash_index() const { return model().files().slot_hash_index; }
  int64_t piece_bytes() const { return call().services().options.slot_piece_bytes; }

  std::atomic<int64_t> hold_ = 0;  // of the engine; 0: none

 private:
  using Clock = std::chrono::steady_clock;

  template <typename Part>
  void run(const Part& part) {
    try {
      if (!cancelled_.load()) return part();
      end();
    } catch (const Error& error) {
      end();
      call().fail(error);
    } catch (...) {
      const Error error = current_error();
      end();
      call().fail(error);
    }
  }
  void end() {
    let_go();
    drop_file();
  }
  /// The part under way ends; no other comes after it. The pages do not wait for it: it may be at a
  /// disk that hangs.
  void cancel() {
    cancelled_ = true;
    host().run([self = shared_from_this()](Engine&) mutable {
      self->let_go();
      give_back(std::move(self));
    });
  }
  /// The last holder of a model ends its engine's thread, and so must be elsewhere.
  static void give_back(std::shared_ptr<SlotJob> self) {
    const std::shared_ptr<Call> call = self->task_.call;
    call->post([self = std::move(self)] {});
  }

  SlotTask task_;
  Clock::time_point start_ = Clock::now();
  std::atomic<bool> cancelled_ = false;
};

/// What `use` gives. Errors: as it throws them, with the client's name of the file for its path,
/// which the log alone tells; what is wrong with a file is wrong with what the client asked for.
template <typename Use>
std::invoke_result_t<const Use&> SlotJob::with_file(std::string_view action, const Use& use) const {
  try {
    return use();
  } catch (const Error& error) {
    logger().warn("{}", error.message());
    const std::string name = printable(task_.filename);
    if (action == "write" && error.kind() == ErrorKind::kNotFound) {
      throw RequestError(ErrorKind::kIo,
                         fmt::format("[slot] filename: expected to write it into the directory of "
                                     "--slot-save-path, got none there ('{}')",
                                     name),
                         "filename");
    }
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

class SlotSave : public SlotJob {
 public:
  using SlotJob::SlotJob;

 private:
  void begin() override { on_engine(&SlotSave::hold); }
  void drop_file() override { file_.reset(); }

  void hold(Engine& engine) {
    const SlotBoard::Sequence last = model().slots().last(slot());
    Engine::Held held = engine.hold(last.scope, last.tokens, hash_index());
    hold_ = held.id;
    sequence_ = std::move(held.sequence);
    if (sequence_.tokens.empty() && !last.tokens.empty()) {
      // A file of that name is more than what would take its place.
      throw RequestError(ErrorKind::kUnsupported,
                         fmt::format("[slot] id_slot: expected its {} tokens to be in the cache "
                                     "still, got none of them; nothing was written",
                                     last.tokens.size()),
                         "id_slot", 409);
    }
    // All but an answer's last token, which is never computed.
    if (sequence_.tokens.size() + 1 < last.tokens.size()) {
      call().warn(fmt::format("id_slot: {} of its {} tokens are kept still",
                              sequence_.tokens.size(), last.tokens.size()));
    }
    on_files(&SlotSave::open);
  }
  void open() {
    with_file("write", [&] { file_.emplace(path(), sequence_, hash()); });
    const int64_t n =
        std::min(sequence_.n_pages, pages_per_piece(sequence_.page_bytes, piece_bytes()));
    piece_.resize(static_cast<size_t>(n * sequence_.page_bytes));
    go_on();
  }
  void go_on() {
    if (next_page_ < sequence_.n_pages) return on_engine(&SlotSave::copy);
    let_go();
    piece_ = {};
    const int64_t n_bytes = with_file("write", [&] { return file_->commit(); });
    answer("save_ms", {{"n_saved", std::ssize(sequence_.tokens)}, {"n_written", n_bytes}});
  }
  void copy(Engine& engine) {
    const auto left = static_cast<size_t>((sequence_.n_pages - next_page_) * sequence_.page_bytes);
    piece_.resize(std::min(piece_.size(), left));
    engine.read_held(hold_, next_page_, piece_);
    next_page_ += std::ssize(piece_) / sequence_.page_bytes;
    on_files(&SlotSave::write);
  }
  void write() {
    with_file("write", [&] { file_->write(piece_); });
    go_on();
  }

  KvSequence sequence_;
  std::optional<KvSequenceWriter> file_;
  std::vector<std::byte> piece_;
  int64_t next_page_ = 0;
};

class SlotRestore : public SlotJob {
 public:
  using SlotJob::SlotJob;

 private:
  void begin() override { on_files(&SlotRestore::open); }
  void drop_file() override { file_.reset(); }

  void open() {
    with_file("read", [&] { file_.emplace(path(), hash(), piece_bytes()); });
    check();
  }
  void check() {
    // Part by part, so that others' files are not kept waiting.
    if (with_file("read", [&] { return file_->check_more(); }))
      return on_files(&SlotRestore::check);
    on_engine(&SlotRestore::choose);
  }
  /// Of the adapter that the file is of: the one that requests get, or none.
  void choose(Engine& engine) {
    scope_ = {model().adapter(), salt()};
    if (!engine.takes(scope_, file_->sequence(), hash_index())) scope_ = {-1, salt()};
    // Nothing yet, but an error if the file is of neither.
    n_kept_ = engine.import_pages(scope_, file_->sequence(), hash_index(), 0, {});
    go_on();
  }
  void go_on() {
    if (next_piece_ < file_->n_pieces() && !is_short_) return on_files(&SlotRestore::read);
    std::vector<int32_t> tokens = file_->sequence().tokens;
    tokens.resize(static_cast<size_t>(n_kept_));
    model().slots().set(slot(), {std::move(tokens), scope_});
    answer("restore_ms", {{"n_restored", n_kept_}, {"n_read", n_read_}});
  }
  void read() {
    piece_ = with_file("read", [&] { return file_->read_piece(next_piece_); });
    on_engine(&SlotRestore::import);
  }
  void import(Engine& engine) {
    n_kept_ = engine.import_pages(scope_, file_->sequence(), hash_index(),
                                  file_->first_page(next_piece_), piece_);
    n_read_ += std::ssize(piece_);
    ++next_piece_;
    const int64_t end = std::min<int64_t>(std::ssize(file_->sequence().tokens),
                                          file_->first_page(next_piece_) * engine.page_tokens());
    // The cache is too small, or what came before had to make room meanwhile.
    is_short_ = n_kept_ < end;
    go_on();
  }

  std::optional<KvSequenceReader> file_;
  std::span<const std::byte> piece_;  // the file's
  BlockScope scope_;
  int64_t next_piece_ = 0, n_kept_ = 0, n_read_ = 0;
  bool is_short_ = false;
};

class SlotErase : public SlotJob {
 public:
  using SlotJob::SlotJob;

 private:
  void begin() override { on_engine(&SlotErase::erase); }
  void erase(Engine& engine) {
    const SlotBoard::Sequence last = model().slots().last(slot());
    model().slots().set(slot(), {});
    answer("", {{"n_erased", engine.forget(last.scope, last.tokens)}});
  }
};

}  // namespace

void save_slot(SlotTask task) {
  std::make_shared<SlotSave>(std::move(task))->start();
}
void restore_slot(SlotTask task) {
  std::make_shared<SlotRestore>(std::move(task))->start();
}
void erase_slot(SlotTask task) {
  std::make_shared<SlotErase>(std::move(task))->start();
}

}  // namespace qw::server::llama_server
