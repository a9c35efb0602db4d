#!/bin/sh
# Make a base root file system from Debian packages: Python, the C and C++ libraries, a shell. Nothing to build with.
#
#   containers/base.sh OUTPUT.tar
#
# For sites that can pull no image. Needs root and Debian packages from the mirror that this machine's apt already uses
# (or $ENGINERY_DEBIAN_MIRROR). Two runs against one state of the mirror give the same bytes.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH=0
umask 022

SUITE=bookworm
INCLUDE=python3-minimal,libpython3-stdlib,ca-certificates,libstdc++6

# What stays. Everything else that debootstrap brings (apt, perl, mount, login, PAM, systemd's libraries, …) goes.
KEEP="
base-files base-passwd bash ca-certificates coreutils dash debianutils findutils grep gzip hostname libc-bin libc6
media-types ncurses-base openssl readline-common sed tar tzdata usr-is-merged usrmerge
libpython3-stdlib libpython3.11-minimal libpython3.11-stdlib python3-minimal python3.11-minimal
gcc-12-base libacl1 libattr1 libbz2-1.0 libcom-err2 libcrypt1 libdb5.3 libexpat1 libffi8 libgcc-s1 libgmp10
libgssapi-krb5-2 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 liblzma5 libncursesw6 libnsl2 libpcre2-8-0
libreadline8 libselinux1 libsqlite3-0 libssl3 libstdc++6 libtinfo6 libtirpc-common libtirpc3 libuuid1 zlib1g
"

fail() {
    echo "base.sh: $1" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: base.sh OUTPUT.tar"
[ "$(id -u)" -eq 0 ] || fail "needs root (debootstrap makes device nodes and changes root); run it with sudo, or give an image that this machine can pull as the base"
case "$1" in /*) OUTPUT=$1 ;; *) OUTPUT=$PWD/$1 ;; esac

if ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null || fail "debootstrap is missing and there is no apt-get to install it with"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap >&2 || fail "debootstrap could not be installed"
fi

# apt knows the mirrors, the proxies and the keys of this site: ask it instead of naming a host here.
indexes=$(apt-get update --print-uris 2>/dev/null || true)
mirror_of() { printf '%s\n' "$indexes" | sed -n "s|^'\(.*\)/dists/$1/InRelease'.*|\1|p" | head -n 1; }
MIRROR=${ENGINERY_DEBIAN_MIRROR:-$(mirror_of $SUITE)}
[ -n "$MIRROR" ] || fail "apt's sources on this machine name no mirror of $SUITE; set ENGINERY_DEBIAN_MIRROR to one"

WORK=$(mktemp -d)
ROOT=$WORK/root
trap 'rm -rf "$WORK"' EXIT
trap 'exit 1' HUP INT TERM

# A root that is thrown away when the power fails needs no fsync, and files that are removed below need not be unpacked.
mkdir -p "$ROOT/etc/dpkg/dpkg.cfg.d"
cat >"$ROOT/etc/dpkg/dpkg.cfg.d/enginery" <<END
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
END
debootstrap --variant=minbase --include=$INCLUDE $SUITE "$ROOT" "$MIRROR" >"$WORK/log" 2>&1 \
    || { tail -n 20 "$WORK/log" >&2; fail "debootstrap failed with the mirror that apt uses"; }

# Security updates, fetched by this machine's apt (its mirrors, proxies, keys) and unpacked inside the new root.
: >"$WORK/sources.list"
for suite in $SUITE-updates $SUITE-security; do
    url=$(mirror_of $suite)
    [ -z "$url" ] || echo "deb $url $suite main" >>"$WORK/sources.list"
done
if grep -q "$SUITE-security" "$WORK/sources.list"; then
    set -- -o Dir::State::status="$ROOT/var/lib/dpkg/status" -o Dir::State::Lists="$WORK/lists" -o Dir::Cache="$WORK/cache" \
        -o Dir::Etc::SourceList="$WORK/sources.list" -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root
    mkdir -p "$WORK/lists/partial" "$WORK/cache/archives/partial"
    { apt-get "$@" -qq update && apt-get "$@" -qq -y --download-only dist-upgrade; } >>"$WORK/log" 2>&1 \
        || { tail -n 20 "$WORK/log" >&2; fail "security updates are in this machine's apt sources and could not be fetched"; }
    if ls "$WORK"/cache/archives/*.deb >/dev/null 2>&1; then
        mkdir "$ROOT/updates"
        mv "$WORK"/cache/archives/*.deb "$ROOT/updates/"
        chroot "$ROOT" sh -c 'dpkg --unpack /updates/*.deb && dpkg --configure -a' >>"$WORK/log" 2>&1 \
            || { tail -n 20 "$WORK/log" >&2; fail "security updates could not be installed in the new root"; }
        rm -r "$ROOT/updates"
    fi
fi

# Remove what is not kept, by the package's own file list: its scripts would need the tools that are going.
cd "$ROOT"
installed=$(dpkg-query --admindir="$ROOT/var/lib/dpkg" -W -f '${binary:Package}\n')
keep=" $(echo $KEEP) "
for package in $installed; do
    case "$keep" in
        *" ${package%%:*} "*) cat "var/lib/dpkg/info/$package.list" >>"$WORK/kept" ;;
        *) cat "var/lib/dpkg/info/$package.list" >>"$WORK/gone" && rm -f "var/lib/dpkg/info/$package".* ;;
    esac
done
sort -u "$WORK/kept" -o "$WORK/kept"
# Deepest first, so that folders are empty when their turn comes; those that still hold something stay.
sort -u "$WORK/gone" | comm -23 - "$WORK/kept" | sort -r | sed 's|^/|./|' | xargs -d '\n' rm -df 2>/dev/null || true
# Scanners read this list: it must name exactly what is left.
awk -v keep="$keep" 'BEGIN { RS = ""; ORS = "\n\n"; n = split(keep, k, " "); for (i = 1; i <= n; i++) want[k[i]] = 1 }
    { split($0, line, "\n"); split(line[1], field, ": "); if (field[2] in want) print }' var/lib/dpkg/status >"$WORK/status"
find var/lib/dpkg -mindepth 1 -maxdepth 1 ! -name info ! -name alternatives -exec rm -rf {} +
cp "$WORK/status" var/lib/dpkg/status

# What differs from run to run, and what nobody reads in a container.
rm -rf var/lib/apt var/cache/* var/log/* var/backups/* var/lib/systemd var/lib/pam tmp/* run/* boot home media mnt srv debootstrap \
    usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/bug usr/share/bash-completion \
    usr/share/perl5 usr/lib/x86_64-linux-gnu/perl-base usr/lib/x86_64-linux-gnu/gconv usr/lib/x86_64-linux-gnu/security \
    usr/share/debconf usr/share/python3 \
    etc/apt etc/machine-id etc/hostname etc/resolv.conf etc/hosts etc/dpkg/dpkg.cfg.d etc/pam.d etc/security etc/systemd etc/default \
    etc/cron.* etc/init.d etc/rc?.d etc/logrotate.d etc/.pwd.lock etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- etc/subgid-
find . -xdev \( -name '*.dpkg-old' -o -name '*.dpkg-dist' -o -name __pycache__ \) -prune -exec rm -rf {} +
find etc/alternatives usr/bin usr/sbin etc -xtype l -type l -print | while read -r link; do
    target=$(readlink "$link")
    case "$target" in /*) [ -e ".$target" ] || rm -f "$link" ;; *) rm -f "$link" ;; esac
done
find dev -mindepth 1 -delete
# The day on which a password was last changed is the day of this run; no account here has a password.
[ ! -f etc/shadow ] || sed -i 's/^\([^:]*:[^:]*\):[0-9]*:/\1:0:/' etc/shadow
find . -xdev \( -type f -o -type d \) -perm /6000 -exec chmod a-s {} +
find . -xdev -type d -perm -0002 ! -path ./tmp ! -path ./var/tmp -exec chmod o-w {} +
chmod 1777 tmp var/tmp

# Compiled ahead, checked by nothing at start: a read-only root and an unknown user cannot write them later.
PYTHONHASHSEED=0 chroot . python3 -S -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3.11

for needed in bin/sh bin/cat bin/sleep usr/bin/python3 usr/sbin/update-ca-certificates etc/ssl/certs/ca-certificates.crt; do
    [ -e "$needed" ] || fail "$needed was removed with the rest; correct KEEP"
done
chroot . python3 -c 'import ctypes, hashlib, json, lzma, sqlite3, ssl, uuid, zoneinfo' || fail "the Python left over is not complete; correct KEEP"
find . -xdev -name __pycache__ -path './usr/share/*' -prune -exec rm -rf {} +

mkdir -p "$(dirname "$OUTPUT")"
tar --create --file "$OUTPUT.part" --sort=name --mtime=@0 --numeric-owner --format=posix \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime .
mv "$OUTPUT.part" "$OUTPUT"
