"""Traces of what became of a request, from HTTP through its lane to the mail, for an OpenTelemetry collector if there is one.

Nothing is carried along for it: commands and notices know the id of their request, and from that each process derives the same
trace. A batch of two hundred commands so adds to two hundred traces, which a context in a wake-up's headers could not.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Row

from domain.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

EXPORT_MILLISECONDS: Final = 1000

_provider: TracerProvider | None = None
_root: ContextVar[tuple[int, int] | None] = ContextVar("_root", default=None)

Attributes = Mapping[str, str | int | float]


def start(settings: Settings, process: str) -> None:
    """Send spans from now on if OTEL_EXPORTER_OTLP_ENDPOINT is set, under the name `healthmed-{process}`. Call it after a fork.

    The library is loaded only then. It reads OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG and OTEL_EXPORTER_OTLP_HEADERS itself.
    """
    global _provider
    if settings.traces_endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import IdGenerator, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class Ids(IdGenerator):
        def generate_trace_id(self) -> int:
            root = _root.get()
            return root[0] if root else secrets.randbits(128)

        def generate_span_id(self) -> int:
            root = _root.get()
            return root[1] if root else secrets.randbits(64)

    provider = TracerProvider(resource=Resource({"service.name": f"healthmed-{process}"}), id_generator=Ids())
    exporter = OTLPSpanExporter(f"{settings.traces_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_MILLISECONDS))
    _provider = provider


def stop() -> None:
    """Hand over what was not sent yet, and send no more."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        provider.shutdown()


def answered(request_id: str, method: str, route: str, status: int, seconds: float) -> None:
    """A request was answered just now: the root of its trace."""
    if _provider is None:
        return
    ended = datetime.now(UTC)
    attributes: Attributes = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "healthmed.request_id": request_id,
    }
    token = _root.set(_ids(request_id))
    try:
        _record(_provider, None, f"{method} {route}", ended - timedelta(seconds=seconds), ended, attributes, failed=status >= 500)
    finally:
        _root.reset(token)


def decided(commands: Sequence[Row[Any]], lane: int, seconds: float) -> None:
    """A batch was committed, and known to the cache: what each of its commands waited for, and how it was decided."""
    if _provider is None:
        return
    for row in commands:
        if row.request_id is None:
            continue
        began = max(row.received_at, row.decided_at - timedelta(seconds=seconds))
        attributes: Attributes = {
            "healthmed.command_id": str(row.id),
            "healthmed.lane": lane,
            "healthmed.batch_commands": len(commands),
            "healthmed.status": row.status,
            "healthmed.code": row.error_code or "",
        }
        parent = _parent(_provider, row.request_id)
        _record(_provider, parent, "wait in lane", row.received_at, began, {"healthmed.lane": lane})
        _record(_provider, parent, f"decide {row.kind}", began, row.decided_at, attributes)


def mailed(request_id: str | None, notice_id: str, kind: str, outcome: str, seconds: float) -> None:
    """A notice was handed to the mail server just now, or was not."""
    if _provider is None or request_id is None:
        return
    ended = datetime.now(UTC)
    attributes: Attributes = {"healthmed.notice_id": notice_id, "healthmed.status": outcome}
    parent = _parent(_provider, request_id)
    _record(_provider, parent, f"mail {kind}", ended - timedelta(seconds=seconds), ended, attributes, failed=outcome != "sent")


def _ids(request_id: str) -> tuple[int, int]:
    """The trace and the root span of a request. Hashed, since samplers want all bits of a trace's id to be random."""
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def _parent(provider: TracerProvider, request_id: str) -> Any:
    """The context of a request's root, sampled or not as the process that answered it decided."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace.sampling import Decision

    trace_id, span_id = _ids(request_id)
    sampled = provider.sampler.should_sample(None, trace_id, "").decision is Decision.RECORD_AND_SAMPLE
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else trace.TraceFlags.DEFAULT)
    return trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(trace_id, span_id, True, flags)))


def _record(
    provider: TracerProvider,
    context: Any,
    name: str,
    began: datetime,
    ended: datetime,
    attributes: Attributes,
    *,
    failed: bool = False,
) -> None:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, StatusCode

    span = provider.get_tracer("healthmed").start_span(
        name,
        context=Context() if context is None else context,
        kind=SpanKind.SERVER if context is None else SpanKind.CONSUMER,
        attributes=dict(attributes),
        start_time=_nanoseconds(began),
    )
    if failed:
        span.set_status(StatusCode.ERROR)
    span.end(end_time=_nanoseconds(ended))


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000
