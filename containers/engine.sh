#!/bin/sh
# Make sure that a Docker engine answers: start the installed one when we may. Says what it did; exit 1 when there is none.
set -u
if docker version >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v dockerd >/dev/null 2>&1; then
  echo "No Docker engine answers here, and this user cannot start one: images are written as files only." >&2
  exit 1
fi
log="${TMPDIR:-/tmp}/enginery-dockerd.log"
echo "Starting the installed Docker engine (log: $log)." >&2
if ! grep -qsxE 'dockerd|containerd' /proc/[0-9]*/comm; then
  # Left by an engine that was killed: a number in them may be another process's by now, and dockerd would wait for it.
  rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
fi
setsid dockerd >"$log" 2>&1 </dev/null &
for _ in $(seq 1 60); do
  docker version >/dev/null 2>&1 && exit 0
  sleep 0.5
done
echo "dockerd did not answer within 30 s; see $log. Images are written as files only." >&2
exit 1
