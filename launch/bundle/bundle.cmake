# cmake --build build --target bundle: build/kvmesh-bundle.tar.gz, which runs where nothing is installed (docs/bundle.md).
find_program(ORTED orted)
set(make_bundle ${CMAKE_COMMAND} -D SOURCE=${PROJECT_SOURCE_DIR} -D BUILD=${PROJECT_BINARY_DIR} -D KVMESH=$<TARGET_FILE:kvmesh>
    -D MPIRUN=${MPIEXEC_EXECUTABLE} -D ORTED=${ORTED} -D STRIP=${CMAKE_STRIP} -P ${CMAKE_CURRENT_LIST_DIR}/make.cmake)
add_custom_target(bundle COMMAND ${make_bundle} VERBATIM)
add_dependencies(bundle kvmesh)

if(KVMESH_TESTS)
  get_property(test_programs DIRECTORY tests PROPERTY BUILDSYSTEM_TARGETS)
  list(FILTER test_programs INCLUDE REGEX "_test$")
  add_dependencies(bundle ${test_programs})
  if(NOT KVMESH_SANITIZE)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    add_test(NAME bundle/make COMMAND ${make_bundle})
    foreach(name bundle hosts)
      add_test(NAME bundle/${name} COMMAND ${Python3_EXECUTABLE} -B ${PROJECT_SOURCE_DIR}/tests/bundle/${name}_test.py)
      set_tests_properties(bundle/${name} PROPERTIES LABELS bundle FIXTURES_REQUIRED bundle TIMEOUT 120 SKIP_RETURN_CODE 77
        ENVIRONMENT "KVMESH=$<TARGET_FILE:kvmesh>;BUNDLE=${PROJECT_BINARY_DIR}/kvmesh-bundle.tar.gz;OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
    endforeach()
    set_tests_properties(bundle/hosts PROPERTIES LABELS "bundle;hosts" RUN_SERIAL ON)
    set_tests_properties(bundle/make PROPERTIES LABELS bundle FIXTURES_SETUP bundle TIMEOUT 120)
  endif()
endif()
