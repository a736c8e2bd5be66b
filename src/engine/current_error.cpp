#include "engine/current_error.h"

#include <new>

namespace qw {

Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorKind::kOutOfMemory, "[engine] step: expected memory for it, got none");
  } catch (const std::exception& error) {
    return Error(ErrorKind::kInternal,
                 fmt::format("[engine] step: expected no exception, got {}", error.what()));
  } catch (...) {
    return Error(ErrorKind::kInternal, "[engine] step: expected no exception, got an unknown one");
  }
}

}  // namespace qw
