#!/bin/bash
# A replica that follows the service `postgres`: copies it at the first start, and from then on what it missed and what comes.
set -euo pipefail
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p -m 0700 "$PGDATA"
    until PGPASSWORD="$REPLICATION_PASSWORD" pg_basebackup --pgdata "$PGDATA" --host postgres --username healthmed_replication \
        --slot replica --wal-method stream --checkpoint fast --write-recovery-conf; do
        echo "waiting for postgres" && sleep 2
        find "$PGDATA" -mindepth 1 -delete
    done
fi
exec postgres -c max_connections=200 -c listen_addresses='*' -c unix_socket_directories='' -c log_error_verbosity=terse -c log_min_error_statement=panic
