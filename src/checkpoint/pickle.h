// Python pickles as inert data: a machine that builds a tree and calls nothing.
//
// Level 3 (checkpoint). Source: the opcode list of CPython's pickletools, protocols 2 to 5, of
// which only what torch.save writes is taken. A pickle is a program; here a global is a name on
// an allow-list, and a call is a node that says "this name, these arguments".
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string_view>
#include <vector>

#include "base/function_ref.h"

namespace qw {

struct PickleNode {
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kBigInt,
    kReal,
    kText,
    kBytes,
    kList,
    kTuple,
    kDict,
    kGlobal,
    kCall,
    kPersistent,
  };
  Kind kind = Kind::kNone;
  int64_t integer = 0;  // int; bool as 0 or 1
  double real = 0;
  std::string_view text;  // text, bytes; big int: two's complement, little-endian; global: module
  std::string_view name;  // global: the name in that module
  // List, tuple: items. Dict: key, value, key, value, ... Call: callable, arguments (a tuple).
  // Persistent: the id.
  std::vector<const PickleNode*> items;

  bool is(Kind other) const noexcept { return kind == other; }
  bool is_global(std::string_view module, std::string_view global) const noexcept {
    return kind == Kind::kGlobal && text == module && name == global;
  }
};

/// "a tuple", "an int", ... for messages.
std::string_view name_of(PickleNode::Kind kind) noexcept;

/// One pickle. Nodes point into each other (cycles are possible: walk with a depth limit) and into
/// the bytes given, which must outlive this object.
class Pickle {
 public:
  using IsAllowed = FunctionRef<bool(std::string_view module, std::string_view name)>;

  /// Reads the pickle that begins at bytes[offset] and moves `offset` past its STOP.
  /// OrderedDict() and OrderedDict(pairs) become dicts; attributes set on a dict are dropped.
  /// Errors: corrupt; unsupported for a global that is not allowed (naming it), an opcode outside
  /// the list, or more than 2^20 nodes. `file` names the source in messages.
  Pickle(std::span<const std::byte> bytes, size_t& offset, IsAllowed is_allowed,
         std::string_view file);
  Pickle(Pickle&&) = default;
  Pickle& operator=(Pickle&&) = default;

  const PickleNode& root() const noexcept { return *root_; }

 private:
  std::deque<PickleNode> nodes_;
  const PickleNode* root_ = nullptr;
};

}  // namespace qw
