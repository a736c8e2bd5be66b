#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "server/model_hub.h"

namespace qw::server {

namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;

// vLLM's buckets, so that its dashboards fit.
const Histogram::BucketBoundaries kFirstTokenBuckets = {
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
const Histogram::BucketBoundaries kNextTokenBuckets = {
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
const Histogram::BucketBoundaries kRequestBuckets = {
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Histogram::BucketBoundaries kTokenBuckets = {1,   2,   5,    10,   20,   50,    100,
                                                   200, 500, 1000, 2000, 5000, 10000, 20000};

constexpr FinishReason kReasons[] = {FinishReason::kEos, FinishReason::kStop, FinishReason::kLength,
                                     FinishReason::kCancelled, FinishReason::kError};

/// The families of all models.
struct Families {
  explicit Families(Registry& r)
      : first_token(histogram(r, "vllm:time_to_first_token_seconds", "Time to the first token")),
        next_token(histogram(r, "vllm:inter_token_latency_seconds", "Time between two tokens")),
        per_token(histogram(r, "vllm:time_per_output_token_seconds",
                            "The same, under vLLM's older name")),
        request(histogram(r, "vllm:e2e_request_latency_seconds", "Time of a whole request")),
        queue(histogram(r, "vllm:request_queue_time_seconds", "Time before the first step")),
        prefill(histogram(r, "vllm:request_prefill_time_seconds", "Time of the prompt")),
        decode(histogram(r, "vllm:request_decode_time_seconds", "Time after the first token")),
        prompt_sizes(histogram(r, "vllm:request_prompt_tokens", "Tokens of a request's prompt")),
        answer_sizes(
            histogram(r, "vllm:request_generation_tokens", "Tokens of a request's answers")),
        prompt_tokens(counter(r, "vllm:prompt_tokens_total", "Tokens of prompts")),
        tokens(counter(r, "vllm:generation_tokens_total", "Tokens generated")),
        cache_queries(counter(r, "vllm:prefix_cache_queries_total",
                              "Prompt tokens that were looked up in the prefix cache")),
        cache_hits(counter(r, "vllm:prefix_cache_hits_total", "Those that were found there")),
        success(counter(r, "vllm:request_success_total", "Answers that ended, by reason")),
        taken(counter(r, "qianwen_accepted_requests_total", "Prompts that the engine took")),
        ended(counter(r, "qianwen_ended_requests_total",
                      "Those of them that have ended, well or not, or were cancelled")),
        failed(counter(r, "qianwen_failed_requests_total", "Requests that ended in an error")),
        drafted(counter(r, "vllm:spec_decode_num_draft_tokens_total", "Tokens guessed ahead")),
        accepted(
            counter(r, "vllm:spec_decode_num_accepted_tokens_total", "Guesses that proved right")),
        running(gauge(r, "vllm:num_requests_running", "Requests being computed")),
        waiting(gauge(r, "vllm:num_requests_waiting", "Requests that wait")),
        adapter_running(gauge(r, "qianwen_adapter_requests_running",
                              "Requests of an adapter being computed; its model counts them too")),
        adapter_waiting(gauge(r, "qianwen_adapter_requests_waiting",
                              "Requests of an adapter that wait; its model counts them too")),
        lora_info(gauge(r, "vllm:lora_requests_info",
                        "Which of a model's adapters have requests; the value is the time")),
        cache_use(gauge(r, "vllm:kv_cache_usage_perc",
                        "Share of the KV cache that requests hold, from 0 to 1")),
        kept(gauge(r, "qianwen_kv_cache_kept_ratio",
                   "Share of the KV cache that holds prompts nobody uses now, from 0 to 1")),
        preemptions(counter(r, "vllm:num_preemptions_total", "Sequences computed a second time")),
        steps(counter(r, "qianwen_engine_steps_total", "Forward passes")),
        grammars(gauge(r, "qianwen_grammars", "Grammars and schemas that are kept compiled")),
        grammar_bytes(gauge(r, "qianwen_grammar_bytes", "Memory that they take")),
        disk_queries(counter(r, "vllm:external_prefix_cache_queries_total",
                             "Prompt tokens that were looked up in the prefix cache on disk")),
        disk_hits(
            counter(r, "vllm:external_prefix_cache_hits_total", "Those that were read there")),
        disk_bytes(gauge(r, "qianwen_disk_cache_bytes", "Size of the prefix cache on disk")),
        disk_read(counter(r, "qianwen_disk_cache_read_bytes_total", "Keys and values read there")),
        disk_written(
            counter(r, "qianwen_disk_cache_written_bytes_total", "Keys and values written there")),
        disk_dropped(
            counter(r, "qianwen_disk_cache_dropped_blocks_total",
                    "Blocks that were not written: they had left memory before, or the disk "
                    "refused them")),
        disk_refused(counter(r, "qianwen_disk_cache_refused_files_total",
                             "Files that were broken, and removed")),
        disk_evicted(counter(r, "qianwen_disk_cache_evicted_blocks_total",
                             "Blocks that were removed to make room")) {}

  static Family<Histogram>& histogram(Registry& r, const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(r);
  }
  static Family<Counter>& counter(Registry& r, const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(r);
  }
  static Family<Gauge>& gauge(Registry& r, const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(r);
  }

  Family<Histogram>&first_token, &next_token, &per_token, &request, &queue, &prefill, &decode,
      &prompt_sizes, &answer_sizes;
  Family<Counter>&prompt_tokens, &tokens, &cache_queries, &cache_hits, &success, &taken, &ended,
      &failed, &drafted, &accepted;
  Family<Gauge>&running, &waiting, &adapter_running, &adapter_waiting, &lora_info, &cache_use,
      &kept;
  Family<Counter>&preemptions, &steps;
  Family<Gauge>&grammars, &grammar_bytes;
  Family<Counter>&disk_queries, &disk_hits;
  Family<Gauge>& disk_bytes;
  Family<Counter>&disk_read, &disk_written, &disk_dropped, &disk_refused, &disk_evicted;
};

/// The series of one model, as long as it lives.
class OneModel : public ModelMetrics {
 public:
  OneModel(Families& f, const std::string& name)
      : labels_{{"model_name", name}},
        families_(f),
        first_token_(f.first_token.Add(labels_, kFirstTokenBuckets)),
        next_token_(f.next_token.Add(labels_, kNextTokenBuckets)),
        per_token_(f.per_token.Add(labels_, kNextTokenBuckets)),
        request_(f.request.Add(labels_, kRequestBuckets)),
        queue_(f.queue.Add(labels_, kRequestBuckets)),
        prefill_(f.prefill.Add(labels_, kRequestBuckets)),
        decode_(f.decode.Add(labels_, kRequestBuckets)),
        prompt_sizes_(f.prompt_sizes.Add(labels_, kTokenBuckets)),
        answer_sizes_(f.answer_sizes.Add(labels_, kTokenBuckets)),
        prompt_tokens_(f.prompt_tokens.Add(labels_)),
        tokens_(f.tokens.Add(labels_)),
        cache_queries_(f.cache_queries.Add(labels_)),
        cache_hits_(f.cache_hits.Add(labels_)),
        taken_(f.taken.Add(labels_)),
        ended_(f.ended.Add(labels_)),
        failed_(f.failed.Add(labels_)),
        drafted_(f.drafted.Add(labels_)),
        accepted_(f.accepted.Add(labels_)) {}
  ~OneModel() override {
    families_.first_token.Remove(&first_token_);
    families_.next_token.Remove(&next_token_);
    families_.per_token.Remove(&per_token_);
    families_.request.Remove(&request_);
    families_.queue.Remove(&queue_);
    families_.prefill.Remove(&prefill_);
    families_.decode.Remove(&decode_);
    families_.prompt_sizes.Remove(&prompt_sizes_);
    families_.answer_sizes.Remove(&answer_sizes_);
    families_.prompt_tokens.Remove(&prompt_tokens_);
    families_.tokens.Remove(&tokens_);
    families_.cache_queries.Remove(&cache_queries_);
    families_.cache_hits.Remove(&cache_hits_);
    families_.taken.Remove(&taken_);
    families_.ended.Remove(&ended_);
    families_.failed.Remove(&failed_);
    families_.drafted.Remove(&drafted_);
    families_.accepted.Remove(&accepted_);
    // What an engine says of all of its requests is never removed: engines are those of the models
    // that the server offers.
    for (auto* family : {&families_.adapter_running, &families_.adapter_waiting}) {
      if (family->Has(labels_)) family->Remove(&family->Add(labels_));
    }
    if (lora_info_ != nullptr) families_.lora_info.Remove(lora_info_);
    for (const FinishReason reason : kReasons) {
      const prometheus::Labels labels = labels_of(reason);
      if (families_.success.Has(labels)) families_.success.Remove(&families_.success.Add(labels));
    }
  }
  OneModel(const OneModel&) = delete;
  OneModel& operator=(const OneModel&) = delete;

  void first_token(double seconds) override { first_token_.Observe(seconds); }
  void next_token(double seconds) override {
    next_token_.Observe(seconds);
    per_token_.Observe(seconds);
  }
  void answer(FinishReason reason) override {
    families_.success.Add(labels_of(reason)).Increment();
  }
  void request(const Timings& timings, double seconds) override {
    request_.Observe(seconds);
    queue_.Observe(timings.queue_s);
    prefill_.Observe(timings.prefill_s);
    decode_.Observe(timings.decode_s);
    prompt_sizes_.Observe(static_cast<double>(timings.n_prompt));
    answer_sizes_.Observe(static_cast<double>(timings.n_generated));
    prompt_tokens_.Increment(static_cast<double>(timings.n_prompt));
    tokens_.Increment(static_cast<double>(timings.n_generated));
    cache_queries_.Increment(static_cast<double>(timings.n_prompt));
    cache_hits_.Increment(static_cast<double>(timings.n_cached));
    drafted_.Increment(static_cast<double>(timings.n_drafted));
    accepted_.Increment(static_cast<double>(timings.n_accepted));
  }
  void accepted_request() override { taken_.Increment(); }
  void ended_request() override { ended_.Increment(); }
  void failed_request() override { failed_.Increment(); }

  /// What the engine says now. One thread at a time.
  void set_stats(const HostStats& stats) {
    families_.running.Add(labels_).Set(static_cast<double>(stats.n_running));
    families_.waiting.Add(labels_).Set(static_cast<double>(stats.n_waiting));
    const double pages = static_cast<double>(std::max<int64_t>(stats.n_pages, 1));
    // Of a model that is not loaded there is no cache, and nobody holds any of it.
    const auto in_use = static_cast<double>(stats.n_pages - stats.n_free_pages);
    families_.cache_use.Add(labels_).Set(in_use / pages);
    families_.kept.Add(labels_).Set(static_cast<double>(stats.n_kept_pages) / pages);
    count(families_.preemptions, stats.n_preemptions);
    count(families_.steps, stats.n_steps);
    if (stats.disk) set_disk_stats(*stats.disk, stats.store);
  }

  void set_grammars(const GrammarCache::Held& held) {
    families_.grammars.Add(labels_).Set(static_cast<double>(held.n));
    families_.grammar_bytes.Add(labels_).Set(static_cast<double>(held.bytes));
  }

  /// Of an adapter.
  void set_load(const Engine::Load& load) {
    families_.adapter_running.Add(labels_).Set(static_cast<double>(load.n_running));
    families_.adapter_waiting.Add(labels_).Set(static_cast<double>(load.n_waiting));
  }
  /// vLLM's: names in labels, and of a model one series at a time, whose value is when it was true.
  void set_lora_info(int64_t n_slots, const std::map<std::string, Engine::Load>& loads) {
    std::string running, waiting;
    const auto add = [](std::string& list, const std::string& name) {
      list += (list.empty() ? "" : ",") + name;
    };
    for (const auto& [name, load] : loads) {
      if (load.n_running > 0) add(running, name);
      if (load.n_waiting > 0) add(waiting, name);
    }
    prometheus::Labels labels = labels_;
    labels["max_lora"] = std::to_string(n_slots);
    labels["running_lora_adapters"] = running;
    labels["waiting_lora_adapters"] = waiting;
    Gauge& now = families_.lora_info.Add(labels);
    if (lora_info_ != nullptr && lora_info_ != &now) families_.lora_info.Remove(lora_info_);
    lora_info_ = &now;
    now.SetToCurrentTime();
  }
  /// There are no adapters, or no engine any more.
  void clear_lora_info() {
    if (Gauge* last = std::exchange(lora_info_, nullptr)) families_.lora_info.Remove(last);
  }

 private:
  void set_disk_stats(const PrefixTierStats& disk, const PrefixStoreStats& store) {
    families_.disk_bytes.Add(labels_).Set(static_cast<double>(store.bytes_stored));
    count(families_.disk_queries, disk.n_queried_tokens);
    count(families_.disk_hits, disk.n_hit_tokens);
    count(families_.disk_read, store.bytes_read);
    count(families_.disk_written, store.bytes_written);
    count(families_.disk_dropped, disk.n_dropped_blocks + store.n_failed);
    count(families_.disk_refused, store.n_refused);
    count(families_.disk_evicted, store.n_evicted);
  }
  /// Adds what has come since the last time; a model that was loaded again counts from 0.
  void count(Family<Counter>& family, int64_t value) {
    int64_t& last = last_[&family];
    family.Add(labels_).Increment(static_cast<double>(value < last ? value : value - last));
    last = value;
  }
  prometheus::Labels labels_of(FinishReason reason) const {
    prometheus::Labels labels = labels_;
    labels["finished_reason"] =
        reason == FinishReason::kCancelled ? "abort" : std::string(client_name_of(reason));
    return labels;
  }

  prometheus::Labels labels_;
  Families& families_;
  Histogram &first_token_, &next_token_, &per_token_, &request_, &queue_, &prefill_, &decode_,
      &prompt_sizes_, &answer_sizes_;
  Counter &prompt_tokens_, &tokens_, &cache_queries_, &cache_hits_, &taken_, &ended_, &failed_,
      &drafted_, &accepted_;
  std::map<const Family<Counter>*, int64_t> last_;  // what the engine said
  Gauge* lora_info_ = nullptr;
};

}  // namespace

class Metrics::Impl {
 public:
  Impl()
      : families(registry),
        http(Families::counter(registry, "qianwen_http_requests_total",
                               "HTTP answers, by address and status")),
        http_time(Families::histogram(registry, "qianwen_http_request_duration_seconds",
                                      "Time from a request to the end of its answer")),
        ignored(Families::counter(registry, "qianwen_ignored_fields_total",
                                  "Fields of requests that had no effect, by address")),
        quota(Families::counter(registry, "qianwen_quota_refusals_total",
                                "Requests refused because a key's quota was used up")),
        connections(Families::gauge(registry, "qianwen_connections", "Connections open now")) {}

  /// With a use of it, to be given back.
  OneModel& take(const std::string& name) {
    const std::lock_guard lock(mutex);
    Entry& entry = entry_of(name);
    ++entry.n_uses;
    return *entry.model;
  }
  void give_back(const std::string& name) {
    const std::lock_guard lock(mutex);
    --models.at(name).n_uses;
  }
  /// Sets what the engines say, and forgets models that are neither listed nor in use.
  void update(const ModelHub& hub) {
    const std::lock_guard in_order(update_mutex);  // else an older count could come after a newer
    const std::vector<ModelHub::Listing> listed = hub.list();
    std::map<std::string, Served> engines;
    for (const ModelHub::Listing& model : listed) {
      if (model.parent.empty()) {
        Served& engine = engines[model.name];
        if (!model.loaded) continue;
        engine.stats = model.loaded->host().stats();
        engine.grammars = model.loaded->grammars_held();
        engine.n_slots = model.loaded->files().engine_options.n_slots;
      } else {  // an engine is its base's, which comes before
        engines[model.parent].stats.labels[model.name];
      }
    }
    const std::lock_guard lock(mutex);
    for (const auto& [name, engine] : engines) {
      OneModel& model = *entry_of(name).model;
      model.set_stats(engine.stats);
      model.set_grammars(engine.grammars);
      // Those that were unloaded, too, as long as they have requests.
      for (const auto& [adapter, load] : engine.stats.labels)
        entry_of(adapter).model->set_load(load);
      if (engine.n_slots > 0 && !engine.stats.labels.empty()) {
        model.set_lora_info(engine.n_slots, engine.stats.labels);
      } else {
        model.clear_lora_info();
      }
    }
    std::erase_if(models, [&](const auto& entry) {
      return entry.second.n_uses == 0 &&
             std::ranges::find(listed, entry.first, &ModelHub::Listing::name) == listed.end();
    });
  }

  Registry registry;
  Families families;
  Family<Counter>& http;
  Family<Histogram>& http_time;
  Family<Counter>&ignored, &quota;
  Family<Gauge>& connections;

 private:
  struct Served {
    HostStats stats;
    GrammarCache::Held grammars;
    int64_t n_slots = 0;  // 0: not loaded
  };
  struct Entry {
    std::unique_ptr<OneModel> model;
    int64_t n_uses = 0;
  };
  Entry& entry_of(const std::string& name) {
    Entry& entry = models[name];
    if (!entry.model) entry.model = std::make_unique<OneModel>(families, name);
    return entry;
  }

  std::mutex update_mutex;  // taken before all others
  std::mutex mutex;         // over what follows
  std::map<std::string, Entry> models;
};

Metrics::Metrics() : impl_(std::make_shared<Impl>()) {}
Metrics::~Metrics() = default;

std::shared_ptr<ModelMetrics> Metrics::of_model(const std::string& name) {
  return {&impl_->take(name), [impl = impl_, name](ModelMetrics*) { impl->give_back(name); }};
}

void Metrics::update(const ModelHub& hub) {
  impl_->update(hub);
}

void Metrics::http_answer(std::string_view method, std::string_view path, int status,
                          double seconds) {
  const std::string where(path);
  impl_->http
      .Add({{"method", std::string(method)}, {"path", where}, {"status", std::to_string(status)}})
      .Increment();
  impl_->http_time.Add({{"path", where}}, kRequestBuckets).Observe(seconds);
}

void Metrics::ignored_fields(std::string_view path, size_t n) {
  impl_->ignored.Add({{"path", std::string(path)}}).Increment(static_cast<double>(n));
}

void Metrics::refused_by_quota(std::string_view key) {
  impl_->quota.Add({{"key", std::string(key)}}).Increment();
}

std::string Metrics::text(const ModelHub& hub, size_t n_connections) {
  update(hub);
  impl_->connections.Add({}).Set(static_cast<double>(n_connections));
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace qw::server
