#!/bin/sh
# The broker or the cache. The password comes by standard input, because a command line is everybody's to read.
case "$1" in
    broker) password=$BROKER_PASSWORD kept=yes policy=noeviction ;;
    cache) password=$CACHE_PASSWORD kept=no policy=allkeys-lru ;;
esac
exec valkey-server - <<END
requirepass $password
dir /data
save ""
maxmemory 256mb
maxmemory-policy $policy
appendonly $kept
appendfsync everysec
END
