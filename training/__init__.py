"""Corpora, training, evaluation and retraining. Never imports the server or its database."""
