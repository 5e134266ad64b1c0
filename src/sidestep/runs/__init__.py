"""Recipes and run folders: train, evaluate, time, sweep, export, wrap."""
