"""A bundle behind HTTP: ``create_app`` makes the application, ``serve`` runs it."""
