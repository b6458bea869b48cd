# Run a job that must end by itself with code 4 and the right verdict: cmake -DCOMMAND=... -DSCENE=... -P
execute_process(COMMAND ${COMMAND} ${SCENE} TIMEOUT 30 RESULT_VARIABLE code
  OUTPUT_VARIABLE text ERROR_VARIABLE text)
if(NOT code EQUAL 4 OR NOT text MATCHES "${SCENE}: as it should be")
  message(FATAL_ERROR "exit code ${code}, must be 4 with a good verdict:\n${text}")
endif()
