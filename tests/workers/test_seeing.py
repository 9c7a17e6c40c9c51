"""What operators see of the workers: their figures, and one trace from a request through its lane to the mail."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from api.app import create_app
from domain import traces
from domain.commands import Book
from domain.settings import Settings
from local.process import Process
from local.servers import free_port
from tests import rows
from tests.factories import Accounts
from tests.workers.conftest import LANE, Booking, MailServer, until
from workers.app import BOOKING, NOTIFICATIONS, Sender


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())


def test_a_worker_answers_prometheus_for_all_its_processes(
    booking: Booking, sender: Sender, start_worker: Callable[..., Process], tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "metrics"
    folder.mkdir()
    worker = start_worker(BOOKING, METRICS_PORT=str(port), PROMETHEUS_MULTIPROC_DIR=str(folder))
    command_id = booking.ask(Book(booking.slot_id))
    sender.wake(LANE)
    until(lambda: booking.status_of(command_id) == "succeeded")
    until(lambda: "healthmed_commands_decided_total{" in scraped(port))
    told = scraped(port)
    for line in (
        'healthmed_commands_decided_total{code="",kind="book",status="succeeded"} 1.0',
        "healthmed_decision_seconds_count 1.0",
        "healthmed_batch_commands_sum 1.0",
        "healthmed_batch_seconds_count 1.0",
        'healthmed_lane_locks_total{outcome="taken"} 1.0',
    ):
        assert line in told.splitlines()
    # By the place of a process, not by its number: a worker replaces its processes all the time.
    assert worker.process is not None
    assert f"counter_{worker.process.pid}-0.db" in {file.name for file in folder.iterdir()}


def test_the_relay_answers_prometheus(booking: Booking, start: Callable[..., Process], tmp_path: Path) -> None:
    port = free_port()
    start("-m", "workers.relay", METRICS_PORT=str(port))

    def turned() -> bool:
        try:
            found = re.search(r"^healthmed_relay_turns_total (\S+)$", scraped(port), re.MULTILINE)
        except OSError:
            return False
        return found is not None and float(found[1]) >= 1

    until(turned)


@dataclass
class Collector:
    """Takes traces as an OpenTelemetry collector does."""

    spans: list[tuple[str, Span]] = field(default_factory=list)
    url: str = ""

    def of(self, trace_id: bytes) -> dict[str, tuple[str, Span]]:
        return {span.name: (service, span) for service, span in self.spans if span.trace_id == trace_id}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in request.resource_spans:
                service = next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name")
                collector.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield collector
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_booking_is_one_trace_from_http_to_the_mail(
    booking: Booking, settings: Settings, collector: Collector, mail_server: MailServer, start_worker: Callable[..., Process]
) -> None:
    app = create_app(replace(settings, traces_endpoint=collector.url))
    services = app.extensions["healthmed"]
    accounts = Accounts(services.engine, services.settings, services.cache, services.broker)
    doctor, patient = accounts.doctor(), accounts.patient()
    with booking.engine.begin() as connection:
        slot_id = rows.add_slot(connection, doctor.id, rows.tomorrow())
    start_worker(BOOKING, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    start_worker(NOTIFICATIONS, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    answer = app.test_client().post(
        "/api/v1/appointments", json={"slot_id": str(slot_id)}, headers={**patient.headers, "X-Request-ID": "followed"}
    )
    assert answer.status_code == 202
    until(lambda: booking.status_of(answer.json["id"]) == "succeeded")
    Sender(settings.broker_url).send_notices()
    traces.stop()  # hands over what the API has
    services.close()

    root = until(lambda: next((span for _, span in collector.spans if span.name == "POST /api/v1/appointments"), None))
    wanted = {"POST /api/v1/appointments", "wait in lane", "decide book", "mail requested"}
    until(lambda: collector.of(root.trace_id).keys() >= wanted)
    found = collector.of(root.trace_id)
    assert {name: service for name, (service, _) in found.items() if name in wanted} == {
        "POST /api/v1/appointments": "healthmed-api",
        "wait in lane": "healthmed-worker",
        "decide book": "healthmed-worker",
        "mail requested": "healthmed-worker",
    }
    assert not root.parent_span_id
    assert {span.parent_span_id for name, (_, span) in found.items() if name in wanted and span is not root} == {root.span_id}
    (request_id,) = [each.value.string_value for each in root.attributes if each.key == "healthmed.request_id"]
    assert request_id == "followed"


def test_nothing_of_a_person_is_in_a_trace(settings: Settings, collector: Collector, booking: Booking) -> None:
    app = create_app(replace(settings, traces_endpoint=collector.url))
    app.test_client().post("/api/v1/auth/patient", json={"login": "529.982.247-25", "password": "uma senha qualquer"})
    traces.stop()
    app.extensions["healthmed"].close()
    (span,) = [span for _, span in collector.spans]
    assert {each.key for each in span.attributes} == {
        "http.request.method",
        "http.route",
        "http.response.status_code",
        "healthmed.request_id",
    }
    assert "529" not in str(span.name)
