from django.urls import path

from generation_app import views

app_name = "generation"
urlpatterns = [
    path("", views.index, name="index"),
    path("<uuid:pk>/", views.generation, name="generation"),
    path("<uuid:pk>/events/", views.events, name="events"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/retry/", views.retry, name="retry"),
    path("<uuid:pk>/favourite/", views.favourite, name="favourite"),
    path("<uuid:pk>/delete/", views.delete, name="delete"),
    path("<uuid:pk>/files/<path:path>", views.file, name="file"),
    path("<uuid:pk>/spectrogram/<path:path>", views.spectrogram, name="spectrogram"),
]
