#include "app/quantize_budget.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/open.h"
#include "app/output_room.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "quantize/byte_budget.h"
#include "quantize/measurement_journal.h"
#include "quantize/sensitivity.h"
#include "text/tokenizer_files.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

/// Sizes between which --max-kl is searched end this near to each other.
constexpr double kSizeTolerance = 0.003;

/// Of an importance matrix, to tell it from another; "": none.
std::string name_of_file(const std::string& path) {
  if (path.empty()) return "";
  const auto file = MappedFile::open(path);
  std::string name = sha256_hex(file->bytes());
  file->check_readable();
  return name;
}

/// What is measured with these tensors in their types, as the journal has it.
std::string kl_name(const std::vector<const GgufTensor*>& changed) {
  std::string name = "divergence with";
  for (const GgufTensor* tensor : changed)
    name += fmt::format(" {}={}", tensor->name, name_of(tensor->dtype));
  return name;
}

}  // namespace

bool BudgetFlags::is_asked() const {
  return !bits.empty() || max_bytes > 0 || max_kl > 0;
}

void add_budget_flags(CLI::App& app, BudgetFlags& flags) {
  CLI::Option* bits = app.add_option("--budget", flags.bits,
                                     "Bits per weight, as 4.25bpw: types (of --to gptq: numbers of "
                                     "bits) are chosen matrix by matrix, by measuring");
  CLI::Option* bytes = app.add_option("--max-bytes", flags.max_bytes,
                                      "The same, for a file of at most so many bytes")
                           ->check(integer_from(1));
  CLI::Option* kl = app.add_option("--max-kl", flags.max_kl,
                                   "The same, for the smallest file whose predictions are no "
                                   "further away on the calibration (nats, mean)")
                        ->check(CLI::PositiveNumber);
  for (CLI::Option* option : {bits, bytes, kl}) {
    for (CLI::Option* other : {bits, bytes, kl}) {
      if (option != other) option->excludes(other);
    }
  }
  CLI::Option* tokens = app.add_option("--sensitivity-tokens", flags.sensitivity_tokens,
                                       "Tokens of the calibration that matrices are measured on")
                            ->check(integer_from(128))
                            ->capture_default_str();
  flags.all = {bits, bytes, kl, tokens};
}

double parse_budget_bits(std::string text) {
  const std::string given = text;
  if (text.ends_with("bpw")) text.resize(text.size() - 3);
  double bits = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bits);
  if (error != std::errc() || end != text.data() + text.size() || !(bits > 0 && bits <= 32)) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--budget: expected bits per weight such as 4.25bpw, got '{}'", printable(given));
  }
  return bits;
}

void refuse_max_bytes(int64_t given, int64_t least) {
  fail(ErrorKind::kInvalidArgument, "quantize",
       "--max-bytes: expected at least {}, which the smallest types for all matrices take, got {}",
       least, given);
}

void refuse_budget(const std::string& given, int64_t n_missing_bytes, int64_t n_weights) {
  const double missing = 8 * static_cast<double>(n_missing_bytes) / static_cast<double>(n_weights);
  fail(ErrorKind::kInvalidArgument, "quantize",
       "--budget: expected at least {:.2f}bpw, which the smallest types for all matrices take, got "
       "{}",
       std::ceil(100 * (parse_budget_bits(given) + missing)) / 100, printable(given));
}

std::string measured_path(const std::string& output) {
  return directory_name(output) + ".measured";
}

void MeasuringProgress::next(bool is_known) {
  ++n_done_;
  if (is_known) {
    ++n_known_;
    if (n_known_ < total_) return;
  }
  if (!progress_) {
    if (n_known_ > 0) {
      logger().info("{} of {} were measured by a run that was interrupted ({})", n_known_, total_,
                    printable(kept_, 4096));
    }
    progress_.emplace("measuring", total_ - n_known_, Progress::Unit::kItems);
  }
  if (is_known) return;
  progress_->add(1);
  logger().debug("measured {} of {}", n_done_, total_);
}

struct BudgetPlanner::State {
  const CommonOptions& options;
  const BudgetFlags& flags;
  std::string name;
  ModelFiles files;
  ModelConfig config;
  NetworkSources sources;
  std::optional<TokenizerSpec> tokenizer;
  quantize::ImportanceMatrix importance;
  quantize::CalibrationSet calibration, probed;
  ThreadPool pool;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<quantize::NetworkProbe> probe;        // when it is needed
  std::optional<quantize::MeasurementJournal> journal;  // none of a dry run
  GgufPlan base;                                        // in the types that the model has
  std::vector<size_t> matrices;                         // of base.tensors: those with a choice
  std::vector<quantize::MatrixChoices> choices;
  std::vector<std::vector<quantize::BudgetChoice>> items;
  std::vector<size_t> chosen;
  GgufPlan plan;
  double limit = 0;  // of the divergence that is measured while searching

  State(const CommonOptions& common, const BudgetFlags& budget, const std::string& model_name)
      : options(common),
        flags(budget),
        name(model_name),
        files(open_for_reading(common, true)),
        config(ModelConfig::from_checkpoint(*files.checkpoint)),
        sources(open_network(*files.checkpoint, config)),
        pool(common.load.threads > 0 ? common.load.threads : physical_cores()) {
    if (!files.checkpoint->gguf) tokenizer = read_tokenizer_directory(files.checkpoint->directory);
  }

  GgufPlan plan_of(const GgufChoices& wanted) const {
    return plan_gguf(*files.checkpoint, config, sources, tokenizer ? &*tokenizer : nullptr, wanted);
  }
  void take_matrices();
  void check_least() const;
  quantize::LayerSource source() const { return {*files.checkpoint, config, sources}; }
  quantize::NetworkProbe& open_probe();
  void open_journal(const std::string& output, const std::string& imatrix);
  void collect_importance();
  void take_importance();
  double kl(const std::vector<const GgufTensor*>& changed);
  void measure(double bits);
  int64_t matrix_bytes(double bits) const;
  int64_t n_weights() const;
  int64_t other_bytes() const;
  void choose(int64_t max_bytes);
  double measured_now();
  void search();
};

/// The matrices of the model in types that lose nothing.
void BudgetPlanner::State::take_matrices() {
  GgufChoices as_is;
  as_is.recipe = find_gguf_recipe("F32");
  as_is.pure = true;
  as_is.name = name;
  for (const GgufTensor& tensor : plan_of(as_is).tensors) {
    if (tensor.parts.empty()) continue;
    // Of what is not in a GGUF type (GPTQ, AWQ) f16 is near enough: it is rounded anyway.
    const LinearSource& part = tensor.parts.front();
    DType own = DType::kF16;
    if (const auto* dense = std::get_if<DenseRows>(&part.data)) own = dense->dtype;
    if (const auto* blocks = std::get_if<BlockRows>(&part.data)) own = blocks->dtype;
    if (tensor.id.slot != Slot::kRouter && tensor.id.slot != Slot::kSharedExpertGate)
      as_is.types[tensor.name] = own;
  }
  base = plan_of(as_is);
  for (size_t i = 0; i < base.tensors.size(); ++i) {
    if (as_is.types.contains(base.tensors[i].name)) matrices.push_back(i);
  }
}

/// A budget that nothing fits is refused before hours of measuring.
void BudgetPlanner::State::check_least() const {
  int64_t least = 0, others = gguf_file_bytes(base.content());
  for (const size_t i : matrices) {
    least += quantize::smallest_bytes(base.tensors[i]);
    others -= round_up<int64_t>(base.tensors[i].bytes(), 32);
  }
  if (flags.max_bytes > 0 && least + others > flags.max_bytes)
    refuse_max_bytes(flags.max_bytes, least + others);
  if (flags.bits.empty()) return;
  const int64_t asked = matrix_bytes(parse_budget_bits(flags.bits));
  if (least > asked) refuse_budget(flags.bits, least - asked, n_weights());
}

/// The importances of the matrices' inputs.
void BudgetPlanner::State::take_importance() {
  for (const size_t i : matrices) {
    GgufTensor& tensor = base.tensors[i];
    const auto n_parts = static_cast<int64_t>(tensor.parts.size());
    for (int64_t part = 0; part < n_parts; ++part) {
      std::vector<float> weights =
          importance.weights(tensor.name, part, n_parts, tensor.parts.front().k);
      if (weights.empty()) break;  // an embedding that is not the output matrix
      tensor.importance.push_back(std::move(weights));
    }
  }
}

quantize::NetworkProbe& BudgetPlanner::State::open_probe() {
  if (!probe) probe = app::open_probe(source(), probed, *backend, pool);
  return *probe;
}

/// The numbers depend on neither the budget nor what else is asked for.
void BudgetPlanner::State::open_journal(const std::string& output, const std::string& imatrix) {
  constexpr int kVersion = 1;  // raised when the same is measured to be another number
  const ordered_json method = {{"version", kVersion},
                               {"sensitivity", "gguf"},
                               {"imatrix", name_of_file(imatrix)},
                               {"tokens", quantize::calibration_name(probed)}};
  journal.emplace(measured_path(output),
                  quantize::job_text(*files.checkpoint, calibration, *backend, method.dump()));
}

/// From the calibration, resumed likewise.
void BudgetPlanner::State::collect_importance() {
  Progress progress("layers", config.n_layers, Progress::Unit::kItems);
  if (!journal) {
    importance = quantize::collect_importance(source(), calibration, *backend, &interrupted(),
                                              [&](int) { progress.add(1); });
    return;
  }
  quantize::LayerRequest request;
  request.output = (std::filesystem::path(journal->directory()) / "imatrix.gguf").string();
  request.isa = options.load.isa;
  request.cancel = &interrupted();
  request.on_layer = [&](int, const auto&) { progress.add(1); };
  std::error_code error;
  if (!std::filesystem::exists(request.output, error)) {
    // Hidden states, old and new.
    check_room("quantize", request.output,
               2 * calibration.n_tokens * config.hidden * int64_t{sizeof(float)});
    quantize::make_importance(source(), calibration, *backend, pool, request, {});
  }
  importance = quantize::read_importance(request.output);
}

double BudgetPlanner::State::kl(const std::vector<const GgufTensor*>& changed) {
  const std::string what = kl_name(changed);
  if (const auto known = journal ? journal->find(what) : std::nullopt; known && known->size() == 1)
    return known->front();
  const double measured = open_probe().kl(changed);
  if (journal) journal->add(what, {measured});
  logger().debug("KL divergence with {} matrices in other types: {:.6f}", changed.size(), measured);
  return measured;
}

void BudgetPlanner::State::measure(double bits) {
  std::vector<GgufTensor> tensors;
  for (const size_t i : matrices)
    tensors.push_back(base.tensors[i]);
  quantize::SensitivityOptions how;
  how.probe_bits = bits;
  how.cancel = &interrupted();
  how.journal = journal ? &*journal : nullptr;
  std::optional<MeasuringProgress> progress;
  size_t n_noted = journal ? journal->size() : 0;
  how.on_progress = [&](int64_t, int64_t total) {
    if (!progress) progress.emplace(total, journal ? journal->directory() : "");
    progress->next(journal && journal->size() == n_noted);
    n_noted = journal ? journal->size() : 0;
    drop_pages(*files.checkpoint);
  };
  const auto measure_kl = [&](const std::vector<const GgufTensor*>& changed) {
    return kl(changed);
  };
  choices = quantize::measure_choices(tensors, config.n_layers, measure_kl, pool, how);
  for (const quantize::MatrixChoices& matrix : choices) {
    items.emplace_back();
    for (const quantize::MatrixChoice& choice : matrix.choices)
      items.back().push_back({choice.bytes, choice.damage});
  }
}

/// For the matrices with a choice, when all matrices together take so many bits a weight.
int64_t BudgetPlanner::State::matrix_bytes(double bits) const {
  int64_t fixed = 0;
  for (size_t i = 0; i < base.tensors.size(); ++i) {
    const GgufTensor& tensor = base.tensors[i];
    if (tensor.parts.empty()) continue;
    if (std::ranges::find(matrices, i) == matrices.end()) fixed += tensor.bytes();
  }
  return static_cast<int64_t>(std::floor(bits * static_cast<double>(n_weights()) / 8)) - fixed;
}

int64_t BudgetPlanner::State::n_weights() const {
  int64_t sum = 0;
  for (const GgufTensor& tensor : base.tensors)
    sum += tensor.parts.empty() ? 0 : tensor.shape.n_elems();
  return sum;
}

/// Of a file, beside the matrices with a choice.
int64_t BudgetPlanner::State::other_bytes() const {
  int64_t bytes = gguf_file_bytes(plan.content());
  for (size_t i = 0; i < matrices.size(); ++i)
    bytes -= items[i][chosen[i]].bytes;
  return bytes;
}

void BudgetPlanner::State::choose(int64_t max_bytes) {
  chosen = quantize::choose_within(items, max_bytes);
  GgufChoices wanted;
  wanted.pure = true;
  wanted.name = name;
  wanted.importance = &importance;
  std::map<DType, int64_t> n_weights;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const GgufTensor& tensor = base.tensors[matrices[i]];
    const DType dtype = choices[i].choices[chosen[i]].dtype;
    wanted.types[tensor.name] = dtype;
    n_weights[dtype] += tensor.shape.n_elems();
  }
  wanted.recipe = recipe_like(n_weights);
  plan = plan_of(wanted);
}

double BudgetPlanner::State::measured_now() {
  std::vector<const GgufTensor*> changed;
  for (const GgufTensor& tensor : plan.tensors) {
    if (!tensor.parts.empty()) changed.push_back(&tensor);
  }
  return kl(changed);
}

/// The fewest bytes at which the divergence is within the limit, by halving.
void BudgetPlanner::State::search() {
  int64_t low = 0, high = 0;
  for (const auto& item : items) {
    low += std::ranges::min(item, {}, &quantize::BudgetChoice::bytes).bytes;
    high += std::ranges::max(item, {}, &quantize::BudgetChoice::bytes).bytes;
  }
  choose(high);
  if (const double least = measured_now(); least > limit) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--max-kl: expected at least {:.3g}, which the best types have, got {:.3g}", least, limit);
  }
  choose(low);
  if (measured_now() <= limit) return;
  while (static_cast<double>(high - low) > kSizeTolerance * static_cast<double>(high)) {
    const int64_t middle = low + (high - low) / 2;
    choose(middle);
    (measured_now() <= limit ? high : low) = middle;
  }
  choose(high);
}

BudgetPlanner::BudgetPlanner(const CommonOptions& options, const BudgetFlags& flags,
                             const CalibrationFlags& calibration, const std::string& imatrix,
                             const GgufOutput& output)
    : state_(std::make_unique<State>(options, flags, output.name)) {
  State& s = *state_;
  const double bits = flags.bits.empty() ? 0 : parse_budget_bits(flags.bits);
  s.limit = flags.max_kl;
  s.take_matrices();
  s.check_least();
  s.calibration = read_calibration(calibration, s.files, model_path(options));
  const quantize::CalibrationSet& set = s.calibration;
  logger().info("calibration: {}", set.summary());
  s.backend = calibration_backend(options);
  s.probed = quantize::cut_calibration(
      set.sequences, {.length = calibration.cut.length, .max_tokens = flags.sensitivity_tokens});
  if (!output.dry_run) s.open_journal(output.path, imatrix);
  if (imatrix.empty()) {
    s.collect_importance();
    name_importance(calibration, s.importance);
  } else {
    s.importance = quantize::read_importance(imatrix);
  }
  s.take_importance();
  double probe_bits = bits > 0 ? bits : 4;
  if (flags.max_bytes > 0) {
    int64_t n_weights = 0;
    for (const size_t i : s.matrices)
      n_weights += s.base.tensors[i].shape.n_elems();
    probe_bits = 8 * static_cast<double>(flags.max_bytes) / static_cast<double>(n_weights);
  }
  s.measure(probe_bits);
}

BudgetPlanner::~BudgetPlanner() = default;

const GgufPlan& BudgetPlanner::plan() {
  State& s = *state_;
  if (s.flags.max_kl > 0) {
    s.search();
  } else if (s.flags.max_bytes > 0) {
    s.choose(INT64_MAX);  // to know the rest of the file
    s.choose(s.flags.max_bytes - s.other_bytes());
  } else {
    s.choose(s.matrix_bytes(parse_budget_bits(s.flags.bits)));
  }
  return s.plan;
}

const GgufPlan& BudgetPlanner::stricter_plan(double measured_kl) {
  State& s = *state_;
  s.limit *= 0.98 * s.flags.max_kl / measured_kl;
  s.search();
  return s.plan;
}

double BudgetPlanner::predicted_kl() const {
  double sum = 0;
  for (size_t i = 0; i < state_->items.size(); ++i)
    sum += state_->items[i][state_->chosen[i]].damage;
  return sum;
}

std::string BudgetPlanner::table() const {
  const State& s = *state_;
  const double total = predicted_kl();
  std::string text =
      fmt::format("{:<28} {:<8} {:>5} {:>12} {:>9}\n", "tensor", "type", "bits", "bytes", "damage");
  for (size_t i = 0; i < s.matrices.size(); ++i) {
    const quantize::MatrixChoice& choice = s.choices[i].choices[s.chosen[i]];
    const auto n_weights = static_cast<double>(s.base.tensors[s.matrices[i]].shape.n_elems());
    text += fmt::format("{:<28} {:<8} {:>5.2f} {:>12} {:>7.2f} %\n", s.choices[i].name,
                        name_of(choice.dtype), 8 * static_cast<double>(choice.bytes) / n_weights,
                        choice.bytes, total > 0 ? 100 * choice.damage / total : 0);
  }
  return text;
}

ordered_json BudgetPlanner::json() const {
  const State& s = *state_;
  ordered_json tensors = ordered_json::array();
  for (size_t i = 0; i < s.matrices.size(); ++i) {
    const quantize::MatrixChoice& choice = s.choices[i].choices[s.chosen[i]];
    tensors.push_back({{"name", s.choices[i].name},
                       {"type", name_of(choice.dtype)},
                       {"bytes", choice.bytes},
                       {"damage", choice.damage}});
  }
  return {{"predicted_kl", predicted_kl()},
          {"predictions", quantize::NetworkProbe::n_predictions(s.config, s.probed)},
          {"tensors", std::move(tensors)}};
}

std::unique_ptr<quantize::NetworkProbe> open_probe(const quantize::LayerSource& source,
                                                   const quantize::CalibrationSet& probed,
                                                   Backend& backend, ThreadPool& pool,
                                                   quantize::ProbeOptions options) {
  Progress progress("running the model", source.config.n_layers, Progress::Unit::kItems);
  options.on_layer = [&](int) { progress.add(1); };
  return std::make_unique<quantize::NetworkProbe>(source, probed, backend, pool, &interrupted(),
                                                  options);
}

double measured_divergence(quantize::NetworkProbe& probe, const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  const NetworkSources sources = open_network(*checkpoint, config);
  Progress progress("comparing", config.n_layers, Progress::Unit::kItems);
  return probe.kl({*checkpoint, config, sources}, [&](int) { progress.add(1); });
}

double BudgetPlanner::compare(const std::string& path) {
  return measured_divergence(state_->open_probe(), path);
}

void BudgetPlanner::forget_measured() {
  if (state_->journal) state_->journal->remove();
  state_->journal.reset();
}

FeedbackWritten BudgetPlanner::write(const GgufOutput& output) {
  State& s = *state_;
  if (s.flags.feedback) {
    s.probe.reset();  // memory for matrices of second moments
    return write_with_feedback({s.options,
                                {*s.files.checkpoint, s.config, s.sources},
                                s.calibration,
                                *s.backend,
                                s.pool,
                                s.flags.damp},
                               output, s.plan);
  }
  FeedbackWritten out;
  out.written = write_gguf_output(output, s.plan, *s.files.checkpoint, s.sources, s.pool);
  return out;
}

}  // namespace qw::app
