# One image for every process: API, workers, relay, Flower and migrations differ in their command only.
FROM docker.io/library/python:3.11-slim-bookworm AS base

# What is installed: the versions and hashes of the lock, wheels only, so that nothing is compiled.
FROM base AS packages
COPY .ci/image.lock /image.lock
RUN python -m venv /opt/healthmed \
    && /opt/healthmed/bin/python -m pip install --require-hashes --only-binary :all: --no-compile --no-cache-dir --quiet \
        --disable-pip-version-check -r /image.lock \
    && /opt/healthmed/bin/python -m pip uninstall --quiet --yes pip setuptools \
    # Tests, sources of extensions and what they were compiled with: nothing of it is ever imported.
    && find /opt/healthmed -depth \( -path '*/gevent/tests' -o -path '*/greenlet/tests' -o -name '*.pyx' -o -name '*.pxd' \
        -o -name '*.c' -o -name '*.h' \) -exec rm -r {} + \
    # The root is read-only when it runs, so the bytecode is written now; by content, as layers don't keep the time well.
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/healthmed/lib
COPY api /srv/healthmed/api
COPY domain /srv/healthmed/domain
COPY workers /srv/healthmed/workers
RUN python -m compileall -q --invalidation-mode unchecked-hash /srv/healthmed

FROM base AS healthmed
LABEL org.opencontainers.image.title="Health&Med" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/healthmed /opt/healthmed
COPY --from=packages /srv/healthmed /srv/healthmed
ENV PATH=/opt/healthmed/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    PORT=8000 \
    BIND=0.0.0.0:8000
WORKDIR /srv/healthmed
# By number, so that a cluster can tell that it isn't root. It owns nothing: /tmp is all that a process writes to.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# A worker or relay lives while it touches its file, the API while it answers; neither asks what it depends on.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD if [ -n "$HEARTBEAT_FILE" ]; then test -n "$(find "$HEARTBEAT_FILE" -newermt '30 seconds ago')"; \
        else python -I -S -c 'import os, socket; s = socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), 4); \
        s.sendall(b"GET /healthz HTTP/1.0\r\n\r\n"); assert b" 200 " in s.recv(64)'; fi
CMD ["gunicorn", "-c", "api/gunicorn.conf.py", "api.wsgi:app"]

# The same, and the people of the demonstration: for laptops and tests, never for patients.
FROM healthmed AS demonstration
COPY local /srv/healthmed/local
CMD ["python", "-m", "local.seed"]

# What is built unless a stage is named.
FROM healthmed
