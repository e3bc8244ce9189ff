from django.urls import path

from training_app import comparison_views, views

app_name = "training"
urlpatterns = [
    path("", views.index, name="index"),
    path("new/", views.new, name="new"),
    path("compare/", comparison_views.compare, name="compare"),
    path("compare/curves/", comparison_views.curves, name="compare_curves"),
    path("compare/runs.csv", comparison_views.table, name="compare_csv"),
    path("<uuid:pk>/", views.run, name="run"),
    path("<uuid:pk>/events/", views.events, name="events"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/save/", views.save, name="save"),
    path("<uuid:pk>/sample/", views.sample, name="sample"),
    path("<uuid:pk>/resume/", views.resume, name="resume"),
    path("<uuid:pk>/continue/", views.continue_run, name="continue"),
    path("<uuid:pk>/clone/", views.clone, name="clone"),
    path("<uuid:pk>/edit/", views.edit, name="edit"),
    path("<uuid:pk>/archive/", views.archive, name="archive"),
    path("<uuid:pk>/files/<path:path>", views.file, name="file"),
    path("<uuid:pk>/spectrogram/<path:path>", views.spectrogram, name="spectrogram"),
]
