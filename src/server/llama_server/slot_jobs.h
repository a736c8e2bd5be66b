// Saving, restoring and erasing what was computed last under a slot's number.
//
// Level 7 (server). Keys and values may be gigabytes: they go in pieces, one of a job at a time in
// memory. A piece is copied between two steps on the engine's thread and written or read on a
// thread for files, by turns, so that a save or a restore costs the others' answers the copying of
// one piece per step, and a slow disk costs them nothing but pages: those that are being saved stay
// in the cache until the last one is copied, the client has gone or its time is over.
#pragma once

#include <memory>
#include <string>

#include "engine/block_scope.h"
#include "server/call.h"
#include "server/served_model.h"

namespace qw::server::llama_server {

/// What is asked of a slot.
struct SlotTask {
  std::shared_ptr<Call> call;
  std::shared_ptr<ServedModel> model;
  int64_t slot = 0;
  std::string filename;  // within the directory, as the client says it
  CacheSalt salt;        // of what is restored
};

// Each answers the call, whatever happens.

/// To the file, whole or not at all, what is kept of the slot's sequence.
void save_slot(SlotTask task);
/// From the file, as far as there is room: the slot holds what came back.
void restore_slot(SlotTask task);
void erase_slot(SlotTask task);

}  // namespace qw::server::llama_server
