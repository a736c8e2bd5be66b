#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>
#include <string>

#include "base/error.h"

namespace qw {

void init_logging(std::string_view level) {
  const auto parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off") {
    fail(ErrorKind::kInvalidArgument, "log",
         "log level: expected trace, debug, info, warning, error or off, got '{}'",
         printable(level));
  }
  auto logger = std::make_shared<spdlog::logger>(
      "qianwen", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("qianwen: %^%l%$: %v");
  logger->set_level(parsed);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace qw
