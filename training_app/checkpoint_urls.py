from django.urls import path

from training_app import conversion_views, views

app_name = "checkpoints"
urlpatterns = [
    path("", views.checkpoints, name="index"),
    path("scan/", views.scan, name="scan"),
    path("import/", conversion_views.bring_in, name="import"),
    path("import/upload/", conversion_views.upload, name="upload"),
    path("import/hub/", conversion_views.hub, name="hub"),
    path("import/choose/", conversion_views.choose, name="choose"),
    path("conversions/", conversion_views.conversion_list, name="conversions"),
    path("conversions/<uuid:pk>/", conversion_views.conversion, name="conversion"),
    path("conversions/<uuid:pk>/events/", conversion_views.events, name="conversion_events"),
    path("conversions/<uuid:pk>/stop/", conversion_views.stop, name="conversion_stop"),
    path("conversions/<uuid:pk>/retry/", conversion_views.retry, name="conversion_retry"),
    path("conversions/<uuid:pk>/delete/", conversion_views.delete, name="conversion_delete"),
    path("conversions/<uuid:pk>/file/", conversion_views.file, name="conversion_file"),
    path("<uuid:pk>/", views.checkpoint, name="checkpoint"),
    path("<uuid:pk>/download/", views.download, name="download"),
    path("<uuid:pk>/export/", conversion_views.export, name="export"),
    path("<uuid:pk>/pin/", views.pin, name="pin"),
    path("<uuid:pk>/verify/", views.verify, name="verify"),
]
