#include "base/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "base/error.h"

namespace qw {

namespace {

// What the signal handler may read: plain atomics, no locks, no allocation.
struct Slot {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> lost{false};
};
constexpr size_t kMaxMappings = size_t{1} << 16;  // what Linux allows a process by default
std::array<Slot, kMaxMappings> g_slots;           // a process has one SIGBUS handler, so one table
std::mutex g_slots_mutex;
size_t g_first_free = 0;  // no slot before it is. Under the mutex
struct sigaction g_previous_action;

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Slot& slot : g_slots) {
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= slot.end.load(std::memory_order_acquire))
      continue;
    slot.lost.store(true, std::memory_order_release);
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t start = address & ~(page - 1);
    void* replaced = mmap(reinterpret_cast<void*>(start), slot.end.load() - start, PROT_READ,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (replaced != MAP_FAILED) return;
  }
  // Not ours: let the previous handler have it. Ours stays, unless what was there before ends the
  // process, which it does when the access is tried again.
  if ((g_previous_action.sa_flags & SA_SIGINFO) != 0) {
    g_previous_action.sa_sigaction(signal, info, context);
  } else if (g_previous_action.sa_handler == SIG_DFL || g_previous_action.sa_handler == SIG_IGN) {
    sigaction(SIGBUS, &g_previous_action, nullptr);
  } else {
    g_previous_action.sa_handler(signal);
  }
}

int register_mapping(const std::byte* data, size_t size_bytes) {
  const std::lock_guard lock(g_slots_mutex);
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &g_previous_action) == 0;
  }();
  if (!installed) return -1;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t& i = g_first_free; i < g_slots.size(); ++i) {
    if (g_slots[i].begin.load() != 0) continue;
    g_slots[i].lost.store(false);
    const auto begin = reinterpret_cast<uintptr_t>(data);
    g_slots[i].end.store(begin + (size_bytes + page - 1) / page * page, std::memory_order_release);
    g_slots[i].begin.store(begin, std::memory_order_release);
    return static_cast<int>(i);
  }
  fail(ErrorKind::kIo, "file", "mapped files: expected at most {}, got one more", kMaxMappings);
}

[[noreturn]] void fail_errno(const std::string& path, std::string_view action) {
  const int error = errno;
  fail(error == ENOENT || error == ENOTDIR ? ErrorKind::kNotFound : ErrorKind::kIo, "file",
       "file: expected to {} it, got: {} ({})", action, std::strerror(error),
       printable(path, 4096));
}

/// Never one of the standard streams, which a program may have been started without: it would then
/// read a model as its input.
Descriptor open_for_mapping(const std::string& path) {
  // Not blocking: a pipe without a writer would otherwise be waited for before it can be refused.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail_errno(path, "open");
  if (file.get() > STDERR_FILENO) return file;
  Descriptor above(fcntl(file.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  if (above.get() < 0) fail_errno(path, "open");
  return above;
}

}  // namespace

MappedFile::MappedFile(std::string path, Descriptor file, const std::byte* data, size_t size_bytes)
    : path_(std::move(path)), file_(std::move(file)), data_(data), size_bytes_(size_bytes) {}

MappedFile::~MappedFile() {
  if (slot_ >= 0) {
    const std::lock_guard lock(g_slots_mutex);
    g_slots[static_cast<size_t>(slot_)].begin.store(0, std::memory_order_release);
    g_first_free = std::min(g_first_free, static_cast<size_t>(slot_));
  }
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_bytes_);
}

std::shared_ptr<MappedFile> MappedFile::map(const std::string& path) {
  Descriptor file = open_for_mapping(path);
  struct stat status {};
  if (fstat(file.get(), &status) != 0) fail_errno(path, "inspect");
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorKind::kIo, "file", "type: expected a regular file, got {} ({})",
         S_ISDIR(status.st_mode) ? "a directory" : "something else", printable(path, 4096));
  }
  const auto size_bytes = static_cast<size_t>(status.st_size);
  const std::byte* data = nullptr;
  if (size_bytes > 0) {
    void* mapping = mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (mapping == MAP_FAILED) fail_errno(path, "map");
    data = static_cast<const std::byte*>(mapping);
  }
  // Registered once it has an owner, who unmaps it when the table is full.
  std::shared_ptr<MappedFile> out(new MappedFile(path, std::move(file), data, size_bytes));
  if (data != nullptr) out->slot_ = register_mapping(data, size_bytes);
  return out;
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  return map(path);
}

std::shared_ptr<const MappedFile> MappedFile::open_and_close(const std::string& path) {
  const std::shared_ptr<MappedFile> out = map(path);
  out->file_.reset();
  return out;
}

void MappedFile::check_readable() const {
  if (slot_ >= 0 && g_slots[static_cast<size_t>(slot_)].lost.load(std::memory_order_acquire)) {
    fail(ErrorKind::kIo, "file",
         "mapped bytes: expected readable pages, got a bus error; the file was cut or its disk "
         "vanished ({})",
         printable(path_, 4096));
  }
  if (file_.get() < 0) return;
  struct stat status {};
  if (fstat(file_.get(), &status) != 0) fail_errno(path_, "inspect");
  if (static_cast<size_t>(status.st_size) < size_bytes_) {
    fail(ErrorKind::kIo, "file", "size: expected {} bytes as when it was opened, got {} ({})",
         size_bytes_, status.st_size, printable(path_, 4096));
  }
}

namespace {

void advise(std::span<const std::byte> part, int advice) noexcept {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  // Dropping must not touch pages shared with neighbours; wanting may.
  const uintptr_t first =
      advice == MADV_DONTNEED ? (begin + page - 1) / page * page : begin / page * page;
  const uintptr_t last =
      advice == MADV_DONTNEED ? (begin + part.size()) / page * page : begin + part.size();
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace

void MappedFile::will_need(std::span<const std::byte> part) const noexcept {
  advise(part, MADV_WILLNEED);
}
void MappedFile::drop(std::span<const std::byte> part) const noexcept {
  // After a bus error the pages are ours, and dropping them changes nothing.
  advise(part, MADV_DONTNEED);
}

bool path_exists(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  fail_errno(path, "inspect");
}

std::string read_text_file(const std::string& path, size_t max_bytes) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  if (bytes.size() > max_bytes) {
    fail(ErrorKind::kCorrupt, "file", "size: expected at most {} bytes, got {} ({})", max_bytes,
         bytes.size(), printable(path, 4096));
  }
  std::string text(file->text());
  file->check_readable();
  return text;
}

}  // namespace qw
