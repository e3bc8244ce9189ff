from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training_app", "0002_conversion")]

    operations = [
        migrations.AddField(
            model_name="trainingrun",
            name="task",
            field=models.CharField(choices=[("finetune", "fine-tune"), ("pretrain", "pretraining")], default="finetune", max_length=10),
        ),
    ]
