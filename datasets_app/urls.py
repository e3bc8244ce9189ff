from django.urls import path

from datasets_app import views

app_name = "datasets"

urlpatterns = [
    path("", views.index, name="index"),
    path("upload/", views.upload, name="upload"),
    path("scan/", views.scan, name="scan"),
    path("<uuid:pk>/", views.dataset, name="dataset"),
    path("<uuid:pk>/edit/", views.edit, name="edit"),
    path("<uuid:pk>/resplit/", views.resplit, name="resplit"),
    path("<uuid:pk>/delete/", views.delete, name="delete"),
    path("<uuid:pk>/clips/<int:clip_id>/", views.clip, name="clip"),
    path("<uuid:pk>/clips/<int:clip_id>/audio/", views.clip_audio, name="clip_audio"),
]
