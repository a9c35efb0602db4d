#!/bin/sh
# For a site that can pull no image: run compose.yaml's services from this machine's own Debian packages.
#
#   cd deploy/compose && cp example.env .env    # then set what is empty in it
#   debian/prepare.sh >> .env                   # makes an image without files, says where the programs are
#   docker-compose -f compose.yaml -f debian/compose.yaml up -d
#
# The image has no files of its own: /usr, this repository and its virtual environment are mounted into each container,
# read-only. Upgrade the machine's packages and restart the services to upgrade them. S3 is OpenStack Swift.
set -eu
IMAGE=enginery/debian
HERE=$(cd "$(dirname "$0")" && pwd)
REPOSITORY=$(cd "$HERE/../../.." && pwd)
VENV=${ENGINERY_VENV:-$REPOSITORY/.venv}

missing=""
for each in redis-server:redis-server docker-registry:docker-registry swift-proxy-server:swift-proxy \
    swift-account-server:swift-account swift-container-server:swift-container swift-object-server:swift-object; do
    command -v "${each%%:*}" >/dev/null || missing="$missing ${each##*:}"
done
POSTGRES=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$POSTGRES" ] || missing="$missing postgresql"
if [ -n "$missing" ]; then
    echo "prepare.sh: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
if [ ! -x "$VENV/bin/enginery" ]; then
    echo "prepare.sh: $VENV has no enginery: run make there, or set ENGINERY_VENV to where it is installed" >&2
    exit 1
fi

ROOT=$(mktemp -d)
trap 'rm -rf "$ROOT"' EXIT
(
    cd "$ROOT"
    mkdir -p dev etc opt proc root run srv sys tmp usr var/lib
    chmod 1777 tmp
    for name in bin lib lib64 sbin; do ln -s "usr/$name" "$name"; done
    ln -s /proc/mounts etc/mtab
)
tar --create --directory "$ROOT" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner . \
    | docker import --change 'ENV LANG=C.UTF-8' - "$IMAGE" >/dev/null

PYTHON=$("$VENV/bin/python" -c 'import sys; print(sys.base_prefix)')
case "$PYTHON" in /usr | /usr/*) PYTHON=$VENV/bin ;; esac  # /usr is mounted as it is, and no place may be mounted twice
cat <<END
ENGINERY_IMAGE=$IMAGE
POSTGRES_IMAGE=$IMAGE
REDIS_IMAGE=$IMAGE
REGISTRY_IMAGE=$IMAGE
S3_IMAGE=$IMAGE
ENGINERY_REPOSITORY=$REPOSITORY
ENGINERY_VENV=$VENV
ENGINERY_PYTHON=$PYTHON
POSTGRES_BIN=$POSTGRES
END
