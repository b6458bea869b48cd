#!/bin/sh
# agent.sh [options of ssh] HOST COMMAND...: what mpirun calls in place of ssh. A host of the rig is a
# network namespace of that name; the command runs there, under that host name.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
exec ip netns exec "$host" unshare -u sh -c 'hostname "$0"; exec sh -c "$1"' "$host" "$*"
