// Blocks of keys and values in a directory, found again by what they are made of.
//
// Level 6 (engine). A file per block, named by kv_block_name(): what was computed by other weights,
// another adapter, another cache type, another program or after other tokens has another name. A
// file is read whole and checked (engine/kv_file.h) before anything of it is used; one that is not
// what its name says is removed and counts as missing. Two threads do all the reading and writing.
//
// Nothing is synced: a process that is killed leaves whole files and temporary ones, and what a
// machine leaves that crashed is found out by the hash. Several processes may share a directory.
// Where there is too much, the blocks used longest ago go: a file's time of change is that of its
// last use. A directory that is deleted meanwhile is made again with the same secret, so that what
// is written from then on is found by the names of before. Whoever uses a chain makes its blocks
// the older the later they come in it, so that no block outlives those before it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/kv_file.h"

namespace qw {

struct PrefixStoreOptions {
  std::string directory;
  /// Of all files together. 0: 10 GiB, or half of what they and the disk's free room are together
  /// if that is less.
  int64_t max_bytes = 0;
  int64_t queue_bytes = int64_t{256} << 20;      // copies that wait to be written
  int64_t read_ahead_bytes = int64_t{64} << 20;  // read and not yet taken
};

struct PrefixStoreStats {
  int64_t n_read = 0, bytes_read = 0;        // blocks
  int64_t n_written = 0, bytes_written = 0;  // blocks
  int64_t n_refused = 0;                     // files that were not what their names say
  int64_t n_evicted = 0;
  int64_t n_failed = 0;      // blocks that could not be written
  int64_t bytes_stored = 0;  // of all files, as last counted
  int64_t n_restored = 0;    // how often the directory had gone, with all files
};

class PrefixStore {
 public:
  /// Makes the directory if there is none. Errors: io, corrupt, naming it.
  explicit PrefixStore(const PrefixStoreOptions& options);
  /// Writes what is queued.
  ~PrefixStore();
  PrefixStore(const PrefixStore&) = delete;
  PrefixStore& operator=(const PrefixStore&) = delete;

  /// The directory's hash, which also names weights (LoadOptions::content_hashes).
  const std::shared_ptr<const KeyedHash>& hash() const { return hash_; }

  struct Block {
    KvName name{};
    int64_t used = 0;  // when: nanoseconds since 1970
    std::vector<int32_t> tokens;
  };
  struct Pages {
    std::unique_ptr<std::byte[]> memory;
    std::span<const std::byte> bytes;  // within
  };

  /// Whether there is a file of that name: one system call.
  bool contains(const KvName& name) const;
  /// Whether put() has room for so many bytes; something always has when nothing is queued.
  bool has_room(int64_t bytes) const;
  /// Queues a block to be written.
  void put(Block block, Pages pages);
  /// Notes when a block was used; what was noted lately is not noted again, and of many at once
  /// some may be missed.
  void touch(const KvName& name, int64_t used);

  /// Begins to read blocks, in order, up to the first that is missing; ends another read.
  void begin_read(std::vector<Block> blocks, int64_t page_bytes);
  /// What was read since, at most `most` blocks of it.
  std::vector<Pages> take_read(int64_t most);
  /// Whether all that will come of the read has been taken.
  bool read_ended() const;
  void end_read();

  /// A number that grows with every block that was read or written, or is missing.
  int64_t progress() const;
  /// Waits until progress() is more than `seen`, at most so long.
  void wait_for_progress(int64_t seen, int milliseconds);
  /// Waits until everything queued is written.
  void flush();
  /// The same, at most so long; what is left then is dropped, and counts as failed.
  void flush(std::chrono::milliseconds limit);

  PrefixStoreStats stats() const;
  int64_t max_bytes() const { return max_bytes_; }

 private:
  struct Write {
    Block block;
    Pages pages;  // without memory: the block was used
  };
  std::string path_of(const KvName& name) const;
  static constexpr size_t kMaxTouches = 4096;             // queued at a time
  static constexpr size_t kMaxTouched = size_t{1} << 16;  // remembered
  /// Names are hashes already.
  struct OfName {
    size_t operator()(const KvName& name) const noexcept;
  };
  void queue(Block block, Pages pages);
  void write_loop();
  void write(const Write& write);
  void restore_directory();
  static void mark_used(const std::string& path, int64_t used);
  void make_room();
  void read_loop();
  std::optional<Pages> read(const Block& block, int64_t page_bytes);
  void refuse(const std::string& path, std::string_view why);

  std::string directory_;
  std::shared_ptr<const KeyedHash> hash_;
  int64_t max_bytes_, queue_bytes_, read_ahead_bytes_;

  mutable std::mutex mutex_;  // over what follows
  std::condition_variable wake_writer_, wake_reader_, progress_;
  std::deque<Write> writes_;
  int64_t queued_bytes_ = 0;
  size_t n_touches_ = 0;                                 // of the queue
  std::unordered_map<KvName, int64_t, OfName> touched_;  // when, as was last noted
  bool writing_ = true;  // until the files are counted for the first time
  bool stopping_ = false;
  std::vector<Block> wanted_;  // of the read under way
  size_t next_wanted_ = 0;
  int64_t wanted_page_bytes_ = 0, read_bytes_ = 0;
  uint64_t read_number_ = 0;  // of the read under way: a block of an earlier one is dropped
  bool reading_ = false;      // more may come
  std::deque<Pages> read_;
  PrefixStoreStats stats_;
  int64_t n_progress_ = 0;
  bool warned_of_refusal_ = false;

  // The writer's own.
  int64_t bytes_since_count_ = 0;
  std::optional<std::chrono::steady_clock::time_point> failed_at_;
  bool warned_of_failure_ = false;

  std::thread writer_, reader_;
};

}  // namespace qw
