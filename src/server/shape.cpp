#include "server/shape.h"

#include <algorithm>
#include <map>
#include <memory>

namespace qw::server {

namespace {

const FieldInfo* find_in(const std::vector<FieldInfo>& members, std::string_view name) {
  const auto found = std::ranges::find(members, name, &FieldInfo::name);
  return found == members.end() ? nullptr : &*found;
}

const FieldInfo* find_member(const Shape& shape, const Json& object, std::string_view name) {
  if (const FieldInfo* found = find_in(shape.members, name)) return found;
  if (shape.kinds.empty()) return nullptr;
  const auto tag = object.find(shape.tag);
  const bool is_told = tag != object.end() && tag->is_string();
  const std::string& kind = is_told ? tag->get_ref<const std::string&>() : shape.default_kind;
  for (const auto& [of_kind, members] : shape.kinds) {
    if (of_kind == kind) return find_in(members, name);
  }
  return nullptr;
}

/// Collects what is ignored. Members of the same place in the items of a list share a sentence.
class MemberChecker {
 public:
  explicit MemberChecker(bool strict) : strict_(strict) {}

  /// place: the path without the numbers of items.
  void check(const std::string& path, const std::string& place, const Json& value,
             const Shape& shape) {
    if (value.is_array()) {
      for (size_t i = 0; i < value.size(); ++i)
        check(fmt::format("{}[{}]", path, i), place + "[]", value[i], shape);
    }
    if (!value.is_object()) return;
    for (const auto& [name, item] : value.items()) {
      if (item.is_null()) continue;
      const FieldInfo* known = find_member(shape, value, name);
      const std::string shown_name = fmt::format(".{}", printable(name));
      if (known == nullptr) {
        if (strict_) refuse_unknown(path + shown_name);
        note(path + shown_name, place + shown_name, shape.unknown);
      } else if (known->status == FieldStatus::kIgnored) {
        if (!asks_for_nothing(*known, item))
          note(path + shown_name, place + shown_name, known->note);
      } else if (known->shape != nullptr) {
        check(path + shown_name, place + shown_name, item, *known->shape);
      }
    }
  }

  std::vector<std::string> sentences() const {
    std::vector<std::string> out;
    for (const Found& found : found_) {
      const std::string more = found.n == 1 ? "" : fmt::format(" and {} more like it", found.n - 1);
      out.push_back(fmt::format("{}{}: ignored ({})", found.path, more, found.reason));
    }
    return out;
  }

 private:
  struct Found {
    std::string path;  // the first
    std::string_view reason;
    size_t n = 0;
  };

  void note(std::string path, const std::string& place, std::string_view reason) {
    const auto [it, is_new] = index_.emplace(place, found_.size());
    if (is_new) found_.push_back({std::move(path), reason, 0});
    ++found_[it->second].n;
  }

  bool strict_;
  std::vector<Found> found_;
  std::map<std::string, size_t> index_;  // by place
};

ShapePtr make_shape(std::vector<FieldInfo> members, bool is_list, std::string_view unknown) {
  auto shape = std::make_shared<Shape>();
  shape->members = std::move(members);
  shape->is_list = is_list;
  shape->unknown = unknown;
  return shape;
}

void add_members(const std::string& prefix, const Shape& shape, std::vector<FieldInfo>& out) {
  const std::string inner = prefix + (shape.is_list ? "[]." : ".");
  const auto add = [&](const std::vector<FieldInfo>& members) {
    for (const FieldInfo& info : members) {
      FieldInfo named = info;
      named.name = inner + info.name;
      const bool is_there = std::ranges::any_of(out, [&](const FieldInfo& other) {
        return other.name == named.name && other.status == named.status && other.note == named.note;
      });
      if (is_there) continue;
      out.push_back(named);
      if (info.shape != nullptr) add_members(named.name, *info.shape, out);
    }
  };
  add(shape.members);
  for (const auto& [kind, members] : shape.kinds)
    add(members);
}

}  // namespace

ShapePtr object_of(std::vector<FieldInfo> members, std::string_view unknown) {
  return make_shape(std::move(members), false, unknown);
}

ShapePtr list_of(std::vector<FieldInfo> members, std::string_view unknown) {
  return make_shape(std::move(members), true, unknown);
}

FieldInfo member(std::string name, ShapePtr shape) {
  FieldInfo out;
  out.name = std::move(name);
  out.note = "within another field";
  out.shape = std::move(shape);
  return out;
}

FieldInfo ignored_member(std::string name, std::string reason, Json neutral) {
  FieldInfo out;
  out.name = std::move(name);
  out.status = FieldStatus::kIgnored;
  out.note = std::move(reason);
  out.neutral = std::move(neutral);
  return out;
}

std::vector<FieldInfo> members_of(const FieldInfo& field) {
  std::vector<FieldInfo> out;
  if (field.shape != nullptr) add_members(field.name, *field.shape, out);
  return out;
}

std::vector<std::string> check_members(const std::string& name, const Json& value,
                                       const Shape& shape, bool strict) {
  MemberChecker checker(strict);
  checker.check(name, name, value, shape);
  return checker.sentences();
}

}  // namespace qw::server
