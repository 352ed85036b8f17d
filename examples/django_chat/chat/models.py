"""The messages of the chat."""

from django.conf import settings
from django.db import models


class Message(models.Model):
    """Something that a user has said."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    text = models.CharField(max_length=1_000)
    time = models.DateTimeField(auto_now_add=True)

    def as_dict(self) -> dict[str, object]:
        """As the page gets it; the user has to be loaded."""
        return {
            "id": self.pk,
            "user": self.user.username,
            "text": self.text,
            "time": self.time.isoformat(),
        }
