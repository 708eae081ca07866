"""What goes to and fro between us and an OpenAI-compatible endpoint: one request, its failures, its response."""

from __future__ import annotations

import email.utils
import math
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from httpx2 import AsyncClient

_LARGEST_BODY = 4 << 20


async def post(client: AsyncClient, url: str, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of a response, the body no longer than any answer is."""
    body = bytearray()
    async with client.stream("POST", url, content=content, headers={"Content-Type": "application/json"}) as response:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _LARGEST_BODY:
                break
    return response.status_code, response.headers, bytes(body[:_LARGEST_BODY])


def trouble(error: Exception, timeout: float) -> str:
    """A failed request, in words. timeout: seconds that it had."""
    import httpx2

    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return f"no response within {timeout:g} seconds"
    return f"the connection failed ({type(error).__name__}: {error})" if str(error) else type(error).__name__


def lasting(error: Exception, reached: bool) -> bool:
    """Whether an error will be the same next time. A server that has answered before may be back soon; where none has
    ever listened, the address is wrong.
    """
    import httpx2

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return cause.errno != socket.EAI_AGAIN
    senseless = (httpx2.UnsupportedProtocol, httpx2.InvalidURL, ssl.SSLCertVerificationError)
    return any(isinstance(cause, senseless) for cause in causes) or (
        isinstance(error, httpx2.ConnectError) and not reached
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    within = error.exceptions if isinstance(error, BaseExceptionGroup) else (error.__cause__ or error.__context__,)
    for part in within:
        if part is not None:
            yield from _causes(part)


def retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks for, given as a number or a date; 0 for anything else."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


class _Part(BaseModel):
    text: str = ""


class _Message(BaseModel):
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        """Content may be a list of parts, of which those of text count."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Choice(BaseModel):
    message: _Message


class Completion(BaseModel):
    """What counts of a chat completion."""

    choices: list[_Choice] = Field(min_length=1, max_length=1)  # of several, none is the answer to one question
    usage: Any = None


class Usage(BaseModel):
    """The bill of a completion."""

    prompt_tokens: int = Field(ge=0, le=2**53)
    completion_tokens: int = Field(0, ge=0, le=2**53)
