#include "quantize/work_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"

namespace qw::quantize {

namespace {

namespace fs = std::filesystem;

constexpr const char *kJob = "job.json", *kLock = "lock", *kNoted = "finished",
                     *kHidden = "hidden.safetensors";

std::string hidden_name(int layer) {
  return fmt::format("behind_layer.{}", layer);
}

void write_tensors(const std::string& path, const std::vector<WorkDirectory::Tensor>& tensors) {
  std::vector<SafetensorsEntry> entries;
  entries.reserve(tensors.size());
  for (const WorkDirectory::Tensor& tensor : tensors)
    entries.push_back(tensor.entry);
  SafetensorsWriter out(path, entries);
  for (const WorkDirectory::Tensor& tensor : tensors)
    out.write(tensor.bytes);
  out.finish();
}

}  // namespace

WorkDirectory::WorkDirectory(std::string path, const std::string& job, std::string component)
    : path_(std::move(path)), component_(std::move(component)) {
  check_ours();
  take_lock();
  check_ours();
  std::error_code error;
  if (!fs::exists(file(kJob), error)) {
    write_file_atomically(file(kJob), std::as_bytes(std::span(job)));
    return;
  }
  go_on();
  if (read_text_file(file(kJob)) == job) return;
  if (n_finished_ > 0 || n_noted_ > 0) {
    fail(ErrorKind::kInvalidArgument, component_,
         "work directory: expected one of this model, calibration and options to go on with, got "
         "another's (remove {}, or give another --output)",
         printable(path_, 4096));
  }
  write_file_atomically(file(kJob), std::as_bytes(std::span(job)));
}

/// Errors: invalid_argument, where somebody else's files are.
void WorkDirectory::check_ours() const {
  std::error_code error;
  if (!fs::exists(path_, error) || fs::exists(file(kJob), error)) return;
  for (fs::directory_iterator entry(path_, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    // What a run leaves that is killed while it makes the directory.
    if (name == kLock || name.starts_with(kJob)) continue;
    fail(ErrorKind::kInvalidArgument, component_,
         "work directory: expected one that an interrupted run left, got another ({})",
         printable(path_, 4096));
  }
  if (error) fail_io("make", error.message());
}

/// Makes the directory. Whoever has the lock may do all in it.
void WorkDirectory::take_lock() {
  constexpr int kTrials = 100;  // a run that ends removes the directory meanwhile
  for (int trial = 0; trial < kTrials; ++trial) {
    std::error_code error;
    fs::create_directory(path_, error);
    if (error) fail_io("make", error.message());
    lock_.emplace(::open(file(kLock).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (lock_->get() < 0 && errno == ENOENT) continue;
    if (lock_->get() < 0) fail_io("lock", std::strerror(errno));
    if (::flock(lock_->get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      fail(ErrorKind::kInvalidArgument, component_,
           "work directory: expected that nobody uses it, got another run that does ({})",
           printable(path_, 4096));
    }
    // A file system without locks: as if there were no other run.
    struct stat held {
    }, named{};
    if (::fstat(lock_->get(), &held) == 0 && ::stat(file(kLock).c_str(), &named) == 0 &&
        held.st_ino == named.st_ino && held.st_dev == named.st_dev)
      return;
  }
  fail_io("lock", "no lasting directory");
}

/// How far an earlier run has come.
void WorkDirectory::go_on() {
  std::error_code error;
  if (fs::exists(file(kNoted), error)) {
    const std::string text = read_text_file(file(kNoted));
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), n_noted_);
    if (failure != std::errc() || end != text.data() + text.size() || n_noted_ < 0) {
      fail(ErrorKind::kCorrupt, component_, "{}: expected a number, got '{}' (remove {})", kNoted,
           printable(text), printable(path_, 4096));
    }
  }
  if (!fs::exists(file(kHidden), error)) return;
  const SafetensorsFile hidden = read_safetensors(MappedFile::open(file(kHidden)));
  int layer = 0;
  while (fs::exists(layer_path(layer), error))
    ++layer;
  // The last layer's file may be newer than the hidden states.
  for (; layer > 0; --layer) {
    if (hidden.tensors.front().name == hidden_name(layer - 1)) break;
  }
  n_finished_ = layer;
}

void WorkDirectory::note(int64_t n) {
  const std::string text = std::to_string(n);
  write_file_atomically(file(kNoted), std::as_bytes(std::span(text)));
  n_noted_ = n;
}

void WorkDirectory::fail_io(const char* action, const std::string& reason) const {
  fail(ErrorKind::kIo, component_, "work directory: expected to {} it, got {} ({})", action, reason,
       printable(path_, 4096));
}

std::string WorkDirectory::file(const std::string& name) const {
  return (fs::path(path_) / name).string();
}

std::string WorkDirectory::layer_path(int layer) const {
  return file(fmt::format("layer-{:05}.safetensors", layer));
}

std::vector<float> WorkDirectory::read_hidden(int64_t n) const {
  const auto mapping = MappedFile::open(file(kHidden));
  const SafetensorsFile file = read_safetensors(mapping);
  const RawTensor& tensor = file.tensors.front();
  if (tensor.dtype != DType::kF32 || tensor.shape.n_elems() != n) {
    fail(ErrorKind::kCorrupt, component_,
         "hidden states of the calibration: expected {} floats, got {} {} (remove {})", n,
         tensor.shape.n_elems(), name_of(tensor.dtype), printable(path_));
  }
  std::vector<float> out(static_cast<size_t>(n));
  std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
  mapping->check_readable();
  return out;
}

void WorkDirectory::finish_layer(const std::vector<Tensor>& tensors,
                                 const std::vector<float>& hidden) {
  write_tensors(layer_path(n_finished_), tensors);
  write_tensors(file(kHidden), {{{hidden_name(n_finished_), DType::kF32, {std::ssize(hidden)}},
                                 std::as_bytes(std::span(hidden))}});
  ++n_finished_;
}

void WorkDirectory::fail_interrupted() const {
  fail(ErrorKind::kCancelled, component_,
       "run: expected to reach its end, got interrupted; the same command goes on ({})",
       printable(path_, 4096));
}

void WorkDirectory::remove() {
  std::error_code error;
  fs::remove_all(path_, error);
  // Another run may have come for the lock meanwhile: the directory is its own now.
  if (error && error != std::errc::directory_not_empty) fail_io("remove", error.message());
}

}  // namespace qw::quantize
