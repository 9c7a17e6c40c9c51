#!/bin/sh
# Prints passwords and keys for a new installation, one NAME=value a line, never the same twice. DATA_KEYS opens everybody's data: keep a copy.
#   sh secrets.sh healthmed- | kubectl create secret generic healthmed --from-env-file=/dev/stdin
# The argument is what the names of the chart's own servers begin with: the release and a hyphen.
set -eu
server="${1-healthmed-}"
random() { head -c "$1" /dev/urandom | base64 | tr -d '\n'; }
password() { random 24 | tr '+/' '-_'; }

owner=$(password) app=$(password) broker=$(password) cache=$(password)
cat <<END
POSTGRES_PASSWORD=$(password)
OWNER_PASSWORD=$owner
APP_PASSWORD=$app
REPLICATION_PASSWORD=$(password)
BROKER_PASSWORD=$broker
CACHE_PASSWORD=$cache
DATABASE_URL=postgresql://healthmed_app:$app@${server}postgres:5432/healthmed
DATABASE_MIGRATION_URL=postgresql://healthmed_owner:$owner@${server}postgres:5432/healthmed
DATABASE_REPLICA_URL=postgresql://healthmed_app:$app@${server}replica:5432/healthmed
BROKER_URL=redis://:$broker@${server}broker:6379/0
CACHE_URL=redis://:$cache@${server}cache:6379/0
JWT_KEYS=first=$(random 32)
DATA_KEYS=first=$(random 32)
HASH_KEY=$(random 32)
FLOWER_BASIC_AUTH=operator:$(password)
END
