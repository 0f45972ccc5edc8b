"""Evaluation of a merged model: predictions per task."""
