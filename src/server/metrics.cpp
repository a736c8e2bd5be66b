#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>
#include <mutex>

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
        cache_use(gauge(r, "vllm:kv_cache_usage_perc",
                        "Share of the KV cache that requests hold, from 0 to 1")),
        kept(gauge(r, "qianwen_kv_cache_kept_ratio",
                   "Share of the KV cache that holds prompts nobody uses now, from 0 to 1")),
        preemptions(gauge(r, "vllm:num_preemptions_total", "Sequences computed a second time")),
        steps(gauge(r, "qianwen_engine_steps_total", "Forward passes")),
        disk_queries(gauge(r, "vllm:external_prefix_cache_queries_total",
                           "Prompt tokens that were looked up in the prefix cache on disk")),
        disk_hits(gauge(r, "vllm:external_prefix_cache_hits_total", "Those that were read there")),
        disk_bytes(gauge(r, "qianwen_disk_cache_bytes", "Size of the prefix cache on disk")),
        disk_read(gauge(r, "qianwen_disk_cache_read_bytes_total", "Keys and values read there")),
        disk_written(
            gauge(r, "qianwen_disk_cache_written_bytes_total", "Keys and values written there")),
        disk_dropped(gauge(r, "qianwen_disk_cache_dropped_blocks_total",
                           "Blocks that were not written: they had left memory before, or the disk "
                           "refused them")),
        disk_refused(gauge(r, "qianwen_disk_cache_refused_files_total",
                           "Files that were broken, and removed")),
        disk_evicted(gauge(r, "qianwen_disk_cache_evicted_blocks_total",
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

  Family<Histogram>&first_token, &next_token, &per_token, &request, &queue, &prefill, &decode;
  Family<Counter>&prompt_tokens, &tokens, &cache_queries, &cache_hits, &success, &taken, &ended,
      &failed, &drafted, &accepted;
  Family<Gauge>&running, &waiting, &cache_use, &kept, &preemptions, &steps;
  Family<Gauge>&disk_queries, &disk_hits, &disk_bytes, &disk_read, &disk_written, &disk_dropped,
      &disk_refused, &disk_evicted;
};

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
        prompt_tokens_(f.prompt_tokens.Add(labels_)),
        tokens_(f.tokens.Add(labels_)),
        cache_queries_(f.cache_queries.Add(labels_)),
        cache_hits_(f.cache_hits.Add(labels_)),
        taken_(f.taken.Add(labels_)),
        ended_(f.ended.Add(labels_)),
        failed_(f.failed.Add(labels_)),
        drafted_(f.drafted.Add(labels_)),
        accepted_(f.accepted.Add(labels_)) {}

  void first_token(double seconds) override { first_token_.Observe(seconds); }
  void next_token(double seconds) override {
    next_token_.Observe(seconds);
    per_token_.Observe(seconds);
  }
  void answer(FinishReason reason) override {
    prometheus::Labels labels = labels_;
    labels["finished_reason"] =
        reason == FinishReason::kCancelled ? "abort" : std::string(client_name_of(reason));
    families_.success.Add(labels).Increment();
  }
  void request(const Timings& timings, double seconds) override {
    request_.Observe(seconds);
    queue_.Observe(timings.queue_s);
    prefill_.Observe(timings.prefill_s);
    decode_.Observe(timings.decode_s);
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

  void set_stats(const HostStats& stats) {
    families_.running.Add(labels_).Set(static_cast<double>(stats.n_running));
    families_.waiting.Add(labels_).Set(static_cast<double>(stats.n_waiting));
    const double pages = static_cast<double>(std::max<int64_t>(stats.n_pages, 1));
    families_.cache_use.Add(labels_).Set(1 - static_cast<double>(stats.n_free_pages) / pages);
    families_.kept.Add(labels_).Set(static_cast<double>(stats.n_kept_pages) / pages);
    families_.preemptions.Add(labels_).Set(static_cast<double>(stats.n_preemptions));
    families_.steps.Add(labels_).Set(static_cast<double>(stats.n_steps));
    if (stats.disk) set_disk_stats(*stats.disk, stats.store);
  }

 private:
  void set_disk_stats(const PrefixTierStats& disk, const PrefixStoreStats& store) {
    const auto set = [this](Family<Gauge>& family, int64_t value) {
      family.Add(labels_).Set(static_cast<double>(value));
    };
    set(families_.disk_queries, disk.n_queried_tokens);
    set(families_.disk_hits, disk.n_hit_tokens);
    set(families_.disk_bytes, store.bytes_stored);
    set(families_.disk_read, store.bytes_read);
    set(families_.disk_written, store.bytes_written);
    set(families_.disk_dropped, disk.n_dropped_blocks + store.n_failed);
    set(families_.disk_refused, store.n_refused);
    set(families_.disk_evicted, store.n_evicted);
  }

  prometheus::Labels labels_;
  Families& families_;
  Histogram &first_token_, &next_token_, &per_token_, &request_, &queue_, &prefill_, &decode_;
  Counter &prompt_tokens_, &tokens_, &cache_queries_, &cache_hits_, &taken_, &ended_, &failed_,
      &drafted_, &accepted_;
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

  OneModel& of_model(const std::string& name) {
    const std::lock_guard lock(mutex);
    std::unique_ptr<OneModel>& model = models[name];
    if (!model) model = std::make_unique<OneModel>(families, name);
    return *model;
  }

  Registry registry;
  Families families;
  Family<Counter>& http;
  Family<Histogram>& http_time;
  Family<Counter>&ignored, &quota;
  Family<Gauge>& connections;
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<OneModel>> models;
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

ModelMetrics& Metrics::of_model(const std::string& name) {
  return impl_->of_model(name);
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
  for (const ModelHub::Listing& model : hub.list()) {
    if (!model.parent.empty()) continue;  // an engine is its base's
    impl_->of_model(model.name)
        .set_stats(model.loaded ? model.loaded->host().stats() : HostStats());
  }
  impl_->connections.Add({}).Set(static_cast<double>(n_connections));
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace qw::server
