#!/bin/bash
# What a new PostgreSQL gets: the database, its owner (who may change the schema) and the application's role (who may not).
set -euo pipefail

psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv owner_password OWNER_PASSWORD
\getenv app_password APP_PASSWORD
create role healthmed_owner login password :'owner_password';
create role healthmed_app login password :'app_password';
-- Limits of time nest (docs/architecture.md, Trouble). The application asks for the same; who forgets to gets them anyway.
alter role healthmed_app set statement_timeout = '4s';
alter role healthmed_app set lock_timeout = '2s';
alter role healthmed_app set idle_in_transaction_session_timeout = '5s';
alter role healthmed_app set transaction_timeout = '8s';
create database healthmed owner healthmed_owner;
revoke connect, temporary on database healthmed from public;
grant connect on database healthmed to healthmed_app;
SQL

# For a replica that follows by streaming, where there is to be one.
if [ -n "${REPLICATION_PASSWORD:-}" ]; then
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv replication_password REPLICATION_PASSWORD
create role healthmed_replication login replication password :'replication_password';
select pg_create_physical_replication_slot('replica');
SQL
    echo 'host replication healthmed_replication all scram-sha-256' >>"$PGDATA/pg_hba.conf"
fi
