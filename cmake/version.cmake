# qw_add_git_hash(TARGET): compiles into TARGET the commit of this build, which `qianwen --version`
# prints (git_hash.cmake says how it is found). The step runs at every build, not at configure time,
# so that a commit or an edit after configuring is seen.
function(qw_add_git_hash target)
  set(output ${CMAKE_BINARY_DIR}/generated/git_hash.cpp)
  add_custom_target(qw_git_hash
    COMMAND ${CMAKE_COMMAND} -D SOURCE_DIR=${CMAKE_SOURCE_DIR} -D OUTPUT=${output}
            -P ${CMAKE_SOURCE_DIR}/cmake/git_hash.cmake
    BYPRODUCTS ${output}
    COMMENT "Asking git for the commit" VERBATIM)
  target_sources(${target} PRIVATE ${output})
  add_dependencies(${target} qw_git_hash)
endfunction()
