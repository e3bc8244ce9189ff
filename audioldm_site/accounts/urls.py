from django.urls import path

from audioldm_site.accounts import views

app_name = "account"
urlpatterns = [
    path("", views.account, name="account"),
    path("password/", views.PasswordChangeView.as_view(), name="password"),
    path("tokens/", views.create_token, name="create_token"),
    path("tokens/<int:pk>/revoke/", views.revoke_token, name="revoke_token"),
    path("sharing/", views.share_everything, name="share_everything"),
    path("share/<uuid:pk>/", views.share, name="share"),
]
