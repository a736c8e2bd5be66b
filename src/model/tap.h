// Handing a value of the forward pass to whoever observes it.
//
// Level 5 (model), private to it.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"

namespace qw {

/// Hands `rows` to the observer if it wants them. The name is made only when there is one.
template <typename... Args>
void tap(ForwardObserver* observer, const Backend& backend, const Rows& rows,
         fmt::format_string<Args...> name, Args&&... args) {
  if (observer == nullptr) return;
  const std::string text = fmt::format(name, std::forward<Args>(args)...);
  if (!observer->wants(text)) return;
  std::vector<float> values(static_cast<size_t>(rows.rows * rows.cols));
  backend.download(rows, values.data());
  observer->on_value(text, rows.rows, rows.cols, values.data());
}

}  // namespace qw
