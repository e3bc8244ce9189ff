"""Logging in, and the page of one's own account: API tokens, what is shared, the password."""

from __future__ import annotations

import math
import uuid

from django.contrib import messages
from django.contrib.auth import views as auth_views
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from audioldm_site.accounts import sharing, throttle, tokens
from audioldm_site.accounts.forms import LoginForm, TokenForm
from gpu.errors import Fault


class LoginView(auth_views.LoginView):
    authentication_form = LoginForm

    def form_valid(self, form: LoginForm) -> HttpResponse:
        response = super().form_valid(form)
        throttle.remember_device(response, form.get_user().get_username())
        return response

    def form_invalid(self, form: LoginForm) -> HttpResponse:
        response = super().form_invalid(form)
        if form.wait_s > 0:
            response.status_code = 429
            response.headers["Retry-After"] = str(math.ceil(form.wait_s))
        return response


class PasswordChangeView(auth_views.PasswordChangeView):
    """Ends every other session of the account, as Django does; tokens stay until they are revoked."""

    template_name = "account/password.html"
    success_url = reverse_lazy("account:account")

    def form_valid(self, form) -> HttpResponse:
        messages.success(self.request, "The password is changed, and every other browser is logged out.")
        return super().form_valid(form)


@require_safe
def account(request: HttpRequest) -> HttpResponse:
    return _page(request, TokenForm())


@never_cache
@require_POST
def create_token(request: HttpRequest) -> HttpResponse:
    """Answers with the token itself instead of a redirect: it is shown this once."""
    form = TokenForm(request.POST)
    if form.is_valid():
        try:
            _, text = tokens.create_token(user=request.user, **form.cleaned_data)
        except Fault as fault:
            form.add_error(None, fault.message)
        else:
            return _page(request, TokenForm(), new_token=text)
    return _page(request, form, status=422)


@require_POST
def revoke_token(request: HttpRequest, pk: int) -> HttpResponse:
    token = get_object_or_404(request.user.api_tokens, pk=pk)
    if tokens.revoke(token):
        messages.success(request, f"{token.name} is revoked: it opens nothing any more.")
    return redirect("account:account")


@require_POST
def share_everything(request: HttpRequest) -> HttpResponse:
    everything = request.POST.get("everything") == "on"
    sharing.set_shares_everything(request.user, everything=everything)
    messages.success(request, "Everybody here sees and hears what is yours." if everything else "What is yours is seen by you alone, but for what you share by itself.")
    return redirect("account:account")


@require_POST
def share(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Share one object, or no longer (`share=off`)."""
    owned = sharing.find_owned(request.user, pk)
    if owned is None:
        raise Http404("there is nothing with this id")
    sharing.require_change(request.user, owned)
    try:
        if request.POST.get("share") == "off":
            sharing.unshare(owned)
            messages.success(request, f"{owned} is no longer shared by itself.")
        else:
            sharing.share(owned)
            messages.success(request, f"Everybody here may see and hear {owned}; only you change it.")
    except Fault as fault:
        messages.error(request, fault.message)
    address = request.POST.get("next", "")
    safe = address.startswith("/") and url_has_allowed_host_and_scheme(address, allowed_hosts={request.get_host()}, require_https=request.is_secure())
    return redirect(address if safe else "account:account")


def _page(request: HttpRequest, form: TokenForm, *, new_token: str = "", status: int = 200) -> HttpResponse:
    context = {
        "form": form,
        "new_token": new_token,
        "tokens": request.user.api_tokens.filter(revoked_at=None),
        "shares_everything": sharing.shares_everything(request.user),
        "shared": sharing.shared_by(request.user),
    }
    return render(request, "account/account.html", context, status=status)
