# Run at every build (cmake -P): writes OUTPUT, a C++ source that defines qw::app::kGitHash, the
# commit of SOURCE_DIR with "-dirty" after it when tracked files differ. "unknown" where SOURCE_DIR
# is no checkout (an exported archive, even inside another project's checkout) or git is missing.
# The file is touched only when its text changes, so that an unchanged build stays unchanged.
set(hash "unknown")
if(EXISTS ${SOURCE_DIR}/.git)
  # No optional locks: a build must not stand in the way of a git command beside it.
  execute_process(COMMAND git --no-optional-locks describe --always --abbrev=12 --dirty --exclude=*
                  WORKING_DIRECTORY ${SOURCE_DIR}
                  OUTPUT_VARIABLE output OUTPUT_STRIP_TRAILING_WHITESPACE
                  ERROR_QUIET RESULT_VARIABLE result)
  if(result EQUAL 0)
    set(hash ${output})
  endif()
endif()

set(text "namespace qw::app {\nextern const char* const kGitHash;\n\
const char* const kGitHash = \"${hash}\";\n}  // namespace qw::app\n")
set(old "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} old)
endif()
if(NOT old STREQUAL text)
  file(WRITE ${OUTPUT} "${text}")
endif()
