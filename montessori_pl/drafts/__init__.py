"""Recipes that are written for a user: what their models and files look like, what follows from it, and the text."""
