#!/usr/bin/env bash
# docker-compose.yml with podman: `up` brings it up and stays; `test` brings up another one, goes the demonstration's way, takes it down.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "${ENGINE:-podman} ${1:-up}" = "docker up" ]; then exec docker compose up; fi
. tests/images/engine.sh
project=healthmed
folder=$(mktemp -d)

compose() { podman-compose --project-name "$project" "$@"; }

down() {
    status=$?
    if [ "$status" != 0 ]; then podman ps --all --filter "label=io.podman.compose.project=$project"; show_logs; fi
    podman ps --all --quiet --filter "label=io.podman.compose.project=$project" | xargs --no-run-if-empty podman rm --force --time 2 >/dev/null 2>&1
    podman volume ls --quiet --filter "name=^${project}_" | xargs --no-run-if-empty podman volume rm >/dev/null 2>&1
    podman network rm --force "${project}_default" >/dev/null 2>&1
    rm -rf "$folder" "$engine_settings"
    exit "$status"
}

show_logs() {
    for container in $(podman ps --all --quiet --filter "label=io.podman.compose.project=$project"); do
        podman logs --tail 5 --names "$container" || true
    done
}

free_port() { .venv/bin/python -c 'from local.servers import free_port; print(free_port())'; }

# What the demonstration printed is who can log in; it ends when everybody is there.
wait_for_people() {
    for _ in $(seq 120); do
        if podman logs "${project}_demonstration_1" 2>/dev/null | tail -1 | grep '^{"staff"' >"$folder/people"; then return; fi
        sleep 1
    done
    echo "The demonstration's people did not come." >&2
    return 1
}

wait_for() {
    for _ in $(seq 60); do
        if curl --silent --fail --output "$folder/answer" --max-time 8 "$1" && grep -q "$2" "$folder/answer"; then return; fi
        sleep 1
    done
    echo "$1 does not answer as it should." >&2
    return 1
}

case "${1:-up}" in
    up) exec podman-compose --project-name "$project" up ;;
    test)
        project=healthmed-test-$$
        trap down EXIT
        for name in PORT FLOWER_PORT GRAFANA_PORT PROMETHEUS_PORT MAIL_PORT; do export "$name=$(free_port)"; done
        base="http://127.0.0.1:$PORT"
        compose up --detach >"$folder/up" 2>&1 || { cat "$folder/up"; exit 1; }
        wait_for_people
        wait_for "$base/healthz" alive
        printf '{"base_url": "%s", %s' "$base" "$(sed 's/^{//' "$folder/people")" >"$folder/demo.json"
        STATE_DIR="$folder" make --no-print-directory demo | tail -1
        # What nobody outside may see, and what operators must.
        test "$(curl --silent --output /dev/null --write-out '%{http_code}' "$base/metrics")" = 404
        test "$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$FLOWER_PORT/")" = 401
        wait_for "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/query?query=count(up==1)" '"5"\]'
        wait_for "http://127.0.0.1:$GRAFANA_PORT/api/health" '"database": *"ok"'
        asked="select application_name || ': ' || state || ', ' || pg_wal_lsn_diff(sent_lsn, replay_lsn) || ' bytes behind' from pg_stat_replication"
        podman exec "${project}_postgres_1" sh -c '. /run/healthmed/env; export PGPASSWORD="$POSTGRES_PASSWORD"; exec psql -h 127.0.0.1 -U postgres -Atc "$0"' \
            "$asked" | grep streaming
        ;;
esac
