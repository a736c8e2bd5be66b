# qw_add_folder(NAME [DEPS folder...] [LINK target...] [TEST_SUPPORT name...])
#
# Makes the static library qw_NAME from every src/NAME/**/*.cpp, the test program
# qw_NAME_tests from every *_test.cpp beside them, and one program per *_fuzz.cpp.
# TEST_SUPPORT names sources of tests/support/ that its tests need.
# Everything is globbed: a new file needs no line here. A folder without sources
# is left out, so that levels can be added one at a time.

set_property(GLOBAL PROPERTY QW_FOLDERS "")

# Flags per ISA folder: code in kernels/cpu/<isa>/ is the only code compiled for
# more than the baseline, and nothing outside may include its headers. Folders
# without flags here are for other processors than the one that is built for,
# and are left out.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(QW_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(QW_ISA_FLAGS_avxvnni ${QW_ISA_FLAGS_avx2} -mavxvnni)
  # GCC 12 takes the deliberately undefined registers inside its own AVX-512 header for a mistake
  # (GCC bug 105593).
  set(QW_ISA_FLAGS_avx512 ${QW_ISA_FLAGS_avx2}
      "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized>"
      -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set(QW_ISA_FLAGS_avx512vnni ${QW_ISA_FLAGS_avx512} -mavx512vnni)
  set(QW_ISA_FLAGS_avx512bf16 ${QW_ISA_FLAGS_avx512vnni} -mavx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  # NEON is part of the baseline. Dot products came with 8.2, which the intrinsics ask for by name.
  set(QW_ISA_FLAGS_neon "")
  set(QW_ISA_FLAGS_neondot -march=armv8.2-a+dotprod)
endif()

# The generic path is the reference, not the fast one: -O3 doubles its compile time for nothing.
set(QW_ISA_FLAGS_generic $<$<CONFIG:Release>:-O2>)

# Unrolled kernels with every check inline take minutes to compile each. The generic path, which is
# the same code over another vector type, keeps all checks but is not inlined; the others keep
# AddressSanitizer's, as calls.
set(QW_ISA_SANITIZE "")
if(QIANWEN_SANITIZE)
  list(APPEND QW_ISA_FLAGS_generic -fno-inline)
endif()
if(QIANWEN_SANITIZE MATCHES "undefined")
  list(APPEND QW_ISA_SANITIZE -fno-sanitize=undefined)
endif()
if(QIANWEN_SANITIZE MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND QW_ISA_SANITIZE --param=asan-instrumentation-with-call-threshold=0)
endif()

# qw_drop_other_isas(LIST): removes sources of ISA folders that are for other processors.
function(qw_drop_other_isas list)
  foreach(source ${${list}})
    if(source MATCHES "/kernels/cpu/([a-z0-9]+)/[^/]*$")
      if(NOT DEFINED QW_ISA_FLAGS_${CMAKE_MATCH_1})
        list(REMOVE_ITEM ${list} ${source})
      endif()
    endif()
  endforeach()
  set(${list} ${${list}} PARENT_SCOPE)
endfunction()

function(qw_apply_isa_flags)
  foreach(source ${ARGN})
    if(NOT source MATCHES "/kernels/cpu/([a-z0-9]+)/[^/]*$")
      continue()
    endif()
    set(isa ${CMAKE_MATCH_1})
    if(isa STREQUAL "generic")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${QW_ISA_FLAGS_generic}")
    else()
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
                                  "${QW_ISA_FLAGS_${isa}};${QW_ISA_SANITIZE}")
    endif()
  endforeach()
endfunction()

function(qw_add_folder name)
  cmake_parse_arguments(ARG "" "" "DEPS;LINK;TEST_SUPPORT" ${ARGN})
  set(dir ${CMAKE_SOURCE_DIR}/src/${name})
  file(GLOB_RECURSE all CONFIGURE_DEPENDS ${dir}/*.cpp)
  set(sources ${all})
  list(FILTER sources EXCLUDE REGEX "(_(test|fuzz)|/main)\\.cpp$")
  qw_drop_other_isas(sources)
  if(NOT sources)
    return()
  endif()
  set_property(GLOBAL APPEND PROPERTY QW_FOLDERS ${name})

  add_library(qw_${name} STATIC ${sources})
  qw_apply_isa_flags(${sources})
  target_include_directories(qw_${name} PUBLIC
    $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/src> $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/include>)
  get_property(folders GLOBAL PROPERTY QW_FOLDERS)
  foreach(dep ${ARG_DEPS})
    if(dep IN_LIST folders)
      target_link_libraries(qw_${name} PUBLIC qw_${dep})
    endif()
  endforeach()
  target_link_libraries(qw_${name} PUBLIC ${ARG_LINK})

  if(QIANWEN_BUILD_TESTS)
    set(tests ${all})
    list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
    if(tests)
      list(TRANSFORM ARG_TEST_SUPPORT REPLACE "(.+)" "${CMAKE_SOURCE_DIR}/tests/support/\\1.cpp")
      list(APPEND tests ${ARG_TEST_SUPPORT})
      qw_add_tests(qw_${name}_tests SOURCES ${tests} LINK qw_${name})
    endif()
  endif()

  if(QIANWEN_BUILD_TESTS OR QIANWEN_FUZZ)
    set(fuzzers ${all})
    list(FILTER fuzzers INCLUDE REGEX "_fuzz\\.cpp$")
    foreach(source ${fuzzers})
      qw_add_fuzzer(${source} LINK qw_${name})
    endforeach()
  endif()
endfunction()

# qw_add_tests(TARGET SOURCES file... LINK target...): a GoogleTest program whose
# cases are all known to ctest. Tests find the project by QIANWEN_SOURCE_DIR.
function(qw_add_tests target)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${target} ${ARG_SOURCES})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE ${ARG_LINK} GTest::gmock GTest::gtest_main
                        nlohmann_json::nlohmann_json)
  target_compile_definitions(${target} PRIVATE QIANWEN_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  # Tests wait for the library, not for their own code: a fifth less time to compile.
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  gtest_discover_tests(${target} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
                       PROPERTIES TIMEOUT 300)
endfunction()

# qw_add_fuzzer(src/DIR/x_fuzz.cpp LINK target...): with QIANWEN_FUZZ a libFuzzer
# program fuzz_x; otherwise the same entry point replays tests/fuzz/x/ under ctest.
function(qw_add_fuzzer source)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  get_filename_component(stem ${source} NAME_WE)
  string(REGEX REPLACE "_fuzz$" "" stem ${stem})
  if(QIANWEN_FUZZ)
    add_executable(fuzz_${stem} ${source})
    target_compile_options(fuzz_${stem} PRIVATE -fsanitize=fuzzer)
    target_link_options(fuzz_${stem} PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(fuzz_${stem} ${source} ${CMAKE_SOURCE_DIR}/tests/fuzz_replay_main.cpp)
    add_test(NAME fuzz_replay.${stem}
             COMMAND fuzz_${stem} ${CMAKE_SOURCE_DIR}/tests/fuzz/${stem})
    set_tests_properties(fuzz_replay.${stem} PROPERTIES TIMEOUT 120)
  endif()
  target_link_libraries(fuzz_${stem} PRIVATE ${ARG_LINK})
endfunction()
