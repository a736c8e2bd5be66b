// What the server says of a task, in the client's words: its fields, not the project's parameters.
//
// Level 7 (server).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/generation/task.h"

namespace qw::server {

/// The client's name for a parameter.
std::string field_of(const GenerationTask& task, std::string_view parameter);
/// The client's name for what is gone on with.
std::string prompt_field_of(const GenerationTask& task);
/// What is wrong with parameters: the field at fault, and every parameter by the name that the
/// client gave it by.
RequestError in_clients_words(const GenerationTask& task, const Error& error);

/// That a field was given and changes nothing, and why.
std::string idle_sentence(std::string_view field, std::string_view why);
/// A sentence for each field that was given and changes nothing, since others do not let it. Values
/// that ask for nothing are none, for clients send those unasked. config: the task's, before
/// anything of the tools is in it.
std::vector<std::string> idle_fields(const GenerationTask& task, const GenerationConfig& config,
                                     const ServedModel& model);
/// The same of what only the template could read. variables_field: the client's name for the
/// template's variables.
std::vector<std::string> idle_variables(std::string_view variables_field, const ChatInput& chat,
                                        const ServedModel& model);

}  // namespace qw::server
