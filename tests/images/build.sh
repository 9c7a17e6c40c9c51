#!/usr/bin/env bash
# Builds localhost/healthmed and localhost/healthmed-demonstration, by default with podman and the tag `dev`.
set -euo pipefail
cd "$(dirname "$0")/../.."
engine="${ENGINE:-podman}" tag="${TAG:-dev}"
options=(--quiet)
if [ "$engine" = podman ]; then
    . tests/images/engine.sh
    trap 'rm -rf "$engine_settings"' EXIT
    options+=(--format docker --network host)  # the other format knows no HEALTHCHECK
fi
for name in healthmed healthmed-demonstration; do
    "$engine" build "${options[@]}" --target "${name##healthmed-}" --tag "localhost/$name:$tag" . >/dev/null || {
        echo "The image could not be built. Where no registry is reachable, tests/images/stand_ins.sh makes what it is built from." >&2
        exit 1
    }
    echo "localhost/$name:$tag $("$engine" image inspect --format '{{.Size}}' "localhost/$name:$tag" | awk '{ printf "%.0f MB", $1 / 1e6 }')"
done
