"""Writing a mailing: with a preview that follows every change, a test, and a last look before it goes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Response, current_app, request

from admin import mailing_values, once
from admin.access import requires
from admin.database import session
from admin.mailing_values import Form
from admin.refusals import explain
from admin.texts import gettext
from admin.versions import refuse_stale
from admin.views.base import Page, argument_id, expose, go, notify, part
from db import rules
from db.models import Mailing, MailingState, Role
from db.queries import mailings, previews, test_sends
from db.refusals import ConflictError, RefusedError

# While somebody types, an estimate in time is better than an exact number too late.
LIVE_PATIENCE_SECONDS = 0.2
LAST_LOOK_PATIENCE_SECONDS = 5.0
READINGS_SHOWN = 5
TAGS_OFFERED = 40


class MailingForm(Page):
    """New, copied and edited mailings."""

    in_menu = False

    def __init__(self) -> None:
        super().__init__("", endpoint="mailing_form", url="/mailings/new")

    @expose("/", methods=("GET", "POST"))
    @requires(Role.OPERATOR)
    def index(self) -> Any:
        """Return the form, the last look, or the page of the mailing that was made."""
        now = datetime.now(UTC)
        if request.method == "GET":
            copied = argument_id("copy")
            if copied is None:
                return self._page(mailing_values.blank(now))
            return self._page(mailing_values.of_mailing(mailings.get(session(), copied), now, is_copy=True))
        form = mailing_values.read(request.form)
        step = request.form.get("step")
        if step == "test":
            return self._test(form, now)
        if step in ("review", "confirm", "save") and not form.errors:
            return self._look_or_make(form, step, now)
        return self._page(form, status=422 if form.errors and step != "back" else 200, show_errors=step != "back")

    @expose("/preview", methods=("POST",))
    @requires(Role.OPERATOR)
    def preview(self) -> Response:
        """Return what the form would do, as it is now."""
        form = mailing_values.read(request.form)
        return self.live(preview=_preview_part(form))

    def _page(self, form: Form, status: int = 200, *, show_errors: bool = True, mailing: Mailing | None = None) -> Any:
        codes, tags = previews.common_marks(session())
        offered = tags[:TAGS_OFFERED]
        # A chosen tag that is not on the page would not come back: nothing cuts these off.
        rare = [tag for tag in form.fields["tags"] if tag not in offered]
        return (
            self.render(
                "mailing_form.html",
                form=form.fields,
                errors=form.errors if show_errors else {},
                refused=status == 409,
                mailing=mailing,
                codes=codes,
                tags=[*rare, *offered],
                preview=_preview_part(form),
                limits=rules,
            ),
            status,
        )

    def _look_or_make(self, form: Form, step: str, now: datetime) -> Any:
        is_draft = form.fields["when"] == mailing_values.DRAFT
        try:
            # Made in any case: only so are all rules asked. What is only looked at is rolled back.
            mailing, _is_new = mailings.create(session(), form.values, now, _key_of_last_look(step))
        except RefusedError as error:
            session.rollback()
            form.errors[mailing_values.field_of(error.field)] = explain(error)
            return self._page(form, 422)
        if is_draft or step == "confirm":
            session.commit()
            notify(_became(mailing.state, mailing.starts_at, now))
            return go("mailing.show", mailing_id=mailing.id)
        session.rollback()
        found = previews.preview(
            session(), form.values["text"], form.operator_codes, form.tags, 1, LAST_LOOK_PATIENCE_SECONDS
        )
        return self.render("last_look.html", form=form.fields, values=form.values, preview=found, now=now)

    def _test(self, form: Form, now: datetime, mailing: Mailing | None = None) -> Any:
        """Send the text, filled in for the first of the recipients, to one number."""
        if "text" in form.errors:
            return self._page(Form(form.fields, {"text": form.errors["text"]}, form.values), 422, mailing=mailing)
        text = form.values["text"]
        for client in previews.sample(session(), form.operator_codes, form.tags, 1):
            text = previews.read(text, client).text or text
        name = gettext("Test: %(name)s", name=form.fields["name"] or gettext("no name"))[: rules.NAME_LENGTH]
        zone = current_app.config["DEFAULT_TIMEZONE"]
        try:
            test = test_sends.create(session(), name, text, form.fields["phone"], zone, now)
        except RefusedError as error:
            session.rollback()
            errors = {mailing_values.field_of(error.field): explain(error)}
            return self._page(Form(form.fields, errors, form.values), 422, mailing=mailing)
        session.commit()
        form.errors.clear()
        form.fields["test_id"] = test.id
        return self._page(form, mailing=mailing)

    @expose("/<id:mailing_id>/", methods=("GET", "POST"))
    @requires(Role.OPERATOR)
    def edit(self, mailing_id: int) -> Any:
        """Return the form of a mailing that exists, and save it."""
        mailing = mailings.get(session(), mailing_id)
        now = datetime.now(UTC)
        if request.method == "GET" or mailing.is_test:
            return self._page(mailing_values.of_mailing(mailing, now), mailing=mailing)
        form = mailing_values.read(mailing_values.with_absent(request.form, mailing, now), mailing)
        if request.form.get("step") == "test":
            return self._test(form, now, mailing)
        if form.errors:
            return self._page(form, 422, mailing=mailing)
        values = {name: value for name, value in form.values.items() if name != "state"}
        try:
            refuse_stale(mailings.lock(session(), mailing_id), mailing_values.COLUMNS, values)
            mailings.edit(session(), mailing_id, values, now)
        except RefusedError as error:
            session.rollback()
            form.errors[mailing_values.field_of(error.field)] = explain(error)
            return self._page(form, 409 if isinstance(error, ConflictError) else 422, mailing=mailing)
        session.commit()
        notify(gettext("Your changes are saved."))
        return go("mailing.show", mailing_id=mailing_id)


def _became(state: MailingState, starts_at: datetime, now: datetime) -> str:
    """What to say of a mailing that was just made."""
    if state is MailingState.DRAFT:
        return gettext("The draft is saved.")
    return gettext("The mailing is scheduled.") if starts_at > now else gettext("The mailing is on its way.")


def _key_of_last_look(step: str) -> str | None:
    """The same for every click on one page's button: a second one, or one after going back, must not send again."""
    token = once.given_token()
    return f"last look {token}" if step == "confirm" and token is not None else None


def _preview_part(form: Form) -> str:
    text = form.fields["text"]
    if is_unread := not {"operator_codes", "tags"}.isdisjoint(form.errors):
        found = previews.of_text(text)
    else:
        found = previews.preview(session(), text, form.operator_codes, form.tags, READINGS_SHOWN, LIVE_PATIENCE_SECONDS)
    return part("preview", preview=found, text=text, is_unread=is_unread)
