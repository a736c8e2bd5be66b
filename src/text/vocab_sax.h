// The streaming half of the tokenizer.json reader: vocabulary and merges apart from the rest.
//
// Level 3 (text), private to the readers. nlohmann's SAX parser does the JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/tokenizer_spec.h"

namespace qw {

class VocabSax : public nlohmann::json_sax<nlohmann::ordered_json> {
 public:
  using Json = nlohmann::ordered_json;

  /// vocab_at_root: the document itself is the vocabulary (vocab.json); otherwise the vocabulary is
  /// model.vocab, and model.merges the merges.
  VocabSax(bool vocab_at_root, const std::string& source)
      : source_(source), vocab_at_root_(vocab_at_root) {}

  std::vector<std::string> tokens;  // by id
  std::vector<MergeText> merges;
  Json rest;  // everything else

  bool null() override { return add_value(nullptr); }
  bool boolean(bool value) override { return add_value(value); }
  bool number_integer(number_integer_t value) override;
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t value, const string_t&) override { return add_value(value); }
  bool string(string_t& value) override;
  bool binary(binary_t&) override { return false; }  // not in JSON
  bool start_object(size_t) override;
  bool key(string_t& name) override;
  bool end_object() override { return end(); }
  bool start_array(size_t) override;
  bool end_array() override { return end(); }
  [[noreturn]] bool parse_error(size_t position, const std::string& last_token,
                                const nlohmann::detail::exception& error) override;

 private:
  enum class Mode { kDocument, kVocab, kMerges, kMergePair };
  bool add_value(Json value);
  bool open(Json value);
  bool end();
  void add_token(number_unsigned_t id);
  void add_merge_line(const std::string& line);
  std::string_view wanted() const;  // what may come next inside the vocabulary or the merges
  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const;

  std::string source_;
  bool vocab_at_root_;
  Mode mode_ = Mode::kDocument;
  std::vector<Json*> open_;        // containers we are inside of, outermost first
  std::vector<std::string> keys_;  // the last key seen in each of them
  std::string token_;              // the vocabulary key whose id comes next
  std::vector<std::string> pair_;  // of a merge in array form
};

/// Parses all of `json` into `sax`; Error{kCorrupt} at the first thing that is not JSON.
void parse_with(VocabSax& sax, std::string_view json);

}  // namespace qw
