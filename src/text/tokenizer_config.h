// Reads the small files beside a vocabulary: tokenizer_config.json and its older companions.
//
// Level 3 (text). Each reader adds to a spec what its file says and refuses what contradicts it.
#pragma once

#include <string>
#include <string_view>

#include "text/tokenizer_spec.h"

namespace qw {

/// tokenizer_config.json: bos/eos/pad/unk tokens, additional_special_tokens, added_tokens_decoder,
/// chat_template (text or list of named texts), model_max_length. For Llama's tokenizer classes,
/// add_bos_token also counts. Errors: corrupt.
void apply_tokenizer_config(std::string_view json, const std::string& source, TokenizerSpec& spec);

/// added_tokens.json, the older form: an object of texts and ids. Errors: corrupt.
void apply_added_tokens_json(std::string_view json, const std::string& source, TokenizerSpec& spec);

/// special_tokens_map.json: the named tokens alone. Errors: corrupt.
void apply_special_tokens_map(std::string_view json, const std::string& source,
                              TokenizerSpec& spec);

/// Makes every token that the config names (bos, eos, ..., additional) an added, special token,
/// as Transformers does. Errors: corrupt when one is not in the vocabulary.
void mark_named_tokens_special(TokenizerSpec& spec);

}  // namespace qw
