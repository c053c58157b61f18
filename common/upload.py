"""The body of an upload as blocks of bytes, in bounded memory whatever its size and however it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from db.csv_rows import UnreadableFileError

BLOCK_BYTES = 1024 * 1024
FILE_FIELD = "file"

_READ_BYTES = 64 * 1024
_CHARSETS = {"utf-8", "utf8", "utf-8-sig", "us-ascii"}


class UploadError(Exception):
    """The request itself is refused, whatever the file holds: with this HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def file_blocks(request: Request, max_bytes: int) -> Iterator[bytes]:
    """The file as blocks of about a megabyte; raises UploadError here, and UnreadableFileError too while it is read.

    The form parser of Flask is not asked: it would write the whole file to a temporary directory first.
    """
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)
    # Also for a body that tells no length: the stream itself ends with RequestEntityTooLarge then.
    request.max_content_length = max_bytes
    pieces = _pieces(request, max_bytes)
    if request.mimetype == "text/csv":
        charset = request.mimetype_params.get("charset", "utf-8")
        if charset.lower() not in _CHARSETS:
            raise UploadError(415, f"the charset {charset[:40]} is not accepted: send the file as UTF-8")
        return _joined(pieces)
    boundary = request.mimetype_params.get("boundary", "")
    if request.mimetype == "multipart/form-data" and boundary and boundary.isascii():
        return _joined(_file_part(pieces, boundary.encode()))
    raise UploadError(415, f"send the file as text/csv, or as the field '{FILE_FIELD}' of multipart/form-data")


def _too_large(max_bytes: int) -> UploadError:
    return UploadError(413, f"the file is larger than {max_bytes // 2**20} MB: split it and import the parts")


def _broken_off() -> UploadError:
    return UploadError(400, "the file broke off on the way")


def _pieces(request: Request, max_bytes: int) -> Iterator[bytes]:
    received = 0
    try:
        while piece := request.stream.read(_READ_BYTES):
            received += len(piece)
            yield piece
    except RequestEntityTooLarge:
        raise _too_large(max_bytes) from None
    except (ClientDisconnected, ParseException):  # Of a body in chunks: the last one is missing, or one is damaged.
        raise _broken_off() from None
    # To gunicorn a connection that was cut is the end of the body, whatever length was announced.
    if request.content_length is not None and received < request.content_length:
        raise _broken_off()


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    block = bytearray()
    for piece in pieces:
        block += piece
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _file_part(pieces: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """What the form's field `file` holds; the other fields are passed over."""
    # The limit is on what the decoder keeps while it looks for the end of a part's head.
    decoder = MultipartDecoder(boundary, max_form_memory_size=4 * _READ_BYTES, max_parts=20)
    files = 0
    is_file = False
    for event in _events(decoder, pieces):
        if isinstance(event, Field | File):
            is_file = event.name == FILE_FIELD
            files += is_file
            if files > 1:
                raise UnreadableFileError(f"The form has more than one field '{FILE_FIELD}'.")
        elif is_file and event.data:
            yield event.data
    if not files:
        raise UnreadableFileError(f"The form has no field '{FILE_FIELD}'.")


def _events(decoder: MultipartDecoder, pieces: Iterable[bytes]) -> Iterator[Field | File | Data]:
    for piece in pieces:
        yield from _decoded(decoder, piece)
    yield from _decoded(decoder, None)


def _decoded(decoder: MultipartDecoder, piece: bytes | None) -> Iterator[Field | File | Data]:
    try:
        decoder.receive_data(piece)
        while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
            if isinstance(event, Field | File | Data):
                yield event
    except (ValueError, RequestEntityTooLarge):
        raise UnreadableFileError("The body is not a valid multipart form.") from None
