#!/bin/bash
# Stands in for the official image's entry point: makes a database folder, runs what is in /docker-entrypoint-initdb.d, starts the server.
set -euo pipefail

if [ "${1:-postgres}" != postgres ] && [ "${1#-}" = "$1" ]; then exec "$@"; fi
if [ "${1#-}" != "$1" ]; then set -- postgres "$@"; fi
if [ "$(id -u)" = 0 ]; then
    chown postgres:postgres /var/lib/postgresql /run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    password="${POSTGRES_PASSWORD:-$(cat "${POSTGRES_PASSWORD_FILE:?POSTGRES_PASSWORD must be set}")}"
    export PGPASSWORD="$password"
    mkdir -p -m 0700 "$PGDATA"
    eval "initdb --username='${POSTGRES_USER:-postgres}' --pwfile=<(printf '%s' \"\$password\") -D '$PGDATA' ${POSTGRES_INITDB_ARGS:-}" >/dev/null
    printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -c unix_socket_directories=/var/run/postgresql" -w start >/dev/null
    export PGHOST=/var/run/postgresql POSTGRES_USER="${POSTGRES_USER:-postgres}"
    for script in /docker-entrypoint-initdb.d/*.sh; do
        if [ -f "$script" ]; then echo "running $script" && . "$script"; fi
    done
    pg_ctl -D "$PGDATA" -m fast -w stop >/dev/null
    unset PGPASSWORD PGHOST
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
