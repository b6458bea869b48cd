# The program's own benchmarks: `tessera bench ops` and `tessera bench step`.
add_test(NAME bench.ops COMMAND tessera bench ops --toy --rounds 3 --threads 2)
add_test(NAME bench.step COMMAND tessera bench step ${CMAKE_SOURCE_DIR}/launch/quickstart.ini
  --steps 2 --profile)
set_tests_properties(bench.ops bench.step PROPERTIES LABELS bench TIMEOUT 120 PROCESSORS 2)
