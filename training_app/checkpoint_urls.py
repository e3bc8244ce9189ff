from django.urls import path

from training_app import views

app_name = "checkpoints"
urlpatterns = [
    path("", views.checkpoints, name="index"),
    path("scan/", views.scan, name="scan"),
    path("<uuid:pk>/", views.checkpoint, name="checkpoint"),
    path("<uuid:pk>/download/", views.download, name="download"),
    path("<uuid:pk>/pin/", views.pin, name="pin"),
    path("<uuid:pk>/verify/", views.verify, name="verify"),
]
