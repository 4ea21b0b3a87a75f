"""The errors of a client of a model server, and the codes that servers answer with.

    try:
        client.predict({"image": images})
    except serving.UnavailableError: ...      # the server is down
    except serving.ServingError: ...          # anything else that a server or the client refuses

Nothing here imports TensorFlow.
"""

from framework.errors import RunError


class ServingError(RunError):
    """A request that was not answered. Each subclass is one reason."""


class UnknownModelError(ServingError):
    """The server serves no model of this name."""


class UnknownVersionError(ServingError):
    """The server serves the model, but not this version of it."""


class UnknownSignatureError(ServingError):
    """The model has no such signature."""


class InputNameError(ServingError):
    """An input is missing, or the signature has none of this name."""


class DtypeError(ServingError):
    """An input has another dtype than the signature takes."""


class ShapeError(ServingError):
    """An input has another shape than the signature takes, or inputs have different numbers of rows."""


class RefusedError(ServingError):
    """The server finds a request invalid for another reason, such as an id outside of a table."""


class TooLargeError(ServingError):
    """A request has more bytes than the client or the server takes."""


class DeadlineError(ServingError):
    """The answer did not come within the time that the caller gave."""


class UnavailableError(ServingError):
    """The server cannot be reached, and the retries are used up."""


class CodeError(Exception):
    """A request failed with one of gRPC's codes; the client makes a `ServingError` of it, a server its answer.

    Attributes:
      code: name of the code, such as 'NOT_FOUND'.
      message: what the server says.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


# HTTP statuses that TensorFlow Serving answers for codes (its http_server.cc), and, backwards, what a client reads.
HTTP_STATUS = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNKNOWN": 500,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
CODE_OF_STATUS = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",  # of a proxy in front of the server
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
