"""Forms of pages, filled in as a browser would send them: what is disabled or not checked is left out."""

from __future__ import annotations

from html.parser import HTMLParser

Fields = dict[str, list[str]]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Fields] = []
        self._disabled_fieldsets: list[bool] = []
        self._textarea: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.forms.append({})
        elif tag == "fieldset":
            self._disabled_fieldsets.append("disabled" in given)
        elif tag in ("input", "textarea") and self.forms and "disabled" not in given:
            self._begin_field(tag, given)

    def _begin_field(self, tag: str, given: dict[str, str | None]) -> None:
        name = given.get("name")
        chosen = given.get("type") not in ("checkbox", "radio") or "checked" in given
        if name is None or not chosen or any(self._disabled_fieldsets):
            return
        self.forms[-1].setdefault(name, []).append("" if tag == "textarea" else given.get("value") or "")
        self._textarea = name if tag == "textarea" else None

    def handle_endtag(self, tag: str) -> None:
        if tag == "fieldset":
            self._disabled_fieldsets.pop()
        elif tag == "textarea" and self._textarea is not None:
            text = self.forms[-1][self._textarea].pop().removeprefix("\n")  # The first line end belongs to the tag.
            self.forms[-1][self._textarea].append(text)
            self._textarea = None

    def handle_data(self, data: str) -> None:
        if self._textarea is not None:
            self.forms[-1][self._textarea][-1] += data


def form_with(field: str, page: str) -> Fields:
    """What the page's form with this field would send, as it is."""
    reader = _Reader()
    reader.feed(page)
    (found,) = [form for form in reader.forms if field in form]
    return {
        # Browsers send every line end as in DOS.
        name: [value.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n") for value in values]
        for name, values in found.items()
    }
