from django.urls import path

from audioldm_site.uploads import views

app_name = "uploads"
urlpatterns = [
    path("", views.uploads, name="uploads"),
    path("<uuid:pk>/", views.upload, name="upload"),
    path("<uuid:pk>/discard/", views.discard, name="discard"),
]
