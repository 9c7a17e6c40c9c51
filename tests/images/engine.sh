# Sourced by the scripts beside it: podman as it can run here. What a process may open isn't raised where the host forbids it.
engine_settings=$(mktemp -d)
cat >"$engine_settings/containers.conf" <<END
[containers]
default_ulimits = ["nofile=$(ulimit -Hn | sed 's/unlimited/65536/'):$(ulimit -Hn | sed 's/unlimited/65536/')", "nproc=4096:4096"]
[network]
network_backend = "netavark"
[engine]
runtime = "$(command -v crun >/dev/null && echo crun || echo runc)"
END
export CONTAINERS_CONF="$engine_settings/containers.conf"
