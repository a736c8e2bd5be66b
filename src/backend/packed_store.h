// Packed weights kept on disk, so that a program that starts again maps them instead of packing.
//
// Level 4 (backend), private to the CPU backend. Content-addressed: a file's name is a hash of the
// published bytes it was made of and of how they were packed, so a changed checkpoint, another
// instruction set or another version of the packer cannot meet a stale file. The hash is XXH3 (Yann
// Collet), 128 bits, under a secret that is drawn with the store: it is read at the speed of
// memory, and nobody who does not know the secret can make a checkpoint that meets another's files.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "kernels/linear_pack.h"
#include "quant/linear_source.h"

namespace qw {

class PackedStore {
 public:
  /// Uses a directory, which is made if there is none. Errors: io, naming it.
  explicit PackedStore(const std::string& directory);

  /// False for a source that does not tell which bytes it reads.
  static bool can_name(const LinearSource& source);

  /// The name of what packing `source` by `plan` gives. Reads all of the source. `first_panel`: its
  /// first panel, packed: a packer that would do it otherwise today gets another name.
  std::string name_of(const LinearSource& source, const kernels::PackPlan& plan,
                      std::span<const uint8_t> first_panel, ThreadPool& pool) const;

  /// The panels stored under a name; null: none, or a file that is not whole or cannot be read (it
  /// is said). A matrix is a file, and a mixture of experts has thousands: none is kept open.
  std::shared_ptr<const MappedFile> find(const std::string& name, int64_t n_bytes);
  /// Panels within a file that find() gave.
  static const uint8_t* panels_of(const MappedFile& file);

  /// Keeps panels under a name, whole or not at all. A full disk is said once; nothing is lost by
  /// it but time.
  void put(const std::string& name, std::span<const uint8_t> panels);

  /// Throws Error{kIo} if a file that is in use can no longer be read.
  void check_readable() const;

 private:
  std::string path_of(const std::string& name) const;
  std::shared_ptr<const MappedFile> open(const std::string& path);

  std::string directory_;
  std::vector<std::byte> secret_;
  bool can_write_ = true, can_read_ = true;
  std::vector<std::weak_ptr<const MappedFile>> in_use_;
};

}  // namespace qw
