"""Envelopes: fixed ids, names of any script, and nothing that adds a header."""

from __future__ import annotations

from email import message_from_bytes, policy

import pytest
from environs import EnvError

from common.settings import mail_addresses
from reporter.letter import Letter
from reporter.mail import message_id, new_message_id, write

SENDER = "Рассылки <mailings@example.com>"
LETTER = Letter("22 нояб.: отправлено 5", "<p>да</p>", "да\n", ("mailings-2026-11-22.csv", "\ufeffимя\r\n".encode()))


def test_a_mail_has_three_parts_and_survives_the_way() -> None:
    sent = write(LETTER, SENDER, '"Иванова, Анна" <anna@example.com>', "<1@example.com>").as_bytes()

    got = message_from_bytes(sent, policy=policy.default)
    assert got["Subject"] == LETTER.subject
    assert got["From"].addresses[0].display_name == "Рассылки"
    assert got["To"].addresses[0].display_name == "Иванова, Анна"
    assert got["To"].addresses[0].addr_spec == "anna@example.com"
    assert got["Auto-Submitted"] == "auto-generated"
    text, html = got.get_body(("plain",)), got.get_body(("html",))
    assert text is not None
    assert html is not None
    assert text.get_content().strip() == "да"
    assert html.get_content().strip() == "<p>да</p>"
    (attached,) = got.iter_attachments()
    assert attached.get_filename() == "mailings-2026-11-22.csv"
    assert attached.get_content() == "\ufeffимя\r\n"
    assert all(byte < 128 for byte in sent)


def test_a_repeat_has_the_same_id_and_nothing_else_has() -> None:
    keys = [
        ("daily", "2026-11-22", "anna@example.com"),
        ("daily", "2026-11-21", "anna@example.com"),
        ("weekly", "2026-11-22", "anna@example.com"),
        ("daily", "2026-11-22", "ben@example.com"),
        ("alert:gateway_open", "2026-11-22T05", "anna@example.com"),
    ]

    ids = [message_id(SENDER, *key) for key in keys]

    assert len(set(ids)) == len(keys)
    assert [message_id(SENDER, *key) for key in keys] == ids
    assert all(":" not in found and found.endswith("@example.com>") for found in ids)
    assert new_message_id(SENDER) != new_message_id(SENDER)


@pytest.mark.parametrize("subject", ["a\nBcc: eve@example.com", "a\r\nX: y"])
def test_a_header_cannot_be_smuggled_in(subject: str) -> None:
    with pytest.raises(ValueError, match=r"linefeed|carriage return"):
        write(Letter(subject, "", ""), SENDER, "anna@example.com", "<1@example.com>")


def test_a_domain_in_another_script_is_written_as_dns_has_it() -> None:
    sent = write(LETTER, SENDER, "anna@пример.рф", "<1@example.com>").as_bytes()

    assert b"To: anna@xn--e1afmkfd.xn--p1ai" in sent


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ()),
        ("a@b.c", ("a@b.c",)),
        (
            ' "Smith, Ben" <ben@example.com>,Анна Ф. <anna@example.com> ,',
            ('"Smith, Ben" <ben@example.com>', "Анна Ф. <anna@example.com>"),
        ),
        ("a@b.c, A <A@b.c>", ("a@b.c",)),
        ("анна@пример.рф", ("анна@пример.рф",)),
    ],
)
def test_recipients_are_split_as_people_write_them(given: str, expected: tuple[str, ...]) -> None:
    assert mail_addresses(given) == expected


@pytest.mark.parametrize(
    "given", ["nobody", "a@", "@b.c", "a b@c.d", "a@b.c; b@c.d", "a@b.c\nBcc: x@y.z", "A <a@b.c", "a@b@c.d"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(EnvError, match="separated by commas"):
        mail_addresses(given)
