"""What an operator runs by hand while the system serves: `python -m domain.upkeep rewrap`, and the others that `--help` lists."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, text

from domain import database, erasure, privacy, retention, settings
from domain.cache import Cache, changing
from domain.settings import Settings

PORTION: Final = 500  # keys in one transaction
_WRAPPED: Final = (("person_keys", "person_id"), ("retained", "appointment_id"))


def rewrap(engine: Engine, chosen: Settings) -> tuple[int, list[UUID]]:
    """Wrap every data key by the first key of DATA_KEYS; how many were wrapped by another, and whose could not be opened.

    To be run once every process has the new ring, its old key behind the new one. When it reports none unreadable, and says 0
    when run again, the old key can be taken out of the ring.
    """
    rewrapped, unreadable = 0, []
    for table, owner in _WRAPPED:
        after = UUID(int=0)
        while True:
            with engine.begin() as connection:
                rows = connection.execute(
                    text(f"select {owner} as id, wrapped from {table} where {owner} > :after order by {owner} limit :portion"),
                    {"after": after, "portion": PORTION},
                ).all()
                if not rows:
                    break
                after = rows[-1].id
                for row in rows:
                    try:
                        wrapped = privacy.rewrap(chosen.data_keys, row.id, bytes(row.wrapped))
                    except privacy.Unreadable:
                        unreadable.append(row.id)
                        continue
                    if wrapped != bytes(row.wrapped):
                        rewrapped += connection.execute(
                            text(f"update {table} set wrapped = :new where {owner} = :id and wrapped = :old"),
                            {"id": row.id, "new": wrapped, "old": row.wrapped},
                        ).rowcount
    return rewrapped, unreadable


def keep_terms(engine: Engine, cache: Cache) -> int:
    """Do at once all that the terms ask for, which the relay does bit by bit; how many rows it was."""
    total = 0
    while True:
        with changing(engine, cache) as change:
            done = retention.keep_terms(change)
        if not done:
            return total
        total += done


def restored(engine: Engine) -> int:
    """After a restore, let nothing count that ended since, but was brought back; how many sessions were ended.

    Log-outs and changes of passwords are forgotten, and so is which link was used: every session ends, and no link is good.
    The cache may hold what was never to be: its keys get an epoch that no earlier one can have reached.
    """
    with engine.begin() as connection:
        ended = connection.execute(text("update sessions set revoked_at = clock_timestamp() where revoked_at is null")).rowcount
        connection.execute(text("update links set expires_at = least(expires_at, clock_timestamp())"))
        connection.execute(
            text(
                "update cache set epoch = greatest(epoch + 1, cast(extract(epoch from clock_timestamp()) as integer)),"
                " in_use = true, changed_at = clock_timestamp()"
            )
        )
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for, with the settings of the environment; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m domain.upkeep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("rewrap", help="wrap every data key by the first key of DATA_KEYS")
    commands.add_parser("retain", help="archive and erase what has outlived its term, all of it at once")
    commands.add_parser("tombstones", help="list everybody who was erased, to be kept outside the database")
    commands.add_parser("restored", help="after a restore: end what ended since, and trust no cache")
    commands.add_parser("bury", help="after a restore: erase again whom such a list, on standard input, names")
    reveal = commands.add_parser("reveal", help="show what the law keeps of an erased patient's consultation")
    reveal.add_argument("appointment_id", type=UUID)
    chosen, asked = settings.current(), parser.parse_args(arguments)
    engine = database.connect(chosen.database_url, pool_size=2)
    try:
        return _do(asked, engine, chosen)
    finally:
        engine.dispose()


def _do(asked: argparse.Namespace, engine: Engine, chosen: Settings) -> int:
    match asked.command:
        case "rewrap":
            rewrapped, unreadable = rewrap(engine, chosen)
            _say(f"{rewrapped} keys rewrapped, {len(unreadable)} unreadable", *map(str, unreadable))
            return 1 if unreadable else 0
        case "retain":
            _say(f"{keep_terms(engine, Cache(chosen, engine))} rows archived or erased")
        case "tombstones":
            with engine.connect() as connection:
                _say(*map(str, erasure.tombstones(connection)))
        case "restored":
            _say(f"{restored(engine)} sessions ended; nothing that was cached is read any more")
        case "bury":
            named = [UUID(line.strip()) for line in sys.stdin if line.strip()]
            with changing(engine, Cache(chosen, engine)) as change:
                buried = erasure.bury(change, chosen, named)
            _say(f"{len(buried)} of {len(named)} are being erased again")
        case "reveal":
            with engine.begin() as connection:
                document = erasure.reveal(connection, chosen, asked.appointment_id)
            if document is None:
                return 1
            _say(json.dumps(document, ensure_ascii=False, indent=2))
    return 0


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
