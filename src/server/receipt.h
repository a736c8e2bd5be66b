// A receipt: everything that the tokens of an answer depend on, and the tokens, so that they can be
// computed again and compared.
//
// Level 7 (server). docs/commands/replay.md lists the members. The last, "sha256", is the SHA-256
// of the others as canonical JSON: members in the order of their names' bytes, no white space,
// numbers as nlohmann's library writes them (the shortest text that reads back as the same number).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "server/file_hashes.h"
#include "server/generation/task.h"
#include "server/model_hub.h"

namespace qw::server {

/// What is known before the answers are: what was asked, in the engine's own terms. `structure`:
/// of the tool calls that constrain the answers, null: none.
Json receipt_of_request(const GenerationTask& task, const Prepared& prepared,
                        const Json& structure);

/// The files whose hashes a receipt holds: weights, config.json, adapters.
std::vector<OwnedFile> receipt_files(const LoadedModel& files,
                                     const std::vector<AdapterSpec>& adapters);

/// The program's and the model's members of a receipt: "program", "model", "context". `build`: the
/// program's commit.
Json receipt_environment(const LoadedModel& loaded, const OpenOptions& open,
                         std::span<const FileHash> hashes, const std::string& name,
                         const std::string& version, const std::string& build);

/// The adapters' part of them.
std::vector<OwnedFile> files_of_adapters(const std::vector<AdapterSpec>& adapters);

/// Completes what receipt_of_request() gave with the environment, the answers and its own hash.
Json finished_receipt(const Json& request, const Json& environment,
                      std::span<const std::shared_ptr<const RequestResult>> results);

/// The hash that a receipt should end with.
std::string receipt_sha256(const Json& receipt);

// ---- replaying ---------------------------------------------------------------------------------

/// Refuses what is no receipt, or one whose members are not those that its hash is of. Errors:
/// invalid_argument.
void check_receipt(const Json& receipt);

/// The receipt's environment beside this one: a sentence for each difference that may change
/// tokens (weights, tokenizer, template, build, instruction set, types).
std::vector<std::string> receipt_differences(const Json& receipt, const Json& here);
/// The engine's requests of a receipt. Errors: invalid_argument (a member of another type, or out
/// of range), those of grammars.
std::vector<Request> requests_of_receipt(const Json& receipt, const LoadedModel& loaded);

}  // namespace qw::server
