// Which type each matrix gets when all of them together may take so many bytes.
//
// Level 6 (quantize). Source of the idea: Everett 1963, "Generalized Lagrange Multiplier Method":
// with a price for a byte every item chooses for itself, and what is chosen at any price is the
// best of its size. Between two prices the rest is filled item by item.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qw::quantize {

/// One way to keep an item.
struct BudgetChoice {
  int64_t bytes = 0;
  double damage = 0;  // >= 0; damages of items add up
};

/// Errors: invalid_argument if the smallest choices of all, `least` bytes, are more than `max_bytes`.
void check_budget(int64_t least, int64_t max_bytes);

/// The choice of each item, as its index: sum of bytes <= max_bytes, with a small sum of damages.
/// The sum exceeds the least possible one by less than the damage that the dearest single step of
/// the items' convex hulls saves; mostly not at all. Of equals the fewer bytes. Errors:
/// invalid_argument, when the smallest choices together are larger; an item without choices is a
/// broken promise.
std::vector<size_t> choose_within(const std::vector<std::vector<BudgetChoice>>& items,
                                  int64_t max_bytes);

/// Indices of the choices of one item that are on the lower convex hull of (bytes, damage), in
/// order of bytes: each saves less damage a byte than the one before.
std::vector<size_t> lower_hull(const std::vector<BudgetChoice>& choices);

}  // namespace qw::quantize
