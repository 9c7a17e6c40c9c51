"""`make alerts`: what each alert wants to see before it wakes anybody, tried by Prometheus's own promtool."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

RULES = Path("charts/healthmed/files/alerts.yaml")
READ = 'healthmed_request_seconds_bucket{method="GET",route="/api/v1/doctors",le="%s"}'
SENT = 'healthmed_request_seconds_bucket{method="POST",route="/api/v1/appointments",le="%s"}'
WAITED = 'healthmed_request_seconds_bucket{method="GET",route="/api/v1/commands/<uuid:command_id>",le="%s"}'
DECIDED = 'healthmed_commands_decided_total{kind="book",status="succeeded",code=""}'

# A value each minute, as promtool writes it: from a first one, by so much more each time.
CALM = {
    'up{job="healthmed-api",instance="a"}': "1+0x40",
    'healthmed_requests_total{method="GET",route="/api/v1/doctors",status="200"}': "0+6000x40",
    READ % "0.005": "0+6000x40",
    READ % "+Inf": "0+6000x40",
    SENT % "0.01": "0+600x40",
    SENT % "+Inf": "0+600x40",
    'healthmed_pool_connections{instance="a"}': "3+0x40",
    'healthmed_pool_size{instance="a"}': "32+0x40",
    "healthmed_backlog_commands": "0+0x40",
    "healthmed_backlog_age_seconds": "0+0x40",
    DECIDED: "0+600x40",
    'healthmed_decision_seconds_bucket{le="0.05"}': "0+600x40",
    'healthmed_decision_seconds_bucket{le="+Inf"}': "0+600x40",
    'healthmed_lock_wait_seconds_bucket{le="0.005"}': "0+600x40",
    'healthmed_lock_wait_seconds_bucket{le="+Inf"}': "0+600x40",
    'healthmed_wake_ups_total{outcome="sent"}': "0+600x40",
    "healthmed_relay_turns_total": "0+60x40",
    "healthmed_cache_in_use": "1+0x40",
    "healthmed_oldest_unprojected_batch_seconds": "0+0x40",
    'healthmed_cache_reads_total{outcome="hit"}': "0+6000x40",
    'healthmed_cache_reads_total{outcome="miss"}': "0+60x40",
    "healthmed_oldest_due_notice_seconds": "1+0x40",
    'healthmed_mails_total{kind="requested",outcome="sent"}': "0+100x40",
}
GONE = None

# What happens, what is then seen other than on a quiet evening, and who wakes: by its labels, and what it says.
SCENES: list[tuple[str, dict[str, str | None], dict[str, tuple[dict[str, str], str]]]] = [
    ("a quiet evening", {}, {}),
    (
        "no process of the API answers",
        {'up{job="healthmed-api",instance="a"}': "0+0x40"},
        {"ApiDown": ({}, "No process of the API answers Prometheus.")},
    ),
    (
        "one request in fifty fails",
        {'healthmed_requests_total{method="GET",route="/api/v1/doctors",status="500"}': "0+122.44897959183673x40"},
        {"RequestsFailing": ({}, "2% of the requests fail.")},
    ),
    (
        "requests are slow",
        {READ % "0.005": GONE, READ % "1": "0+0x40", READ % "2.5": "0+6000x40"}
        | {SENT % "0.01": GONE, SENT % "1": "0+0x40", SENT % "2.5": "0+600x40"},
        {
            "ReadsSlow": ({}, "The slowest hundredth of the reads takes 2.485s."),
            "AcknowledgementsSlow": ({}, "The slowest hundredth of the commands is acknowledged after 2.485s."),
        },
    ),
    ("clients wait for their decisions, as they asked to", {WAITED % "10": "0+0x40", WAITED % "+Inf": "0+6000x40"}, {}),
    (
        "more comes than can be answered, and somebody guesses passwords",
        {
            "healthmed_requests_shed_total": "0+60x40",
            'healthmed_requests_total{method="POST",route="/api/v1/auth/patient",status="429"}': "0+1200x40",
        },
        {
            "RequestsShed": ({}, "1 requests a second are turned away."),
            "AttemptsLimited": ({}, "20 requests a second are over a limit: somebody may be guessing."),
        },
    ),
    (
        "connections run out",
        {'healthmed_pool_connections{instance="a"}': "31+0x40"},
        {"PoolExhausted": ({"instance": "a"}, "a uses nearly all of its database connections.")},
    ),
    (
        "one lane stands still while others move",
        {
            "healthmed_backlog_age_seconds": "90+0x40",
            'healthmed_lane_age_seconds{lane="7"}': "90+0x40",
            'healthmed_lane_age_seconds{lane="8"}': "1+0x40",
        },
        {
            "BacklogOld": ({}, "A command has waited for 1m 30s."),
            "LaneStuck": ({"lane": "7"}, "Lane 7 does not move while others do."),
        },
    ),
    (
        "nothing is decided at all",
        {
            "healthmed_backlog_age_seconds": "90+0x40",
            'healthmed_lane_age_seconds{lane="7"}': "90+0x40",
            DECIDED: "600+0x40",
        },
        {"BacklogOld": ({}, "A command has waited for 1m 30s.")},
    ),
    (
        "batches wait, fail and take long",
        {
            'healthmed_decision_seconds_bucket{le="0.05"}': GONE,
            'healthmed_decision_seconds_bucket{le="10"}': "0+0x40",
            'healthmed_decision_seconds_bucket{le="25"}': "0+600x40",
            'healthmed_lock_wait_seconds_bucket{le="0.005"}': GONE,
            'healthmed_lock_wait_seconds_bucket{le="0.5"}': "0+0x40",
            'healthmed_lock_wait_seconds_bucket{le="1"}': "0+600x40",
            'healthmed_batches_failed_total{fault="world"}': "0+60x40",
            'healthmed_commands_decided_total{kind="book",status="rejected",code="internal_error"}': "0+0x20 0+1x20",
        },
        {
            "DecisionsSlow": ({}, "The slowest hundredth of the commands is decided after 24.85s."),
            "LocksSlow": ({}, "Batches wait 995ms for their row locks."),
            "BatchesRolledBack": ({}, "1 batches a second are rolled back."),
            "CommandsFaulty": ({}, "Commands were rejected because the engine could not decide them."),
        },
    ),
    (
        "the broker is gone, and the relay stands still",
        {
            'healthmed_wake_ups_total{outcome="sent"}': GONE,
            'healthmed_wake_ups_total{outcome="failed"}': "0+60x40",
            "healthmed_relay_turns_total": "600+0x40",
            'healthmed_relay_failures_total{step="wake_notices"}': "0+60x40",
        },
        {
            "WakeUpsFailing": ({}, "Wake-ups don't reach the broker; the relay decides by itself, seconds later."),
            "RelayStopped": ({}, "No relay takes its turns: nothing lapses, and what is lost stays lost."),
            "RelayStepFailing": ({"step": "wake_notices"}, "The relay's step wake_notices fails again and again."),
        },
    ),
    (
        "no relay was ever there",
        {"healthmed_relay_turns_total": GONE},
        {"RelayStopped": ({}, "No relay takes its turns: nothing lapses, and what is lost stays lost.")},
    ),
    (
        "the database tells nothing",
        dict.fromkeys(
            [name for name in CALM if name.startswith(("healthmed_backlog", "healthmed_oldest", "healthmed_cache_in"))]
        ),
        {"DatabaseSilent": ({}, "No process of the API gets an answer from the database.")},
    ),
    (
        "the cache is not believed, and then misses",
        {
            "healthmed_cache_in_use": "0+0x40",
            "healthmed_oldest_unprojected_batch_seconds": "90+0x40",
            'healthmed_cache_reads_total{outcome="hit"}': "0+600x40",
            'healthmed_cache_reads_total{outcome="miss"}': "0+1800x40",
        },
        {
            "CacheOutOfUse": ({}, "The cache is not believed: every read comes from the database."),
            "ProjectionsBehind": ({}, "A batch has been unprojected for 1m 30s."),
            "CacheMisses": ({}, "Only 25% of the reads are served from the cache."),
        },
    ),
    (
        "mails are late and refused",
        {
            "healthmed_oldest_due_notice_seconds": "600+0x40",
            'healthmed_mails_total{kind="requested",outcome="sent"}': "0+80x40",
            'healthmed_mails_total{kind="requested",outcome="refused"}': "0+20x40",
        },
        {
            "MailsBehind": ({}, "A notice has been due for 10m 0s."),
            "MailsRefused": ({}, "20% of the mails are refused."),
        },
    ),
]


def alerts() -> dict[str, Mapping[str, Any]]:
    """The rules, by the name of their alert."""
    return {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


def scenes(rules: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each scene as promtool wants it: half an hour of figures, and for every alert whether it must be awake by then."""
    for name, seen, awake in SCENES:
        expected = []
        for alert, rule in rules.items():
            told = []
            if alert in awake:
                labels, summary = awake[alert]
                annotations = {"summary": summary, "runbook": rule["annotations"]["runbook"]}
                told = [{"exp_labels": {**rule["labels"], **labels}, "exp_annotations": annotations}]
            expected.append({"alertname": alert, "eval_time": "30m", "exp_alerts": told})
        series = [{"series": each, "values": values} for each, values in (CALM | seen).items() if values is not None]
        yield {"name": name, "interval": "1m", "input_series": series, "alert_rule_test": expected}


def main() -> None:
    """Have promtool check the rules and play every scene. Ends with 1 if one plays out otherwise."""
    promtool = shutil.which("promtool")
    if promtool is None:
        sys.exit("promtool is needed, and is in Debian's package prometheus")
    rules = alerts()
    if never := rules.keys() - {alert for _, _, awake in SCENES for alert in awake}:
        sys.exit(f"no scene wakes {', '.join(sorted(never))}")
    with tempfile.TemporaryDirectory() as folder:
        played = Path(folder) / "scenes.yaml"
        played.write_text(
            json.dumps({"rule_files": [str(RULES.resolve())], "evaluation_interval": "1m", "tests": list(scenes(rules))})
        )
        for command in (["check", "rules", RULES], ["test", "rules", played]):
            if subprocess.run([promtool, *command]).returncode:
                sys.exit(1)


if __name__ == "__main__":
    main()
