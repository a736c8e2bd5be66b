// What the fuzz targets of the notations share: compile, then follow the grammar for a while.
//
// Level 6 (engine/grammar), fuzzing only.
#pragma once

#include <memory>

#include "base/error.h"
#include "engine/grammar/configurations.h"
#include "engine/grammar/grammar.h"

namespace qw::grammar {

/// Goes on with the lowest and the highest byte that fits, in turn; a configuration that is neither
/// dead nor an end must have one.
template <typename Make>
int fuzz_grammar(Make make) {
  try {
    const std::shared_ptr<const Grammar> grammar = make();
    Configurations configs(grammar->fsm());
    ConfigId at = configs.start();
    for (int n = 0; n < 40; ++n) {
      ConfigId next = kDead;
      for (int i = 0; i < 256 && next == kDead; ++i)
        next = configs.step(at, static_cast<uint8_t>(n % 2 == 0 ? i : 255 - i));
      if (next == kDead) {
        if (!configs.accepts(at)) __builtin_trap();
        break;
      }
      at = next;
    }
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace qw::grammar
