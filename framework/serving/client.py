"""A client of a model server, TensorFlow Serving or the development server: NumPy in, NumPy out, by gRPC or REST.

    with Client("grpc://127.0.0.1:8500", "mnist") as client:            # or http://127.0.0.1:8501
        client.signatures()["serving_default"].inputs                   # {'image': Tensor(float32, (None, 28, 28))}
        client.predict({"image": images}, max_batch=32, seconds=5)["logits"]
        client.states()                                                 # [State(version=2, state='AVAILABLE', …)]

A REST client needs neither TensorFlow nor the extra `serve`; a gRPC client needs both.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from numbers import Integral
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from framework.errors import UserError, near
from framework.serving import errors
from framework.serving.errors import CodeError
from framework.serving.fitting import SERVING, check_divisible, checked, parts, put_together, rows_of
from framework.serving.rest import Rest
from framework.serving.signatures import Served
from framework.serving.transport import State, Transport

T = TypeVar("T")

MAX_BYTES = 64 * 2**20  # what the development server takes, and the client sends, if nothing else is said
_MOST_BYTES = 2**31 - 1  # a proto cannot have more
_LONGEST_PAUSE = 2.0
_MOST_SECONDS = 1e9  # 31 years; clocks of systems end some time after that
_LARGEST = 2**63 - 1  # version
_FRESH_SECONDS = 1.0  # for so long a REST client takes the version that it has asked for signatures for the newest
_ERRORS: dict[str, type[errors.ServingError]] = {
    "INVALID_ARGUMENT": errors.RefusedError,
    "FAILED_PRECONDITION": errors.RefusedError,
    "OUT_OF_RANGE": errors.RefusedError,
    "RESOURCE_EXHAUSTED": errors.TooLargeError,
    "DEADLINE_EXCEEDED": errors.DeadlineError,
    "UNAVAILABLE": errors.UnavailableError,
}


class _Known(NamedTuple):
    """What a client knows of its model.

    Attributes:
      version: the newest one, or that of the client.
      signatures: {name: signature} of this version.
      asked: when it was asked, by time.monotonic.
    """

    version: int
    signatures: Mapping[str, Served]
    asked: float


class Client:
    """Asks one model of one server. Threads may share a client.

    A request is sent again only if the server was not reached or says that it is unavailable. A request may then have
    been computed twice, which does no harm: a prediction changes nothing on a server. All other failures are raised at
    once.

    Args:
      address: 'grpc://HOST:PORT', 'http://HOST:PORT' or 'https://HOST:PORT'. gRPC is not encrypted.
      model: name of the model.
      version: number of a version; None asks the newest that the server has.
      seconds: for a call with all its batches and retries, if the call does not say.
      retries: how often a request is sent again at most.
      pause: seconds before the first retry; each further one is twice as long, up to 2 s, less a random part.
      max_bytes: most bytes of a request.

    Raises:
      UserError: an argument is out of range, or a package is missing.
    """

    def __init__(
        self,
        address: str,
        model: str,
        version: int | None = None,
        *,
        seconds: float = 10.0,
        retries: int = 3,
        pause: float = 0.1,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        _check_seconds(seconds)
        _check_whole("retries", retries, 0)
        _check_number("pause", pause, pause >= 0, "0 or more")
        _check_number("max_bytes", max_bytes, 1 <= max_bytes <= _MOST_BYTES, f"from 1 to {_MOST_BYTES}")
        if version is not None:
            _check_whole("version", version, 0, _LARGEST)
        if not model or not _is_utf8(model):
            raise UserError(f"Client: model={model!r} is no name. Type that of the server, e.g. 'mnist'.")
        self._address = address
        self._model = model
        self._version = version
        self._seconds = seconds
        self._retries = retries
        self._pause = pause
        self._transport = _transport(address, max_bytes)
        self._known = _Known(-1, {}, -math.inf)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def predict(
        self,
        inputs: Mapping[str, Any],
        signature: str = SERVING,
        *,
        max_batch: int | None = None,
        seconds: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature: {name: array}; texts are bytes in object arrays.

        Args:
          inputs: {name: array} with the dtypes and shapes of the signature. Texts are bytes or str.
          signature: its name.
          max_batch: more rows than this are sent as several requests, one after the other, and the answers put
            together; one version answers them all. None sends all rows at once.
          seconds: until the deadline; None takes that of the client.

        Raises:
          ServingError: by its subclass, why there is no answer.
        """
        _check_named(inputs)
        if max_batch is not None:
            _check_whole("max_batch", max_batch, 1, caller="predict")
        end = self._end(seconds)
        while True:
            version, served, batches = self._batches(inputs, signature, max_batch, end)
            try:
                answers = [self._send(signature, served, batch, end, version) for batch in batches]
            except errors.UnknownVersionError:
                if self._version is not None:
                    raise
                self.signatures(self._left(end))
                if self._known.version == version:
                    raise
                continue  # a newer version has taken its place meanwhile
            return put_together(answers, batches) if len(batches) > 1 else answers[0]

    def signatures(self, seconds: float | None = None) -> dict[str, Served]:
        """Returns {name: Served} of the signatures, asked from the server.

        Raises:
          ServingError: by its subclass, why there is no answer.
        """
        asked = time.monotonic()
        version, signatures = self._asked(
            lambda left: self._transport.signatures(self._model, self._version, left), self._end(seconds)
        )
        self._known = _Known(version, signatures, asked)
        return dict(signatures)

    def states(self, seconds: float | None = None) -> list[State]:
        """Returns the states of all versions of the model that the server knows, newest first.

        Raises:
          ServingError: by its subclass, why there is no answer.
        """
        return self._asked(lambda left: self._transport.states(self._model, left), self._end(seconds))

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def _end(self, seconds: float | None) -> float:
        if seconds is not None:
            _check_seconds(seconds)
        return time.monotonic() + (self._seconds if seconds is None else seconds)

    def _batches(
        self, inputs: Mapping[str, Any], name: str, max_batch: int | None, end: float
    ) -> tuple[int | None, Served, list[dict[str, np.ndarray]]]:
        """Returns the version to ask, its signature, and inputs that fit it, of one request each.

        The version is None if one answer says all that is to be known of it.
        """
        known, arrays = self._fitting(inputs, name, math.inf if self._transport.names_outputs else _FRESH_SECONDS, end)
        if max_batch is None or rows_of(arrays) <= max_batch:
            version = self._version if self._transport.names_outputs else known.version
            return version, known.signatures[name], [arrays]
        if self._version is None:  # all parts are for one version, which may be newer than what is known
            known, arrays = self._fitting(inputs, name, 0.0, end)
        check_divisible(known.signatures[name])
        return known.version, known.signatures[name], [*parts(arrays, max_batch)]

    def _fitting(
        self, inputs: Mapping[str, Any], name: str, age: float, end: float
    ) -> tuple["_Known", dict[str, np.ndarray]]:
        """Returns signatures of at most an age, and inputs that fit one; asks anew if those known before do not fit."""
        known = self._known
        if known.signatures and (self._version is not None or time.monotonic() - known.asked < age):
            try:
                return known, self._checked(inputs, name, known)
            except errors.ServingError:
                pass  # a newer version may have other signatures
        self.signatures(self._left(end))
        known = self._known
        return known, self._checked(inputs, name, known)

    def _checked(self, inputs: Mapping[str, Any], name: str, known: "_Known") -> dict[str, np.ndarray]:
        served = known.signatures.get(name)
        if served is None:
            names = sorted(known.signatures)
            raise errors.UnknownSignatureError(
                f"model '{self._model}' has no signature '{name}', but {', '.join(names)}.{near(name, names)}"
            )
        return checked(inputs, served, name)

    def _send(
        self, name: str, served: Served, arrays: dict[str, np.ndarray], end: float, version: int | None
    ) -> dict[str, np.ndarray]:
        return self._asked(
            lambda left: self._transport.predict(self._model, version, name, served, arrays, left), end, version
        )

    def _left(self, end: float) -> float:
        left = end - time.monotonic()
        if left <= 0:
            raise errors.DeadlineError(f"{self._address}: no answer within the time given. Give more seconds.")
        return left

    def _asked(self, ask: Callable[[float], T], end: float, version: int | None = None) -> T:
        """Returns an answer, after as many retries as are allowed and as the deadline leaves time for."""
        retries = 0
        while True:
            try:
                return ask(self._left(end))
            except CodeError as error:
                pause = min(self._pause * 2**retries, _LONGEST_PAUSE) * random.uniform(0.5, 1)
                is_last = retries == self._retries or time.monotonic() + pause >= end
                if error.code != "UNAVAILABLE" or is_last:
                    raise self._typed(error, retries, end, version) from error
                last, retries = error, retries + 1
            time.sleep(pause)
            if time.monotonic() >= end:  # the sleep was longer than it was meant to be
                raise self._typed(last, retries - 1, end, version) from last

    def _typed(self, error: CodeError, retries: int, end: float, version: int | None) -> errors.ServingError:
        """Returns the error that a caller gets for a code."""
        error.message = " ".join(error.message.split())
        where = f"{self._address}: "
        if error.code == "NOT_FOUND":
            return self._unknown(error, end, self._version if version is None else version)
        kind = _ERRORS.get(error.code, errors.ServingError)
        if kind is errors.UnavailableError:
            tries = f"after {retries + 1} tries" if retries else "at the first try"
            return kind(f"{where}the server is unavailable {tries}: {error.message}")
        if kind is errors.DeadlineError:
            return kind(f"{where}no answer within the time given. Give more seconds, or send fewer rows: max_batch=…")
        if kind is errors.TooLargeError:
            return kind(f"{where}{error.message}. Send fewer rows: max_batch=…")
        return kind(f"{where}{error.message} ({error.code})")

    def _unknown(self, error: CodeError, end: float, version: int | None) -> errors.ServingError:
        """Returns whether the model or the version is unknown, by asking for the states of the model."""
        try:
            known = self._transport.states(self._model, max(end - time.monotonic(), 0.1))
        except CodeError:
            known = []
        served = [str(state.version) for state in known if state.state == "AVAILABLE"]
        if version is None or not served:
            return errors.UnknownModelError(
                f"{self._address}: there is no model '{self._model}' that can be asked: {error.message}"
            )
        return errors.UnknownVersionError(
            f"{self._address}: model '{self._model}' is served in version {', '.join(served)}, not {version}."
        )


def _transport(address: str, max_bytes: int) -> Transport:
    kind, _, place = address.partition("://")
    if kind in ("http", "https") and place:
        return Rest(address, max_bytes)
    if kind == "grpc" and place:
        if ":" not in place:  # gRPC would take port 443
            raise UserError(f"Client: address='{address}' has no port. Type e.g. {kind}://{place}:8500.")
        # Loads TensorFlow, which a REST client does without.
        from framework.serving.rpc import Rpc

        return Rpc(place, max_bytes)
    raise UserError(
        f"Client: address='{address}' is no address of a server. Type e.g. grpc://127.0.0.1:8500 or"
        " http://127.0.0.1:8501."
    )


def _check_named(inputs: Any) -> None:
    if not isinstance(inputs, Mapping):
        kind = type(inputs).__name__
        raise UserError(f"predict: inputs is a value of type {kind}. Give {{name: array}}, e.g. {{'image': images}}.")


def _check_number(name: str, value: float, is_fine: bool, wanted: str, caller: str = "Client") -> None:
    if not is_fine:
        raise UserError(f"{caller}: {name}={value} is out of range: it must be {wanted}.")


def _check_seconds(seconds: float) -> None:
    _check_number("seconds", seconds, 0 < seconds <= _MOST_SECONDS, f"more than 0 and at most {_MOST_SECONDS:.0f}")


def _check_whole(name: str, value: Any, low: int, high: int | None = None, caller: str = "Client") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{caller}: {name}={value!r} is no whole number. Type e.g. {max(low, 1)}.")
    number = int(value)
    wanted = f"from {low} to {high}" if high is not None else f"at least {low}" if low else "0 or more"
    _check_number(name, number, low <= number and (high is None or number <= high), wanted, caller)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
