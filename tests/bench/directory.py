"""What a search costs among 50,000 doctors with 5 million slots, beside the same one among 500: uncached, cards and all."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from psycopg2.extensions import set_wait_callback
from sqlalchemy import create_engine, text

from domain import database, directory, migrations
from domain.cache import Cache
from domain.directory import SearchQuery
from domain.settings import Settings
from domain.specialties import SPECIALTIES
from local.servers import Postgres

FEW, MANY = 500, 50_000
SLOTS = 100  # of each doctor, in 60 days
TIMES = 40  # that each search is done

# Made to be thrown away: nothing is flushed, and only what a search may use is indexed.
OPTIONS = {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "8GB"}
STOCK = """
    set maintenance_work_mem = '256MB';
    alter table slots drop constraint ex_slots_doctor_during, drop constraint fk_slots_doctor_id,
        drop constraint uq_slots_id_doctor_id cascade, drop constraint pk_slots;
    drop index ix_slots_doctor_id_starts_at, ix_slots_open, ix_slots_open_starts_at;
    select setseed(0.5);
    create function one_of(choice text[]) returns text language sql volatile
        return choice[1 + floor(random() * cardinality(choice))::int];
    create temp table fresh as select uuidv7() as id, n, concat_ws(' ',
            one_of('{ana,bruno,carla,daniel,elisa,fabio,gabriela,heitor,isabel,joao,karina,luis,marcia,nelson,olivia,paulo}'),
            one_of('{almeida,barbosa,cardoso,dias,esteves,ferreira,gomes,junqueira,lima,martins,nogueira,oliveira,pereira}'),
            one_of('{abreu,brito,campos,duarte,farias,guimaraes,leite,machado,neves,paiva,ramos,silva,tavares,uchoa,xavier}'), n
        ) as name from generate_series(1, :doctors) as n;
    insert into people (id, role) select id, 'doctor' from fresh;
    insert into doctors (id, lane, status, name, search_name, crm_number, crm_state, price, timezone)
        select id, n % 64, 'verified', name, name, n,
            one_of('{SP,SP,SP,SP,SP,RJ,RJ,MG,MG,RS,PR,BA,SC,PE,CE,GO,DF,PA,MT,AC}'), 8000 + 500 * floor(random() * 100),
            'America/Sao_Paulo'
        from fresh;
    insert into doctor_specialties
        select id, one_of(:specialties), '1' from fresh, generate_series(1, n % 10 / 3) on conflict do nothing;
    insert into slots (id, doctor_id, during, status, held)
        select uuidv7(), id, tstzrange(at, at + interval '30 minutes'), case when random() < 0.3 then 'booked' else 'open' end,
            true
        from fresh, generate_series(0, :slots - 1) as s, lateral (
            select date_trunc('day', now()) + s * 60 / :slots * interval '1 day' + interval '11 hours'
                + (2 * floor(random() * 10) + s % 2) * interval '30 minutes' as at
        ) as start;
    create index ix_slots_open on slots (doctor_id, starts_at) where status = 'open';
    create index ix_slots_open_starts_at on slots (starts_at, doctor_id) where status = 'open';
"""


def searches() -> dict[str, SearchQuery]:
    """What people look for: by one thing, by several, in each order, often, seldom and in vain."""
    noon, day = datetime.now(UTC).replace(hour=15, minute=0, second=0, microsecond=0), timedelta(days=1)
    some = ["cardiologia", "dermatologia", "pediatria"]
    return {
        "anybody, by name": SearchQuery(),
        "anybody, by price": SearchQuery(sort="price"),
        "anybody, by next free slot": SearchQuery(sort="next_slot"),
        "a specialty": SearchQuery(specialty=some[:1]),
        "a specialty, by next free slot": SearchQuery(specialty=some[:1], sort="next_slot"),
        "three specialties, by price": SearchQuery(specialty=some, sort="price"),
        "three specialties, by next free slot": SearchQuery(specialty=some, sort="next_slot"),
        "a specialty or none, by next free slot": SearchQuery(specialty=[some[0], "clinico-geral"], sort="next_slot"),
        "a common name": SearchQuery(q="silva"),
        "a common name, by next free slot": SearchQuery(q="silva", sort="next_slot"),
        "a rare name": SearchQuery(q="elisa lima"),
        "two letters of a name": SearchQuery(q="qu"),
        "a name that nobody has": SearchQuery(q="wolfgang"),
        "a state, by price": SearchQuery(state="SP", sort="price"),
        "a small state, by next free slot": SearchQuery(state="AC", sort="next_slot"),
        "a price range, by price": SearchQuery(min_price=20000, max_price=25000, sort="price"),
        "a price range, by next free slot": SearchQuery(min_price=20000, max_price=25000, sort="next_slot"),
        "free in two days, by price": SearchQuery(available_from=noon + day, available_until=noon + 3 * day, sort="price"),
        "free in a week, by next free slot": SearchQuery(available_from=noon + 7 * day, sort="next_slot"),
        "free in one hour": SearchQuery(available_from=noon + 4 * day, available_until=noon + 4 * day + day / 24),
        "free at night": SearchQuery(available_from=noon + 4.5 * day, available_until=noon + 4.6 * day),
        "all of it, by next free slot": SearchQuery(
            specialty=some[:2],
            state="SP",
            q="an",
            min_price=10000,
            max_price=40000,
            available_from=noon + day,
            available_until=noon + 6 * day,
            sort="next_slot",
        ),
    }


def searched(settings: Settings) -> Iterator[tuple[str, float, float]]:
    """Each search with its 95th percentile in seconds, among few doctors and among many, done in turn."""
    with stocked(settings, FEW) as few, stocked(settings, MANY) as many:
        for name, query in searches().items():
            spent: tuple[list[float], list[float]] = ([], [])
            for _ in range(TIMES + 1):  # the first one warms up
                for cache, times in zip((few, many), spent, strict=True):
                    begun = time.perf_counter()
                    directory.search(cache, query)
                    times.append(time.perf_counter() - begun)
            yield name, *(sorted(times[1:])[int(TIMES * 0.95) - 1] for times in spent)


@contextmanager
def stocked(settings: Settings, doctors: int) -> Iterator[Cache]:
    """So many doctors on a server of their own, read past every cache."""
    with tempfile.TemporaryDirectory(prefix="healthmed-bench-") as folder:
        server = Postgres(Path(folder) / "postgres", options=OPTIONS)
        server.start()
        owner = server.migration_url.replace("postgresql:", "postgresql+psycopg2:")
        migrations.upgrade(owner, app_url=server.url)
        engine = create_engine(owner, isolation_level="AUTOCOMMIT")
        set_wait_callback(None)  # this may take longer than the application would wait
        registered = [each.code for each in SPECIALTIES.values() if each.registered]
        with engine.connect() as connection:
            connection.execute(text(STOCK), {"doctors": doctors, "slots": SLOTS, "specialties": registered})
            connection.execute(text("vacuum analyze doctors, doctor_specialties, slots"))
        engine.dispose()
        database.bound_waits()
        settings = replace(settings, database_url=server.url.replace("postgresql:", "postgresql+psycopg2:"))
        app = database.connect(settings.database_url, pool_size=1)
        cache = Cache(settings, app)  # never started: it believes no cache
        try:
            yield cache
        finally:
            cache.stop()
            app.dispose()
            server.stop()
