// SHA-256 of the files that a model was read from, for receipts.
//
// Level 7 (server). Gigabytes take seconds, so they are read once, when they are first wanted, on a
// thread of its own; whoever wants them is called.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/cancel.h"
#include "base/error.h"

namespace qw::server {

/// A file and whose it is: "" the model's own, else the path of an adapter as it was given.
struct OwnedFile {
  std::string owner, path;
};
struct FileHash {
  std::string owner, path, sha256;
};

/// Errors: not_found, io, cancelled.
std::string sha256_of_file(const std::string& path, const CancelFlag* cancel = nullptr);

class FileHashes {
 public:
  explicit FileHashes(std::vector<OwnedFile> files) : files_(std::move(files)) {}
  ~FileHashes() { stop(); }
  FileHashes(const FileHashes&) = delete;
  FileHashes& operator=(const FileHashes&) = delete;

  /// hashes: in the order of the files; empty and an error if one could not be read, which the
  /// next who asks tries again. What `done` throws is logged.
  using Done = std::function<void(const std::vector<FileHash>& hashes, const Error* error)>;
  /// Calls `done` at once where they are known, else later on the thread that reads. Any thread.
  void when_ready(Done done);
  /// Ends the reading; whoever waits is told an error. Any thread.
  void stop();

 private:
  void read();

  std::vector<OwnedFile> files_;
  CancelFlag cancel_;
  std::mutex mutex_;  // over what follows
  bool begun_ = false, ready_ = false, stopped_ = false;
  std::vector<FileHash> hashes_;
  std::vector<Done> waiting_;
  std::thread thread_;
};

}  // namespace qw::server
