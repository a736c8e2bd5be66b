// GET /v1/models and /v1/models/{model} for who says "anthropic-version": the same addresses as
// OpenAI's, another form.
#include <fmt/chrono.h>

#include <algorithm>
#include <charconv>

#include "server/anthropic/common.h"
#include "server/call.h"
#include "server/service.h"

namespace qw::server::anthropic {

namespace {

Json model_json(const ModelHub::Listing& model) {
  return {{"type", "model"},
          {"id", model.name},
          {"display_name", model.name},
          {"created_at",
           fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<time_t>(model.created)))}};
}

size_t limit_of(const http::Request& request) {
  constexpr size_t kDefault = 20, kMost = 1000;
  const std::string* text = request.parameter("limit");
  if (text == nullptr) return kDefault;
  size_t limit = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, limit);
  if (error != std::errc{} || stop != end || limit < 1 || limit > kMost)
    refuse_field("limit", "expected an integer from 1 to {}, got '{}'", kMost, printable(*text));
  return limit;
}

/// The page of the list that after_id or before_id asks for.
void list(const std::shared_ptr<Call>& call) {
  const std::vector<ModelHub::Listing> models = call->services().hub->list();
  const size_t limit = limit_of(call->request());
  const auto place_of = [&](const std::string& id, const char* name) {
    const auto it = std::ranges::find(models, id, &ModelHub::Listing::name);
    if (it == models.end()) refuse_field(name, "expected a model's id, got '{}'", printable(id));
    return static_cast<size_t>(it - models.begin());
  };
  size_t begin = 0, end = models.size();
  if (const std::string* id = call->request().parameter("after_id"))
    begin = place_of(*id, "after_id") + 1;
  bool has_more = false;
  if (const std::string* id = call->request().parameter("before_id")) {
    end = place_of(*id, "before_id");
    begin = std::min(begin, end);  // after_id behind before_id: nothing lies between them
    has_more = end - begin > limit;
    begin = end - std::min(limit, end - begin);
  } else {
    has_more = end - begin > limit;
    end = std::min(end, begin + limit);
  }
  Json data = Json::array();
  for (size_t i = begin; i < end; ++i)
    data.push_back(model_json(models[i]));
  const Json first = data.empty() ? Json() : data.front()["id"];
  const Json last = data.empty() ? Json() : data.back()["id"];
  call->respond(
      {{"data", std::move(data)}, {"has_more", has_more}, {"first_id", first}, {"last_id", last}});
}

void show(const std::shared_ptr<Call>& call) {
  call->respond(model_json(call->services().hub->find(call->path_parameter("model"))));
}

}  // namespace

std::vector<Endpoint> model_endpoints() {
  return {{"GET",
           "/v1/models",
           &kAnthropic,
           "The models there are",
           list,
           {},
           true,
           {.answer = types::object({"data", "has_more", "first_id", "last_id"}),
            .query = {"limit", "after_id", "before_id"}},
           "anthropic-version"},
          {"GET",
           "/v1/models/{model...}",
           &kAnthropic,
           "One of them",
           show,
           {},
           true,
           {.answer = types::object({"type", "id", "display_name", "created_at"})},
           "anthropic-version"}};
}

}  // namespace qw::server::anthropic
