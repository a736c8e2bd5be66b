// Packed weights kept on disk, so that a program that starts again maps them instead of packing.
//
// Level 4 (backend), private to the CPU backend. Content-addressed: a file's name is a hash of the
// published bytes it was made of and of how they were packed, so a changed checkpoint, another
// instruction set or another version of the packer cannot meet a stale file. A second hash, of the
// file's own bytes, stands at its end and is checked whenever the file is mapped. Both are keyed
// (base/keyed_hash.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/keyed_hash.h"
#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "kernels/linear_pack.h"
#include "quant/linear_source.h"

namespace qw {

class PackedStore {
 public:
  /// Uses a directory, which is made if there is none. Errors: io, naming it.
  /// `packer_version` is another only in tests.
  explicit PackedStore(const std::string& directory,
                       int64_t packer_version = kernels::kPackerVersion);

  /// False for a source that does not tell which bytes it reads.
  static bool can_name(const LinearSource& source);

  /// The name of what packing `source` by `plan` gives. Reads all of the source. `first_panel`: its
  /// first panel, packed: a packer that would do it otherwise today gets another name.
  std::string name_of(const LinearSource& source, const kernels::PackPlan& plan,
                      std::span<const uint8_t> first_panel, ThreadPool& pool) const;

  /// The panels stored under a name; null: none, or a file that cannot be read or has not the bytes
  /// it was stored with (for report() to say). Reads all of the file. A matrix is a file, and a
  /// mixture of experts has thousands: none is kept open.
  std::shared_ptr<const MappedFile> find(const std::string& name, int64_t n_bytes,
                                         ThreadPool& pool);
  /// Panels within a file that find() gave.
  static const uint8_t* panels_of(const MappedFile& file);

  /// Keeps panels under a name, whole or not at all. A full disk is said once; nothing is lost by
  /// it but time.
  void put(const std::string& name, std::span<const uint8_t> panels, ThreadPool& pool);

  /// Warns, in one sentence, of the files that find() could not use since the last call.
  void report();

  /// Throws Error{kIo} if a file that is in use can no longer be read.
  void check_readable() const;

 private:
  std::string path_of(const std::string& name) const;

  std::string directory_;
  int64_t packer_version_;
  KeyedHash hash_;
  bool can_write_ = true;
  int64_t n_met_ = 0, n_refused_ = 0;  // files since the last report()
  std::string first_refusal_;
  std::vector<std::weak_ptr<const MappedFile>> in_use_;
};

}  // namespace qw
