#!/bin/sh
# What the entry points of the public images do, for Debian's programs: service.sh postgres | s3
set -eu

postgres() {
    data=/var/lib/postgresql/data
    mkdir -p /var/run/postgresql
    chown postgres:postgres "$data" /var/run/postgresql
    cd "$data"
    as="setpriv --reuid=postgres --regid=postgres --init-groups"
    if [ ! -s "$data/PG_VERSION" ]; then
        secret=$(mktemp)
        printf '%s\n' "$POSTGRES_PASSWORD" >"$secret"
        chown postgres "$secret"
        $as initdb --pgdata "$data" --username "$POSTGRES_USER" --pwfile "$secret" --encoding UTF8 --locale C.UTF-8 \
            --auth-local trust --auth-host scram-sha-256
        rm "$secret"
        echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
        # A single-user server makes the database before anybody can connect.
        [ "$POSTGRES_DB" = postgres ] || echo "CREATE DATABASE \"$POSTGRES_DB\"" \
            | $as postgres --single -D "$data" postgres >/dev/null
    fi
    exec $as postgres -D "$data" -c listen_addresses='*'
}

# OpenStack Swift on one disk, with its S3 API on port 8333. The key is ACCOUNT:USER and a secret.
s3() {
    etc=/etc/swift
    rm -rf $etc
    mkdir -p $etc /data/disk
    [ -s /data/suffix ] || head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >/data/suffix
    printf '[swift-hash]\nswift_hash_path_suffix = %s\n[storage-policy:0]\nname = one\ndefault = yes\n' \
        "$(cat /data/suffix)" >$etc/swift.conf
    port=6200
    for name in object container account; do
        settings $name "127.0.0.1" $port "$name-server" >$etc/$name-server.conf
        swift-ring-builder $etc/$name.builder create 0 1 1 >/dev/null
        swift-ring-builder $etc/$name.builder add --region 1 --zone 1 --ip 127.0.0.1 --port $port --device disk --weight 1 \
            >/dev/null
        swift-ring-builder $etc/$name.builder rebalance >/dev/null
        swift-$name-server $etc/$name-server.conf -v &
        port=$((port + 1))
    done
    account=${AWS_ACCESS_KEY_ID%%:*} user=${AWS_ACCESS_KEY_ID#*:}
    [ "$account" != "$AWS_ACCESS_KEY_ID" ] || { echo "S3_ACCESS_KEY must be ACCOUNT:USER for Swift" >&2; exit 1; }
    {
        settings proxy 0.0.0.0 8333 "catch_errors cache s3api tempauth bulk slo proxy-server"
        cat <<END
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_${account}_$user = $AWS_SECRET_ACCESS_KEY .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
END
    } >$etc/proxy-server.conf
    # The proxy leaves a server that does not answer alone for a minute: start it when all do.
    python3 -c '
import socket, sys, time
deadline = time.monotonic() + 120
for port in (6200, 6201, 6202):
    while socket.socket().connect_ex(("127.0.0.1", port)):
        if time.monotonic() > deadline:
            sys.exit(f"no Swift server answers on port {port}")
        time.sleep(0.2)'
    exec swift-proxy-server $etc/proxy-server.conf -v
}

settings() { # server, address, port, pipeline
    cat <<END
[DEFAULT]
bind_ip = $2
bind_port = $3
workers = 0
user = $(id -un)
swift_dir = /etc/swift
devices = /data
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_udp_host = 127.0.0.1
[pipeline:main]
pipeline = $4
[app:$1-server]
use = egg:swift#$1
END
}

"$1"
