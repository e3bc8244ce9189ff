from django.urls import path

from generation_app import evaluation_views as views

app_name = "evaluation"
urlpatterns = [
    path("", views.index, name="index"),
    path("new/", views.new, name="new"),
    path("<uuid:pk>/", views.evaluation, name="evaluation"),
    path("<uuid:pk>/events/", views.events, name="events"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/retry/", views.retry, name="retry"),
    path("<uuid:pk>/delete/", views.delete, name="delete"),
    path("<uuid:pk>/report.csv", views.table, name="table"),
    path("<uuid:pk>/files/<path:path>", views.file, name="file"),
    path("<uuid:pk>/spectrogram/<path:path>", views.spectrogram, name="spectrogram"),
]
