// Objects that stand within a field: which members they have, and what is done with each.
//
// Level 7 (server). A field's reader takes out of such objects what it understands. Their shape
// says what that is, so that nothing else passes in silence: what is not known is an error in
// strict mode, else a warning, and so is what is known and changes nothing.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/fields.h"

namespace qw::server {

inline constexpr std::string_view kUnknownMember =
    "unknown field; /compat lists those that are known";
/// Of messages and tools, which chat templates get as they came.
inline constexpr std::string_view kUnknownToAll = "unknown field; only a chat template may read it";

struct Shape {
  std::vector<FieldInfo> members;
  bool is_list = false;  // of such objects (for the names of members in /compat)
  /// Objects of several kinds: what is the kind's own, by the text of the member `tag`.
  std::string tag = {};
  std::string default_kind = {};  // of an object that does not say
  std::vector<std::pair<std::string, std::vector<FieldInfo>>> kinds = {};
  std::string_view unknown = kUnknownMember;
};

ShapePtr object_of(std::vector<FieldInfo> members, std::string_view unknown = kUnknownMember);
ShapePtr list_of(std::vector<FieldInfo> members, std::string_view unknown = kUnknownMember);

/// A member that the reader understands (or refuses by itself), with the shape of its own value.
FieldInfo member(std::string name, ShapePtr shape = nullptr);
/// A member that changes nothing; neutral as of ignored().
FieldInfo ignored_member(std::string name, std::string reason, Json neutral = nullptr);

/// The members of a field's objects as fields of their own, "messages[].role": for /compat.
std::vector<FieldInfo> members_of(const FieldInfo& field);

}  // namespace qw::server
