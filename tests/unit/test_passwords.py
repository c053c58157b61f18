"""Passwords."""

from __future__ import annotations

from db import passwords


def test_password_is_recognised_and_another_is_not() -> None:
    kept = passwords.digest("correct horse")
    assert kept.startswith("scrypt$15$8$3$")
    assert passwords.verify("correct horse", kept)
    assert not passwords.verify("correct horse ", kept)


def test_same_password_is_kept_differently_each_time() -> None:
    assert passwords.digest("correct horse") != passwords.digest("correct horse")


def test_hash_of_an_earlier_cost_is_still_recognised() -> None:
    # scrypt of "old" with N=2^4, r=1, p=1 and sixteen zero bytes of salt.
    salt, key = "AAAAAAAAAAAAAAAAAAAAAA==", passwords._text(passwords._derive("old", b"\0" * 16, 4, 1, 1))
    assert passwords.verify("old", f"scrypt$4$1$1${salt}${key}")
