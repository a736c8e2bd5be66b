// Tokenizers from files: a Hugging Face directory, merges.txt, qwen.tiktoken.
//
// Level 3 (text). load_tokenizer_directory is what the program uses; the readers of single formats
// are here for it and for the fuzzers. All of them fill a TokenizerSpec.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace qw {

/// The lines "left right" of a merges.txt, best first, with or without its "#version" line.
/// Errors: corrupt, naming the line.
std::vector<MergeText> read_merges_txt(std::string_view text, const std::string& source);

/// A vocabulary of lines "base64(bytes) rank", the ranks 0, 1, 2, ... being the ids. The merges
/// follow from it: a token's merge is the pair left when BPE over lower ranks has reduced it to
/// two parts. NFC and the Qwen2 pattern are implied; special tokens are not in the file.
/// Errors: corrupt, naming the line.
TokenizerSpec read_tiktoken(std::string_view text, const std::string& source);

/// Makes <|endoftext|>, <|im_start|>, <|im_end|> special: behind the vocabulary, where Qwen1.5 has
/// them, unless they are in it.
void add_qwen_special_tokens(TokenizerSpec& spec);

/// The spec of a directory: from tokenizer.json, else vocab.json + merges.txt, else qwen.tiktoken;
/// with added_tokens.json, special_tokens_map.json, tokenizer_config.json and
/// chat_template.jinja where present. Errors: not_found (names what was looked for), corrupt, io,
/// unsupported.
TokenizerSpec read_tokenizer_directory(const std::string& directory);

/// The tokenizer of a directory that holds at least the tokenizer's files.
std::shared_ptr<const Tokenizer> load_tokenizer_directory(const std::string& directory);

}  // namespace qw
