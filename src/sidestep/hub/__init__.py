"""Trained networks as packages: written, read with distrust, to and from the Hugging Face hub."""
