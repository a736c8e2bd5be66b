# The library as users link it (libqianwen.so, public headers, find_package(qianwen)), and the
# files an installed program needs.
include(CMakePackageConfigHelpers)

file(GLOB qw_api_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/api/*.cpp)
list(FILTER qw_api_sources EXCLUDE REGEX "_(test|fuzz)\\.cpp$")
add_library(qianwen_library SHARED ${qw_api_sources})
target_link_libraries(qianwen_library PRIVATE qw_api)
target_include_directories(qianwen_library PUBLIC
  $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(qianwen_library PUBLIC cxx_std_20)
set_target_properties(qianwen_library PROPERTIES OUTPUT_NAME qianwen EXPORT_NAME qianwen
  VERSION ${PROJECT_VERSION} SOVERSION 0)
# Only what the public headers declare is visible to users of the library.
target_link_options(qianwen_library PRIVATE
  -Wl,--version-script=${CMAKE_SOURCE_DIR}/cmake/exports.map)
set_target_properties(qianwen_library PROPERTIES LINK_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/exports.map)

install(TARGETS qianwen_library EXPORT qianwenTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${CMAKE_SOURCE_DIR}/include/qianwen DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT qianwenTargets NAMESPACE qianwen:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/qianwen)
configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/qianwenConfig.cmake.in
  ${CMAKE_BINARY_DIR}/qianwenConfig.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/qianwen)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/qianwenConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/qianwenConfig.cmake ${CMAKE_BINARY_DIR}/qianwenConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/qianwen)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/models/qianwen-mini-chat
        DESTINATION ${CMAKE_INSTALL_DATADIR}/qianwen/models)
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
