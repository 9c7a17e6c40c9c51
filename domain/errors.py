"""The few ways in which a request can be answered other than as asked; a docstring is its message."""

from __future__ import annotations

from typing import ClassVar


class HealthMedError(Exception):
    """Algo deu errado. / Something went wrong."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str | None = None, *, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(detail or self.__class__.__doc__)
        self.detail = detail or (self.__class__.__doc__ or "").strip()
        self.reason = code or self.code
        self.retry_after = retry_after


class NotFound(HealthMedError):
    """Não encontrado. / Not found."""

    code = "not_found"


class NotAuthenticated(HealthMedError):
    """Entre na sua conta para continuar. / Log in to go on."""

    code = "unauthorized"


class NotAllowed(HealthMedError):
    """Esta conta não pode fazer isso. / This account may not do that."""

    code = "forbidden"


class Conflict(HealthMedError):
    """O pedido não cabe no estado atual. / The request does not fit the present state."""

    code = "conflict"


class Invalid(HealthMedError):
    """Há campos inválidos. / Some fields are not valid."""

    code = "validation_error"

    def __init__(self, errors: dict[str, list[str]] | None = None, detail: str | None = None, *, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.errors = errors or {}


class TooMany(HealthMedError):
    """Muitas tentativas. Aguarde um pouco. / Too many attempts. Wait a little."""

    code = "too_many_requests"


class Unavailable(HealthMedError):
    """Serviço indisponível no momento; tente de novo em instantes. / Unavailable right now; try again shortly."""

    code = "unavailable"
