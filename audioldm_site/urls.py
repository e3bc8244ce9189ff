from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from django.views.generic import RedirectView

from audioldm_site import first_run, health, views
from audioldm_site.accounts.views import LoginView
from audioldm_site.maintenance import metrics

admin.site.site_header = admin.site.site_title = "AudioLDM studio: administration"

urlpatterns = [
    path("", views.home, name="home"),
    path("datasets/", include("datasets_app.urls")),
    path("training/", include("training_app.urls")),
    path("checkpoints/", include("training_app.checkpoint_urls")),
    path("generation/", include("generation_app.urls")),
    path("evaluation/", include("generation_app.evaluation_urls")),
    path("listening/", include("generation_app.listening_urls")),
    path("account/", include("audioldm_site.accounts.urls")),
    path("uploads/", include("audioldm_site.uploads.urls")),
    path("api/v1/", include("audioldm_site.api.addresses")),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("setup/<str:token>/", first_run.setup, name="setup"),
    path("favicon.ico", views.favicon, name="favicon"),
    path("health/live", health.live, name="health_live"),
    path("health/ready", health.ready, name="health_ready"),
    path("metrics", metrics.metrics, name="metrics"),
    # One way in: throttled, and known to the page of the account.
    path("admin/login/", login_not_required(RedirectView.as_view(pattern_name="login", query_string=True))),
    path("admin/", admin.site.urls),
]
