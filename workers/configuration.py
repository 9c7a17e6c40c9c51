"""What holds for every Celery process of ours; docs/architecture.md says why, setting by setting."""

from __future__ import annotations

from typing import Any, Final

from kombu import Queue

BOOKING: Final = "booking"
NOTIFICATIONS: Final = "notifications"


def configuration(broker_url: str) -> dict[str, Any]:
    """Celery's settings with this broker."""
    return {
        "broker_url": broker_url,
        "broker_transport_options": {
            "visibility_timeout": 60,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 5,
        },
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "task_queues": [Queue(BOOKING), Queue(NOTIFICATIONS)],
        "task_default_queue": BOOKING,
        "task_create_missing_queues": False,
        "task_publish_retry": False,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        "task_soft_time_limit": 10,
        "task_time_limit": 30,
        "task_send_sent_event": False,
        "worker_consumer": "workers.consumer:Consumer",
        "worker_prefetch_multiplier": 1,
        "worker_lost_wait": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "worker_max_tasks_per_child": 10_000,
        "worker_max_memory_per_child": 300_000,
        "worker_send_task_events": True,
    }
