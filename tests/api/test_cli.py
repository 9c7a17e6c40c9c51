"""The staff's command line, on the tests' servers: what it says, what it does, and with which code it ends."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from api import cli
from local.servers import Postgres
from tests import rows
from tests.api.clinic import REASON, Clinic
from tests.api.test_second_factor import phone_of
from tests.factories import PASSWORD

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(clinic: Clinic, capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line; gives its exit code, and what it said on either stream."""

    def run(*arguments: Any) -> tuple[int, str]:
        capfd.readouterr()
        code = cli.run([str(each) for each in arguments], clinic.services.settings)
        said = capfd.readouterr()
        assert (said.out == "") == (code != 0) or code == 1
        return code, said.out or said.err

    return run


def test_a_staff_account_is_made_and_logs_in(clinic: Clinic, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    code, said = run("create-staff", "celia@healthmed.example", "Célia Rocha")
    assert code == 0
    assert "celia@healthmed.example" in said
    assert PASSWORD not in said
    body = {"login": "celia@healthmed.example", "password": PASSWORD}
    assert clinic.request("POST", "/auth/staff", body=body).status_code == 200


@pytest.mark.parametrize(
    ("login", "password", "said"),
    [
        ("celia@healthmed.example", "curta", "password: "),
        ("celia@healthmed.example", "Célia Rocha 1980", "password: "),
        ("celia", PASSWORD, ""),
    ],
)
def test_a_staff_account_that_cannot_be_is_refused(
    run: Run, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, login: str, password: str, said: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
    code, told = run("create-staff", login, "Célia Rocha")
    assert code == 1
    assert said in told
    assert password not in told
    assert clinic.all("select count(*) from people where role = 'staff'") == [0]


def test_a_login_that_is_taken_is_refused(clinic: Clinic, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    code, said = run("create-staff", clinic.accounts.patient().login, "Célia Rocha")
    assert (code, "already" in said) == (1, True)


def test_a_doctor_is_verified_by_crm_and_shown_at_once(clinic: Clinic, run: Run) -> None:
    doctor, staff = clinic.accounts.doctor(status="pending_verification"), clinic.accounts.staff()
    assert clinic.get(f"/doctors/{doctor.id}").status_code == 404
    code, said = run("verify", doctor.login, "--by", staff.login)
    assert (code, "is verified" in said) == (0, True)
    assert clinic.get(f"/doctors/{doctor.id}").status_code == 200
    written = "select actor_id from audit where subject_id = :id and action = 'verified'"
    assert clinic.all(written, id=doctor.id) == [staff.id]


def test_a_doctor_is_suspended_by_id_and_the_commands_carry_the_request_that_is_told(clinic: Clinic, run: Run) -> None:
    doctor, staff = clinic.accounts.doctor(), clinic.accounts.staff()
    appointment_id = clinic.book(clinic.accounts.patient(), clinic.slot(doctor))
    code, said = run("suspend", doctor.id, "--by", staff.login, "--reason", "Registro vencido")
    assert (code, "is suspended" in said) == (0, True)
    assert clinic.get(f"/doctors/{doctor.id}").status_code == 404
    clinic.decide()
    (request_id,) = clinic.all(
        "select request_id from commands where kind = 'refuse' and appointment_id = :id", id=appointment_id
    )
    assert request_id in said


def test_a_lost_second_factor_is_taken_off_by_staff(clinic: Clinic, run: Run) -> None:
    doctor, staff = clinic.accounts.doctor(), clinic.accounts.staff()
    phone_of(clinic.client, clinic.accounts, doctor)
    assert run("remove-totp", "999999/RJ", "--by", staff.login)[0] == 1
    assert run("remove-totp", doctor.login, "--by", doctor.login)[0] == 1
    code, said = run("remove-totp", doctor.login, "--by", staff.login)
    assert (code, str(doctor.id) in said) == (0, True)
    assert clinic.get("/me", doctor).status_code == 401
    assert clinic.request("POST", "/auth/doctor", body={"crm": doctor.login, "password": PASSWORD}).status_code == 200
    written = "select actor_id from audit where subject_id = :id and action = 'totp_off'"
    assert clinic.all(written, id=doctor.id) == [staff.id]
    assert run("remove-totp", doctor.login, "--by", staff.login)[0] == 1


@pytest.mark.parametrize("what", ["crm", "id", "malformed", "login", "patient", "senseless"])
def test_whom_nobody_can_verify_is_told(clinic: Clinic, run: Run, what: str) -> None:
    doctor, staff, patient = clinic.accounts.doctor(), clinic.accounts.staff(), clinic.accounts.patient()
    named = {"crm": "999999/RJ", "id": uuid7(), "malformed": "nobody", "patient": patient.id}.get(what, doctor.login)
    by = patient.login if what == "login" else staff.login
    code, said = run("reject" if what == "senseless" else "verify", named, "--by", by)
    assert code == 1
    assert said.strip()
    assert "Traceback" not in said


def test_a_commands_life_is_told_from_the_request_to_the_mails(clinic: Clinic, run: Run) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    body = {"slot_id": clinic.slot(doctor, rows.tomorrow(72)), "notes": "Dor no peito"}
    sent = clinic.request("POST", "/appointments", patient, body, headers={"X-Request-ID": "request-1"})
    command_id = sent.json["id"]

    code, said = run("command", command_id)
    assert code == 0
    assert re.search(r"^asked +book, by patient " + str(patient.id), said, re.M)
    assert re.search(r"^request +request-1$", said, re.M)
    assert re.search(r"^received +\S+Z$", said, re.M)
    assert re.search(r"^decided +not yet", said, re.M)

    appointment_id = clinic.outcome(sent, patient)["appointment_id"]
    code, said = run("command", command_id)
    assert re.search(r"^decided +\S+Z, \d+ ms later: succeeded$", said, re.M)
    assert f"appointment {appointment_id} requested by patient" in said
    assert re.search(r"^projected +\S+Z, \d+ ms later: batch \S+, \d+ scopes$", said, re.M)
    assert re.search(rf"^notified +requested to doctor {doctor.id}: due \S+Z, 0 attempts \(notice \S+\)$", said, re.M)
    assert "peito" not in said

    accept = clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    clinic.change("update notices set sent_at = now(), attempts = 1 where kind = 'accepted' and person_id = :id", id=patient.id)
    clinic.change("update notices set dropped_at = now(), drop_reason = 'too_late' where kind = 'reminder'")
    said = run("command", accept["id"])[1]
    assert re.search(rf"^notified +accepted to patient {patient.id}: sent \S+Z, 1 attempt ", said, re.M)
    assert len(re.findall(r"^notified +reminder to \S+ \S+: given up \S+Z: too_late", said, re.M)) == 4
    assert len(re.findall("^notified", said, re.M)) == 6


def test_the_life_of_what_was_rejected_or_not_projected_or_archived_or_came_with_time(clinic: Clinic, run: Run) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    clinic.book(patient, slot_id)
    sent = clinic.request("POST", "/appointments", clinic.accounts.patient(), {"slot_id": slot_id})
    clinic.decide()
    clinic.change("update batches set finished_at = null")
    code, said = run("command", sent.json["id"])
    assert re.search(r"^decided +\S+Z, \d+ ms later: slot_taken$", said, re.M)
    assert re.search(r"^projected +not yet", said, re.M)

    columns = "id, seq, kind, actor_id, actor_role, doctor_id, slot_id, appointment_id, status, error_code, request_id"
    clinic.change(f"insert into archived_commands ({columns}, received_at, decided_at) select {columns}, received_at, decided_at"
                  " from commands where id = :id", id=sent.json["id"])  # fmt: skip
    clinic.change("delete from commands where id = :id", id=sent.json["id"])
    code, said = run("command", sent.json["id"])
    assert (code, "archived" in said, "slot_taken" in said, "projected" in said) == (0, True, True, False)

    clinic.change(
        "insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, payload, day)"
        " select uuidv7(), 0, 'extend_horizon', id, 'system', :doctor, '{}', current_date from people where role = 'system'",
        doctor=doctor.id,
    )  # fmt: skip
    (command_id,) = clinic.all("select id from commands where kind = 'extend_horizon'")
    assert "none: it came with time" in run("command", command_id)[1]


def test_a_command_that_never_was_is_told(run: Run) -> None:
    assert run("command", uuid7()) == (1, "Não há este comando. / There is no such command.\n")


def test_a_notice_that_was_sent_goes_out_once_more_as_another_one(clinic: Clinic, run: Run) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor, rows.tomorrow(72)))
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    ours = "person_id = :id and kind = 'accepted'"
    clinic.change(f"update notices set sent_at = now(), attempts = 1 where {ours}", id=patient.id)
    (notice_id,) = clinic.all(f"select id from notices where {ours}", id=patient.id)
    code, said = run("resend", notice_id)
    assert code == 0
    again = UUID(re.findall(r"notice (\S+) goes out", said)[0])
    assert again != notice_id
    assert clinic.all(f"select id from notices where {ours} and sent_at is null and next_try_at <= now()", id=patient.id) == [
        again
    ]
    same = "select count(distinct (appointment_id, sequence, during, command_id)) from notices where " + ours
    assert clinic.all(same, id=patient.id) == [1]


def test_a_notice_that_waits_is_only_hurried(clinic: Clinic, run: Run) -> None:
    clinic.book(clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor()))
    clinic.change("update notices set attempts = 9, next_try_at = now() + interval '1 h'")
    (notice_id,) = clinic.all("select id from notices")
    assert run("resend", notice_id) == (0, f"notice {notice_id} goes out within seconds\n")
    assert clinic.all("select next_try_at <= now() from notices") == [True]


def test_notices_that_no_mail_could_bring_are_listed_to_whoever_says_who_looks(clinic: Clinic, run: Run) -> None:
    doctor, patient, staff = clinic.accounts.doctor(), clinic.accounts.patient(), clinic.accounts.staff()
    clinic.book(patient, clinic.slot(doctor))
    assert run("notices", "--by", staff.login) == (0, "0 undeliverable\n")
    clinic.change("update notices set dropped_at = now(), drop_reason = 'address_refused', attempts = 30")
    (notice_id,) = clinic.all("select id from notices")
    code, said = run("notices", "--by", staff.login)
    assert (code, said.count("\n")) == (0, 2)
    assert said.startswith(f"{notice_id} requested to doctor {doctor.id} Bruno Lima <")
    assert clinic.all("select actor_id from audit where subject_id = :id and action = 'read'", id=doctor.id) == [staff.id]
    assert run("notices", "--state", "delayed", "--by", staff.login) == (0, "0 delayed\n")
    assert run("notices", "--by", patient.login)[0] == 1


def test_what_cannot_be_mailed_again_is_told(clinic: Clinic, run: Run) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor, rows.tomorrow(72)))
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    clinic.request("POST", "/auth/password/forgot", body={"login": patient.login})
    clinic.change("update notices set sent_at = now(), secret = null where kind = 'password_forgotten'")
    for kind, why in (("reminder", "not due yet"), ("password_forgotten", "no longer known")):
        before = clinic.all("select count(*) from notices")
        code, said = run("resend", clinic.all("select id from notices where kind = :kind", kind=kind)[0])
        assert (code, why in said) == (1, True)
        assert clinic.all("select count(*) from notices") == before
    assert run("resend", uuid7())[0] == 1


def test_a_database_that_is_gone_is_one_line(run: Run, postgres: Postgres) -> None:
    postgres.kill()
    code, said = run("command", uuid7())
    assert (code, said.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["command"], ["command", "x"], ["verify", "1/SP"], ["create-staff", "a@b.c"]]
)
def test_a_call_that_makes_no_sense_ends_with_2(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2


def test_it_works_on_a_stack_that_runs_elsewhere(clinic: Clinic, environ: dict[str, str], tmp_path: Path) -> None:
    """As `make staff` calls it: with nothing but the folder of the stack."""
    command = [sys.executable, "-m", "local.within", "api.cli", "command"]
    bare = {"PATH": os.environ["PATH"], "STATE_DIR": str(tmp_path)}

    def call(command_id: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(command_id)], env=bare, capture_output=True, text=True, timeout=30)

    ended = call(uuid7())
    assert (ended.returncode, "make up" in ended.stderr) == (2, True)
    (tmp_path / "settings.json").write_text(json.dumps(dict(clinic.services.settings.given)))
    assert call(uuid7()).returncode == 1
    doctor = clinic.accounts.doctor()
    appointment_id = clinic.book(clinic.accounts.patient(), clinic.slot(doctor))
    sent = clinic.done("POST", f"/appointments/{appointment_id}/refuse", doctor, REASON)
    ended = call(sent["id"])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"appointment {appointment_id} refused by doctor" in ended.stdout


def test_help_needs_no_settings_and_what_does_names_those_that_are_missing() -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api.cli", *arguments]
        return subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=30)

    helped = call("resend", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "the notice" in helped.stdout
    missing = call("rebuild")
    assert missing.returncode == 2
    assert "setting DATABASE_URL: " in missing.stderr
