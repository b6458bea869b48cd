# What the build needs from the machine. Each library is found by linking a probe against it, never by
# a file's name alone; what is missing is said with the package that brings it.

include(CheckCSourceCompiles)
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)
set(MPI_C_SKIP_MPICXX ON)
find_package(MPI REQUIRED COMPONENTS C)

set(TSR_SUMMARY "" CACHE INTERNAL "lines printed at the end of configure")
set(TSR_MISSING "" CACHE INTERNAL "libraries that did not link")

function(tsr_note line)
  set(TSR_SUMMARY "${TSR_SUMMARY};${line}" CACHE INTERNAL "")
endfunction()

# tsr_probe(<name> <debian package> <code> LIBS <targets...>): links `code` against LIBS
function(tsr_probe name package code)
  cmake_parse_arguments(arg "" "" "LIBS" ${ARGN})
  set(CMAKE_REQUIRED_LIBRARIES ${arg_LIBS})
  set(CMAKE_REQUIRED_QUIET ON)
  check_c_source_compiles("${code}" TSR_LINKS_${name})
  if(TSR_LINKS_${name})
    tsr_note("found      ${name}")
  else()
    unset(TSR_LINKS_${name} CACHE)
    tsr_note("not found  ${name}: the probe does not link, install ${package}")
    set(TSR_MISSING "${TSR_MISSING} ${package}" CACHE INTERNAL "")
  endif()
endfunction()

function(tsr_pkg target module)
  pkg_check_modules(${target} QUIET IMPORTED_TARGET GLOBAL ${module})
  add_library(tsr_dep_${target} INTERFACE IMPORTED)
  if(TARGET PkgConfig::${target})
    target_link_libraries(tsr_dep_${target} INTERFACE PkgConfig::${target})
  endif()
endfunction()

# HDF5 from its archive where that links: the shared library brings 30 others (curl, Kerberos, LDAP)
# into every start of the program, to read files over the network.
tsr_pkg(hdf5 hdf5-openmpi)
find_library(TSR_HDF5_ARCHIVE libhdf5.a HINTS ${hdf5_LIBRARY_DIRS})
if(TSR_HDF5_ARCHIVE AND hdf5_FOUND)
  set(CMAKE_REQUIRED_INCLUDES ${hdf5_INCLUDE_DIRS})
  set(CMAKE_REQUIRED_LIBRARIES ${TSR_HDF5_ARCHIVE} sz z m ${CMAKE_DL_LIBS} MPI::MPI_C)
  set(CMAKE_REQUIRED_QUIET ON)
  check_c_source_compiles("#include <hdf5.h>\nint main(void) {return H5open();}" TSR_LINKS_HDF5_ARCHIVE)
  unset(CMAKE_REQUIRED_INCLUDES)
  if(TSR_LINKS_HDF5_ARCHIVE)
    set_target_properties(tsr_dep_hdf5 PROPERTIES
      INTERFACE_LINK_LIBRARIES "${TSR_HDF5_ARCHIVE};sz;z;m;${CMAKE_DL_LIBS};MPI::MPI_C"
      INTERFACE_INCLUDE_DIRECTORIES "${hdf5_INCLUDE_DIRS}")
  endif()
endif()
tsr_pkg(inih inih)
tsr_pkg(jansson jansson)
tsr_pkg(xxhash libxxhash)
tsr_pkg(hwloc hwloc)
add_library(tsr_dep_dnnl INTERFACE IMPORTED)
target_link_libraries(tsr_dep_dnnl INTERFACE dnnl)

tsr_probe(MPI libopenmpi-dev
  "#include <mpi.h>\nint main(void) {return MPI_Initialized(&(int){0});}" LIBS MPI::MPI_C)
tsr_probe(HDF5 libhdf5-openmpi-dev
  "#include <hdf5.h>\nint main(void) {return H5open();}" LIBS tsr_dep_hdf5)
tsr_probe(oneDNN libdnnl-dev
  "#include <dnnl.h>\nint main(void) {return dnnl_version()==0;}" LIBS tsr_dep_dnnl)
tsr_probe(hwloc libhwloc-dev
  "#include <hwloc.h>\nint main(void) {return hwloc_get_api_version()==0;}" LIBS tsr_dep_hwloc)
tsr_probe(inih libinih-dev
  "#include <ini.h>\nint main(void) {return ini_parse_string(\"\",0,0);}" LIBS tsr_dep_inih)
tsr_probe(jansson libjansson-dev
  "#include <jansson.h>\nint main(void) {json_decref(json_object());return 0;}" LIBS tsr_dep_jansson)
tsr_probe(xxHash libxxhash-dev
  "#include <xxhash.h>\nint main(void) {return XXH3_64bits(\"\",0)==0;}" LIBS tsr_dep_xxhash)
if(TSR_TESTS)
  add_library(tsr_dep_cmocka INTERFACE IMPORTED)
  target_link_libraries(tsr_dep_cmocka INTERFACE cmocka)
  tsr_probe(cmocka libcmocka-dev
    "#include <setjmp.h>\n#include <stdarg.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <cmocka.h>\nint main(void) {return 0;}"
    LIBS tsr_dep_cmocka)
endif()

function(tsr_print_summary)
  message(STATUS "Tessera ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}")
  foreach(line ${TSR_SUMMARY})
    message(STATUS "  ${line}")
  endforeach()
  foreach(option TSR_CUDA TSR_TESTS TSR_BENCH TSR_WERROR)
    message(STATUS "  ${option} = ${${option}}")
  endforeach()
  if(TSR_MISSING)
    message(FATAL_ERROR "libraries are missing; on Debian run ./launch/install-deps.sh, which installs:${TSR_MISSING}")
  endif()
endfunction()
