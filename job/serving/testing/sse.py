"""Server-sent events, of which an OpenAI stream is made: the data of each, from bytes cut anywhere (HTML 9.2.6)."""

import codecs
import re

_LINE = re.compile(r"\r\n|\n|\r")


class EventStream:
    """The data of events, as soon as each is whole. Comments, and fields other than data, are left out."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._rest = ""  # of a line
        self._data: list[str] = []

    def add(self, content: bytes) -> list[str]:
        """The data of the events that these bytes complete."""
        text = self._rest + self._decode(content)
        # A carriage return at the end may be half of a line's end.
        held, text = ("\r", text[:-1]) if text.endswith("\r") else ("", text)
        *lines, rest = _LINE.split(text)
        self._rest = rest + held
        return [data for line in lines if (data := self._line(line)) is not None]

    def _line(self, line: str) -> str | None:
        """The event's data when the line, an empty one, ends an event that has some."""
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            return None
        data, self._data = self._data, []
        return "\n".join(data) if data else None
