#include "checkpoint/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <unordered_map>

#include "base/error.h"

namespace qw {

namespace {

using Kind = PickleNode::Kind;

// Far above what the largest state dict needs (some 25 nodes for a tensor).
constexpr size_t kMaxNodes = size_t{1} << 20;
constexpr size_t kMaxItems = size_t{1} << 22;  // references to nodes: stack, containers, memo
constexpr int kMaxProtocol = 5;

// Opcodes, by the names of pickletools.
enum Op : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNoneOp = 'N',
  kBinFloat = 'G',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kAppend = 'a',
  kAppends = 'e',
  kBuild = 'b',
  kGlobalOp = 'c',
  kSetItem = 's',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kTupleOp = 't',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, size_t offset, Pickle::IsAllowed is_allowed,
          std::string_view file, std::deque<PickleNode>& nodes)
      : bytes_(bytes), at_(offset), is_allowed_(is_allowed), file_(file), nodes_(nodes) {}

  const PickleNode* run() {
    while (true) {
      const auto op = number<uint8_t>();
      if (op == kStop) return pop();
      if (!push_constant(op) && !build_container(op) && !use_memo(op) && !use_global(op)) {
        fail(ErrorKind::kUnsupported, "pickle",
             "opcode: expected one that torch.save writes, got 0x{:02x} (byte {} of {})", op,
             at_ - 1, printable(file_, 4096));
      }
    }
  }
  size_t offset() const noexcept { return at_; }

 private:
  // ---- The bytes ----
  [[noreturn]] void corrupt(std::string_view expected, std::string_view got) const {
    fail(ErrorKind::kCorrupt, "pickle", "data: expected {}, got {} (byte {} of {})", expected, got,
         at_, printable(file_, 4096));
  }

  std::string_view take(uint64_t n_bytes) {
    if (n_bytes > bytes_.size() - at_)
      corrupt(fmt::format("{} more bytes", n_bytes), "the end of the pickle");
    const std::string_view out(reinterpret_cast<const char*>(bytes_.data()) + at_, n_bytes);
    at_ += n_bytes;
    return out;
  }

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string_view line() {
    const char* begin = reinterpret_cast<const char*>(bytes_.data()) + at_;
    const void* end = std::memchr(begin, '\n', bytes_.size() - at_);
    if (end == nullptr) corrupt("a line", "the end of the pickle");
    const std::string_view out = take(static_cast<size_t>(static_cast<const char*>(end) - begin));
    ++at_;
    return out;
  }

  // ---- The stack ----
  PickleNode& make(Kind kind) {
    if (nodes_.size() == kMaxNodes) {
      fail(ErrorKind::kUnsupported, "pickle", "size: expected at most {} values, got more ({})",
           kMaxNodes, printable(file_, 4096));
    }
    PickleNode& node = nodes_.emplace_back();
    node.kind = kind;
    return node;
  }

  void charge(size_t n_items) {
    n_items_ += n_items;
    if (n_items_ > kMaxItems) {
      fail(ErrorKind::kUnsupported, "pickle", "size: expected at most {} items, got more ({})",
           kMaxItems, printable(file_, 4096));
    }
  }

  void push(PickleNode& node) {
    charge(1);
    stack_.push_back(&node);
  }

  size_t floor() const noexcept { return marks_.empty() ? 0 : marks_.back(); }

  PickleNode* pop() {
    if (stack_.size() <= floor()) corrupt("a value on the stack", "none");
    PickleNode* node = stack_.back();
    stack_.pop_back();
    return node;
  }

  PickleNode& top(Kind kind) {
    if (stack_.size() <= floor() || !stack_.back()->is(kind)) {
      corrupt(name_of(kind),
              stack_.size() <= floor() ? "an empty stack" : name_of(stack_.back()->kind));
    }
    return *stack_.back();
  }

  // Everything above the last mark, which is taken off too.
  std::vector<const PickleNode*> pop_to_mark() {
    if (marks_.empty()) corrupt("a mark", "none");
    const auto begin = stack_.begin() + static_cast<ptrdiff_t>(marks_.back());
    std::vector<const PickleNode*> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }

  void append_to(PickleNode& container, const std::vector<const PickleNode*>& items) {
    charge(items.size());
    container.items.insert(container.items.end(), items.begin(), items.end());
  }

  // ---- Opcodes, by family; false: not of this family ----
  void push_int(int64_t value) {
    PickleNode& node = make(Kind::kInt);
    node.integer = value;
    push(node);
  }

  void push_text(Kind kind, std::string_view text) {
    PickleNode& node = make(kind);
    node.text = text;
    push(node);
  }

  void push_long(std::string_view digits) {
    if (digits.size() > 8) return push_text(Kind::kBigInt, digits);
    uint64_t value = 0;
    for (size_t i = 0; i < digits.size(); ++i)
      value |= uint64_t{static_cast<uint8_t>(digits[i])} << (8 * i);
    const bool negative =
        !digits.empty() && digits.size() < 8 && (static_cast<uint8_t>(digits.back()) & 0x80) != 0;
    if (negative) value |= ~uint64_t{0} << (8 * digits.size());
    push_int(static_cast<int64_t>(value));
  }

  void push_bool(bool value) {
    PickleNode& node = make(Kind::kBool);
    node.integer = value;
    push(node);
  }

  void push_float() {
    PickleNode& node = make(Kind::kReal);
    node.real =
        std::bit_cast<double>(__builtin_bswap64(number<uint64_t>()));  // the one big-endian field
    push(node);
  }

  bool push_constant(uint8_t op) {
    switch (op) {
      case kNoneOp:
        push(make(Kind::kNone));
        return true;
      case kNewTrue:
        push_bool(true);
        return true;
      case kNewFalse:
        push_bool(false);
        return true;
      case kBinInt:
        push_int(number<int32_t>());
        return true;
      case kBinInt1:
        push_int(number<uint8_t>());
        return true;
      case kBinInt2:
        push_int(number<uint16_t>());
        return true;
      case kLong1:
        push_long(take(number<uint8_t>()));
        return true;
      case kLong4:
        push_long(take(number<uint32_t>()));
        return true;
      case kBinFloat:
        push_float();
        return true;
      case kShortBinString:
      case kShortBinUnicode:
        push_text(Kind::kText, take(number<uint8_t>()));
        return true;
      case kBinString:
      case kBinUnicode:
        push_text(Kind::kText, take(number<uint32_t>()));
        return true;
      case kBinUnicode8:
        push_text(Kind::kText, take(number<uint64_t>()));
        return true;
      case kShortBinBytes:
        push_text(Kind::kBytes, take(number<uint8_t>()));
        return true;
      case kBinBytes:
        push_text(Kind::kBytes, take(number<uint32_t>()));
        return true;
      case kBinBytes8:
        push_text(Kind::kBytes, take(number<uint64_t>()));
        return true;
      default:
        return false;
    }
  }

  void push_tuple(const std::vector<const PickleNode*>& items) {
    PickleNode& node = make(Kind::kTuple);
    append_to(node, items);
    push(node);
  }

  void push_tuple_of(size_t n_items) {
    std::vector<const PickleNode*> items(n_items);
    for (size_t i = n_items; i-- > 0;)
      items[i] = pop();
    push_tuple(items);
  }

  void set_items() {
    const auto items = pop_to_mark();
    if (items.size() % 2 != 0) corrupt("keys and values", "a key without a value");
    append_to(top(Kind::kDict), items);
  }

  void append_items() {
    const auto items = pop_to_mark();
    append_to(top(Kind::kList), items);
  }

  bool build_container(uint8_t op) {
    switch (op) {
      case kMark:
        marks_.push_back(stack_.size());
        charge(1);
        return true;
      case kPop:
        pop();
        return true;
      case kPopMark:
        pop_to_mark();
        return true;
      case kEmptyTuple:
        push_tuple({});
        return true;
      case kEmptyList:
        push(make(Kind::kList));
        return true;
      case kEmptyDict:
        push(make(Kind::kDict));
        return true;
      case kTupleOp:
        push_tuple(pop_to_mark());
        return true;
      case kTuple1:
        push_tuple_of(1);
        return true;
      case kTuple2:
        push_tuple_of(2);
        return true;
      case kTuple3:
        push_tuple_of(3);
        return true;
      case kAppend: {
        const PickleNode* item = pop();
        append_to(top(Kind::kList), {item});
        return true;
      }
      case kAppends:
        append_items();
        return true;
      case kSetItem: {
        const PickleNode* value = pop();
        const PickleNode* key = pop();
        append_to(top(Kind::kDict), {key, value});
        return true;
      }
      case kSetItems:
        set_items();
        return true;
      default:
        return false;
    }
  }

  void remember(uint32_t slot) {
    if (stack_.size() <= floor()) corrupt("a value to remember", "an empty stack");
    charge(1);
    memo_[slot] = stack_.back();
  }

  void recall(uint32_t slot) {
    const auto found = memo_.find(slot);
    if (found == memo_.end()) corrupt("a remembered value", fmt::format("empty slot {}", slot));
    push(*found->second);
  }

  bool use_memo(uint8_t op) {
    switch (op) {
      case kBinPut:
        remember(number<uint8_t>());
        return true;
      case kLongBinPut:
        remember(number<uint32_t>());
        return true;
      case kMemoize:
        remember(static_cast<uint32_t>(memo_.size()));
        return true;
      case kBinGet:
        recall(number<uint8_t>());
        return true;
      case kLongBinGet:
        recall(number<uint32_t>());
        return true;
      case kDup: {
        PickleNode* node = pop();
        push(*node);
        push(*node);
        return true;
      }
      case kProto:
        if (const auto version = number<uint8_t>(); version < 2 || version > kMaxProtocol) {
          fail(ErrorKind::kUnsupported, "pickle", "protocol: expected 2 to {}, got {} ({})",
               kMaxProtocol, version, printable(file_, 4096));
        }
        return true;
      case kFrame:
        number<uint64_t>();
        return true;  // a hint for buffered readers
      default:
        return false;
    }
  }

  void push_global(std::string_view module, std::string_view name) {
    if (!is_allowed_(module, name)) {
      fail(ErrorKind::kUnsupported, "pickle",
           "global: expected only what a state dict of tensors needs, got {}.{}; nothing was "
           "executed ({})",
           printable(module), printable(name), printable(file_, 4096));
    }
    PickleNode& node = make(Kind::kGlobal);
    node.text = module;
    node.name = name;
    push(node);
  }

  // OrderedDict(), or OrderedDict([(key, value), ...]) as Python 2 pickled it.
  void push_ordered_dict(const PickleNode& arguments) {
    PickleNode& node = make(Kind::kDict);
    if (!arguments.items.empty()) {
      const PickleNode& pairs = *arguments.items.front();
      if (arguments.items.size() != 1 || !pairs.is(Kind::kList))
        corrupt("OrderedDict(list)", "other arguments");
      for (const PickleNode* pair : pairs.items) {
        if ((!pair->is(Kind::kTuple) && !pair->is(Kind::kList)) || pair->items.size() != 2) {
          corrupt("pairs of key and value", name_of(pair->kind));
        }
        append_to(node, pair->items);
      }
    }
    push(node);
  }

  void push_call() {
    const PickleNode* arguments = pop();
    const PickleNode* callable = pop();
    if (!callable->is(Kind::kGlobal) || !arguments->is(Kind::kTuple)) {
      corrupt("a call of a global with a tuple",
              fmt::format("{} and {}", name_of(callable->kind), name_of(arguments->kind)));
    }
    if (callable->is_global("collections", "OrderedDict")) return push_ordered_dict(*arguments);
    PickleNode& node = make(Kind::kCall);
    append_to(node, {callable, arguments});
    push(node);
  }

  bool use_global(uint8_t op) {
    switch (op) {
      case kGlobalOp: {
        const std::string_view module = line();
        push_global(module, line());
        return true;
      }
      case kStackGlobal: {
        const PickleNode* name = pop();
        const PickleNode* module = pop();
        if (!name->is(Kind::kText) || !module->is(Kind::kText))
          corrupt("module and name as text", "other values");
        push_global(module->text, name->text);
        return true;
      }
      case kReduce:
      case kNewObj:
        push_call();
        return true;
      case kBuild:  // sets attributes; those of an OrderedDict are `_metadata`, which nobody needs
        pop();
        top(Kind::kDict);
        return true;
      case kBinPersId: {
        const PickleNode* id = pop();
        PickleNode& node = make(Kind::kPersistent);
        append_to(node, {id});
        push(node);
        return true;
      }
      default:
        return false;
    }
  }

  std::span<const std::byte> bytes_;
  size_t at_;
  Pickle::IsAllowed is_allowed_;
  std::string_view file_;
  std::deque<PickleNode>& nodes_;
  std::vector<PickleNode*> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint32_t, PickleNode*> memo_;
  size_t n_items_ = 0;
};

}  // namespace

std::string_view name_of(PickleNode::Kind kind) noexcept {
  switch (kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "a bool";
    case Kind::kInt:
      return "an int";
    case Kind::kBigInt:
      return "a large int";
    case Kind::kReal:
      return "a float";
    case Kind::kText:
      return "a string";
    case Kind::kBytes:
      return "bytes";
    case Kind::kList:
      return "a list";
    case Kind::kTuple:
      return "a tuple";
    case Kind::kDict:
      return "a dict";
    case Kind::kGlobal:
      return "a global";
    case Kind::kCall:
      return "a call";
    case Kind::kPersistent:
      return "a storage";
  }
  return "?";
}

Pickle::Pickle(std::span<const std::byte> bytes, size_t& offset, IsAllowed is_allowed,
               std::string_view file) {
  QW_CHECK(offset <= bytes.size(), "pickle at {} of {} bytes", offset, bytes.size());
  Machine machine(bytes, offset, is_allowed, file, nodes_);
  root_ = machine.run();
  offset = machine.offset();
}

}  // namespace qw
