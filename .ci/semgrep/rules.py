# What the rules must find, and what they must leave alone: `make scan` holds them to it. Nothing here is ever run.
# ruff: noqa
import hashlib
import logging
import traceback

import jwt
import redis
import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flask import request
from redis import Redis
from sqlalchemy import create_engine, text

_log = structlog.get_logger()


def hashes(person, token):
    # ruleid: personal-data-in-a-plain-hash
    hashlib.sha256(person.cpf.encode())
    # ruleid: personal-data-in-a-plain-hash
    hashlib.md5(email.lower().encode()).hexdigest()
    # ok: personal-data-in-a-plain-hash
    hashlib.sha256(token.encode())


def logs(person):
    try:
        person.save()
    except Exception as error:
        # ruleid: error-message-in-a-log
        _log.warning("failed", error=str(error))
        # ruleid: error-message-in-a-log
        _log.warning("failed", error=error)
        # ruleid: error-message-in-a-log
        _log.exception("failed")
        # ruleid: error-message-in-a-log
        _log.error("failed", exc_info=True)
        # ruleid: error-message-in-a-log
        traceback.print_exc()
        # ok: error-message-in-a-log
        _log.warning("failed", error=type(error).__name__)
    # ruleid: log-beside-the-allow-list
    logging.getLogger(__name__).warning("x")
    # ruleid: log-beside-the-allow-list
    logging.info("x")
    # ruleid: log-beside-the-allow-list
    _log.info(f"saved {person.name}")
    # ok: log-beside-the-allow-list
    _log.info("saved", person_id=person.id)


def engines(url):
    # ruleid: engine-that-shows-parameters
    create_engine(url)
    # ok: engine-that-shows-parameters
    create_engine(url, pool_size=2, hide_parameters=True)


def tokens(token, key):
    # ruleid: token-read-without-its-algorithm
    jwt.decode(token, key)
    # ok: token-read-without-its-algorithm
    jwt.decode(token, key, algorithms=["HS256"])


def addresses():
    # ruleid: address-that-a-client-may-choose
    request.headers.get("X-Forwarded-For", "")
    # ruleid: address-that-a-client-may-choose
    return request.remote_addr


def client_address():
    # ok: address-that-a-client-may-choose
    return request.remote_addr


def clients(url):
    # ruleid: redis-without-limits-of-time
    Redis.from_url(url)
    # ruleid: redis-without-limits-of-time
    redis.Redis.from_url(url, decode_responses=True)
    # ok: redis-without-limits-of-time
    Redis.from_url(url, socket_timeout=1)


def tasks(drain, person):
    # ruleid: task-that-carries-more-than-an-id
    drain.delay(person.email)
    # ruleid: task-that-carries-more-than-an-id
    drain.apply_async((person.email,), countdown=3)


def ciphers(key, nonce, plain):
    # ruleid: cipher-outside-privacy
    AESGCM(key).encrypt(nonce, plain, None)


def statements(connection, body, columns):
    # ruleid: value-formatted-into-sql
    connection.execute(text(f"select * from people where name = '{body['name']}'"))
    # ruleid: value-formatted-into-sql
    connection.execute(text("select * from people where name = '%s'" % body["name"]))
    # ruleid: value-formatted-into-sql
    connection.execute(text("select * from people where name = '{}'".format(body["name"])))
    # ok: value-formatted-into-sql
    connection.execute(text(f"select {columns} from people where name = :name"), {"name": body["name"]})
