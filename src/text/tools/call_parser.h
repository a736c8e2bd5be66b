// What the parsers of all tool formats share: markers in text that arrives in pieces.
//
// Level 3 (text). A parser is a machine of steps over the text that is not yet decided.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tools/json_span.h"
#include "text/tools/tool_format.h"

namespace qw::tools {

inline constexpr std::string_view kSpace = " \t\r\n";

class CallParser : public ToolCallParser {
 public:
  std::vector<ToolEvent> push(std::string_view text) final;
  std::vector<ToolEvent> finish(bool truncated) final;
  bool done() const noexcept final { return done_; }

 protected:
  explicit CallParser(const ToolPrompt& prompt);

  /// One step over rest(). False: it needs more text; when ending(), it has taken everything.
  virtual bool step() = 0;

  std::string_view rest() const noexcept { return std::string_view(buffer_).substr(begin_); }
  void take(size_t n_bytes) noexcept { begin_ += n_bytes; }
  void take_space() noexcept;
  /// Takes `c` if the text goes on with it. False: there is no text yet.
  bool take_if(char c) noexcept;
  bool ending() const noexcept { return ending_; }
  bool truncated() const noexcept { return truncated_; }
  void end_answer() noexcept { done_ = true; }

  /// The first marker of rest(), or what could become one.
  struct Found {
    int marker = -1;   // its index; -1: none
    size_t at = 0;     // where it begins; without marker: where what is held back begins
    size_t space = 0;  // where the white space before `at` begins
    size_t length = 0;
  };
  Found find(std::span<const std::string_view> markers) const;

  /// What stands at the start of `text`.
  struct AtStart {
    enum class Kind { kNone, kMarker, kUndecided } kind = Kind::kNone;
    int marker = -1;
  };
  AtStart at_start(std::string_view text, std::span<const std::string_view> markers) const;

  /// A function's name and what follows it, white space before both: "name<marker>".
  struct Name {
    enum class Kind { kUndecided, kUnknown, kKnown } kind = Kind::kUndecided;
    std::string name;
    int marker = -1;  // that follows; -1: the text ends
    size_t length = 0;
  };
  Name read_name(std::span<const std::string_view> markers) const;
  bool is_known(std::string_view name) const;

  /// Steps through arguments: a JSON object to its last bracket, a fenced block (```) to its last
  /// fence, or anything else up to a marker.
  struct Arguments {
    enum class Kind { kMore, kNeedsText, kClosed, kMarker, kEnd } kind = Kind::kMore;
    int marker = -1;  // of kMarker; taken
  };
  void begin_arguments() noexcept { place_ = Place::kBefore; }
  Arguments read_arguments(std::span<const std::string_view> markers);

  /// Takes text up to the first marker, giving it to say() or think(); white space before the
  /// marker stays. Without a marker, takes what cannot be the start of one, or all of it when
  /// ending().
  Found read_until(std::span<const std::string_view> markers, ToolEvent::Kind kind);

  void say(std::string_view text) { emit(ToolEvent::Kind::kText, text); }
  void think(std::string_view text) { emit(ToolEvent::Kind::kThought, text); }
  /// hold: arguments are shown at the end of the call, by what held_arguments() makes of them.
  void begin_call(std::string_view name, bool hold = false);
  virtual std::string held_arguments(const std::string& text) const { return text; }
  void add_arguments(std::string_view text);
  /// {} if there were none, unless they were cut off before they began.
  void end_call();
  bool has_functions() const noexcept { return !names_.empty(); }
  bool may_call() const noexcept { return may_repeat_ || n_calls_ == 0; }

 private:
  enum class Place { kBefore, kJson, kFence, kRaw };
  static constexpr std::string_view kFence = "```", kLastFence = "\n```";
  void run();
  void emit(ToolEvent::Kind kind, std::string_view text);
  std::vector<ToolEvent> take_events();

  std::vector<std::string> names_;
  bool may_repeat_;
  std::string buffer_;  // not decided from begin_ on
  size_t begin_ = 0;
  bool ending_ = false, truncated_ = false, done_ = false;
  std::vector<ToolEvent> events_;
  size_t n_calls_ = 0;
  std::string arguments_;  // of the call that is open
  bool hold_ = false;
  bool cut_ = false;  // they ended where generation was cut off
  Place place_ = Place::kBefore;
  JsonSpan json_;
};

}  // namespace qw::tools
