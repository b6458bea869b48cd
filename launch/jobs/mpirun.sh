#!/bin/bash
# mpirun.sh HOSTFILE RUN.ini [options of `tessera train`]...: train on the hosts of HOSTFILE (see
# hosts.example), going on from the newest checkpoint of the run, if there is one.
#
#   TESSERA        the program, at the same path on every host (tessera)
#   TESSERA_NICS   network interfaces, comma separated: a host's ranks take them in turn. Needed where
#                  not every host can read RUN.ini, which may name them, too ([topology] nics)
#   MPIRUN         Open MPI's mpirun (mpirun); its own options by OMPI_MCA_...
#
# The run folder and the data have to be the same on all hosts: on a shared file system. SIGTERM and
# SIGUSR1 save and stop. Exit code: tessera's; 4 when a host was lost.
set -uo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
options=(--hostfile "$1")
[ -n "${TESSERA_NICS:-}" ] && options+=(-x TESSERA_NICS)

"${MPIRUN:-mpirun}" "${options[@]}" "${TESSERA:-tessera}" train "${@:2}" --resume auto &
mpirun=$!
trap 'kill -USR1 $mpirun' TERM USR1 # it hands on USR1; at TERM it would end the ranks itself

# When a host is lost, the ranks of all others end by themselves within run.timeout_s. mpirun, though,
# goes on waiting for that host, for a quarter of an hour: end it when the ranks here are gone.
had_ranks=
gone_s=0
while kill -0 $mpirun 2>/dev/null; do
    if [ -n "$(cat /proc/$mpirun/task/*/children 2>/dev/null)" ]; then
        had_ranks=1 gone_s=0
    elif [ -n "$had_ranks" ] && [ $((gone_s += 1)) -gt 10 ]; then
        echo "mpirun.sh: the ranks have ended and mpirun has not: a host was lost" >&2
        kill -KILL $mpirun
        wait $mpirun 2>/dev/null
        exit 4
    fi
    sleep 1 &
    wait $!
done
wait $mpirun
