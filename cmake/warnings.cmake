# Warnings and sanitizers for every target of the project.
add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
                    -Wno-unused-parameter -Wnon-virtual-dtor -Woverloaded-virtual)
# Reassociating or fusing float operations behind our back would break the
# numeric contract; kernels that fuse say so with an explicit std::fma or intrinsic.
add_compile_options(-ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options(-Wno-psabi)
endif()
if(QIANWEN_SANITIZE)
  add_compile_options(-fsanitize=${QIANWEN_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${QIANWEN_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Instrumented code misleads this warning (inside std::regex, for one); the sanitizers see more.
    add_compile_options(-Wno-maybe-uninitialized)
  endif()
endif()
