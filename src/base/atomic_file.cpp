#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/descriptor.h"
#include "base/error.h"

namespace qw {

namespace {
constexpr std::string_view kTemporary = ".tmp-";
constexpr size_t kBufferBytes = size_t{1} << 20;
/// In the place of a descriptor: written and closed, not renamed yet.
constexpr int kSealed = -2;
constexpr int kMaxNames = 10'000;  // tried before giving up
/// What is this old and was never finished, nobody is writing any more.
constexpr std::chrono::hours kAbandoned(1);
/// The directory that `path` is in; false: errno says why not.
bool sync_directory_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const int directory =
      ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return true;  // may be written but not read: nothing to sync by
  const int result = ::fsync(directory);
  const int error = errno;
  ::close(directory);
  errno = error;
  return result == 0 || error == EINVAL;  // EINVAL: cannot sync
}

}  // namespace

/// Renaming would put a file where a device, a pipe or a link was: a link is followed to what it
/// names, anything else that is not a regular file is refused.
void AtomicFile::check_target() {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::is_symlink(fs::symlink_status(path_, ignored))) {
    const fs::path target = fs::weakly_canonical(path_, ignored);
    if (!ignored) path_ = target.string();
  }
  const fs::file_status status = fs::status(path_, ignored);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    fail(ErrorKind::kIo, "file", "output: expected a regular file or a new one, got {} ({})",
         fs::is_directory(status) ? "a directory" : "something else", printable(path_, 4096));
  }
}

AtomicFile::AtomicFile(std::string path, unsigned mode) : path_(std::move(path)) {
  check_target();
  // Process and counter, so that two writers of one path do not meet in one temporary file. A name
  // may still be taken: a killed process of the same number left it.
  static std::atomic<unsigned> counter{0};
  for (int i = 0; i < kMaxNames; ++i) {
    temporary_ = fmt::format("{}{}{}-{}", path_, kTemporary, ::getpid(), counter.fetch_add(1));
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd_ >= 0 || errno != EEXIST) break;
  }
  if (fd_ < 0) fail_errno("create");
  ::flock(fd_, LOCK_EX | LOCK_NB);  // for remove_dead_temporaries(), where the system has locks
}

AtomicFile::AtomicFile(std::string path, std::string temporary, int64_t n_bytes)
    : path_(std::move(path)), temporary_(std::move(temporary)), is_kept_(true) {
  check_target();
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno("open");
  const off_t end = ::lseek(fd_, 0, SEEK_END);
  const bool is_cut = end >= n_bytes && ::ftruncate(fd_, n_bytes) == 0 &&
                      ::lseek(fd_, n_bytes, SEEK_SET) == n_bytes;
  if (is_cut) return;
  ::close(std::exchange(fd_, -1));
  fail(ErrorKind::kCorrupt, "file", "file on its way: expected {} bytes at least, got {} ({})",
       n_bytes, end, printable(temporary_, 4096));
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if ((fd_ >= 0 || fd_ == kSealed) && !is_kept_) ::unlink(temporary_.c_str());
}

void AtomicFile::fail_errno(const char* action) const {
  const int error = errno;
  fail(error == ENOENT || error == ENOTDIR ? ErrorKind::kNotFound : ErrorKind::kIo, "file",
       "file: expected to {} it, got: {} ({})", action, std::strerror(error),
       printable(path_, 4096));
}

void AtomicFile::write_through(std::span<const std::byte> bytes) {
  [[maybe_unused]] const bool is_large = bytes.size() >= kBufferBytes / 2;
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail_errno("write");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
#ifdef __linux__
  // The disk begins with large files at once. Left alone it does so when the file is synced, or a
  // tenth of the memory has been written, and is idle while the next piece is computed. This waits
  // for nothing; where it fails the sync does the work.
  if (is_large) ::sync_file_range(fd_, 0, 0, SYNC_FILE_RANGE_WRITE);
#endif
}

void AtomicFile::flush() {
  write_through(buffer_);
  buffer_.clear();
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  QW_CHECK(fd_ >= 0, "write after commit");
  if (buffer_.size() + bytes.size() > kBufferBytes) flush();
  if (bytes.size() >= kBufferBytes) {
    write_through(bytes);
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
}

void AtomicFile::seal() {
  sync();
  ::close(std::exchange(fd_, kSealed));
}

void AtomicFile::sync() {
  if (fd_ == kSealed) return;
  QW_CHECK(fd_ >= 0, "commit twice");
  flush();
  if (::fsync(fd_) != 0) fail_errno("sync");
}

void AtomicFile::commit() {
  sync();
  finish(std::rename(temporary_.c_str(), path_.c_str()) == 0);
}

void AtomicFile::commit_unless_exists() {
  sync();
  const bool has_file = ::link(temporary_.c_str(), path_.c_str()) == 0 || errno == EEXIST;
  finish(has_file ? ::unlink(temporary_.c_str()) == 0
                  : std::rename(temporary_.c_str(), path_.c_str()) == 0);
}

void AtomicFile::commit_unsynced() {
  QW_CHECK(fd_ >= 0, "commit twice");
  flush();
  close_renamed(std::rename(temporary_.c_str(), path_.c_str()) == 0);
}

void AtomicFile::finish(bool renamed) {
  close_renamed(renamed);
  sync_directory();
}

void AtomicFile::close_renamed(bool renamed) {
  if (!renamed) fail_errno("rename");
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void AtomicFile::sync_directory() const {
  if (!sync_directory_of(path_)) fail_errno("sync the directory of");
}

void rename_synced(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) == 0 && sync_directory_of(to)) return;
  fail(ErrorKind::kIo, "output", "file: expected to rename {} to {}, got: {}",
       printable(from, 4096), printable(to, 4096), std::strerror(errno));
}

void write_file_atomically(const std::string& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

namespace {

/// The process in "name.tmp-PROCESS-NUMBER", and where ".tmp-" begins.
std::optional<std::pair<pid_t, size_t>> writer_of(const std::string& name) {
  const size_t mark = name.rfind(kTemporary);
  if (mark == std::string::npos) return std::nullopt;
  pid_t process = 0;
  unsigned number = 0;
  const char* end = name.data() + name.size();
  const auto first = std::from_chars(name.data() + mark + kTemporary.size(), end, process);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != '-' || process <= 0)
    return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, number);
  if (second.ec != std::errc() || second.ptr != end) return std::nullopt;
  return std::pair(process, mark);
}

/// Another machine, or another space of processes, may have a process that is not seen here, but
/// has the file's lock.
bool is_locked(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  return file.get() < 0 || ::flock(file.get(), LOCK_EX | LOCK_NB) != 0;
}

}  // namespace

void remove_dead_temporaries(const std::string& directory,
                             const std::function<bool(const std::string&)>& is_of) {
  namespace fs = std::filesystem;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const auto writer = writer_of(name);
    std::error_code unknown;
    if (!writer || !is_of(name.substr(0, writer->second)) || !entry->is_regular_file(unknown))
      continue;
    const bool is_dead = ::kill(writer->first, 0) != 0 && errno == ESRCH;
    if (is_dead && !is_locked(entry->path().string())) fs::remove(entry->path(), unknown);
  }
}

void remove_abandoned_files(const std::string& directory, std::string_view suffix) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto now = fs::file_time_type::clock::now();
  const std::string mark = fmt::format("{}{}", suffix, kTemporary);
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().filename().string().find(mark) == std::string::npos) continue;
    std::error_code unknown;
    const auto written = fs::last_write_time(entry->path(), unknown);
    if (!unknown && now - written > kAbandoned) fs::remove(entry->path(), unknown);
  }
}

}  // namespace qw
