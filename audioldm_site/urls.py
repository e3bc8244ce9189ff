from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import include, path

from audioldm_site import first_run, health, views

admin.site.site_header = admin.site.site_title = "AudioLDM studio: administration"

urlpatterns = [
    path("", views.home, name="home"),
    path("datasets/", include("datasets_app.urls")),
    path("training/", include("training_app.urls")),
    path("checkpoints/", include("training_app.checkpoint_urls")),
    path("generation/", include("generation_app.urls")),
    path("login/", auth_views.LoginView.as_view(), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("setup/<str:token>/", first_run.setup, name="setup"),
    path("health/live", health.live, name="health_live"),
    path("health/ready", health.ready, name="health_ready"),
    path("admin/", admin.site.urls),
]
