#include "engine/prefix_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/atomic_file.h"
#include "base/descriptor.h"
#include "base/error.h"
#include "base/log.h"

namespace qw {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kComponent = "prefix cache";
constexpr std::string_view kSuffix = ".kv";
constexpr int64_t kDefaultMaxBytes = int64_t{10} << 30;
/// After a write that failed, of a full disk mostly, none is tried for so long.
constexpr std::chrono::seconds kPause(60);
/// The share of all bytes by which files are counted anew, and by which there is too little room.
constexpr int64_t kShare = 20;

/// The directory, once it is there, for its owner alone: tokens are what people wrote.
const std::string& made(const std::string& directory) {
  std::error_code unknown;
  const bool is_new = !fs::exists(directory, unknown);
  make_cache_directory(directory, kComponent);
  if (is_new) fs::permissions(directory, fs::perms::owner_all, unknown);
  if (::access(directory.c_str(), R_OK | W_OK | X_OK) != 0) {
    const int error = errno;
    fail(ErrorKind::kIo, kComponent, "directory: expected to read and write it, got: {} ({})",
         std::strerror(error), printable(directory, 4096));
  }
  return directory;
}

struct File {
  timespec used;
  int64_t bytes;
  std::string path;
};

/// The blocks there are.
std::vector<File> files_in(const std::string& directory) {
  std::vector<File> files;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string path = entry->path().string();
    struct stat status {};
    if (!path.ends_with(kSuffix) || ::stat(path.c_str(), &status) != 0) continue;
    files.push_back({status.st_mtim, status.st_size, path});
  }
  return files;
}

int64_t bytes_of(const std::vector<File>& files) {
  int64_t total = 0;
  for (const File& file : files)
    total += file.bytes;
  return total;
}

int64_t limit_of(const PrefixStoreOptions& options) {
  if (options.max_bytes > 0) return options.max_bytes;
  std::error_code error;
  const fs::space_info space = fs::space(options.directory, error);
  if (error) return kDefaultMaxBytes;
  // With what its own files take, or the limit would shrink with every start.
  const auto room = static_cast<int64_t>(std::min<uintmax_t>(space.available, INT64_MAX / 2));
  return std::min(kDefaultMaxBytes, (room + bytes_of(files_in(options.directory))) / 2);
}

}  // namespace

PrefixStore::PrefixStore(const PrefixStoreOptions& options)
    : directory_(made(options.directory)),
      hash_(std::make_shared<const KeyedHash>(directory_, kComponent)),
      max_bytes_(limit_of(options)),
      queue_bytes_(options.queue_bytes),
      read_ahead_bytes_(options.read_ahead_bytes),
      writer_([this] { write_loop(); }),
      reader_([this] { read_loop(); }) {}

PrefixStore::~PrefixStore() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_writer_.notify_all();
  wake_reader_.notify_all();
  writer_.join();
  reader_.join();
}

std::string PrefixStore::path_of(const KvName& name) const {
  return fmt::format("{}/{}{}", directory_, to_hex(name), kSuffix);
}

bool PrefixStore::contains(const KvName& name) const {
  return ::access(path_of(name).c_str(), F_OK) == 0;
}

bool PrefixStore::has_room(int64_t bytes) const {
  const std::lock_guard lock(mutex_);
  return queued_bytes_ == 0 || queued_bytes_ + bytes <= queue_bytes_;
}

size_t PrefixStore::OfName::operator()(const KvName& name) const noexcept {
  size_t out = 0;
  std::memcpy(&out, name.data(), sizeof(out));
  return out;
}

void PrefixStore::put(Block block, Pages pages) {
  const std::lock_guard lock(mutex_);
  queue(std::move(block), std::move(pages));
}

/// With the lock.
void PrefixStore::queue(Block block, Pages pages) {
  queued_bytes_ += std::ssize(pages.bytes);
  writes_.push_back({std::move(block), std::move(pages)});
  wake_writer_.notify_one();
}

void PrefixStore::touch(const KvName& name, int64_t used) {
  const std::lock_guard lock(mutex_);
  if (n_touches_ >= kMaxTouches) return;
  if (const auto it = touched_.find(name); it != touched_.end() && it->second >= used) return;
  if (touched_.size() >= kMaxTouched) touched_.clear();
  touched_[name] = used;
  queue({name, used, {}}, {});
  ++n_touches_;
}

int64_t PrefixStore::progress() const {
  const std::lock_guard lock(mutex_);
  return n_progress_;
}

void PrefixStore::wait_for_progress(int64_t seen, int milliseconds) {
  std::unique_lock lock(mutex_);
  progress_.wait_for(lock, std::chrono::milliseconds(milliseconds),
                     [&] { return n_progress_ > seen; });
}

void PrefixStore::flush() {
  std::unique_lock lock(mutex_);
  progress_.wait(lock, [this] { return writes_.empty() && !writing_; });
}

void PrefixStore::flush(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  if (progress_.wait_for(lock, limit, [this] { return writes_.empty() && !writing_; })) return;
  for (const Write& write : writes_) {
    queued_bytes_ -= std::ssize(write.pages.bytes);
    if (write.pages.memory != nullptr) ++stats_.n_failed;
  }
  writes_.clear();
  n_touches_ = 0;
}

PrefixStoreStats PrefixStore::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

// ---- writing -----------------------------------------------------------------------------------

void PrefixStore::write_loop() {
  try {
    remove_abandoned_files(directory_, kSuffix);
    make_room();
  } catch (...) {
    // Counted with the next blocks.
  }
  while (true) {
    Write next;
    {
      std::unique_lock lock(mutex_);
      writing_ = false;
      ++n_progress_;
      progress_.notify_all();
      wake_writer_.wait(lock, [this] { return stopping_ || !writes_.empty(); });
      if (writes_.empty()) return;
      next = std::move(writes_.front());
      writes_.pop_front();
      if (next.pages.memory == nullptr) --n_touches_;
      writing_ = true;
    }
    try {
      write(next);
    } catch (...) {  // of memory mostly: a cache may miss something, its threads may not end
      const std::lock_guard lock(mutex_);
      ++stats_.n_failed;
    }
    const std::lock_guard lock(mutex_);
    queued_bytes_ -= std::ssize(next.pages.bytes);
  }
}

void PrefixStore::write(const Write& write) {
  const Block& block = write.block;
  const std::string path = path_of(block.name);
  if (write.pages.memory == nullptr) return mark_used(path, block.used);
  const auto now = std::chrono::steady_clock::now();
  const bool pauses = failed_at_ && now - *failed_at_ < kPause;
  try {
    if (pauses) fail(ErrorKind::kIo, kComponent, "file: expected to write it, got a full disk");
    restore_directory();
    const std::span<const std::byte> pages = write.pages.bytes;
    const std::vector<std::byte> front =
        kv_file_front(block.name, block.tokens, pages.size(), /*n_pages=*/1);
    const KeyedHash::Digest seal = kv_file_seal(*hash_, front, pages);
    AtomicFile file(path, 0600);
    file.write(front);
    file.write(pages);
    file.write(std::as_bytes(std::span(seal)));
    file.commit_unsynced();
    mark_used(path, block.used);
    const auto bytes = static_cast<int64_t>(front.size() + pages.size() + seal.size());
    bytes_since_count_ += bytes;
    const std::lock_guard lock(mutex_);
    ++stats_.n_written;
    stats_.bytes_written += bytes;
    stats_.bytes_stored += bytes;
  } catch (const Error& error) {
    if (!pauses) failed_at_ = now;
    if (!std::exchange(warned_of_failure_, true))
      logger().warn("{}: {}; going on without keeping more", kComponent, sentence_of(error));
    const std::lock_guard lock(mutex_);
    ++stats_.n_failed;
    return;
  }
  if (bytes_since_count_ > max_bytes_ / kShare) make_room();
}

/// Makes the directory and its secret again where somebody deleted them. Another process may have
/// been first, with a secret of its own: then what is written here is found by this process alone.
void PrefixStore::restore_directory() {
  if (::access((directory_ + "/secret").c_str(), F_OK) == 0) return;
  hash_->save(made(directory_));
  make_room();  // counts what is left
  logger().warn(
      "{}: directory: expected it and its secret, got them deleted ({}); they are made "
      "again, and what was kept is computed",
      kComponent, printable(directory_, 4096));
  const std::lock_guard lock(mutex_);
  ++stats_.n_restored;
}

void PrefixStore::mark_used(const std::string& path, int64_t used) {
  constexpr int64_t kSecond = 1'000'000'000;
  const timespec time = {static_cast<time_t>(used / kSecond), static_cast<long>(used % kSecond)};
  const timespec times[2] = {time, time};
  ::utimensat(AT_FDCWD, path.c_str(), times, 0);  // a file that has gone needs no mark
}

/// Counts the files, and removes those used longest ago until a share of the limit is free.
void PrefixStore::make_room() {
  std::vector<File> files = files_in(directory_);
  int64_t total = bytes_of(files), n_evicted = 0;
  if (total > max_bytes_ - max_bytes_ / kShare) {
    std::ranges::sort(
        files, {}, [](const File& file) { return std::pair(file.used.tv_sec, file.used.tv_nsec); });
    for (const File& file : files) {
      if (total <= max_bytes_ - max_bytes_ / kShare) break;
      if (::unlink(file.path.c_str()) != 0 && errno != ENOENT) continue;
      total -= file.bytes;
      ++n_evicted;
    }
  }
  bytes_since_count_ = 0;
  const std::lock_guard lock(mutex_);
  stats_.bytes_stored = total;
  stats_.n_evicted += n_evicted;
}

// ---- reading -----------------------------------------------------------------------------------

void PrefixStore::begin_read(std::vector<Block> blocks, int64_t page_bytes) {
  const std::lock_guard lock(mutex_);
  ++read_number_;
  read_.clear();
  read_bytes_ = 0;
  reading_ = !blocks.empty();
  wanted_ = std::move(blocks);
  next_wanted_ = 0;
  wanted_page_bytes_ = page_bytes;
  wake_reader_.notify_one();
}

void PrefixStore::end_read() {
  begin_read({}, 0);
}

std::vector<PrefixStore::Pages> PrefixStore::take_read(int64_t most) {
  std::vector<Pages> out;
  const std::lock_guard lock(mutex_);
  while (!read_.empty() && std::ssize(out) < most) {
    read_bytes_ -= std::ssize(read_.front().bytes);
    out.push_back(std::move(read_.front()));
    read_.pop_front();
  }
  wake_reader_.notify_one();
  return out;
}

bool PrefixStore::read_ended() const {
  const std::lock_guard lock(mutex_);
  return !reading_ && read_.empty();
}

void PrefixStore::read_loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_reader_.wait(lock, [this] {
      return stopping_ || (reading_ && (read_.empty() || read_bytes_ < read_ahead_bytes_));
    });
    if (stopping_) return;
    const uint64_t number = read_number_;
    const Block block = std::move(wanted_[next_wanted_++]);
    const int64_t page_bytes = wanted_page_bytes_;
    lock.unlock();
    std::optional<Pages> pages;
    try {
      pages = read(block, page_bytes);
    } catch (...) {
      // Computing is always possible.
    }
    lock.lock();
    if (number != read_number_) continue;  // nobody wants it any more
    reading_ = pages.has_value() && next_wanted_ < wanted_.size();
    if (pages) {
      const int64_t n_bytes = std::ssize(pages->bytes);
      try {
        read_.push_back(std::move(*pages));
        read_bytes_ += n_bytes;
        ++stats_.n_read;
        stats_.bytes_read += n_bytes;
      } catch (...) {
        reading_ = false;
      }
    }
    ++n_progress_;
    progress_.notify_all();
  }
}

/// Nothing: it is not there, or not what it should be.
std::optional<PrefixStore::Pages> PrefixStore::read(const Block& block, int64_t page_bytes) {
  const std::string path = path_of(block.name);
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (file.get() < 0) return std::nullopt;
  try {
    KvFileHead head;
    head.n_tokens = block.tokens.size();
    head.page_bytes = static_cast<uint64_t>(page_bytes);
    head.n_pages = 1;
    const uint64_t size = head.file_bytes();
    struct stat status {};
    if (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode) ||
        static_cast<uint64_t>(status.st_size) != size) {
      refuse(path, fmt::format("size: expected a file of {} bytes, got another", size));
      return std::nullopt;
    }
    Pages out{std::make_unique_for_overwrite<std::byte[]>(size), {}};
    for (size_t at = 0; at < size;) {
      const ssize_t n = ::read(file.get(), out.memory.get() + at, size - at);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        refuse(path, "bytes: expected to read them, got an error");
        return std::nullopt;
      }
      at += static_cast<size_t>(n);
    }
    const KvFileView view = read_kv_file({out.memory.get(), size}, *hash_);
    if (view.head.name != block.name || view.tokens != block.tokens ||
        view.head.page_bytes != static_cast<uint64_t>(page_bytes) || view.head.n_pages != 1) {
      refuse(path, "block: expected that of its name, got another");
      return std::nullopt;
    }
    out.bytes = view.pages;
    mark_used(path, block.used);
    return out;
  } catch (const Error& error) {
    refuse(path, sentence_of(error));
  }
  return std::nullopt;
}

/// Removes a file that is not what its name says: the block is computed and written again.
void PrefixStore::refuse(const std::string& path, std::string_view why) {
  std::error_code ignored;
  const auto n_bytes = static_cast<int64_t>(std::filesystem::file_size(path, ignored));
  const bool is_removed = ::unlink(path.c_str()) == 0;
  const std::lock_guard lock(mutex_);
  ++stats_.n_refused;
  if (is_removed && !ignored) stats_.bytes_stored -= n_bytes;
  if (std::exchange(warned_of_refusal_, true)) return;
  logger().warn("{}: {} ({}); it is removed, and what it held is computed", kComponent, why,
                printable(path, 4096));
}

}  // namespace qw
