#include "server/file_hashes.h"

#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "base/log.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "engine/current_error.h"

namespace qw::server {

// OpenSSL's SHA-256, which uses the processor's instructions: ours is plain code, and weights are
// large.
std::string sha256_of_file(const std::string& path, const CancelFlag* cancel) {
  constexpr size_t kPiece = size_t{4} << 20;
  const auto file = MappedFile::open(path);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  bool fine = context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  std::span<const std::byte> rest = file->bytes();
  while (fine && !rest.empty()) {
    if (cancel != nullptr) cancel->check("hash of " + path);
    const std::span<const std::byte> piece = rest.first(std::min(kPiece, rest.size()));
    fine = EVP_DigestUpdate(context.get(), piece.data(), piece.size()) == 1;
    rest = rest.subspan(piece.size());
  }
  Sha256::Digest digest{};
  fine = fine && EVP_DigestFinal_ex(context.get(), digest.data(), nullptr) == 1;
  if (!fine) fail(ErrorKind::kInternal, "hash", "SHA-256: expected a digest of {}, got none", path);
  file->check_readable();
  return to_hex(digest);
}

void FileHashes::stop() {
  cancel_.cancel();
  std::thread thread;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    thread.swap(thread_);
  }
  if (!thread.joinable()) return;
  // The last who waits may hold the model, and so this object: what is left of the thread then uses
  // nothing of it.
  if (thread.get_id() == std::this_thread::get_id()) return thread.detach();
  thread.join();
}

void FileHashes::when_ready(Done done) {
  {
    std::unique_lock lock(mutex_);
    if (!ready_ && stopped_) {
      const Error error(ErrorKind::kCancelled,
                        "[hash] files: expected to be read, got a model that is unloaded");
      lock.unlock();
      return done({}, &error);
    }
    if (!ready_) {
      waiting_.push_back(std::move(done));
      if (begun_) return;
      if (thread_.joinable()) thread_.join();  // of a reading that failed, and has ended
      thread_ = std::thread([this] { read(); });
      begun_ = true;
      return;
    }
  }
  done(hashes_, nullptr);
}

void FileHashes::read() {
  std::vector<FileHash> hashes;
  std::optional<Error> error;
  try {
    for (const OwnedFile& file : files_)
      hashes.push_back({file.owner, file.path, sha256_of_file(file.path, &cancel_)});
  } catch (...) {
    error = current_error();
    hashes.clear();
  }
  std::vector<Done> waiting;
  {
    const std::lock_guard lock(mutex_);
    if (!error) hashes_ = hashes;
    ready_ = !error;
    begun_ = ready_;
    waiting.swap(waiting_);
  }
  for (const Done& done : waiting) {
    try {
      done(hashes, error ? &*error : nullptr);
    } catch (...) {
      logger().error("[hash] files: {}", current_error().message());
    }
  }
}

}  // namespace qw::server
