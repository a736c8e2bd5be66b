# The chat page within the program: every file of web/dist/ as an array of bytes, so that a user
# needs neither node nor files beside the program. Run as a script (cmake -P) it writes OUTPUT, a C++
# source that defines qw::server::web::page_files(); included, it gives qw_embed_web_page(TARGET).
if(CMAKE_SCRIPT_MODE_FILE)
  file(GLOB_RECURSE files RELATIVE ${DIST} ${DIST}/*)
  list(SORT files)
  set(arrays "")
  set(table "")
  set(index 0)
  foreach(file ${files})
    file(READ ${DIST}/${file} bytes HEX)
    file(SHA256 ${DIST}/${file} hash)
    string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
    string(APPEND arrays "constexpr unsigned char kFile${index}[] = {${bytes}};\n")
    string(APPEND table "    {\"${file}\", \"${hash}\", bytes_of(kFile${index})},\n")
    math(EXPR index "${index} + 1")
  endforeach()
  file(WRITE ${OUTPUT} "\
#include \"server/web/page_files.h\"\n\nnamespace qw::server::web {\n\nnamespace {\n\n${arrays}
template <size_t n>
std::string_view bytes_of(const unsigned char (&bytes)[n]) {
  return {reinterpret_cast<const char*>(bytes), n};
}\n\nconst PageFile kFiles[] = {\n${table}};\n\n}  // namespace\n
std::span<const PageFile> page_files() { return kFiles; }\n\n}  // namespace qw::server::web\n")
  return()
endif()

function(qw_embed_web_page target)
  set(dist ${CMAKE_SOURCE_DIR}/web/dist)
  set(output ${CMAKE_BINARY_DIR}/generated/web_page.cpp)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${dist}/*)
  add_custom_command(OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -D DIST=${dist} -D OUTPUT=${output}
            -P ${CMAKE_SOURCE_DIR}/cmake/web_page.cmake
    DEPENDS ${files} ${CMAKE_SOURCE_DIR}/cmake/web_page.cmake VERBATIM)
  target_sources(${target} PRIVATE ${output})
endfunction()
