#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>
#include <string>

#include "base/error.h"

namespace qw {

spdlog::logger& logger() {
  static spdlog::logger ours = [] {
    spdlog::logger out("qianwen", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    out.set_pattern("qianwen: %^%l%$: %v");
    out.set_level(spdlog::level::warn);
    return out;
  }();
  return ours;
}

void init_logging(std::string_view level) {
  const auto parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off") {
    fail(ErrorKind::kInvalidArgument, "log",
         "log level: expected trace, debug, info, warning, error or off, got '{}'",
         printable(level));
  }
  logger().set_level(parsed);
}

}  // namespace qw
