# The git hash that `qianwen --version` prints; "unknown" outside a checkout.
execute_process(COMMAND git rev-parse --short=12 HEAD
                WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
                OUTPUT_VARIABLE QIANWEN_GIT_HASH OUTPUT_STRIP_TRAILING_WHITESPACE
                ERROR_QUIET RESULT_VARIABLE qw_git_result)
if(NOT qw_git_result EQUAL 0)
  set(QIANWEN_GIT_HASH "unknown")
endif()
