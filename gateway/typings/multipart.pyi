"""What the gateway uses of the package multipart.

Where MCP's package is installed, type checkers find python-multipart instead, which hands on to this module.
"""

from collections.abc import Iterator
from typing import Literal

class MultipartError(ValueError): ...

class MultipartSegment:
    name: str | None
    filename: str | None

class PushMultipartParser:
    def __init__(self, boundary: str | bytes, *, max_segment_count: int = ...) -> None: ...
    def parse(self, chunk: bytes | bytearray) -> Iterator[MultipartSegment | bytearray | None]: ...
    def close(self, check_complete: bool = ...) -> Literal[True]: ...

def parse_options_header(header: str) -> tuple[str, dict[str, str]]: ...
