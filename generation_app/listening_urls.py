from django.urls import path

from generation_app import listening_views as views

app_name = "listening"
urlpatterns = [
    path("", views.index, name="index"),
    path("new/", views.new, name="new"),
    path("<uuid:pk>/", views.listening, name="listening"),
    path("<uuid:pk>/events/", views.events, name="events"),
    path("<uuid:pk>/answer/", views.answer, name="answer"),
    path("<uuid:pk>/finish/", views.finish, name="finish"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/retry/", views.retry, name="retry"),
    path("<uuid:pk>/delete/", views.delete, name="delete"),
    path("<uuid:pk>/sounds/<int:number>/<str:side>.wav", views.sound, name="sound"),
    path("<uuid:pk>/revealed/<int:pair>-<int:subject>.wav", views.revealed, name="revealed"),
]
